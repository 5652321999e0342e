//! Destinations in words: which rule counts, what the upstream sees, which endpoints may be chosen.

use std::net::SocketAddr;
use std::sync::Arc;

use super::Asked;
use super::answer::{BackendView, CandidateView, HttpExplanation, Verdict};
use super::routes::{edits, mirror};
use crate::authz;
use crate::l7::balance::is_member;
use crate::l7::{Failure, Found, new_authority, path_rewrite, rewritten};
use crate::model::l7::{Backend, Balance, Cluster, ClusterKey, Outliers, Weighted};
use crate::model::{Endpoint, Health, Service, TunnelProtocol, Workload};

impl Asked<'_> {
    pub(super) fn backend(&self, found: &Found<'_>, one: &Weighted, total: u64) -> BackendView {
        let percent = (u64::from(one.weight) * 100).checked_div(total).unwrap_or(100);
        let mut view = BackendView {
            cluster: String::new(),
            percent: u32::try_from(percent).unwrap_or(100),
            subset: None,
            rule: None,
            balance: String::new(),
            edits: self.edits(found, one),
            problem: String::new(),
            failure: None,
            flag: String::new(),
            details: String::new(),
            endpoints: Vec::new(),
        };
        let key = match &one.backend {
            Backend::Cluster(key) => key,
            Backend::Invalid { status, reason } => {
                view.fail(&Failure::InvalidBackend(*status), reason.to_string());
                return view;
            }
        };
        view.cluster = key.to_string();
        view.subset = key.subset.as_ref().map(ToString::to_string);
        let Some(cluster) = self.waypoint.clusters.get(key) else {
            view.fail(&Failure::NoCluster, self.no_cluster(key));
            return view;
        };
        view.rule = cluster.rule.as_ref().map(ToString::to_string);
        view.balance = balance(cluster);
        if let Some(why) = &cluster.refused {
            view.fail(&Failure::Refused, why.to_string());
            return view;
        }
        let Some(service) = self.snapshot.service(&key.service) else {
            view.fail(&Failure::NoHealthyUpstream, format!("no service {} is known", key.service));
            return view;
        };
        view.endpoints = service.endpoints.iter().map(|of| self.candidate(service, cluster, of)).collect();
        view.endpoints.sort_by(|a, b| (a.is_in, &a.workload).cmp(&(b.is_in, &b.workload)));
        if cluster.balance != Balance::Passthrough && view.endpoints.iter().all(|of| !of.is_in) {
            let subset = key.subset.as_ref().map(|name| format!(" in subset {name}")).unwrap_or_default();
            let why = match &view.endpoints[..] {
                [] => format!("service {} has no endpoints", key.service),
                all => format!("none of the {} endpoints of {} is ready{subset}", all.len(), key.service),
            };
            view.fail(&Failure::NoHealthyUpstream, why);
        }
        view
    }

    /// What the upstream sees in place of what was asked for.
    fn edits(&self, found: &Found<'_>, one: &Weighted) -> Vec<String> {
        let target = self.facts.target;
        let path = path_rewrite(found.route, one).map(|rewrite| rewritten(rewrite, found.by, target));
        let authority = new_authority(found.route, one);
        let mut all: Vec<String> = path.map(|path| format!("path {path:?}")).into_iter().collect();
        all.extend(authority.map(|new| format!("host {:?}", String::from_utf8_lossy(new.as_bytes()))));
        all.extend(edits("request headers", &one.request_headers));
        all.extend(edits("response headers", &one.response_headers));
        all.extend(one.mirrors.iter().map(mirror));
        all
    }

    /// Why nothing is known of a destination: what its service has instead.
    fn no_cluster(&self, key: &ClusterKey) -> String {
        let Some(subset) = &key.subset else {
            let service = self.snapshot.service(&key.service);
            let ports =
                service.map(|service| service.ports.keys().map(ToString::to_string).collect::<Vec<_>>());
            let ports = ports.map(|ports| ports.join(", ")).unwrap_or_default();
            return format!("service {} has no port {}, only {ports}", key.service, key.port);
        };
        let others =
            self.waypoint.clusters.keys().filter(|of| of.service == key.service && of.port == key.port);
        let mut others: Vec<&str> = others.filter_map(|of| of.subset.as_deref()).collect();
        others.sort_unstable();
        let known = match &others[..] {
            [] => "no DestinationRule defines any that a route names".to_owned(),
            some => format!("routes name these that are defined: {}", some.join(", ")),
        };
        format!("no DestinationRule defines subset {subset} of {}; {known}", key.service)
    }

    fn candidate(&self, service: &Service, cluster: &Cluster, endpoint: &Endpoint) -> CandidateView {
        let workload = self.snapshot.workload(&endpoint.workload);
        let mut view = CandidateView {
            workload: workload
                .map_or_else(|| endpoint.workload.to_string(), |w| format!("{}/{}", w.namespace, w.name)),
            target: String::new(),
            is_in: false,
            reason: String::new(),
            refused: String::new(),
        };
        let is_ready = service.is_ready(endpoint.health);
        let port = service.target_port(endpoint, cluster.key.port);
        let address = workload.and_then(|w| w.addresses.first()).copied();
        let out = match (endpoint.health, address, port) {
            _ if !is_member(cluster.subset.as_ref(), &endpoint.workload) => "its labels are not the subset's",
            (Health::Terminating, ..) if !is_ready => "terminating",
            _ if !is_ready => "not ready",
            (_, Some(ip), Some(port)) => {
                let target = SocketAddr::new(ip, port);
                (view.is_in, view.target) = (true, target.to_string());
                view.refused = workload.map(|workload| self.refused(workload, target)).unwrap_or_default();
                "ready"
            }
            (_, None, _) => "it has no address",
            (_, _, None) => "it has no port for this one",
        };
        out.clone_into(&mut view.reason);
        view
    }

    /// Why the agent of an endpoint would refuse the waypoint; empty if it would not.
    fn refused(&self, workload: &Workload, target: SocketAddr) -> String {
        if workload.protocol != TunnelProtocol::Hbone || workload.native_tunnel {
            return String::new();
        }
        let gateway = &self.waypoint.gateway;
        let is_instance = |w: &&Arc<Workload>| {
            w.native_tunnel
                && w.namespace == gateway.namespace
                && self.waypoint.identity.as_ref() == Some(&w.identity)
        };
        let instance = self.snapshot.workloads().filter(is_instance).min_by_key(|w| &w.uid);
        let own = instance.and_then(|w| w.addresses.iter().find(|ip| ip.is_ipv4() == target.is_ipv4()));
        let facts = authz::Facts {
            peer: self.waypoint.identity.as_ref(),
            source_ip: own.copied().unwrap_or(target.ip()),
            destination_ip: target.ip(),
            destination_port: target.port(),
        };
        let applying = self.snapshot.policies_for(workload);
        match authz::authorize(&applying.all, &applying.missing, &facts).verdict {
            authz::Verdict::Allowed { .. } => String::new(),
            authz::Verdict::Denied(denial) => denial.to_string(),
        }
    }
}

