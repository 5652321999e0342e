//! A snapshot from text lines, for tests.
//!
//! ```text
//! pod <namespace>/<name> <address>,… [hbone] [node=] [region=] [zone=] [subzone=] [cluster=] [network=] [weight=]
//!     [labelled|exempt|dim] [before] [strict|strict=<port>] [terminating|not-ready] [host=<name>] [waypoint=<gateway>]
//!     [tunnel=none:<port>|proxy:<port>]
//! svc <namespace>/<name> [<vip>|<range>,…] [ports=80:8080,443:0] [mode=] [prefer=Region,Zone] [family=] [all] [private]
//!     [san=<sa>,…] [second] [waypoint=<gateway>] [weights=<gateway>*<weight>,…]
//!   ep <namespace>/<name> [not-ready|terminating] [443:9443,…]
//! ```
//! `dim` is not said to be enrolled or not, `before` was captured before. `all` publishes not-ready addresses, `private` is
//! visibility to the own namespace, `second` is not canonical. Indented lines belong to the service. An address `-` is none.
//! A gateway is `<namespace>/<service>`, `<namespace>/=<host name>` or `@<address>`, with `!<port>` if it is not 15008.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::{
    Action, ApplicationTunnel, Authorization, Clause, Endpoint, Enrolment, GatewayAddress,
    GatewayDestination, Health, HealthPolicy, IpFamilies, LocalityScope, Match, Mode, Model, Rule, Scope,
    Service, ServicePort, StringMatch, TunnelPreamble, TunnelProtocol, Visibility, WeightedWaypoint,
    Workload, WorkloadType,
};
use crate::state::Snapshot;
use crate::types::{PolicyKey, ServiceKey, SpiffeId, WorkloadUid};

/// The snapshot of these lines; panics at a line it does not understand.
pub(super) fn world(text: &str) -> Snapshot {
    let mut model = Model::default();
    for line in text.lines().filter(|l| !l.trim().is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["pod", name, addresses, ref rest @ ..] => model.workloads.push(pod(name, addresses, rest)),
            ["svc", name, ref rest @ ..] => model.services.push(service(name, rest)),
            ["ep", name, ref rest @ ..] => {
                model.services.last_mut().expect("ep after svc").endpoints.push(endpoint(name, rest));
            }
            _ => panic!("not understood: {line}"),
        }
    }
    let strict_ports = ["", "80"].map(strict);
    model.policies.extend(strict_ports);
    let before = text.lines().filter(|line| line.contains(" before"));
    let before = before.filter_map(|line| line.split_whitespace().nth(1)).map(uid).collect();
    Snapshot::build(1, model).having_captured(before)
}

/// What is made of a PeerAuthentication that is STRICT, on one port or on all.
fn strict(port: &str) -> Authorization {
    let name = match port {
        "" => "istio_converted_static_strict".to_owned(),
        port => format!("converted_peer_authentication_{port}"),
    };
    let one = Match {
        not_principals: vec![StringMatch::Presence],
        destination_ports: port.parse().into_iter().collect(),
        ..Match::default()
    };
    Authorization {
        key: PolicyKey { namespace: "root".into(), name: name.into() },
        scope: Scope::WorkloadSelector,
        action: Action::Deny,
        dry_run: false,
        rules: vec![Rule { clauses: vec![Clause { matches: vec![one] }] }],
    }
}

/// The pod of this name.
pub(super) fn pod_of(snapshot: &Snapshot, name: &str) -> Arc<Workload> {
    Arc::clone(snapshot.workload(&uid(name)).unwrap_or_else(|| panic!("no pod {name}")))
}

pub(super) fn uid(name: &str) -> WorkloadUid {
    WorkloadUid(format!("Kubernetes//Pod/{name}").into())
}

fn gateway(text: &str) -> GatewayAddress {
    let (name, port) = text.split_once('!').unwrap_or((text, "15008"));
    let destination = match (name.strip_prefix('@'), name.split_once('/')) {
        (Some(ip), _) => GatewayDestination::Address { network: "".into(), ip: ip.parse().unwrap() },
        (None, Some((namespace, name))) => GatewayDestination::Hostname(ServiceKey {
            namespace: namespace.into(),
            hostname: match name.strip_prefix('=') {
                Some(host) => host.into(),
                None => format!("{name}.{namespace}.svc.cluster.local").into(),
            },
        }),
        (None, None) => panic!("not understood: {text}"),
    };
    GatewayAddress { destination, port: port.parse().unwrap() }
}

fn weighted(text: &str) -> WeightedWaypoint {
    let (name, weight) = text.split_once('*').expect("gateway*weight");
    WeightedWaypoint { gateway: gateway(name), weight: weight.parse().unwrap() }
}

fn tunnel(text: &str) -> ApplicationTunnel {
    let (protocol, port) = text.split_once(':').expect("protocol:port");
    let protocol = if protocol == "proxy" { TunnelPreamble::Proxy } else { TunnelPreamble::None };
    ApplicationTunnel { protocol, port: port.parse().unwrap() }
}

fn list<T: std::str::FromStr>(text: &str) -> Vec<T> {
    text.split(',')
        .filter(|t| *t != "-")
        .map(|t| t.parse().unwrap_or_else(|_| panic!("not understood: {t}")))
        .collect()
}

