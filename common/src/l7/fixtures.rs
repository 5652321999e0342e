//! Requests, routes and destinations that tests write in one line.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::{Connection, Facts};
use crate::model::l7::{
    BackOff, Backend, Balance, Cluster, ClusterKey, ConnectionPool, Fault, HeaderEdits, Origin, Protocol,
    RequestMatch, Retries, RetryOn, Rewrite, Route, RouteAction, Weighted,
};
use crate::types::{ServiceKey, SpiffeId};

/// A request that owns what [`Facts`] borrow.
pub(crate) struct Asked {
    pub(crate) peer: Option<SpiffeId>,
    pub(crate) source: SocketAddr,
    pub(crate) remote: Option<IpAddr>,
    pub(crate) destination: SocketAddr,
    pub(crate) server_name: Option<String>,
    pub(crate) method: Method,
    pub(crate) scheme: String,
    pub(crate) authority: String,
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
}

/// `GET /path`, to `svc` by the pod of service account `client` in namespace `shop`.
pub(crate) fn asked(line: &str) -> Asked {
    let (method, target) = line.split_once(' ').expect("a method and a target");
    Asked {
        peer: Some("spiffe://cluster.local/ns/shop/sa/client".parse().unwrap()),
        source: "10.0.0.1:4000".parse().unwrap(),
        remote: None,
        destination: "10.96.0.1:80".parse().unwrap(),
        server_name: None,
        method: method.parse().unwrap(),
        scheme: "http".into(),
        authority: "svc".into(),
        target: target.into(),
        headers: HeaderMap::new(),
    }
}

impl Asked {
    /// With a header more: `name: value`.
    pub(crate) fn with(mut self, line: &str) -> Self {
        let (name, value) = line.split_once(':').expect("a header line");
        self.headers.append(name.parse::<HeaderName>().unwrap(), value.trim().parse().unwrap());
        self
    }

    /// To another host.
    pub(crate) fn host(mut self, authority: &str) -> Self {
        self.authority = authority.into();
        self
    }

    pub(crate) fn facts(&self) -> Facts<'_> {
        Facts {
            connection: Connection {
                peer: self.peer.as_ref(),
                source: self.source,
                remote: self.remote.unwrap_or(self.source.ip()),
                destination: self.destination,
                server_name: self.server_name.as_deref(),
            },
            method: &self.method,
            scheme: &self.scheme,
            authority: &self.authority,
            target: &self.target,
            headers: &self.headers,
        }
    }
}

/// A route for every request to these destinations.
pub(crate) fn route(backends: Vec<Weighted>) -> Route {
    Route {
        name: "r".into(),
        origin: Origin { kind: "VirtualService", namespace: "shop".into(), name: "vs".into(), rule: 0 },
        matches: Vec::new(),
        action: RouteAction::Forward(backends),
        request_headers: HeaderEdits::default(),
        response_headers: HeaderEdits::default(),
        rewrite: Rewrite::default(),
        timeout: None,
        retries: Retries {
            attempts: 0,
            on: RetryOn::default(),
            per_try_timeout: None,
            back_off: BackOff::AtLeast(std::time::Duration::ZERO),
            ignore_previous_hosts: None,
            remote_localities: false,
        },
        fault: Fault::default(),
        mirrors: Vec::new(),
        cors: None,
    }
}

/// A route for requests that hold one of these.
pub(crate) fn route_for(matches: Vec<RequestMatch>) -> Route {
    Route { matches, ..route(vec![backend("a", 1)]) }
}

/// A destination.
pub(crate) fn backend(subset: &str, weight: u32) -> Weighted {
    let service = ServiceKey { namespace: "shop".into(), hostname: "svc.shop.svc.cluster.local".into() };
    Weighted {
        backend: Backend::Cluster(ClusterKey { service, port: 80, subset: Some(Arc::from(subset)) }),
        weight,
        request_headers: HeaderEdits::default(),
        response_headers: HeaderEdits::default(),
        rewrite: Rewrite::default(),
        mirrors: Vec::new(),
    }
}

/// `+name: value` adds, `=name: value` sets, `-name` removes.
pub(crate) fn edits(lines: &[&str]) -> HeaderEdits {
    let mut edits = HeaderEdits::default();
    for line in lines {
        let (what, line) = line.split_at(1);
        let (name, value) = line.split_once(": ").unwrap_or((line, ""));
        let name: HeaderName = name.parse().unwrap();
        match what {
            "+" => edits.add.push((name, HeaderValue::from_str(value).unwrap())),
            "=" => edits.set.push((name, HeaderValue::from_str(value).unwrap())),
            _ => edits.remove.push(name),
        }
    }
    edits
}

/// Headers as `name: value` lines, sorted by name; values of one name in their order.
pub(crate) fn lines(headers: &HeaderMap) -> Vec<String> {
    let mut all: Vec<(String, String)> = headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all.into_iter().map(|(name, value)| format!("{name}: {value}")).collect()
}

/// A destination as it is without a DestinationRule.
pub(crate) fn cluster() -> Cluster {
    let service = ServiceKey { namespace: "shop".into(), hostname: "svc.shop.svc.cluster.local".into() };
    Cluster {
        key: ClusterKey { service, port: 80, subset: None },
        subset: None,
        protocol: Protocol::Http1,
        balance: Balance::LeastRequest,
        pool: ConnectionPool::default(),
        outliers: None,
        retry_budget: None,
        rule: None,
        refused: None,
    }
}