impl BackendView {
    fn fail(&mut self, failure: &Failure, why: String) {
        let reply = failure.reply();
        self.failure = Some(reply.status.as_u16());
        self.flag = reply.flag.map(|flag| flag.as_str().to_owned()).unwrap_or_default();
        self.details = reply.details.into_owned();
        self.problem = why;
    }

    /// Whether each endpoint that may be chosen is refused to the waypoint.
    fn is_closed(&self) -> bool {
        let mut in_it = self.endpoints.iter().filter(|of| of.is_in).peekable();
        in_it.peek().is_some() && in_it.all(|of| !of.refused.is_empty())
    }
}

/// What all destinations together come to.
pub(super) fn judge(answer: &mut HttpExplanation, by: &str) {
    for backend in &mut answer.backends {
        if backend.failure.is_none() && backend.is_closed() {
            let denial = backend.endpoints.iter().find(|of| !of.refused.is_empty());
            let denial = denial.map(|of| of.refused.clone()).unwrap_or_default();
            // As traffic has it: there was a tunnel, and it ended.
            let reason = crate::l7::Reset::ConnectionTermination;
            let failure = Failure::Reset { reason, retried: false, transport: "".into() };
            backend.fail(&failure, format!("the endpoints' agents refuse the waypoint: {denial}"));
        }
    }
    let refused =
        answer.backends.iter().any(|backend| backend.endpoints.iter().any(|of| !of.refused.is_empty()));
    if refused {
        let who = answer.identity.clone().unwrap_or_default();
        let who = who.strip_prefix("spiffe://").unwrap_or(&who).to_owned();
        answer.advice.push(format!(
            "policies with a selector are for the pods' own agents, and what these see is the waypoint: bind the policy to \
             the waypoint with targetRefs (kind Service), and let {who} in at the pods"
        ));
    }
    let total = answer.backends.len();
    let failing = answer.backends.iter().filter(|backend| backend.failure.is_some()).count();
    let Some(first) = answer.backends.iter().find(|backend| backend.failure.is_some()) else {
        let to: Vec<String> = answer.backends.iter().map(|one| named(one, total)).collect();
        let to = to.join(", ");
        return answer.pass(format!("{by} sends it to {to}"));
    };
    let (status, flag, details) = (first.failure, first.flag.clone(), first.details.clone());
    let to = if first.cluster.is_empty() { "a destination that is not there" } else { &first.cluster };
    let share = if total == 1 { String::new() } else { format!(" {} % of it", first.percent) };
    let why = format!("{by} sends{share} to {to}: {}", first.problem);
    answer.refuse(status, why.replace("sends to", "sends it to"));
    (answer.flag, answer.details) = (flag, details);
    if failing < total {
        answer.verdict = Verdict::Depends;
    }
}

