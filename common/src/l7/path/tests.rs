use proptest::prelude::*;

use super::*;
use Normalization::{Base, DecodeAndMergeSlashes, MergeSlashes};

#[track_caller]
fn check(how: Normalization, target: &[u8], want: &str) {
    let got = normalize(target, how, AboveRoot::Dropped).unwrap();
    assert_eq!(got, want, "{how:?} {}", String::from_utf8_lossy(target));
}

/// What Envoy 1.40 sends on, but for what is said.
#[test]
fn paths_are_made_plain_in_each_mode() {
    for (target, want) in [
        ("/a/./b", "/a/b"),
        ("/a/../b", "/b"),
        ("/../a", "/a"),
        ("/a/..", "/"),
        ("/a/b/..", "/a/"),
        ("/a/.", "/a/"),
        (r"/a\b", "/a/b"),
        ("/%2e%2e/a", "/a"),
        ("/a/%2E/b", "/a/b"),
        ("/%41%2d%5f%7e%2f", "/A-_~%2f"),
        ("/%zz", "/%zz"),
        ("/%2%65", "/%252e"),
        ("/a%2", "/a%2"),
        ("/a//b", "/a//b"),
        ("//a", "//a"),
        ("/a|b\"'^`<>", "/a%7Cb%22'%5E%60%3C%3E"),
        ("/{}[]", "/%7B%7D[]"),
        ("/hö", "/h%C3%B6"),
        ("/a;x", "/a;x"),
        ("/a?x=/../y", "/a?x=/../y"),
        ("/a#f?q", "/a"),
        ("/a?q#f", "/a?q"),
        ("/a/.../b", "/a/.../b"),
        ("/.", "/"),
        ("/..", "/"),
        ("/a..b/..c", "/a..b/..c"),
        ("//..", "/"),
        ("/%5c..", "/%5c.."),
        ("/a%2f../b", "/a%2f../b"),
        ("/%2541", "/%2541"),
        ("/a%20b", "/a%20b"),
        ("/a?%00", "/a?%00"),
        ("/a?b|c", "/a?b|c"),
        ("/a?ö", "/a?%C3%B6"), // Envoy sends bytes there that are no ASCII as they are
    ] {
        check(Base, target.as_bytes(), want);
    }
    for (target, want) in [("/a//b", "/a/b"), ("/a//", "/a/"), ("///a?x=//", "/a?x=//"), ("/a%2fb", "/a%2fb")]
    {
        check(MergeSlashes, target.as_bytes(), want);
    }
    check(MergeSlashes, b"//", "/"); // Envoy leaves this one
    for (target, want) in [
        ("/a%2fb", "/a/b"),
        ("/a%2F%5c..%2fb", "/a/b"),
        ("/a%2f%2e%2e/b", "/b"),
        ("/%2f..", "/"),
        ("/a%252fb", "/a%252fb"),
        ("/%2%66", "/%252f"),
        ("/a/b%5C..%5cc//d?x=//", "/a/c/d?x=//"),
        ("/%2e%2f/x", "/x"),
    ] {
        check(DecodeAndMergeSlashes, target.as_bytes(), want);
    }
    for same in ["/a/../b", r"/a\b", "/%41", "/a//b"] {
        check(Normalization::None, same.as_bytes(), same);
    }
    check(Normalization::None, b"/\xff", "/%FF");
}

#[test]
fn what_is_no_path_is_refused() {
    for (target, want) in [
        ("", BadPath::NotAbsolute),
        ("*", BadPath::NotAbsolute),
        ("a", BadPath::NotAbsolute),
        ("?x", BadPath::NotAbsolute),
        ("#/a", BadPath::NotAbsolute),
        ("/%00", BadPath::Nul),
        ("/a%00b", BadPath::Nul),
        ("/a b", BadPath::Control),
        ("/a\0", BadPath::Control),
        ("/a?\r\nx", BadPath::Control),
        ("/\x7f", BadPath::Control),
    ] {
        for how in [Normalization::None, Base, MergeSlashes, DecodeAndMergeSlashes] {
            assert_eq!(
                normalize(target.as_bytes(), how, AboveRoot::Dropped),
                Err(want),
                "{how:?} {target:?}"
            );
        }
    }
}

#[test]
fn what_climbs_above_the_root_is_refused_where_that_is_wanted() {
    let strict = |target: &'static str| normalize(target.as_bytes(), Base, AboveRoot::Refused);
    for target in ["/..", "/../a", "/a/../../b", "/%2e%2E/", r"/..\a"] {
        assert_eq!(strict(target), Err(BadPath::AboveRoot), "{target}");
    }
    for (target, want) in [("/a/..", "/"), ("/a/../b", "/b"), ("/...", "/...")] {
        assert_eq!(strict(target).unwrap(), want);
    }
}

#[test]
fn what_is_plain_is_not_copied() {
    for target in ["/", "/a/b.c/d-e_f~g?q=%2e&r=|", "/package.Service/Method"] {
        assert!(
            matches!(normalize(target.as_bytes(), Base, AboveRoot::Dropped), Ok(Cow::Borrowed(_))),
            "{target}"
        );
    }
}

proptest! {
    /// Nothing is decoded twice: what is plain stays as it is.
    #[test]
    fn a_second_turn_changes_nothing(
        target in "/([./%a-f2-7\\\\]|%2[eEfF5]|%5[cC]|%25|//){0,12}",
        how in prop::sample::select(vec![Normalization::None, Base, MergeSlashes, DecodeAndMergeSlashes]),
    ) {
        if let Ok(once) = normalize(target.as_bytes(), how, AboveRoot::Dropped) {
            prop_assert!(once.starts_with('/') && once.is_ascii());
            let twice = normalize(once.as_bytes(), how, AboveRoot::Dropped).unwrap();
            prop_assert_eq!(&twice, &once);
            if how != Normalization::None {
                let has_dots = once.split('/').any(|segment| segment == "." || segment == "..");
                prop_assert!(!has_dots && !once.contains('\\') && !once.contains("%2e"), "{}", once);
            }
        }
    }

    #[test]
    fn no_bytes_make_it_panic(target in prop::collection::vec(any::<u8>(), 0..40)) {
        let mut target = target;
        target.insert(0, b'/');
        for how in [Normalization::None, Base, MergeSlashes, DecodeAndMergeSlashes] {
            if let Ok(plain) = normalize(&target, how, AboveRoot::Dropped) {
                prop_assert!(plain.is_ascii());
            }
        }
    }
}
