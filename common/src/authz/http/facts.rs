//! What is known of one request, or of one TCP connection, at a waypoint.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use ::http::{HeaderMap, Method};

use crate::types::SpiffeId;

/// The connection that a request, or a TCP stream, came on.
#[derive(Clone, Copy, Debug)]
pub struct Connection<'a> {
    /// Identity that TLS proved.
    pub peer: Option<&'a SpiffeId>,
    /// Peer of the tunnel.
    pub source: SocketAddr,
    /// The client that a trusted hop before the peer names; else the peer's own address.
    pub remote: IpAddr,
    /// What the tunnel was opened to; its port is the service's.
    pub destination: SocketAddr,
    /// Server name that a TLS client inside the tunnel asks for.
    pub server_name: Option<&'a str>,
}

/// One HTTP request, once its path is made plain.
///
/// **Shape**: made once and copied freely; all of it is borrowed.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Its connection.
    pub connection: Connection<'a>,
    /// Its method.
    pub method: &'a Method,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// Host header or `:authority`, as the client wrote it.
    pub authority: &'a str,
    /// Path and query, as `l7::normalize` gives them; it begins with `/`.
    pub target: &'a str,
    /// Its headers, without those that are read from the request line.
    pub headers: &'a HeaderMap,
}

impl<'a> Facts<'a> {
    /// The path without its query.
    pub fn path(&self) -> &'a str {
        self.target.split_once('?').map_or(self.target, |(path, _)| path)
    }

    /// The query without its `?`; empty if there is none.
    pub fn query(&self) -> &'a str {
        self.target.split_once('?').map_or("", |(_, query)| query)
    }

    /// Port of the service that was asked for.
    pub fn port(&self) -> u16 {
        self.connection.destination.port()
    }

    /// All values of a header in their order; the names of what the request line says, and `host`, are understood too.
    ///
    /// **Shape**: `name` is in lower case.
    pub fn values(&self, name: &str) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let line = match name {
            ":authority" | "host" => Some(self.authority),
            ":method" => Some(self.method.as_str()),
            ":path" => Some(self.target),
            ":scheme" => Some(self.scheme),
            _ => None,
        };
        let listed = line.is_none().then(|| self.headers.get_all(name).into_iter());
        let listed = listed.into_iter().flatten().map(|value| value.as_bytes());
        line.map(str::as_bytes).into_iter().chain(listed)
    }

    /// All values of a header joined with commas, as one that has only one is; none if it is not there.
    pub fn joined(&self, name: &str) -> Option<Cow<'a, [u8]>> {
        let mut values = self.values(name);
        let first = values.next()?;
        let Some(second) = values.next() else { return Some(Cow::Borrowed(first)) };
        let mut all = first.to_vec();
        for value in std::iter::once(second).chain(values) {
            all.push(b',');
            all.extend_from_slice(value);
        }
        Some(Cow::Owned(all))
    }

    /// First value of a query parameter, as it was written; without a `=` it is empty.
    pub fn query_parameter(&self, name: &str) -> Option<&'a str> {
        let named = |pair: &'a str| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key == name).then_some(value)
        };
        let query = self.query();
        if query.is_empty() { None } else { query.split('&').find_map(named) }
    }

    /// Whether it is a gRPC call: its content type is `application/grpc`, or `application/grpc+` something.
    pub fn is_grpc(&self) -> bool {
        const GRPC: &[u8] = b"application/grpc";
        let of =
            |value: &'a [u8]| value.strip_prefix(GRPC).is_some_and(|rest| matches!(rest, [] | [b'+', ..]));
        self.values("content-type").next().is_some_and(of)
    }
}

/// An authority without its port, and the port if it has one.
pub(crate) fn host_and_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        // A colon within brackets is no port's.
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        Some(_) | None => (authority, None),
    }
}