fn named(one: &BackendView, total: usize) -> String {
    let share = if total == 1 { String::new() } else { format!(" ({} %)", one.percent) };
    format!("{}{share}", one.cluster)
}

fn balance(cluster: &Cluster) -> String {
    let how = match cluster.balance {
        Balance::LeastRequest => "the one with fewer requests of two",
        Balance::RoundRobin => "one after the other",
        Balance::Random => "any",
        Balance::Passthrough => "the address that was asked for",
    };
    let mut all = how.to_owned();
    if let Some(outliers) = &cluster.outliers {
        all.push_str(&outlier(outliers));
    }
    let pool = &cluster.pool;
    for (limit, what) in [
        (pool.max_connections, "connections"),
        (pool.max_pending, "waiting requests"),
        (pool.max_requests, "requests at once"),
        (pool.max_retries, "retries at once"),
    ] {
        if limit != u32::MAX {
            all.push_str(&format!("; at most {limit} {what}"));
        }
    }
    all
}

fn outlier(of: &Outliers) -> String {
    let mut causes = Vec::new();
    if of.consecutive_5xx != 0 {
        causes.push(format!("{} answers of 5xx in a row", of.consecutive_5xx));
    }
    if of.consecutive_gateway != 0 {
        causes.push(format!("{} of 502 to 504 in a row", of.consecutive_gateway));
    }
    if let Some(local) = of.consecutive_local.filter(|local| *local != 0) {
        causes.push(format!("{local} failures to reach it in a row"));
    }
    if let Some(percent) = of.failure_percent {
        causes.push(format!("{percent} % failed in {:?}", of.interval));
    }
    format!("; left alone for {:?} after {}", of.base_ejection, causes.join(" or "))
}
