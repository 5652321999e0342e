//! What is in force, as JSON for people: services with their routes, destinations with their endpoints, statuses.

use std::collections::BTreeMap;

use culvert_common::admin::dump_certificates;
use culvert_common::l7::breaker::Kind;
use culvert_common::model::l7::{
    AboveRoot, Balance, Bound, BoundPort, Cluster, ClusterKey, ConnectionPool, Keepalive, Normalization,
    Outliers, Protocol, Serves, Upgrade, Waypoint,
};
use culvert_common::model::{Health, Status, TunnelProtocol};
use serde_json::{Value, json};

use super::policies::policies;
use super::routes::{list, object, route, tcp_route, time};
use crate::current::{Current, Live, Node};
use crate::log::cluster_name;
use crate::shared::Shared;

/// What destinations are called.
pub(super) struct Names<'a>(&'a Waypoint);

impl Names<'_> {
    /// As the access log names it.
    pub(super) fn cluster(&self, key: &ClusterKey, kind: &str) -> String {
        cluster_name(self.0, key, kind)
    }

    /// Whether there is one of this name.
    pub(super) fn has(&self, key: &ClusterKey) -> bool {
        self.0.clusters.contains_key(key)
    }
}

/// Everything.
pub(super) fn whole(shared: &Shared) -> Value {
    let current = shared.current();
    let waypoint = &current.waypoint;
    let mut workloads: Vec<&str> = waypoint.workloads.iter().map(|uid| &*uid.0).collect();
    workloads.sort_unstable();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "isLoaded": current.is_loaded,
        "configuration": current.snapshot.completeness.to_string(),
        "gateway": waypoint.gateway.to_string(),
        "identity": waypoint.identity.as_ref().map(ToString::to_string),
        "serves": serves(waypoint.serves),
        "forwardsIdentity": waypoint.forwards_identity,
        "pathNormalization": normalization(waypoint.normalization),
        "pathStrict": waypoint.above_root == AboveRoot::Refused,
        "services": services(waypoint),
        "workloads": workloads,
        "workloadPolicies": policies(&waypoint.policies),
        "clusters": clusters(&current),
        "statuses": statuses(waypoint),
        "certificates": dump_certificates(&shared.certs),
    })
}

/// As `istio.io/waypoint-for` has it.
fn serves(serves: Serves) -> &'static str {
    match serves {
        Serves::Service => "service",
        Serves::Workload => "workload",
        Serves::All => "all",
        Serves::Nothing => "none",
    }
}

/// As MeshConfig has it.
fn normalization(normalization: Normalization) -> &'static str {
    match normalization {
        Normalization::None => "NONE",
        Normalization::Base => "BASE",
        Normalization::MergeSlashes => "MERGE_SLASHES",
        Normalization::DecodeAndMergeSlashes => "DECODE_AND_MERGE_SLASHES",
    }
}

/// What is bound, with what is done on each port.
pub(super) fn services(waypoint: &Waypoint) -> Value {
    let names = Names(waypoint);
    let one = |(key, bound): (&culvert_common::types::ServiceKey, &Bound)| {
        let ports = bound.ports.iter().map(|(number, port)| self::port(*number, port, &names));
        json!({
            "service": format!("{}/{}", key.namespace, key.hostname),
            "ports": ports.collect::<Vec<_>>(),
            "policies": policies(&bound.policies),
        })
    };
    Value::Array(waypoint.services.iter().map(one).collect())
}

fn port(number: u16, port: &BoundPort, names: &Names<'_>) -> Value {
    object([
        ("port", json!(number)),
        ("protocol", json!(protocol(port.protocol))),
        ("routes", list(&port.http, |one| route(one, names))),
        ("tcpRoutes", list(&port.tcp, |one| tcp_route(one, names))),
    ])
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http1 => "HTTP",
        Protocol::Http2 => "HTTP2",
        Protocol::Tcp => "TCP",
        Protocol::Tls => "TLS",
        Protocol::Unknown => "by the first bytes",
    }
}

