//! VirtualService: reading it, with what CRD and webhook check. What it means for a service is in [`super::virtual_routes`].
//!
//! Source: Istio VirtualService reference. A field that does not exist is a problem: a mistyped match would widen a route.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::actions;
use super::headers::{self, BothEdits};
use super::http_match::{self, HttpMatch, OnlyFor};
use super::values::{ExportTo, duration, host, host_matches, integer, name};
use crate::model::l7::{
    Cors, DirectResponse, Fault, Fraction, PathTest, Redirect, RedirectPath, Retries, Rewrite, TextMatch,
};
use crate::source::kube::object::Meta;
use crate::source::kube::reader::Field;

/// What is needed of a VirtualService.
#[derive(Debug)]
pub(in crate::source::kube) struct VirtualService {
    pub(in crate::source::kube) meta: Meta,
    /// As written, in lower case; none: a delegate.
    pub(super) hosts: Vec<Arc<str>>,
    /// Whether it counts outside of ingress gateways.
    pub(super) in_mesh: bool,
    pub(super) export_to: ExportTo,
    pub(super) http: Vec<HttpRule>,
    pub(super) tls: Vec<L4Rule>,
    pub(super) tcp: Vec<L4Rule>,
}

/// One of `http`. What is not said is none, so that a delegate can take it from its root.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct HttpRule {
    /// Path for reports.
    pub(super) path: String,
    pub(super) name: Option<Arc<str>>,
    pub(super) matches: Vec<HttpMatch>,
    pub(super) action: Action,
    /// Namespace and name of the VirtualService that says the rest.
    pub(super) delegate: Option<(Arc<str>, Arc<str>)>,
    pub(super) headers: Option<BothEdits>,
    pub(super) rewrite: Option<Rewrite>,
    pub(super) timeout: Option<Duration>,
    pub(super) retries: Option<Retries>,
    pub(super) fault: Option<Fault>,
    pub(super) mirrors: Option<Vec<MirrorTo>>,
    pub(super) cors: Option<Cors>,
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action {
    Forward(Vec<Split>),
    Redirect(Redirect),
    Respond(DirectResponse),
    /// The delegate says.
    Delegated,
}

/// One of `route`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Split {
    pub(super) to: Destination,
    pub(super) weight: u32,
    pub(super) headers: BothEdits,
}

/// A `destination`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Destination {
    /// Path for reports.
    pub(super) path: String,
    /// Namespace of the object that names it.
    pub(super) namespace: Arc<str>,
    /// As written, in lower case.
    pub(super) host: Arc<str>,
    pub(super) subset: Option<Arc<str>>,
    pub(super) port: Option<u16>,
}

/// Who gets a copy, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MirrorTo {
    pub(super) to: Destination,
    pub(super) share: Fraction,
}

/// One of `tls` or `tcp`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct L4Rule {
    /// Path for reports.
    pub(super) path: String,
    pub(super) matches: Vec<L4Match>,
    pub(super) to: Vec<(Destination, u32)>,
}

/// One match of an [`L4Rule`].
#[derive(Clone, Debug, PartialEq)]
pub(super) struct L4Match {
    /// Path for reports.
    pub(super) path: String,
    pub(super) server_names: Vec<Arc<str>>,
    pub(super) destinations: Vec<IpNet>,
    pub(super) port: Option<u16>,
    pub(super) only_for: OnlyFor,
}

