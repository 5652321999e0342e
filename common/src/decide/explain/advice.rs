//! What would change the answer, what to know if it is yes, and what is doubtful in the objects that decide it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use super::answer::{Enforced, Explanation, Inbound, Outcome, Route, RouteKind};
use super::names::{Destination, Source, distance};
use super::route::{bypasses, is_captured, name_of, to_workload};
use crate::authz::{ClauseTrace, FieldTrace, RuleTrace};
use crate::decide::waypoint;
use crate::model::{Enrolment, GatewayAddress, GatewayDestination, LeftOut, NotCaptured, PeerMode, Workload};
use crate::state::{Completeness, Snapshot};

/// Pieces of advice: the first ones are the likely ones.
const ADVICE_MAX: usize = 6;

/// What the answer is about.
pub(super) struct Case<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) from: &'a Source,
    pub(super) to: &'a Destination,
    /// The workload at the end of the route that matters.
    pub(super) end: Option<Arc<Workload>>,
}

/// Adds the summary, the advice and the remarks.
pub(super) fn complete(answer: &mut Explanation, snapshot: &Snapshot, from: &Source, to: &Destination) {
    let case = Case { snapshot, from, to, end: to_workload(snapshot, to, &answer.routes) };
    let wanted = if answer.verdict == Outcome::Allowed { Outcome::Allowed } else { Outcome::Refused };
    let Some(route) = answer.routes.iter().find(|route| route.outcome == wanted) else { return };
    let reason = case.reason(answer, route);
    let advice = match wanted {
        Outcome::Allowed if !route.waypoint.is_empty() => vec![case.behind_waypoint(route)],
        Outcome::Allowed => case.when_allowed(answer, route),
        Outcome::Refused | Outcome::Mixed => case.when_refused(answer, route),
    };
    let all = answer.routes.len() + answer.more_routes;
    answer.summary = match answer.verdict {
        Outcome::Mixed => format!("{} of {all} endpoints refuse: {reason}", answer.refused_routes),
        Outcome::Allowed | Outcome::Refused => reason,
    };
    let mut seen = BTreeSet::new();
    answer.advice = advice.into_iter().filter(|line| seen.insert(line.clone())).take(ADVICE_MAX).collect();
    answer.remarks = case.remarks(answer);
    if snapshot.completeness == Completeness::Stale {
        let stale = "the agent's configuration has changed and cannot be used, so this is of the last good one; see its log";
        answer.remarks.insert(0, stale.to_owned());
    }
}

