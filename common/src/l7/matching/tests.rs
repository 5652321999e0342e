use super::*;
use crate::l7::fixtures::{Asked, asked, backend, route_for};
use crate::model::l7::Pattern;

fn exact(text: &str) -> TextMatch {
    TextMatch::Exact(text.into())
}

fn prefix(text: &str) -> TextMatch {
    TextMatch::Prefix(text.into())
}

fn regex(text: &str) -> TextMatch {
    TextMatch::Regex(Pattern::new(text).unwrap())
}

fn path(text: TextMatch) -> RequestMatch {
    RequestMatch { path: Some(PathTest::Text { text, ignore_case: false }), ..RequestMatch::default() }
}

fn header(name: &str, value: TextMatch) -> HeaderMatch {
    HeaderMatch { name: name.into(), value }
}

#[track_caller]
fn check(one: &RequestMatch, asked: &Asked, want: bool) {
    assert_eq!(is_match(one, &asked.facts()), want, "{one:?}\n{:?}", asked.facts());
}

#[test]
fn paths_are_compared_without_their_query() {
    let any_case = |text| RequestMatch {
        path: Some(PathTest::Text { text, ignore_case: true }),
        ..RequestMatch::default()
    };
    let segments = |prefix: &str| RequestMatch {
        path: Some(PathTest::Segments(prefix.into())),
        ..RequestMatch::default()
    };
    for (one, matching, other) in [
        (path(exact("/foo")), &["/foo", "/foo?a=b"][..], &["/foo/", "/Foo", "/fo"][..]),
        (path(prefix("/foo")), &["/foo", "/foobar", "/foo/x?y"], &["/fo", "/Foo", "/x/foo"]),
        (path(regex("/a|/b[0-9]")), &["/a", "/b1", "/b1?x=/c"], &["/ab", "/b", "/xa", "/b12"]),
        (any_case(exact("/Foo")), &["/foo", "/FOO"], &["/foo/"]),
        (any_case(prefix("/Foo")), &["/fOObar"], &["/fo"]),
        (any_case(regex("/Foo")), &["/Foo"], &["/foo"]),
        (segments("/abc"), &["/abc", "/abc/", "/abc/d", "/abc?x"], &["/abcd", "/ab", "/x/abc", "/ABC"]),
        (segments("/abc/"), &["/abc", "/abc/"], &["/abcd"]),
        (segments("/"), &["/", "/x", "/?q"], &[]),
    ] {
        matching.iter().for_each(|target| check(&one, &asked(&format!("GET {target}")), true));
        other.iter().for_each(|target| check(&one, &asked(&format!("GET {target}")), false));
    }
}

#[test]
fn each_field_of_a_match_counts() {
    let get = || asked("GET /x");
    let m = RequestMatch::default;
    check(&m(), &get(), true);
    check(&RequestMatch { method: Some(exact("GET")), ..m() }, &get(), true);
    check(&RequestMatch { method: Some(exact("GET")), ..m() }, &asked("POST /x"), false);
    check(&RequestMatch { method: Some(exact("get")), ..m() }, &get(), false);
    check(&RequestMatch { scheme: Some(exact("http")), ..m() }, &get(), true);
    check(&RequestMatch { scheme: Some(exact("https")), ..m() }, &get(), false);
    check(&RequestMatch { authority: Some(exact("svc:8080")), ..m() }, &get().host("svc:8080"), true);
    check(&RequestMatch { authority: Some(exact("svc")), ..m() }, &get().host("svc:8080"), false);
    check(&RequestMatch { port: Some(80), ..m() }, &get(), true);
    check(&RequestMatch { port: Some(81), ..m() }, &get(), false);
    let both = RequestMatch { method: Some(exact("GET")), port: Some(81), ..m() };
    check(&both, &get(), false);
}

#[test]
fn repeated_headers_are_compared_value_by_value() {
    let one = |value| RequestMatch { headers: vec![header("x-user", value)], ..RequestMatch::default() };
    let twice = || asked("GET /").with("x-user: a").with("x-user: b");
    check(&one(exact("a")), &twice(), true);
    check(&one(exact("b")), &twice(), true);
    check(&one(exact("a,b")), &twice(), false);
    check(&one(exact("a,b")), &asked("GET /").with("x-user: a,b"), true);
    check(&one(TextMatch::Present), &asked("GET /").with("x-user:"), true);
    check(&one(TextMatch::Present), &asked("GET /"), false);
    check(&one(regex(".*")), &asked("GET /"), false);
    check(&one(prefix("ab")), &asked("GET /").with("X-User: abc"), true);
}