impl VirtualService {
    /// Reads it; what is wrong is reported.
    pub(in crate::source::kube) fn read(meta: Meta, root: &Field<'_>) -> Self {
        let mut read = Self {
            hosts: Vec::new(),
            in_mesh: true,
            export_to: ExportTo::default(),
            http: Vec::new(),
            tls: Vec::new(),
            tcp: Vec::new(),
            meta,
        };
        root.only(&["apiVersion", "kind", "metadata", "spec", "status"]);
        let Some(spec) = root.get("spec") else {
            root.problem("no spec", "allowed: a VirtualService with hosts and routes");
            return read;
        };
        spec.only(&["hosts", "gateways", "http", "tls", "tcp", "exportTo"]);
        let gateways = spec.items("gateways");
        read.in_mesh = gateways.is_empty() || gateways.iter().any(|g| g.text() == Some("mesh"));
        gateways.iter().for_each(check_gateway);
        read.hosts = hosts(&spec, read.in_mesh);
        read.export_to = ExportTo::read(&spec, &read.meta.namespace);
        let is_delegate = spec.items("hosts").is_empty();
        if is_delegate {
            for key in ["gateways", "tls", "tcp"] {
                if let Some(field) = spec.get(key).filter(|field| !field.is_empty()) {
                    field.problem(
                        format!("{key} in a delegate"),
                        "allowed: http only in a VirtualService without hosts",
                    );
                }
            }
        }
        if ["http", "tls", "tcp"].iter().all(|key| spec.items(key).is_empty()) {
            spec.problem("no routes", "allowed: http, tcp or tls");
        }
        read.http = spec.items("http").iter().map(|rule| http_rule(rule, &read, is_delegate)).collect();
        let own = &read.meta.namespace;
        read.tls = spec.items("tls").iter().map(|rule| tls_rule(rule, &read.hosts, own)).collect();
        read.tcp = spec.items("tcp").iter().map(|rule| tcp_rule(rule, own)).collect();
        read
    }
}

fn check_gateway(field: &Field<'_>) {
    let is_name = |text: &str| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
    };
    let text = field.text().unwrap_or("mesh");
    let good = match text.split_once('/') {
        Some((namespace, name)) => is_name(namespace) && is_name(name),
        None => is_name(text),
    };
    if !good {
        field.refuse("mesh, a Gateway's name, or <namespace>/<name>");
    }
}

fn hosts(spec: &Field<'_>, in_mesh: bool) -> Vec<Arc<str>> {
    let mut hosts: Vec<Arc<str>> = Vec::new();
    for item in spec.items("hosts") {
        let is_address = item.text().is_some_and(|text| text.parse::<IpAddr>().is_ok());
        let Some(host) = (if is_address { item.text().map(Arc::from) } else { host(&item) }) else {
            continue;
        };
        if &*host == "*" && in_mesh {
            item.problem("* in the mesh", "allowed: names of services; * for gateways only");
        }
        if let Some(other) = hosts.iter().find(|h| host_matches(h, &host) || host_matches(&host, h)) {
            item.problem(format!("{host}, which {other} means as well"), "allowed: hosts that differ");
        }
        hosts.push(host);
    }
    hosts
}

const HTTP: [&str; 16] = [
    "name",
    "match",
    "route",
    "redirect",
    "directResponse",
    "delegate",
    "rewrite",
    "timeout",
    "retries",
    "fault",
    "mirror",
    "mirrors",
    "mirrorPercent",
    "mirrorPercentage",
    "corsPolicy",
    "headers",
];

fn http_rule(field: &Field<'_>, of: &VirtualService, is_delegate: bool) -> HttpRule {
    field.only(&HTTP);
    let delegate = field.get("delegate").map(|to| delegate(&to, &of.meta.namespace));
    check_combinations(field, is_delegate);
    let rewrite = field.get("rewrite").map(|rewrite| actions::rewrite(&rewrite));
    let headers = headers::both(field);
    if let Some(both) = &headers
        && both.request.authority.is_some()
        && rewrite.as_ref().is_some_and(|rewrite| rewrite.authority.is_some())
    {
        field.problem("the authority is set by rewrite and by headers", "allowed: once");
    }
    let action = match (field.get("redirect"), field.get("directResponse"), &delegate) {
        (.., Some(_)) => Action::Delegated,
        (Some(redirect), ..) => actions::redirect(&redirect).map_or(Action::Delegated, Action::Redirect),
        (None, Some(answer), None) => {
            actions::direct_response(&answer).map_or(Action::Delegated, Action::Respond)
        }
        (None, None, None) => Action::Forward(splits(field, &of.meta.namespace)),
    };
    let matches: Vec<_> = field.items("match").iter().map(|m| http_match::read(m, of.in_mesh)).collect();
    let replaces_prefix =
        matches!(&action, Action::Redirect(to) if matches!(to.path, RedirectPath::PrefixText(_)));
    let is_prefix = |path: &PathTest| matches!(path, PathTest::Text { text: TextMatch::Prefix(_), .. });
    if replaces_prefix && matches.iter().filter_map(|m| m.test.path.as_ref()).any(|path| !is_prefix(path)) {
        field.problem(
            "redirect.prefixRewrite beside a uri that is no prefix",
            "allowed: a match with uri.prefix",
        );
    }
    HttpRule {
        path: field.path().to_owned(),
        name: field.text_at("name").map(Arc::from),
        matches,
        action,
        delegate: delegate.flatten(),
        headers,
        rewrite,
        timeout: field.get("timeout").and_then(|timeout| duration(&timeout)),
        retries: field.get("retries").map(|retries| actions::retries(&retries)),
        fault: field.get("fault").map(|fault| actions::fault(&fault)),
        mirrors: mirrors(field, &of.meta.namespace),
        cors: field.get("corsPolicy").map(|cors| actions::cors(&cors)),
    }
}