impl Case<'_> {
    pub(super) fn source_name(&self) -> String {
        let ip = || self.from.addresses.first().map(ToString::to_string).unwrap_or_default();
        self.from.workload.as_ref().map_or_else(ip, |workload| name_of(workload))
    }

    pub(super) fn end_name(&self) -> String {
        self.end.as_ref().map_or_else(|| self.to.asked.clone(), |workload| name_of(workload))
    }

    /// Whether what was asked for is reached through a waypoint, so that its endpoints are the waypoint's business.
    pub(super) fn has_waypoint(&self) -> bool {
        !self.waypoints().is_empty()
    }

    fn waypoints(&self) -> Vec<&GatewayAddress> {
        match (&self.to.service, &self.to.workload) {
            (Some(service), _) => waypoint::picks(service).into_iter().map(|(gateway, _)| gateway).collect(),
            (None, workload) => workload.as_ref().and_then(|w| w.waypoint.as_deref()).into_iter().collect(),
        }
    }

    pub(super) fn has_port(&self) -> bool {
        let (Some(service), Some(dialled)) = (&self.to.service, self.to.dialled.first()) else { return true };
        let port = dialled.port();
        service.ports.contains_key(&port) || service.endpoints.iter().any(|e| e.ports.contains_key(&port))
    }

    fn when_refused(&self, answer: &Explanation, route: &Route) -> Vec<String> {
        let Some(inbound) = &route.inbound else {
            return if route.workload.is_empty() { self.no_way(answer) } else { self.withheld() };
        };
        if inbound.refusal.is_some() {
            return Vec::new();
        }
        let mut advice = Vec::new();
        if let Some(deny) = inbound.policies.iter().find(|p| is_deciding_deny(p)) {
            self.denied(inbound, deny, &mut advice);
            return advice;
        }
        if let Some(missing) = inbound.missing.first() {
            advice.push(format!("create AuthorizationPolicy {missing}, or wait until it has arrived"));
            return advice;
        }
        for other in answer.other_policies.iter().filter(|p| p.would_match && p.action == "ALLOW") {
            advice.push(format!(
                "AuthorizationPolicy {} would allow it, but {}",
                other.policy,
                self.not_selecting(&other.policy, &other.selector, &other.selects)
            ));
        }
        for tried in inbound.policies.iter().filter(|p| p.trace.dry_run && p.trace.matched) {
            if tried.trace.action == "ALLOW" {
                advice.push(format!(
                    "AuthorizationPolicy {} would allow it, but is only tried out: take the annotation istio.io/dry-run off it",
                    tried.trace.policy
                ));
            }
        }
        if inbound.seen_identity.is_none() && inbound.policies.iter().any(|p| is_allow(p) && asks_who(p)) {
            advice.push(format!(
                "plaintext proves no identity, so no rule with principals, namespaces or service accounts can match: {}",
                self.enrol_source()
            ));
            advice.push(format!(
                "or allow callers without identity by their address: a rule with ipBlocks [{}]",
                inbound.seen_address
            ));
        }
        let mut rules: Vec<(usize, String)> = Vec::new();
        for policy in inbound.policies.iter().filter(|p| is_allow(p)) {
            let name = &policy.trace.policy;
            if policy.trace.rules.is_empty() {
                rules.push((9, no_rules(policy, route)));
            }
            for (number, rule) in policy.rules() {
                let failed: Vec<&ClauseTrace> = rule.clauses.iter().filter(|c| !c.held).collect();
                let fixes: Vec<String> =
                    failed.iter().filter_map(|clause| self.fix(clause, inbound)).collect();
                if !fixes.is_empty() && fixes.len() == failed.len() {
                    let line =
                        format!("in AuthorizationPolicy {name}, rule {number}: {}", fixes.join(", and "));
                    rules.push((fixes.len(), line));
                }
            }
        }
        rules.sort_by_key(|(effort, _)| *effort);
        advice.extend(rules.into_iter().map(|(_, line)| line));
        advice
    }

    /// What would make a clause hold: a change of its first match.
    fn fix(&self, clause: &ClauseTrace, inbound: &Inbound) -> Option<String> {
        let easiest = clause.matches.iter().min_by_key(|m| m.fields.iter().filter(|f| !f.held).count())?;
        let fixes: Vec<String> =
            easiest.fields.iter().filter(|f| !f.held).filter_map(|f| self.fix_field(f, inbound)).collect();
        (!fixes.is_empty()).then(|| fixes.join(", and "))
    }

    fn fix_field(&self, field: &FieldTrace, inbound: &Inbound) -> Option<String> {
        let found = field.found.as_str();
        let name = field.field.as_str();
        if field.listed.is_empty() {
            return Some(format!("repair {name}, of which nothing could be read"));
        }
        let is_of_identity = !matches!(name, "ports" | "notPorts" | "ipBlocks" | "notIpBlocks")
            && !name.contains("destination.ip");
        if is_of_identity && inbound.seen_identity.is_none() {
            return None; // said once, for all rules
        }
        if name.starts_with("not") {
            return Some(format!("take what matches {found:?} out of {name}"));
        }
        Some(match name {
            "principals" => self.fix_principal(field),
            "ports" => self.fix_port(field),
            "ipBlocks" => format!(
                "add {found} to ipBlocks: the address that counts is the pod's own, and {} does not hold it",
                field.listed.join(", ")
            ),
            _ => format!("add {found:?} to {name}"),
        })
    }

    /// What is wrong with a list of principals that the source's is not in.
    fn fix_principal(&self, field: &FieldTrace) -> String {
        let found = field.found.as_str();
        let domain =
            |principal: &str| principal.split_once('/').map(|(of, rest)| (of.to_owned(), rest.to_owned()));
        for listed in &field.listed {
            if listed.strip_prefix("spiffe://") == Some(found) {
                return format!("write {found:?} in principals, without spiffe://");
            }
            if let (Some((theirs, a)), Some((ours, b))) = (domain(listed), domain(found))
                && a == b
            {
                return format!(
                    "write {found:?} in principals: {listed:?} has the trust domain {theirs:?}, and this mesh's is {ours:?}"
                );
            }
        }
        let account =
            |principal: &str| principal.rsplit_once("/sa/").map(|(of, sa)| (of.to_owned(), sa.to_owned()));
        if let Some((own, default)) = account(found)
            && default == "default"
            && let Some((_, wanted)) =
                field.listed.iter().filter_map(|l| account(l)).find(|(of, _)| *of == own)
        {
            return format!(
                "run {} as service account {wanted:?} (spec.serviceAccountName; it is \"default\" now), or add {found:?} to \
                 principals",
                self.source_name()
            );
        }
        match field.listed.iter().find(|listed| distance(listed, found) <= 2) {
            Some(slip) => {
                format!("add {found:?} to principals, or write it in place of {slip:?} if that is a slip")
            }
            None => format!("add {found:?} to principals"),
        }
    }

    fn fix_port(&self, field: &FieldTrace) -> String {
        let found = field.found.as_str();
        let of_service = self.to.service.as_ref().and_then(|service| {
            let asked = self.to.dialled.first()?.port().to_string();
            (field.listed.contains(&asked) && asked != found).then(|| (asked, Arc::clone(&service.name)))
        });
        match of_service {
            Some((port, service)) => format!(
                "write {found:?} in place of {port:?} in ports: {port} is the port of Service {service}, and policies see the \
                 pod's own port"
            ),
            None => format!("add {found:?} to ports"),
        }
    }

    fn denied(&self, inbound: &Inbound, deny: &Enforced, advice: &mut Vec<String>) {
        if !deny.origin.is_empty() {
            advice.push(self.enrol_source());
            let background = self.snapshot.background();
            let mode = self.end.as_ref().and_then(|end| background.peer_authentication.get(&end.uid));
            let port = match mode.is_some_and(|mode| mode.ports_by.is_some()) {
                true => inbound.target.rsplit_once(':').map(|(_, port)| format!(" for port {port}")),
                false => None,
            };
            advice.push(format!(
                "or let {} take plaintext: mode PERMISSIVE{} in {}",
                self.end_name(),
                port.unwrap_or_default(),
                deny.origin
            ));
            return;
        }
        let name = &deny.trace.policy;
        let Some((number, rule)) = deny.rules().find(|(_, rule)| rule.matched) else { return };
        if rule.clauses.is_empty() {
            advice.push(format!(
                "rule {number} of AuthorizationPolicy {name} denies everybody: narrow or remove it"
            ));
            return;
        }
        let held: Vec<String> = fields(rule).filter(|f| f.held).map(describe_held).collect();
        advice.push(format!(
            "rule {number} of AuthorizationPolicy {name} matches ({}): change that, or except the source in it",
            held.join("; ")
        ));
        if inbound.seen_identity.is_none()
            && fields(rule).any(|f| f.held && f.field.starts_with("notPrincipals"))
        {
            advice.push(self.enrol_source());
        }
    }

    /// What would put the source into the mesh.
    fn enrol_source(&self) -> String {
        match &self.from.workload {
            Some(source) => enrol(self.snapshot, source),
            None => format!("{} is no known pod: only pods of the mesh have an identity", self.source_name()),
        }
    }

    fn not_selecting(&self, policy: &str, selector: &str, selects: &[String]) -> String {
        let end = self.end_name();
        let selector =
            if selector.is_empty() { "its selector".to_owned() } else { format!("its selector {selector}") };
        let own = self.end.as_ref().is_some_and(|w| policy.split('/').next() == Some(&*w.namespace));
        if !own {
            return format!("it lies in another namespace than {end}: move it there");
        }
        match selects {
            [] => format!("{selector} selects no pod: write the labels of {end} into it"),
            some => format!(
                "{selector} selects {} and not {end}: change it, or the labels of {end}",
                some.join(", ")
            ),
        }
    }

    /// Plaintext would leave the source and may not.
    fn withheld(&self) -> Vec<String> {
        let Some(end) = &self.end else { return Vec::new() };
        let mut advice = vec![match end.enrolment {
            Enrolment::Labelled | Enrolment::Unknown
                if !self.snapshot.background().not_captured.contains_key(&end.uid) =>
            {
                format!(
                    "see whether the agent of node {:?} runs, and what its log says of {}",
                    end.node,
                    name_of(end)
                )
            }
            _ => enrol(self.snapshot, end),
        }];
        let mode = self.snapshot.background().peer_authentication.get(&end.uid);
        if let Some(PeerMode { is_strict: true, by: Some(by), .. }) = mode
            && end.enrolment == Enrolment::NotLabelled
        {
            advice.push(format!("or let {} take plaintext: mode PERMISSIVE in {by}", name_of(end)));
        }
        advice
    }

    /// Who decides after the waypoint, and by what.
    fn behind_waypoint(&self, route: &Route) -> String {
        format!(
            "what waypoint {} lets through is in its own configuration and log (istioctl proxy-config); the agents of the \
             endpoints see the waypoint's identity and address, and no longer those of {}",
            route.waypoint,
            self.source_name()
        )
    }

    /// What would make a waypoint take connections.
    fn no_waypoint(&self) -> Vec<String> {
        let advice = |gateway: &&GatewayAddress| {
            let name = &gateway.destination;
            let object = match name {
                GatewayDestination::Hostname(key) => {
                    format!("{}/{}", key.namespace, key.hostname.split('.').next().unwrap_or(&key.hostname))
                }
                GatewayDestination::Address { .. } => name.to_string(),
            };
            match waypoint::find(self.snapshot, name) {
                None => format!(
                    "create Gateway {object}, or see in its status why it is not programmed; or take the label \
                     istio.io/use-waypoint off what names it"
                ),
                Some(_) => format!("see why no pod of waypoint {object} is ready (kubectl describe pod)"),
            }
        };
        self.waypoints().iter().map(advice).collect()
    }

    /// Nothing leaves the source: what would give it somewhere to go.
    fn no_way(&self, answer: &Explanation) -> Vec<String> {
        if self.has_waypoint() {
            return self.no_waypoint();
        }
        let Some(service) = &self.to.service else { return Vec::new() };
        let name = format!("{}/{}", service.key.namespace, service.name);
        if !self.has_port() {
            let ports: Vec<String> = service.ports.keys().map(ToString::to_string).collect();
            let port = self.to.dialled.first().map_or(0, |addr| addr.port());
            return vec![format!(
                "ask for one of the ports that Service {name} has ({}), or add port {port} to it",
                ports.join(", ")
            )];
        }
        if answer.endpoints.is_empty() {
            if let Some(pods) = self.snapshot.background().selected_left_out.get(&service.key) {
                let pod = |LeftOut { pod, why }: &LeftOut| {
                    format!(
                        "see why {pod}, which the service selects, does not run: {why} (kubectl describe pod)"
                    )
                };
                return pods.iter().map(pod).collect();
            }
            return vec![match self.snapshot.background().service_selectors.get(&service.key) {
                Some(selector) => format!(
                    "no running pod in namespace {} has the labels {selector} that Service {name} selects by: correct its \
                     selector or the pods' labels, or start pods",
                    service.key.namespace
                ),
                None => {
                    format!("Service {name} has no selector and no EndpointSlice with addresses: add either")
                }
            }];
        }
        answer.endpoints.iter().filter(|e| !e.fix.is_empty()).map(|e| e.fix.clone()).collect()
    }

    fn when_allowed(&self, answer: &Explanation, route: &Route) -> Vec<String> {
        let mut advice = Vec::new();
        if let (RouteKind::Plaintext | RouteKind::Direct, None, Some(end)) =
            (route.kind, &route.inbound, &self.end)
        {
            if !is_captured(end) {
                let policies = self.snapshot.policies_for(end);
                let written: Vec<String> = policies.all.iter().map(|p| p.key.to_string()).collect();
                let not_enforced = match &written[..] {
                    [] => String::new(),
                    some => format!("; policies that are not enforced there: {}", some.join(", ")),
                };
                advice.push(format!(
                    "to have it encrypted and checked: {}{not_enforced}",
                    enrol(self.snapshot, end)
                ));
                if let Some(source) = &self.from.workload
                    && !is_captured(source)
                    && source.namespace != end.namespace
                {
                    advice.push(format!("and {}", enrol(self.snapshot, source)));
                }
            } else if bypasses(self.snapshot, end) {
                advice.push(format!(
                    "{} has the annotation ambient.istio.io/bypass-inbound-capture",
                    name_of(end)
                ));
            }
        }
        if route.kind == RouteKind::Direct && route.inbound.is_some() {
            advice.push(format!("to have it encrypted: {}", self.enrol_source()));
        }
        for other in answer.other_policies.iter().filter(|p| p.would_match && p.action == "DENY") {
            advice.push(format!(
                "AuthorizationPolicy {} would deny it, but {}",
                other.policy,
                self.not_selecting(&other.policy, &other.selector, &other.selects)
            ));
        }
        let inbound = route.inbound.iter();
        for policy in inbound.flat_map(|inbound| &inbound.policies).filter(|p| p.trace.action == "DENY") {
            if policy
                .trace
                .rules
                .iter()
                .any(|rule| rule.clauses.iter().any(|c| !c.held && c.matches.is_empty()))
            {
                advice.push(format!(
                    "AuthorizationPolicy {} denies by HTTP fields only, which the node agent does not see: it has no effect \
                     without a waypoint; deny by port, principal or namespace, or set POLICY_STRICT=true",
                    policy.trace.policy
                ));
            }
        }
        for tried in
            route.inbound.iter().flat_map(|i| &i.policies).filter(|p| p.trace.dry_run && p.trace.matched)
        {
            if tried.trace.action == "DENY" {
                advice.push(format!(
                    "AuthorizationPolicy {} would deny it, but is only tried out (annotation istio.io/dry-run)",
                    tried.trace.policy
                ));
            }
        }
        self.if_it_fails(route, &mut advice);
        advice
    }

    /// What the configuration lets through may still fail: what to look at then.
    fn if_it_fails(&self, route: &Route, advice: &mut Vec<String>) {
        let Some(port) = route.target.parse::<SocketAddr>().ok().map(|target| target.port()) else { return };
        if let (Some(service), Some(dialled)) = (&self.to.service, self.to.dialled.first())
            && service.vips.is_empty()
            && let Some(target) = service.ports.get(&dialled.port()).map(|p| p.target)
            && target != 0
            && target != port
        {
            advice.push(format!(
                "Service {}/{} is headless: its name leads to the pods themselves, so the port to dial is theirs, {target}, \
                 and not the service's {port}",
                service.key.namespace, service.name
            ));
        }
        let declared =
            self.end.as_ref().and_then(|end| self.snapshot.background().declared_ports.get(&end.uid));
        if let Some(declared) = declared.filter(|declared| !declared.contains(&port)) {
            let declared: Vec<String> = declared.iter().map(ToString::to_string).collect();
            advice.push(format!(
                "{} declares no port {port}, only {}: does its app listen there, and is the targetPort right?",
                self.end_name(),
                declared.join(", ")
            ));
        }
        let tunnel = match route.kind {
            RouteKind::Hbone => " a NetworkPolicy may drop its port 15008,",
            _ => "",
        };
        advice.push(format!(
            "if it fails all the same, the cause is not in the configuration: the app may not listen on {},{tunnel} and the \
             agents' logs say what they saw",
            route.target
        ));
    }

    fn remarks(&self, answer: &Explanation) -> Vec<String> {
        let mut objects: BTreeSet<String> = BTreeSet::new();
        let pods = self.from.workload.iter().chain(&self.end).chain(&self.to.workload);
        objects.extend(pods.map(|w| format!("Pod {}", name_of(w))));
        objects.extend(self.to.service.iter().map(|s| format!("Service {}/{}", s.key.namespace, s.name)));
        let inbound = answer.routes.iter().filter_map(|route| route.inbound.as_ref());
        let policies = inbound.flat_map(|i| &i.policies).map(|p| p.trace.policy.as_str());
        let policies = policies.chain(answer.other_policies.iter().map(|p| p.policy.as_str()));
        objects.extend(policies.map(|name| format!("AuthorizationPolicy {name}")));
        let namespace = self.end.as_ref().map(|w| Arc::clone(&w.namespace));
        let of_namespace = |object: &str| {
            namespace.as_ref().is_some_and(|ns| {
                ["AuthorizationPolicy", "PeerAuthentication"]
                    .iter()
                    .any(|kind| object.starts_with(&format!("{kind} {ns}/")))
            })
        };
        let remarks = self.snapshot.background().remarks.iter();
        remarks
            .filter(|(object, _)| objects.contains(&**object) || of_namespace(object))
            .map(|(_, line)| line.to_string())
            .collect()
    }
}

