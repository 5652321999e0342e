//! Edits of headers that routes and their destinations ask for, in Envoy's order.
//!
//! **Source**: Envoy `HeaderParser`: what is removed first, then what is set and added. Istio gives the edits of a route
//! and of its only destination as one list, the route's first; with several destinations those of the chosen one come first.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::format::{Values, is_made, made};
use crate::model::l7::{HeaderEdits, Route, RouteAction, Weighted};

/// Edits of one request or one answer, values made and not yet written.
///
/// **Shape**: in two steps, since values are made from the very headers that change.
#[derive(Debug)]
pub struct Edits<'r> {
    /// The first comes first.
    parts: [Option<&'r HeaderEdits>; 2],
    /// Whether both are one list: all that is removed, then all that is set, then all that is added.
    are_one: bool,
    /// Values with substitutions, in the order in which they are met; none: nothing is left of it.
    made: Vec<Option<HeaderValue>>,
}

impl<'r> Edits<'r> {
    /// Those of a request that goes to `backend`.
    pub fn of_request(route: &'r Route, backend: &'r Weighted, values: &Values<'_>) -> Self {
        Self::new(route, (&route.request_headers, Some(&backend.request_headers)), values)
    }

    /// Those of an answer, also of one that is made here once the route is known, denials and failures included.
    pub fn of_response(route: &'r Route, backend: Option<&'r Weighted>, values: &Values<'_>) -> Self {
        Self::new(route, (&route.response_headers, backend.map(|backend| &backend.response_headers)), values)
    }

    fn new(
        route: &Route,
        (of_route, of_backend): (&'r HeaderEdits, Option<&'r HeaderEdits>),
        values: &Values<'_>,
    ) -> Self {
        let are_one = !matches!(&route.action, RouteAction::Forward(backends) if backends.len() > 1);
        let parts = if are_one { [Some(of_route), of_backend] } else { [of_backend, Some(of_route)] };
        let to_make = changes(parts, are_one).filter_map(|change| match change {
            Change::Set(_, value) | Change::Add(_, value) if is_made(value) => Some(value),
            Change::Set(..) | Change::Add(..) | Change::Remove(_) => None,
        });
        let made = to_make.map(|configured| made(configured, values)).collect();
        Self { parts, are_one, made }
    }

    /// Writes them.
    pub fn apply(self, headers: &mut HeaderMap) {
        let mut made = self.made.into_iter();
        let mut value = |configured: &HeaderValue| match is_made(configured) {
            true => made.next().flatten(),
            false => Some(configured.clone()),
        };
        for change in changes(self.parts, self.are_one) {
            match change {
                Change::Remove(name) => while headers.remove(name).is_some() {},
                Change::Set(name, configured) => {
                    if let Some(value) = value(configured) {
                        headers.insert(name, value);
                    }
                }
                Change::Add(name, configured) => {
                    // To add nothing is to add no line, as Envoy has it.
                    if let Some(value) = value(configured).filter(|value| !value.is_empty()) {
                        headers.append(name, value);
                    }
                }
            }
        }
    }
}

enum Change<'r> {
    Remove(&'r HeaderName),
    Set(&'r HeaderName, &'r HeaderValue),
    Add(&'r HeaderName, &'r HeaderValue),
}