/// What may not stand beside each other. Source: Istio's validation of HTTP routes.
fn check_combinations(field: &Field<'_>, is_delegate: bool) {
    let refuse = |one: &str, others: &[&str]| {
        for other in others.iter().filter_map(|key| field.get(key)).filter(|other| !other.is_empty()) {
            let key = other.path().rsplit('.').next().unwrap_or("").to_owned();
            other.problem(format!("{key} beside {one}"), "allowed: one of them");
        }
    };
    let has = |key: &str| field.get(key).is_some();
    if has("mirror") {
        refuse("mirror", &["mirrors"]);
    }
    if has("delegate") {
        if is_delegate {
            refuse("hosts that are none", &["delegate"]);
        }
        refuse("delegate", &["redirect", "route", "directResponse"]);
    } else if has("redirect") {
        refuse("redirect", &["route", "fault", "rewrite", "directResponse"]);
    } else if has("directResponse") {
        refuse("directResponse", &["route", "fault", "rewrite"]);
    } else if field.items("route").is_empty() {
        field.problem("nothing to do", "allowed: route, redirect, directResponse or delegate");
    }
}

fn delegate(field: &Field<'_>, own: &Arc<str>) -> Option<(Arc<str>, Arc<str>)> {
    field.only(&["name", "namespace"]);
    let Some(name) = field.text_at("name") else {
        field.problem("no name", "allowed: the name of a VirtualService without hosts");
        return None;
    };
    Some((field.text_at("namespace").map_or_else(|| Arc::clone(own), Arc::from), name.into()))
}

fn splits(field: &Field<'_>, own: &Arc<str>) -> Vec<Split> {
    let items = field.items("route");
    let one = |item: &Field<'_>| {
        item.only(&["destination", "weight", "headers"]);
        Some(Split {
            to: required_destination(item, own)?,
            weight: weight(item),
            headers: headers::both(item).unwrap_or_default(),
        })
    };
    let splits: Vec<Split> = items.iter().filter_map(one).collect();
    check_weights(field, splits.iter().map(|split| split.weight));
    splits
}

fn weight(item: &Field<'_>) -> u32 {
    let weight = item.get("weight").and_then(|weight| integer(&weight, 0, i32::MAX.into()));
    weight.and_then(|weight| u32::try_from(weight).ok()).unwrap_or(0)
}

/// One destination gets everything whatever its weight; of several one must have some.
fn check_weights(field: &Field<'_>, weights: impl ExactSizeIterator<Item = u32>) {
    let several = weights.len() > 1;
    if several && weights.map(u64::from).sum::<u64>() == 0 {
        let route = field.get("route").unwrap_or_else(|| field.clone());
        route.problem("all weights are 0", "allowed: a weight over 0 for one destination at least");
    }
}

fn required_destination(item: &Field<'_>, own: &Arc<str>) -> Option<Destination> {
    let Some(to) = item.get("destination") else {
        item.problem("no destination", "allowed: a destination with a host");
        return None;
    };
    destination(&to, own)
}