/// All destinations, in the order of their names.
pub(super) fn clusters(current: &Current) -> Value {
    let mut all: Vec<_> = current.clusters().collect();
    all.sort_by(|a, b| a.cluster.key.cmp(&b.cluster.key));
    let names = Names(&current.waypoint);
    Value::Array(all.into_iter().map(|live| cluster(live, &names)).collect())
}

fn cluster(live: &Live, names: &Names<'_>) -> Value {
    let (cluster, breaker) = (&live.cluster, &live.breaker);
    // No limit is none.
    let limit = |kind| Some(breaker.limit(kind, cluster)).filter(|limit| *limit != u32::MAX);
    let circuit = |kind| {
        let (now, limit) = (breaker.count(kind), limit(kind));
        json!({ "now": now, "limit": limit, "isOpen": limit.is_some_and(|limit| now >= limit) })
    };
    let kind = if matches!(cluster.protocol, Protocol::Tcp | Protocol::Tls) { "tcp" } else { "http" };
    let endpoints = live.endpoints.list();
    let ejected = endpoints.iter().filter(|node| node.as_ref().is_ejected()).count();
    json!({
        "name": names.cluster(&cluster.key, kind),
        "rule": cluster.rule.as_deref(),
        "refused": cluster.refused.as_deref(),
        "settings": settings(cluster),
        "circuits": {
            "connections": circuit(Kind::Connections),
            "pending": circuit(Kind::Pending),
            "requests": circuit(Kind::Requests),
            "retries": circuit(Kind::Retries),
        },
        "ejected": ejected,
        "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
    })
}

/// How a destination is reached; what has no limit, or is not there, is left out.
pub(super) fn settings(cluster: &Cluster) -> Value {
    let balance = match cluster.balance {
        Balance::LeastRequest => "LEAST_REQUEST",
        Balance::RoundRobin => "ROUND_ROBIN",
        Balance::Random => "RANDOM",
        Balance::Passthrough => "PASSTHROUGH",
    };
    let budget = cluster.retry_budget.map_or(
        Value::Null,
        |budget| json!({ "percent": budget.percent, "minConcurrency": budget.min_concurrency }),
    );
    object([
        ("protocol", json!(protocol(cluster.protocol))),
        ("loadBalancer", json!(balance)),
        ("connectionPool", pool(&cluster.pool)),
        ("outlierDetection", cluster.outliers.as_ref().map_or(Value::Null, outliers)),
        ("retryBudget", budget),
    ])
}

fn pool(pool: &ConnectionPool) -> Value {
    // Written out, so that a new field has to be shown.
    let ConnectionPool {
        max_connections,
        connect_timeout,
        keepalive,
        max_connection_duration,
        tcp_idle,
        max_pending,
        max_requests,
        max_requests_per_connection,
        max_retries,
        http_idle,
        upgrade,
        max_streams,
        ping,
    } = pool;
    let limit = |limit: &u32| if *limit == u32::MAX { Value::Null } else { json!(limit) };
    let some = |some: Option<std::time::Duration>| some.map_or(Value::Null, time);
    let upgrade = match upgrade {
        Upgrade::ByPort => "as the port says",
        Upgrade::Always => "UPGRADE",
        Upgrade::AsClient => "as the client",
    };
    let keepalive = keepalive.map_or(Value::Null, |Keepalive { probes, time, interval }| {
        object([("probes", json!(probes)), ("time", some(time)), ("interval", some(interval))])
    });
    let ping = ping.map_or(
        Value::Null,
        |(interval, timeout)| json!({ "interval": time(interval), "timeout": time(timeout) }),
    );
    let per_connection = Some(*max_requests_per_connection).filter(|limit| *limit != 0);
    object([
        (
            "tcp",
            object([
                ("maxConnections", limit(max_connections)),
                ("connectTimeout", time(*connect_timeout)),
                ("keepalive", keepalive),
                ("maxConnectionDuration", some(*max_connection_duration)),
                ("idleTimeout", some(*tcp_idle)),
            ]),
        ),
        (
            "http",
            object([
                ("maxPending", limit(max_pending)),
                ("maxRequests", limit(max_requests)),
                ("maxRequestsPerConnection", json!(per_connection)),
                ("maxRetries", limit(max_retries)),
                ("idleTimeout", some(*http_idle)),
                ("http2", json!(upgrade)),
                ("maxStreams", limit(max_streams)),
                ("ping", ping),
            ]),
        ),
    ])
}