/// What would put a pod into the mesh.
fn enrol(snapshot: &Snapshot, workload: &Workload) -> String {
    let (name, namespace) = (name_of(workload), &workload.namespace);
    match snapshot.background().not_captured.get(&workload.uid) {
        Some(NotCaptured::LabelledNone) => {
            format!("put {name} into the mesh: remove its label istio.io/dataplane-mode=none")
        }
        Some(NotCaptured::NotLabelled) | None => {
            format!(
                "put {name} into the mesh: kubectl label namespace {namespace} istio.io/dataplane-mode=ambient"
            )
        }
        Some(NotCaptured::RedirectionOff) => {
            format!(
                "put {name} into the mesh: remove its annotation ambient.istio.io/redirection, or set it to enabled"
            )
        }
        Some(why) => format!("{name} cannot be in the mesh as it is: {why}"),
    }
}

/// What an ALLOW policy needs that has no rule to match.
fn no_rules(policy: &Enforced, route: &Route) -> String {
    let name = &policy.trace.policy;
    if policy.rules_left_out != 0 {
        return format!(
            "AuthorizationPolicy {name} allows nobody here, as all its rules ask for HTTP fields, which the node agent cannot \
             see: write them with principals, namespaces or ports, or enforce it in a waypoint"
        );
    }
    let principal = route.proves.as_deref().map(|id| id.trim_start_matches("spiffe://"));
    let from =
        principal.map_or_else(|| "the source".to_owned(), |principal| format!("principal {principal:?}"));
    format!(
        "AuthorizationPolicy {name} has no rules and so allows nobody: add one for {from}, or another ALLOW policy"
    )
}

pub(super) fn is_deciding_deny(policy: &Enforced) -> bool {
    policy.trace.action == "DENY" && policy.trace.matched && !policy.trace.dry_run
}

pub(super) fn is_allow(policy: &Enforced) -> bool {
    policy.trace.action == "ALLOW" && !policy.trace.dry_run
}

pub(super) fn fields(rule: &RuleTrace) -> impl Iterator<Item = &FieldTrace> {
    rule.clauses.iter().flat_map(|clause| &clause.matches).flat_map(|one| &one.fields)
}

/// Whether a rule of it asks for an identity.
fn asks_who(policy: &Enforced) -> bool {
    let of_identity =
        |f: &FieldTrace| matches!(f.field.as_str(), "principals" | "namespaces" | "serviceAccounts");
    policy.trace.rules.iter().flat_map(fields).any(of_identity)
}

fn describe_held(field: &FieldTrace) -> String {
    let list = super::text::listed(field);
    if field.field.starts_with("not") {
        let found = if field.found.is_empty() { "nothing" } else { &field.found };
        return format!("{} {list} does not hold {found}", field.field);
    }
    format!("{} {list} holds {}", field.field, field.found)
}