fn destination(field: &Field<'_>, own: &Arc<str>) -> Option<Destination> {
    field.only(&["host", "subset", "port"]);
    let Some(host_field) = field.get("host") else {
        field.problem("no host", "allowed: the name of a service");
        return None;
    };
    let host = host(&host_field)?;
    if &*host == "*" {
        host_field.refuse("the name of a service");
    }
    let port = field.get("port").and_then(|port| {
        port.only(&["number"]);
        let number = port.get("number");
        if number.is_none() {
            port.problem("no number", "allowed: number, a port");
        }
        number?.port()
    });
    let subset = field.get("subset").filter(|subset| subset.text() != Some(""));
    Some(Destination {
        path: field.path().to_owned(),
        namespace: Arc::clone(own),
        host,
        subset: subset.and_then(|subset| name(&subset)),
        port,
    })
}

/// Who gets a copy; those with a share of 0 are left out.
fn mirrors(field: &Field<'_>, own: &Arc<str>) -> Option<Vec<MirrorTo>> {
    let old = field.get("mirror").map(|to| {
        let share = actions::mirror_share(field, "mirrorPercentage", Some("mirrorPercent"));
        destination(&to, own)
            .zip(share)
            .map(|(to, share)| MirrorTo { to, share })
            .into_iter()
            .collect::<Vec<_>>()
    });
    let one = |item: &Field<'_>| {
        item.only(&["destination", "percentage"]);
        let share = actions::mirror_share(item, "percentage", None)?;
        Some(MirrorTo { to: required_destination(item, own)?, share })
    };
    let all = field.get("mirrors").map(|list| list.list().iter().filter_map(one).collect::<Vec<_>>());
    let found = old.or(all)?;
    Some(found.into_iter().filter(|mirror| mirror.share > Fraction(0)).collect())
}

fn l4_splits(field: &Field<'_>, own: &Arc<str>) -> Vec<(Destination, u32)> {
    let items = field.items("route");
    if items.is_empty() {
        field.problem("no route", "allowed: at least one destination");
    }
    let one = |item: &Field<'_>| {
        item.only(&["destination", "weight"]);
        Some((required_destination(item, own)?, weight(item)))
    };
    let splits: Vec<(Destination, u32)> = items.iter().filter_map(one).collect();
    check_weights(field, splits.iter().map(|(_, weight)| *weight));
    splits
}

fn tls_rule(field: &Field<'_>, hosts: &[Arc<str>], own: &Arc<str>) -> L4Rule {
    field.only(&["match", "route"]);
    let matches = field.items("match");
    if matches.is_empty() {
        field.problem("no match", "allowed: at least one match with sniHosts");
    }
    let one = |m: &Field<'_>| {
        m.only(&["sniHosts", "destinationSubnets", "port", "sourceLabels", "gateways", "sourceNamespace"]);
        let names = m.items("sniHosts");
        if names.is_empty() {
            m.problem("no sniHosts", "allowed: at least one name");
        }
        let mut server_names = Vec::new();
        for item in names {
            let is_address = item.text().is_some_and(|text| text.parse::<IpAddr>().is_ok());
            let Some(name) = (if is_address { item.text().map(Arc::from) } else { host(&item) }) else {
                continue;
            };
            if !hosts.is_empty() && !is_address && !hosts.iter().any(|h| host_matches(h, &name)) {
                item.problem(
                    format!("{name}, which no host of the object means"),
                    "allowed: names that hosts mean",
                );
            }
            server_names.push(name);
        }
        l4_match(m, server_names)
    };
    L4Rule {
        path: field.path().to_owned(),
        matches: matches.iter().map(one).collect(),
        to: l4_splits(field, own),
    }
}

fn tcp_rule(field: &Field<'_>, own: &Arc<str>) -> L4Rule {
    field.only(&["match", "route"]);
    let one = |m: &Field<'_>| {
        let fields =
            ["destinationSubnets", "port", "sourceSubnet", "sourceLabels", "gateways", "sourceNamespace"];
        m.only(&fields);
        l4_match(m, Vec::new())
    };
    L4Rule {
        path: field.path().to_owned(),
        matches: field.items("match").iter().map(one).collect(),
        to: l4_splits(field, own),
    }
}

fn l4_match(field: &Field<'_>, server_names: Vec<Arc<str>>) -> L4Match {
    L4Match {
        path: field.path().to_owned(),
        server_names,
        destinations: field.items("destinationSubnets").iter().filter_map(|net| net.block()).collect(),
        port: field.get("port").and_then(|port| port.port()),
        only_for: OnlyFor::read(field),
    }
}