fn outliers(outliers: &Outliers) -> Value {
    let Outliers {
        consecutive_5xx,
        consecutive_gateway,
        consecutive_local,
        interval,
        base_ejection,
        max_ejection_percent,
        min_health_percent,
        failure_percent,
    } = outliers;
    let some = |count: &u32| if *count == 0 { Value::Null } else { json!(count) };
    object([
        ("consecutive5xxErrors", some(consecutive_5xx)),
        ("consecutiveGatewayErrors", some(consecutive_gateway)),
        ("consecutiveLocalOriginFailures", json!(consecutive_local)),
        ("interval", time(*interval)),
        ("baseEjectionTime", time(*base_ejection)),
        ("maxEjectionPercent", json!(max_ejection_percent)),
        ("minHealthPercent", json!(min_health_percent)),
        ("failurePercentage", json!(failure_percent)),
    ])
}

fn endpoint(node: &Node) -> Value {
    let (host, workload) = (node.as_ref(), &node.workload);
    json!({
        "address": node.address.to_string(),
        "workload": format!("{}/{}", workload.namespace, workload.name),
        "health": match workload.health {
            Health::Healthy => "healthy",
            Health::Unhealthy => "unhealthy",
            Health::Terminating => "terminating",
        },
        "protocol": match workload.protocol {
            TunnelProtocol::Hbone => "HBONE",
            TunnelProtocol::Tcp => "TCP",
        },
        "weight": workload.capacity,
        "activeRequests": host.active(),
        "isEjected": host.is_ejected(),
    })
}

/// Conditions of the objects that concern the waypoint: those of an object itself, and those by parent of a route or by
/// listener of a Gateway.
pub(super) fn statuses(waypoint: &Waypoint) -> Value {
    let mut objects: BTreeMap<(&str, &str, &str), (Value, Vec<Value>)> = BTreeMap::new();
    for status in &waypoint.statuses {
        let key = (status.kind, &*status.namespace, &*status.name);
        let (own, parts) = objects.entry(key).or_default();
        match &status.part {
            None => *own = conditions(status),
            Some(part) => parts.push(json!({ "parent": &**part, "conditions": conditions(status) })),
        }
    }
    let one = |((kind, namespace, name), (own, parts)): ((&str, &str, &str), (Value, Vec<Value>))| {
        object([
            ("kind", json!(kind)),
            ("namespace", json!(namespace)),
            ("name", json!(name)),
            ("conditions", own),
            ("parents", Value::Array(parts)),
        ])
    };
    Value::Array(objects.into_iter().map(one).collect())
}

/// Conditions that do not hold, one line each.
pub(super) fn unmet(waypoint: &Waypoint) -> Value {
    let of = |status: &Status| {
        let part = status.part.as_ref().map(|part| format!(" ({part})")).unwrap_or_default();
        let object = format!("{} {}/{}{part}", status.kind, status.namespace, status.name);
        let failing = status.conditions.iter().filter(|condition| !condition.holds);
        let told = failing.map(|condition| {
            json!({
                "object": &object,
                "condition": condition.kind,
                "reason": condition.reason,
                "message": &*condition.message,
            })
        });
        told.collect::<Vec<_>>()
    };
    Value::Array(waypoint.statuses.iter().flat_map(of).collect())
}

fn conditions(status: &Status) -> Value {
    list(&status.conditions, |condition| {
        json!({
            "type": condition.kind,
            "status": if condition.holds { "True" } else { "False" },
            "reason": condition.reason,
            "message": &*condition.message,
        })
    })
}