#[test]
fn headers_of_the_request_line_are_found_by_name() {
    let one = |name, value| RequestMatch { headers: vec![header(name, value)], ..RequestMatch::default() };
    let request = || asked("GET /x?y=1").host("h:80");
    for (name, value, want) in [
        (":authority", "h:80", true),
        ("host", "h:80", true),
        (":method", "GET", true),
        (":path", "/x?y=1", true),
        (":path", "/x", false),
        (":scheme", "http", true),
        (":scheme", "https", false),
    ] {
        check(&one(name, exact(value)), &request(), want);
    }
}

#[test]
fn a_missing_header_is_an_empty_one_to_what_forbids_it() {
    let without =
        |value| RequestMatch { without_headers: vec![header("h", value)], ..RequestMatch::default() };
    for (value, request, want) in [
        (exact("1"), asked("GET /"), true),
        (exact("1"), asked("GET /").with("h: 1"), false),
        (exact("1"), asked("GET /").with("h: 2"), true),
        (exact("1"), asked("GET /").with("h: 2").with("h: 1"), false),
        (regex(".*"), asked("GET /"), false),
        (exact(""), asked("GET /"), false),
        (TextMatch::Present, asked("GET /"), true),
        (TextMatch::Present, asked("GET /").with("h: 1"), false),
    ] {
        check(&without(value), &request, want);
    }
}

#[test]
fn the_first_value_of_a_query_parameter_counts_as_it_was_written() {
    let one = |name: &str, value| RequestMatch {
        query: vec![QueryMatch { name: name.into(), value }],
        ..RequestMatch::default()
    };
    for (name, value, target, want) in [
        ("a", exact("1"), "/?a=1&a=2", true),
        ("a", exact("1"), "/?a=2&a=1", false),
        ("a", exact("x y"), "/?a=x%20y", false),
        ("a b", TextMatch::Present, "/?a+b=1", false),
        ("a", TextMatch::Present, "/?b&a", true),
        ("a", TextMatch::Present, "/?ab=1", false),
        ("a", TextMatch::Present, "/", false),
        ("", TextMatch::Present, "/", false),
        ("a", exact("b=c"), "/?a=b=c", true),
        ("a", exact(""), "/?a=", true),
        ("a", regex("[0-9]+"), "/?a=12", true),
        ("a", prefix("1"), "/?a=21", false),
    ] {
        check(&one(name, value), &asked(&format!("GET {target}")), want);
    }
}

#[test]
fn the_first_route_that_matches_is_taken_and_its_match_is_told() {
    let routes = [
        route_for(vec![path(exact("/a")), path(prefix("/b"))]),
        route_for(vec![path(prefix("/b/c"))]),
        route_for(vec![]),
        route_for(vec![path(prefix("/"))]),
    ];
    for (target, index, by) in [("/a", 0, Some(0)), ("/b/c", 0, Some(1)), ("/c", 2, None), ("/", 2, None)] {
        let request = asked(&format!("GET {target}"));
        let found = find(&routes, &request.facts()).unwrap();
        assert_eq!(found.index, index, "{target}");
        assert!(std::ptr::eq(found.route, &routes[index]));
        assert_eq!(found.by, by.map(|at: usize| &routes[index].matches[at]), "{target}");
    }
    assert!(find(&routes[..2], &asked("GET /c").facts()).is_none());
    assert!(find(&[], &asked("GET /").facts()).is_none());
}

#[test]
fn weights_are_shares() {
    let backends = [backend("a", 90), backend("b", 0), backend("c", 10)];
    let mut shares = [0; 3];
    for random in 0..1000_u64 {
        let picked = pick(&backends, random).unwrap();
        shares[backends.iter().position(|one| one == picked).unwrap()] += 1;
    }
    assert_eq!(shares, [900, 0, 100]);
    assert_eq!(pick(&[backend("a", 0)], 7), Some(&backend("a", 0)), "the weight of a single one is ignored");
    assert_eq!(pick(&[backend("a", 0), backend("b", 0)], 7), None);
    assert_eq!(pick(&[], 7), None);
    let large = [backend("a", u32::MAX), backend("b", u32::MAX)];
    assert_eq!(pick(&large, u64::from(u32::MAX)), Some(&large[1]));
}
