//! Edits of headers that routes and their destinations ask for, in Envoy's order.
//!
//! **Source**: Envoy `HeaderParser`: what is removed first, then what is set and added. Istio gives the edits of a route
//! and of its only destination as one list, the route's first; with several destinations those of the chosen one come first.

use http::{HeaderMap, HeaderValue};

use super::format::{Values, is_made, made};
use crate::model::l7::{HeaderEdits, Route, RouteAction, Weighted};

/// Edits of one request or one answer, values made and not yet written.
///
/// **Shape**: in two steps, since values are made from the very headers that change.
#[derive(Debug)]
pub struct Edits<'r> {
    /// In the order in which they are written.
    parts: [Option<&'r HeaderEdits>; 2],
    /// Whether the second part's removals come before what the first sets.
    are_one: bool,
    /// Values with substitutions, in the order in which they are met; none: nothing is left of it.
    made: Vec<Option<HeaderValue>>,
}

impl<'r> Edits<'r> {
    /// Those of a request that goes to `backend`.
    pub fn of_request(route: &'r Route, backend: &'r Weighted, values: &Values<'_>) -> Self {
        Self::new(route, (&route.request_headers, Some(&backend.request_headers)), values)
    }

    /// Those of an answer; without a destination it was made here.
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
        let set_or_added = parts.into_iter().flatten().flat_map(|part| part.set.iter().chain(&part.add));
        let made =
            set_or_added.filter(|(_, value)| is_made(value)).map(|(_, value)| made(value, values)).collect();
        Self { parts, are_one, made }
    }

    /// Writes them.
    pub fn apply(self, headers: &mut HeaderMap) {
        let mut made = self.made.into_iter();
        let mut value = |configured: &HeaderValue| match is_made(configured) {
            true => made.next().flatten(),
            false => Some(configured.clone()),
        };
        let removed = |headers: &mut HeaderMap, part: &HeaderEdits| {
            part.remove.iter().for_each(|name| while headers.remove(name).is_some() {});
        };
        if self.are_one {
            self.parts.into_iter().flatten().for_each(|part| removed(headers, part));
        }
        for part in self.parts.into_iter().flatten() {
            if !self.are_one {
                removed(headers, part);
            }
            for (name, configured) in &part.set {
                if let Some(value) = value(configured) {
                    headers.insert(name.clone(), value);
                }
            }
            for (name, configured) in &part.add {
                if let Some(value) = value(configured) {
                    headers.append(name.clone(), value);
                }
            }
        }
    }
}
