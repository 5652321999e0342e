//! Asks a running agent over its admin port.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::time::Duration;

use anyhow::Context as _;
use culvert::lab::http;
use culvert_common::admin::RefusalPage;
use culvert_common::decide::explain::Explanation;
use culvert_common::l7::explain::HttpExplanation;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::request::Unmet;

/// Limit of each step of a request.
const LIMIT: Duration = Duration::from_secs(5);

/// Port of the admin pages, where none is named.
const PORT: u16 = 15000;

/// `127.0.0.1:15000`, `localhost:15000`, or without the port.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, PORT));
    }
    if text.is_empty() {
        return Err(format!("write an address such as 127.0.0.1:{PORT}"));
    }
    let named = if text.contains(':') { text.to_owned() } else { format!("{text}:{PORT}") };
    let found = named
        .to_socket_addrs()
        .map_err(|error| format!("{error}; write an address such as 127.0.0.1:{PORT}"))?;
    // An agent listens on both families, IPv4 in any case.
    let all: Vec<SocketAddr> = found.collect();
    let best = all.iter().find(|addr| addr.is_ipv4()).or(all.first());
    best.copied().ok_or_else(|| format!("the name has no address; write one such as 127.0.0.1:{PORT}"))
}

/// What the agent's own state says of the pair.
///
/// **Errors:** no agent, or it does not understand the question; says why.
pub(super) fn explain(agent: SocketAddr, source: &str, destination: &str) -> anyhow::Result<Explanation> {
    let (source, destination) = (encode(source), encode(destination));
    ask(agent, &format!("/culvert/why?source={source}&destination={destination}"))
}

/// What a running waypoint does with a request; the query says which.
pub(super) fn request(waypoint: SocketAddr, query: &[(&str, &str)]) -> anyhow::Result<Request> {
    let query: Vec<String> = query.iter().map(|(key, value)| format!("{key}={}", encode(value))).collect();
    ask(waypoint, &format!("/culvert/why/request?{}", query.join("&")))
}

/// What is done with a request.
#[derive(Deserialize)]
pub(super) struct Request {
    /// None: what is dialled is not bound to this waypoint.
    pub(super) http: Option<HttpExplanation>,
    pub(super) conditions: Vec<Unmet>,
}

/// The refusals with this id that the agent remembers.
pub(super) fn refusals(agent: SocketAddr, id: &str) -> anyhow::Result<RefusalPage> {
    ask(agent, &format!("/culvert/denials?id={}", encode(id)))
}

fn ask<T: DeserializeOwned>(agent: SocketAddr, path: &str) -> anyhow::Result<T> {
    let answer = http::get(agent, path, LIMIT).with_context(|| {
        format!("no agent answers at {agent}; is it running on this node, and is this its admin address?")
    })?;
    match answer.status {
        200 => serde_json::from_str(&answer.body)
            .with_context(|| format!("what answers at {agent} is no agent of this version")),
        404 => anyhow::bail!("the agent at {agent} has no such page; is it older than this program?"),
        400 => anyhow::bail!("{}", answer.body.trim_end()),
        status => anyhow::bail!("the agent at {agent} answers {status}: {}", answer.body.trim_end()),
    }
}

/// A value of a query.
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _infallible = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_named_with_or_without_its_port() {
        let v4: SocketAddr = "127.0.0.1:15000".parse().unwrap();
        for text in ["127.0.0.1:15000", "127.0.0.1"] {
            assert_eq!(address(text), Ok(v4), "{text}");
        }
        for text in ["::1", "[::1]", "[::1]:15000"] {
            assert_eq!(address(text), Ok("[::1]:15000".parse().unwrap()), "{text}");
        }
        for text in ["", "127.0.0.1:x", "127.0.0.1:99999", "[::1"] {
            assert!(address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_query_carries_any_text() {
        assert_eq!(encode("shop/web-0"), "shop%2Fweb-0");
        assert_eq!(encode("[fd00::1]:80&x=é"), "%5Bfd00%3A%3A1%5D%3A80%26x%3D%C3%A9");
    }
}
