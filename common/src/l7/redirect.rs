//! Where a redirect sends the client: its `Location`.
//!
//! **Source**: Istio `HTTPRedirect`; Gateway API `HTTPRequestRedirectFilter`; Envoy `RedirectAction`.

use std::borrow::Cow;

use super::rewrite::{parts, prefix_replaced, segments_replaced};
use crate::authz::http::{Facts, host_and_port};
use crate::model::l7::{Redirect, RedirectPath, RedirectPort, RequestMatch};
use crate::types::push_number;
use http::StatusCode;

/// The address to go to, whole: scheme, authority, path and query.
///
/// **Shape**: `by` is the match that held, as `find` tells it.
pub fn location(redirect: &Redirect, by: Option<&RequestMatch>, facts: &Facts<'_>) -> String {
    let scheme = redirect.scheme.as_deref().unwrap_or(facts.scheme);
    let (host, port) = authority(redirect, scheme, facts);
    let path = path(&redirect.path, by, facts.target);
    let is_open = matches!(redirect.path, RedirectPath::Full(_)) && !path.starts_with('/');
    let mut location = String::with_capacity(scheme.len() + host.len() + path.len() + 9);
    location.push_str(scheme);
    location.push_str("://");
    location.push_str(host);
    if let Some(port) = port {
        location.push(':');
        push_number(&mut location, port.into());
    }
    // A path that does not say where it begins begins at the root.
    if is_open {
        location.push('/');
    }
    location.push_str(&path);
    location
}

/// Where an answer of a route's own says that its request is to be found, as Envoy has it: of one that created something, or
/// leads elsewhere.
pub(super) fn own_location(status: StatusCode, facts: &Facts<'_>) -> Option<String> {
    let has_one = status == StatusCode::CREATED || status.is_redirection();
    has_one.then(|| format!("{}://{}{}", facts.scheme, facts.authority, facts.target))
}

