//! What is in force, as JSON for people: services with their routes, destinations with their endpoints, statuses.

use culvert_common::admin::dump_certificates;
use culvert_common::l7::breaker::Kind;
use culvert_common::model::l7::{Bound, BoundPort, Policies, Policy, Route, RouteAction, TcpRoute, Waypoint};
use serde_json::{Value, json};

use crate::current::{Current, Live, Node};
use crate::shared::Shared;

/// Everything.
pub(super) fn whole(shared: &Shared) -> Value {
    let current = shared.current();
    let waypoint = &current.waypoint;
    let services = waypoint.services.iter().map(|(key, bound)| service(&key.to_string(), bound));
    let mut workloads: Vec<&str> = waypoint.workloads.iter().map(|uid| &*uid.0).collect();
    workloads.sort_unstable();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "isLoaded": current.is_loaded,
        "gateway": waypoint.gateway.to_string(),
        "identity": waypoint.identity.as_ref().map(ToString::to_string),
        "serves": format!("{:?}", waypoint.serves),
        "forwardsIdentity": waypoint.forwards_identity,
        "pathNormalization": format!("{:?}", waypoint.normalization),
        "services": services.collect::<Vec<_>>(),
        "workloads": workloads,
        "workloadPolicies": policies(&waypoint.policies),
        "clusters": clusters(&current),
        "statuses": statuses(waypoint),
        "certificates": dump_certificates(&shared.certs),
    })
}

fn service(key: &str, bound: &Bound) -> Value {
    let ports = bound.ports.iter().map(|(number, port)| self::port(*number, port));
    json!({ "service": key, "ports": ports.collect::<Vec<_>>(), "policies": policies(&bound.policies) })
}

fn port(number: u16, port: &BoundPort) -> Value {
    json!({
        "port": number,
        "protocol": format!("{:?}", port.protocol),
        "routes": port.http.iter().map(route).collect::<Vec<_>>(),
        "tcpRoutes": port.tcp.iter().map(tcp_route).collect::<Vec<_>>(),
    })
}

fn route(route: &Route) -> Value {
    let (kind, action) = match &route.action {
        RouteAction::Forward(backends) => {
            ("forward", backends.iter().map(|backend| format!("{backend:?}")).collect::<Vec<_>>())
        }
        RouteAction::Redirect(redirect) => ("redirect", vec![format!("{redirect:?}")]),
        RouteAction::Respond(direct) => {
            ("respond", vec![format!("{}, {} bytes", direct.status, direct.body.len())])
        }
    };
    json!({
        "name": &*route.name,
        "from": route.origin.to_string(),
        "matches": route.matches.iter().map(|one| format!("{one:?}")).collect::<Vec<_>>(),
        kind: action,
        "rewrite": format!("{:?}", route.rewrite),
        "timeout": route.timeout.map(|timeout| format!("{timeout:?}")),
        "retries": format!("{:?}", route.retries),
        "fault": format!("{:?}", route.fault),
        "mirrors": route.mirrors.iter().map(|mirror| format!("{mirror:?}")).collect::<Vec<_>>(),
        "cors": route.cors.as_ref().map(|cors| format!("{cors:?}")),
    })
}

fn tcp_route(route: &TcpRoute) -> Value {
    let backends = route.backends.iter().map(|(backend, weight)| format!("{weight}: {backend:?}"));
    json!({
        "name": &*route.name,
        "from": route.origin.to_string(),
        "matches": route.matches.iter().map(|one| format!("{one:?}")).collect::<Vec<_>>(),
        "backends": backends.collect::<Vec<_>>(),
    })
}

fn policies(policies: &Policies) -> Value {
    let list = |list: &[std::sync::Arc<Policy>]| {
        let one = |policy: &std::sync::Arc<Policy>| json!({ "policy": policy.key.to_string(), "dryRun": policy.dry_run, "rules": policy.rules.len() });
        list.iter().map(one).collect::<Vec<_>>()
    };
    let broken = policies.broken.iter().map(
        |fault| json!({ "kind": fault.kind, "policy": fault.key.to_string(), "reason": &*fault.reason }),
    );
    json!({
        "deny": list(&policies.deny),
        "allow": list(&policies.allow),
        "audit": list(&policies.audit),
        "broken": broken.collect::<Vec<_>>(),
    })
}

/// All destinations, in the order of their names.
pub(super) fn clusters(current: &Current) -> Value {
    let mut all: Vec<_> = current.clusters().collect();
    all.sort_by(|a, b| a.cluster.key.cmp(&b.cluster.key));
    Value::Array(all.into_iter().map(|live| cluster(live)).collect())
}

fn cluster(live: &Live) -> Value {
    let (cluster, breaker) = (&live.cluster, &live.breaker);
    // No limit is none.
    let limit = |kind| Some(breaker.limit(kind, cluster)).filter(|limit| *limit != u32::MAX);
    let circuit = |kind| json!({ "now": breaker.count(kind), "limit": limit(kind) });
    json!({
        "name": cluster.key.to_string(),
        "rule": cluster.rule.as_deref(),
        "refused": cluster.refused.as_deref(),
        "protocol": format!("{:?}", cluster.protocol),
        "balance": format!("{:?}", cluster.balance),
        "connectionPool": format!("{:?}", cluster.pool),
        "outlierDetection": cluster.outliers.as_ref().map(|outliers| format!("{outliers:?}")),
        "circuits": {
            "connections": circuit(Kind::Connections),
            "pending": circuit(Kind::Pending),
            "requests": circuit(Kind::Requests),
            "retries": circuit(Kind::Retries),
        },
        "endpoints": live.endpoints.list().iter().map(endpoint).collect::<Vec<_>>(),
    })
}

fn endpoint(node: &Node) -> Value {
    let (host, workload) = (node.as_ref(), &node.workload);
    json!({
        "address": node.address.to_string(),
        "workload": format!("{}/{}", workload.namespace, workload.name),
        "health": format!("{:?}", workload.health),
        "protocol": format!("{:?}", workload.protocol),
        "activeRequests": host.active(),
        "isEjected": host.is_ejected(),
    })
}

/// Conditions of the objects that concern the waypoint.
pub(super) fn statuses(waypoint: &Waypoint) -> Value {
    let one = |status: &culvert_common::model::Status| {
        let conditions = status.conditions.iter().map(|condition| {
            json!({
                "type": condition.kind,
                "status": if condition.holds { "True" } else { "False" },
                "reason": condition.reason,
                "message": &*condition.message,
            })
        });
        json!({
            "kind": status.kind,
            "namespace": &*status.namespace,
            "name": &*status.name,
            "part": status.part.as_deref(),
            "conditions": conditions.collect::<Vec<_>>(),
        })
    };
    Value::Array(waypoint.statuses.iter().map(one).collect())
}