/// All changes in the order in which they are made: of each list what it removes, sets, adds.
fn changes<'r>(parts: [Option<&'r HeaderEdits>; 2], are_one: bool) -> impl Iterator<Item = Change<'r>> {
    let [first, second] = parts;
    let lists = if are_one { [[first, second], [None, None]] } else { [[first, None], [second, None]] };
    lists.into_iter().flat_map(|list| {
        let parts = list.into_iter().flatten();
        let removed = parts.clone().flat_map(|part| part.remove.iter().map(Change::Remove));
        let set =
            parts.clone().flat_map(|part| part.set.iter().map(|(name, value)| Change::Set(name, value)));
        let added = parts.flat_map(|part| part.add.iter().map(|(name, value)| Change::Add(name, value)));
        removed.chain(set).chain(added)
    })
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::l7::Flags;
    use crate::l7::fixtures::{Asked, asked, backend, edits, lines, route};

    /// Headers of the request after the edits of a route and of one of its destinations.
    fn edited(request: &Asked, of_route: &[&str], of_backends: &[&[&str]]) -> Vec<String> {
        let with = |lines: &&[&str]| Weighted { request_headers: edits(lines), ..backend("a", 1) };
        let backends: Vec<Weighted> = of_backends.iter().map(with).collect();
        let route = Route { request_headers: edits(of_route), ..route(backends.clone()) };
        let facts = request.facts();
        let values = Values {
            facts: &facts,
            protocol: "HTTP/1.1",
            started: SystemTime::UNIX_EPOCH,
            route: &route.name,
            upstream: None,
            flags: Flags::default(),
            details: "",
            response: None,
        };
        let mut headers = request.headers.clone();
        Edits::of_request(&route, &backends[0], &values).apply(&mut headers);
        lines(&headers)
    }

    /// What Envoy 1.40 sends, configured as istiod does.
    #[test]
    fn a_route_and_its_only_destination_are_one_list() {
        let client = asked("GET /").with("x: c").with("y: c").with("z: c");
        let got = edited(&client, &["-x", "+x: r", "+y: r"], &[&["=y: d", "-z", "+x: d"]]);
        assert_eq!(got, ["x: r", "x: d", "y: d", "y: r"]);
        let got = edited(&client, &["+z: r", "=y: r"], &[&["-z", "=y: d"]]);
        assert_eq!(got, ["x: c", "y: d", "z: r"], "what the route adds is not removed, what it sets is");
    }

    /// What Envoy 1.40 sends with weighted clusters.
    #[test]
    fn one_of_several_destinations_comes_before_its_route() {
        let client = asked("GET /").with("x: c").with("y: c").with("z: c").with("rr: c");
        let of_destination: &[&str] = &["-z", "=x: d", "=y: d", "+rr: d"];
        let got = edited(&client, &["-rr", "+x: r", "=y: r", "+z: r"], &[of_destination, &["=other: 1"]]);
        assert_eq!(got, ["x: d", "x: r", "y: r", "z: r"]);
    }

    #[test]
    fn values_are_made_from_the_headers_as_they_came() {
        let client = asked("GET /").with("x: old").with("gone: g").with("kept: k").with("empty: e");
        let got = edited(
            &client,
            &[
                "-gone",
                "=x: new",
                "=was: %REQ(x)%-%REQ(gone)%",
                "=kept: %REQ(missing)%",
                "=empty: ",
                "+not: %RESP(x)%",
                "+nothing: ",
            ],
            &[&[]],
        );
        assert_eq!(got, ["empty: ", "kept: k", "was: old-g", "x: new"], "a set to nothing is a set");
    }

    #[test]
    fn answers_are_edited_in_the_same_order() {
        let backends = vec![Weighted { response_headers: edits(&["=a: d"]), ..backend("a", 1) }];
        let route =
            Route { response_headers: edits(&["=a: r", "+b: %RESPONSE_CODE%"]), ..route(backends.clone()) };
        let request = asked("GET /");
        let facts = request.facts();
        let answer = HeaderMap::new();
        let response = Some((http::StatusCode::IM_A_TEAPOT, &answer));
        let (protocol, started) = ("HTTP/2", SystemTime::UNIX_EPOCH);
        let values = Values {
            facts: &facts,
            protocol,
            started,
            route: "r",
            upstream: None,
            flags: Flags::default(),
            details: "",
            response,
        };
        let mut headers = HeaderMap::new();
        Edits::of_response(&route, backends.first(), &values).apply(&mut headers);
        assert_eq!(lines(&headers), ["a: d", "b: 418"]);
        let mut headers = HeaderMap::new();
        Edits::of_response(&route, None, &values).apply(&mut headers);
        assert_eq!(lines(&headers), ["a: r", "b: 418"], "made here");
    }
}