/// Host, or authority, and the port to write behind it.
fn authority<'a>(redirect: &'a Redirect, scheme: &str, facts: &Facts<'a>) -> (&'a str, Option<u16>) {
    let number = match redirect.port {
        RedirectPort::Number(number) => Some(number),
        RedirectPort::OfRequest => Some(facts.port()),
        RedirectPort::OfScheme => None,
    };
    let asked = redirect.authority.as_deref().unwrap_or(facts.authority);
    let (host, port) = host_and_port(asked);
    match number {
        Some(number) => (host, (default_port(scheme) != Some(number)).then_some(number)),
        // The scheme changes and the port was that of the old one.
        None if redirect.authority.is_none()
            && scheme != facts.scheme
            && port.is_some_and(|port| port.parse().ok() == default_port(facts.scheme)) =>
        {
            (host, None)
        }
        None => (asked, None),
    }
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

fn path<'a>(new: &RedirectPath, by: Option<&RequestMatch>, target: &'a str) -> Cow<'a, str> {
    match new {
        RedirectPath::Same => Cow::Borrowed(target),
        RedirectPath::Full(new) if new.contains('?') => Cow::Owned(new.to_string()),
        RedirectPath::Full(new) => Cow::Owned(format!("{new}{}", parts(target).1)),
        RedirectPath::PrefixText(new) => prefix_replaced(new, by, target),
        RedirectPath::PrefixSegments(new) => segments_replaced(new, by, target),
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::l7::fixtures::asked;
    use crate::model::l7::{PathTest, TextMatch};

    fn to() -> Redirect {
        Redirect {
            status: StatusCode::MOVED_PERMANENTLY,
            scheme: None,
            authority: None,
            port: RedirectPort::OfScheme,
            path: RedirectPath::Same,
        }
    }

    #[track_caller]
    fn check(to: &Redirect, host: &str, target: &str, want: &str) {
        let request = asked(&format!("GET {target}")).host(host);
        assert_eq!(location(to, None, &request.facts()), want, "{to:?} {host} {target}");
    }

    #[test]
    fn what_is_not_said_stays() {
        check(&to(), "svc", "/a?q", "http://svc/a?q");
        check(&to(), "svc:8080", "/a", "http://svc:8080/a");
        check(&to(), "svc:80", "/a", "http://svc:80/a");
        let https = Redirect { scheme: Some("https".into()), ..to() };
        check(&https, "svc:80", "/a", "https://svc/a");
        check(&https, "svc:8080", "/a", "https://svc:8080/a");
        check(&https, "[2001:db8::1]:80", "/", "https://[2001:db8::1]/");
        let host = Redirect { authority: Some("other:81".into()), ..to() };
        check(&host, "svc:8080", "/a", "http://other:81/a");
        let both = Redirect { scheme: Some("https".into()), ..host };
        check(&both, "svc", "/a", "https://other:81/a");
    }

    #[test]
    fn a_path_begins_at_the_root() {
        let full = |path: &str| Redirect { path: RedirectPath::Full(path.into()), ..to() };
        check(&full("/x"), "svc", "/a?q", "http://svc/x?q");
        check(&full("x"), "svc", "/a?q", "http://svc/x?q");
    }

    #[test]
    fn answers_of_a_route_say_where_the_request_is() {
        let request = asked("GET /a?q").host("svc");
        for (status, want) in
            [(200, None), (201, Some("http://svc/a?q")), (302, Some("http://svc/a?q")), (404, None)]
        {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(own_location(status, &request.facts()).as_deref(), want, "{status}");
        }
    }

    #[test]
    fn a_port_that_is_said_wins_and_a_default_one_is_not_written() {
        let port = |port| Redirect { port, ..to() };
        check(&port(RedirectPort::Number(8083)), "svc", "/", "http://svc:8083/");
        check(&port(RedirectPort::Number(8083)), "svc:1", "/", "http://svc:8083/");
        check(&port(RedirectPort::Number(80)), "svc:8080", "/", "http://svc/");
        check(&port(RedirectPort::Number(443)), "svc:8080", "/", "http://svc:443/");
        check(&port(RedirectPort::Number(81)), "[2001:db8::1]", "/", "http://[2001:db8::1]:81/");
        let https = |port| Redirect { scheme: Some("https".into()), port, ..to() };
        check(&https(RedirectPort::Number(443)), "svc:8080", "/", "https://svc/");
        check(&https(RedirectPort::Number(80)), "svc", "/", "https://svc:80/");
        check(&port(RedirectPort::OfRequest), "svc:8080", "/", "http://svc/");
        let mut request = asked("GET /");
        request.destination.set_port(9080);
        assert_eq!(location(&port(RedirectPort::OfRequest), None, &request.facts()), "http://svc:9080/");
    }

    #[test]
    fn paths_are_replaced_whole_or_by_prefix() {
        let path = |path| Redirect { path, ..to() };
        check(&path(RedirectPath::Full("/new".into())), "h", "/a?q", "http://h/new?q");
        check(&path(RedirectPath::Full("/new?b=1".into())), "h", "/a?q", "http://h/new?b=1");
        let segments = RequestMatch { path: Some(PathTest::Segments("/".into())), ..RequestMatch::default() };
        let text = TextMatch::Prefix("/a".into());
        let text = RequestMatch {
            path: Some(PathTest::Text { text, ignore_case: false }),
            ..RequestMatch::default()
        };
        for (new, by, target, want) in [
            (RedirectPath::PrefixText("/x".into()), &text, "/ab?q", "http://svc/xb?q"),
            (RedirectPath::PrefixSegments("/".into()), &segments, "/x", "http://svc/x"),
            (RedirectPath::PrefixSegments("/y/".into()), &segments, "/x?q", "http://svc/y/x?q"),
        ] {
            let request = asked(&format!("GET {target}"));
            assert_eq!(location(&path(new), Some(by), &request.facts()), want);
        }
    }
}
