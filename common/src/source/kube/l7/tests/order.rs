//! Laws of order and of weights.

use proptest::prelude::*;

use super::*;
use crate::model::l7::{PathTest, RequestMatch, TextMatch};
use crate::source::kube::l7::gateway_attach::Rank;

/// Something that an HTTPRoute can match, in YAML.
fn any_match() -> impl Strategy<Value = String> {
    let path = prop_oneof![
        Just(String::new()),
        "[ab]{1,3}".prop_map(|p| format!("path: {{type: Exact, value: /{p}}}, ")),
        "[ab]{0,3}".prop_map(|p| format!("path: {{type: PathPrefix, value: /{p}}}, ")),
        "[ab]{1,3}".prop_map(|p| format!("path: {{type: RegularExpression, value: /{p}}}, ")),
    ];
    let method = prop_oneof![Just(""), Just("method: GET, ")];
    (path, method, 0..3usize, 0..3usize).prop_map(|(path, method, headers, query)| {
        let list = |count: usize| {
            (0..count).map(|i| format!("{{name: n{i}, value: v}}")).collect::<Vec<_>>().join(", ")
        };
        format!("{{{path}{method}headers: [{}], queryParams: [{}]}}", list(headers), list(query))
    })
}

fn route(name: &str, created: u8, matches: &[String]) -> String {
    let spec = format!(
        "parentRefs: [{{group: '', kind: Service, name: cart}}], \
         rules: [{{backendRefs: [{{name: cart, port: 80}}], matches: [{}]}}]",
        matches.join(", ")
    );
    object(
        "HTTPRoute",
        "shop",
        &format!("name: {name}, creationTimestamp: '2026-01-0{created}T00:00:00Z'"),
        &spec,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The order does not depend on that of the files, and says for each pair what the specification says.
    #[test]
    fn precedence_is_a_total_order(
        a in prop::collection::vec(any_match(), 1..4),
        b in prop::collection::vec(any_match(), 1..4),
        ages in (1..4u8, 1..4u8),
    ) {
        let (first, second) = (route("a", ages.0, &a), route("b", ages.1, &b));
        let one = http(&translated(&[&*first, &*second].concat()), "cart", 80);
        let other = http(&translated(&[second, first].concat()), "cart", 80);
        prop_assert_eq!(&one, &other);
        prop_assert_eq!(one.len(), a.len() + b.len());
        let weight = |route: &Route| {
            let test = &route.matches[0];
            let path = match test.path.as_ref().unwrap() {
                PathTest::Text { text: TextMatch::Exact(path), .. } => (3, path.len()),
                PathTest::Segments(prefix) => (2, prefix.len().max(1)),
                PathTest::Text { text: TextMatch::Regex(pattern), .. } => (1, pattern.as_str().len()),
                PathTest::Text { .. } => unreachable!(),
            };
            (path, test.method.is_some(), test.headers.len(), test.query.len())
        };
        for pair in one.windows(2) {
            prop_assert!(weight(&pair[0]) >= weight(&pair[1]));
            if weight(&pair[0]) == weight(&pair[1]) {
                let age = |route: &Route| if &*route.origin.name == "a" { (ages.0, "a") } else { (ages.1, "b") };
                prop_assert!(age(&pair[0]) <= age(&pair[1]));
            }
        }
    }

    /// Destinations keep their weights, whatever they come to.
    #[test]
    fn weights_are_kept(weights in prop::collection::vec(0..200u32, 2..6)) {
        let to: Vec<String> =
            weights.iter().map(|w| format!("{{destination: {{host: cart}}, weight: {w}}}")).collect();
        let routes = http(&translated(&virtual_service(&format!("{{route: [{}]}}", to.join(", ")))), "cart", 80);
        let RouteAction::Forward(all) = &routes[0].action else { panic!() };
        let kept: Vec<u32> = all.iter().map(|weighted| weighted.weight).collect();
        prop_assert_eq!(kept, weights);
    }

    /// Whatever a file says is a model or a list of problems, never a panic.
    #[test]
    fn any_text_is_read_or_refused(kind in prop_oneof![
        Just("VirtualService"), Just("DestinationRule"), Just("HTTPRoute"), Just("GRPCRoute")
    ], spec in "[a-z0-9:{}\\[\\], '*/.-]{0,80}") {
        drop(result(&object(kind, "shop", "name: x", &spec)));
    }
}

/// The ranks of two matches are never equal: not even within one rule.
#[test]
fn ranks_differ() {
    let report = Report::default();
    let text = route("r", 1, &["{}".into(), "{}".into()]);
    let document = [Document { file: "a.yaml", text: &text }];
    let objects = object::read(&document, Reader::Waypoint, &report);
    let of = &objects.l7.kinds.gateway_routes[0];
    let test = RequestMatch::default();
    assert!(Rank::of(of, 0, 0, &test) < Rank::of(of, 0, 1, &test));
    assert!(Rank::of(of, 0, 1, &test) < Rank::of(of, 1, 0, &test));
}
