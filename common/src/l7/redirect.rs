//! Where a redirect sends the client: its `Location`.
//!
//! **Source**: Istio `HTTPRedirect`; Gateway API `HTTPRequestRedirectFilter`; Envoy `RedirectAction`.

use std::borrow::Cow;

use super::rewrite::{parts, prefix_replaced, segments_replaced};
use crate::authz::http::Facts;
use crate::model::l7::{Redirect, RedirectPath, RedirectPort, RequestMatch};
use crate::types::push_number;

/// The address to go to, whole: scheme, authority, path and query.
///
/// **Shape**: `by` is the match that held, as `find` tells it.
pub fn location(redirect: &Redirect, by: Option<&RequestMatch>, facts: &Facts<'_>) -> String {
    let scheme = redirect.scheme.as_deref().unwrap_or(facts.scheme);
    let (host, port) = authority(redirect, scheme, facts);
    let path = path(&redirect.path, by, facts.target);
    let mut location = String::with_capacity(scheme.len() + host.len() + path.len() + 9);
    location.push_str(scheme);
    location.push_str("://");
    location.push_str(host);
    if let Some(port) = port {
        location.push(':');
        push_number(&mut location, port.into());
    }
    location.push_str(&path);
    location
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

/// Authority without its port, and the port if it has one.
pub(crate) fn host_and_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        // A colon within brackets is no port's.
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        Some(_) | None => (authority, None),
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