fn port_map(text: &str) -> BTreeMap<u16, u16> {
    let pair = |t: &str| {
        let (a, b) = t.split_once(':').expect("service port:target port");
        (a.parse().unwrap(), b.parse().unwrap())
    };
    text.split(',').map(pair).collect()
}

fn pod(full: &str, addresses: &str, rest: &[&str]) -> Workload {
    let (namespace, name) = full.split_once('/').expect("namespace/name");
    let account = name.split('-').next().unwrap(); // cart-0 runs as cart
    let mut pod = Workload {
        addresses: list(addresses),
        enrolment: Enrolment::NotLabelled,
        node: "n1".into(),
        canonical_name: account.into(),
        canonical_revision: "latest".into(),
        workload_type: WorkloadType::Pod,
        workload_name: name.into(),
        cluster: "Kubernetes".into(),
        ..Workload::new(uid(full), name, SpiffeId::new("td", namespace, account).unwrap())
    };
    for &word in rest {
        match word.split_once('=').unwrap_or((word, "")) {
            ("hbone", _) => pod.protocol = TunnelProtocol::Hbone,
            ("labelled", _) => pod.enrolment = Enrolment::Labelled,
            ("exempt", _) => pod.enrolment = Enrolment::Exempt,
            ("dim", _) => pod.enrolment = Enrolment::Unknown,
            ("before", _) => {}
            ("strict", port) => pod.authorization_policies.push(strict(port).key),
            ("host-network", _) => pod.host_network = true,
            ("terminating", _) => pod.health = Health::Terminating,
            ("not-ready", _) => pod.health = Health::Unhealthy,
            ("host", v) => pod.hostname = v.into(),
            ("waypoint", v) => pod.waypoint = Some(gateway(v).into()),
            ("tunnel", v) => pod.application_tunnel = Some(tunnel(v)),
            ("node", v) => pod.node = v.into(),
            ("region", v) => pod.locality.region = v.into(),
            ("zone", v) => pod.locality.zone = v.into(),
            ("subzone", v) => pod.locality.subzone = v.into(),
            ("cluster", v) => pod.cluster = v.into(),
            ("network", v) => pod.network = v.into(),
            ("weight", v) => pod.capacity = v.parse().unwrap(),
            _ => panic!("not understood: {word}"),
        }
    }
    pod
}

fn service(full: &str, rest: &[&str]) -> Service {
    let (namespace, name) = full.split_once('/').expect("namespace/name");
    let hostname = format!("{name}.{namespace}.svc.cluster.local").into();
    let mut service = Service::new(ServiceKey { namespace: namespace.into(), hostname }, name);
    service.canonical = true;
    for &word in rest {
        match word.split_once('=').unwrap_or((word, "")) {
            ("ports", v) => {
                let port = |(port, target)| (port, ServicePort { target, name: "".into() });
                service.ports = port_map(v).into_iter().map(port).collect();
            }
            ("mode", v) => service.load_balancing.mode = mode(v),
            ("prefer", v) => service.load_balancing.routing_preference = v.split(',').map(scope).collect(),
            ("family", "v4") => service.ip_families = IpFamilies::V4,
            ("family", "v6") => service.ip_families = IpFamilies::V6,
            ("family", "dual") => service.ip_families = IpFamilies::Dual,
            ("all", _) => service.load_balancing.health_policy = HealthPolicy::AllowAll,
            ("private", _) => service.visibility = Visibility::Namespace,
            ("san", v) => {
                let id = |sa| SpiffeId::new("td", namespace, sa).unwrap();
                service.subject_alt_names = v.split(',').map(id).collect();
            }
            ("second", _) => service.canonical = false,
            ("waypoint", v) => service.waypoint = Some(gateway(v).into()),
            ("weights", v) => service.weighted_waypoints = v.split(',').map(weighted).collect(),
            (vips, "") => {
                let (ranges, vips): (Vec<&str>, Vec<&str>) = vips.split(',').partition(|t| t.contains('/'));
                service.vips = vips.into_iter().map(|t| t.parse().expect("an address")).collect();
                service.cidr_vips = ranges.into_iter().map(|t| t.parse().expect("a range")).collect();
            }
            _ => panic!("not understood: {word}"),
        }
    }
    service
}

fn mode(text: &str) -> Mode {
    match text {
        "Standard" => Mode::Standard,
        "Strict" => Mode::Strict,
        "Failover" => Mode::Failover,
        "Passthrough" => Mode::Passthrough,
        _ => panic!("not understood: {text}"),
    }
}

fn scope(text: &str) -> LocalityScope {
    match text {
        "Region" => LocalityScope::Region,
        "Zone" => LocalityScope::Zone,
        "Subzone" => LocalityScope::Subzone,
        "Node" => LocalityScope::Node,
        "Cluster" => LocalityScope::Cluster,
        "Network" => LocalityScope::Network,
        _ => panic!("not understood: {text}"),
    }
}

fn endpoint(name: &str, rest: &[&str]) -> Endpoint {
    let mut endpoint = Endpoint { workload: uid(name), ports: BTreeMap::new(), health: Health::Healthy };
    for &word in rest {
        match word {
            "not-ready" => endpoint.health = Health::Unhealthy,
            "terminating" => endpoint.health = Health::Terminating,
            ports => endpoint.ports = port_map(ports),
        }
    }
    endpoint
}
