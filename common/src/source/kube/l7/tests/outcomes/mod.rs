//! Objects and a request in; what the upstream is sent, or what is answered here, out. One row for each field and for what
//! does not have it, so that a field without effect is noticed whether its reading or its use is gone.
//!
//! | object | fields |
//! | --- | --- |
//! | VirtualService | [`virtual_service`] |
//! | HTTPRoute, GRPCRoute | [`gateway_api`] |
//! | DestinationRule, ServiceEntry | [`destinations`] |
//! | AuthorizationPolicy, Gateway | [`policies`] |
//! | any, in another namespace | [`namespaces`] |

mod destinations;
mod gateway_api;
mod namespaces;
mod policies;
mod virtual_service;

use std::time::{Duration, Instant, SystemTime};

use ::http::{HeaderMap, HeaderValue, StatusCode};

use super::*;
use crate::l7::balance::{Ask, Endpoints, Host, Picked, is_member};
use crate::l7::fixtures::{Asked, asked, lines};
use crate::l7::outlier::Detector;
use crate::l7::retry::{Next, Tried, next};
use crate::l7::timeout::timeouts;
use crate::l7::{
    Act, Changes, Chosen, Edits, Facts, Failure, Flags, Found, Passed, Reply, Switch, Values,
    add_client_cert, clean_request, find, normalize, plan,
};
use crate::model::l7::{Bound as BoundService, Mirror, Weighted};
use crate::state::{Snapshot, State};

/// A mesh with these objects, as a waypoint has it.
struct World {
    of: TranslatedWaypoint,
    snapshot: Arc<Snapshot>,
    /// Status that every endpoint answers with.
    upstream: u16,
    /// What is drawn, for weights; shares are drawn as 0 in a million.
    drawn: u64,
}

/// Who stands behind `echo` and `bank`.
const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: echo-1, namespace: shop, labels: {app: echo}}
status: {podIPs: [{ip: 10.0.0.3}]}
---
apiVersion: v1
kind: Pod
metadata: {name: bank-1, namespace: money, labels: {app: bank}}
status: {podIPs: [{ip: 10.0.0.4}]}
"#;

/// What a request gets that nothing is done to.
const CART: &str = "GET svc/a > cart-1:80|cart-2:80";

fn world(objects: &str) -> World {
    world_with(objects, &Settings::default())
}

fn world_with(objects: &str, settings: &Settings) -> World {
    world_of(MESH, objects, settings)
}

fn world_of(mesh: &str, objects: &str, settings: &Settings) -> World {
    let files = [("mesh.yaml", mesh), ("pods.yaml", PODS), ("a.yaml", objects)];
    let documents = files.map(|(file, text)| Document { file, text });
    let of = translate_waypoint(&documents, settings, &key());
    let of = of.unwrap_or_else(|problems| panic!("{problems:#?}\n{objects}"));
    let state = State::new();
    state.publish(of.model.clone());
    World { of, snapshot: state.snapshot(), upstream: 200, drawn: 0 }
}

/// A request in lines: method and target, then headers; `host` is the authority, `peer` the client's namespace and service
/// account, `from` its address, `to` what the tunnel was opened to.
fn request(text: &str) -> Asked {
    let mut all = text.lines().map(str::trim);
    let mut request = asked(all.next().expect("a request line"));
    for line in all {
        let (name, value) = line.split_once(": ").expect("a header line");
        match name {
            "host" => request.authority = value.into(),
            "peer" => {
                let (namespace, account) = value.split_once('/').unwrap();
                request.peer = SpiffeId::new("cluster.local", namespace, account).ok();
            }
            "from" => request.source = value.parse().unwrap(),
            "to" => request.destination = value.parse().unwrap(),
            _ => request = request.with(line),
        }
    }
    request
}

impl World {
    /// What becomes of a request, in the order of the data path.
    fn outcome(&self, text: &str) -> String {
        let mut request = request(text);
        let before = lines(&request.headers);
        let waypoint = &self.of.waypoint;
        let is_grpc = request.facts().is_grpc();
        if clean_request(&mut request.headers, Switch::No).is_err() {
            return answered(Reply::failure(&Failure::BadConnection, is_grpc));
        }
        match normalize(request.target.as_bytes(), waypoint.normalization, waypoint.above_root) {
            Ok(plain) => request.target = plain.into_owned(),
            Err(_) => return answered(Reply::failure(&Failure::BadPath, is_grpc)),
        }
        let to = request.destination;
        let at = self.snapshot.services_at(to.ip()).iter().chain(self.snapshot.services_around(to.ip()));
        let service = at.map(|service| &service.key).find_map(|key| waypoint.services.get(key));
        match service {
            Some(service) => self.of_service(service, &mut request, &before),
            None => match self.snapshot.workload_by_ip(to.ip()) {
                Some(workload) if waypoint.workloads.contains(&workload.uid) => {
                    self.tell_client(&mut request);
                    match plan(None, &waypoint.policies, &request.facts(), || 0).passed {
                        Passed::On => {
                            format!("{} {} > workload {}", request.method, request.target, workload.name)
                        }
                        Passed::Reply(reply) | Passed::Untouched(reply) => answered(reply),
                    }
                }
                _ => "not bound".into(),
            },
        }
    }

    fn tell_client(&self, request: &mut Asked) {
        let waypoint = &self.of.waypoint;
        let own = waypoint.identity.as_ref().filter(|_| waypoint.forwards_identity);
        if let Some((own, peer)) = own.zip(request.peer.clone()) {
            add_client_cert(&mut request.headers, own, &peer);
        }
    }

    fn of_service(&self, service: &BoundService, request: &mut Asked, before: &[String]) -> String {
        let Some(port) = service.ports.get(&request.destination.port()) else { return "no port".into() };
        let found = find(&port.http, &request.facts());
        self.tell_client(request);
        let mut drawn = Some(self.drawn);
        let plan = plan(found, &service.policies, &request.facts(), || drawn.take().unwrap_or_default());
        let (chosen, mut cors) = (plan.chosen, plan.response);
        if let Some(delay) = plan.delay {
            cors.insert("delayed", HeaderValue::try_from(format!("{delay:?}")).unwrap());
        }
        match plan.passed {
            Passed::On => {}
            Passed::Reply(reply) => return edited(reply, chosen, &request.facts(), cors),
            Passed::Untouched(reply) => return edited(reply, None, &request.facts(), cors),
        }
        let cluster = |key| self.of.waypoint.clusters.get(key).map(|cluster| (cluster, &**cluster));
        let act = Act::of(chosen, &request.facts(), cluster);
        match act {
            Act::Reply(reply) => edited(reply, chosen, &request.facts(), cors),
            Act::Forward(found, backend, cluster) => {
                self.forward((found, backend, cluster), (request, before), cors)
            }
        }
    }

    fn forward(
        &self,
        (found, backend, cluster): (Found<'_>, &Weighted, &Cluster),
        (request, before): (&mut Asked, &[String]),
        cors: HeaderMap,
    ) -> String {
        let is_grpc = request.facts().is_grpc();
        let chosen = Some(Chosen { found, backend: Some(backend) });
        let Some(endpoint) = self.endpoint(cluster, request.destination) else {
            let reply = Reply::failure(&Failure::NoHealthyUpstream, is_grpc);
            return edited(reply, chosen, &request.facts(), cors);
        };
        let edit = Changes::of(found, backend, &values(&request.facts()));
        if let Some(authority) = edit.apply(&mut request.headers, &mut request.target) {
            request.authority = authority.to_str().unwrap().into();
        }
        let retries = &found.route.retries;
        let per_try = retries.per_try_timeout.filter(|_| retries.attempts > 0);
        let grpc = is_grpc.then_some(&request.headers);
        timeouts(found.route.timeout, per_try, grpc).announce(Duration::ZERO, is_grpc, &mut request.headers);
        let changed = changes(before, &lines(&request.headers));
        let mut out = format!("{} {}{} > {endpoint}", request.method, request.authority, request.target);
        out.push_str(&changed);
        let mirrors = found.route.mirrors.iter().chain(&backend.mirrors);
        let mirrors = mirrors.filter(|mirror| mirror.share.includes(0));
        out.extend(mirrors.map(|mirror: &Mirror| format!(" copy {}", shown(&mirror.backend))));
        let (status, none) = (StatusCode::from_u16(self.upstream).unwrap(), HeaderMap::new());
        let tries =
            (0..).take_while(|made| next(retries, *made, Tried::Answered(status, &none)) == Next::Again);
        let tries = tries.count() + 1;
        if tries > 1 {
            out.push_str(&format!(" {tries} times"));
        }
        let mut upstream = Reply::new(status, bytes::Bytes::new(), false);
        upstream.headers = self::request("GET /\nx-up: 1").headers;
        let answer = edited(upstream, chosen, &request.facts(), cors);
        if answer != "200 x-up: 1" && tries == 1 {
            out.push_str(&format!(" < {answer}"));
        }
        out
    }

    /// Names of the endpoints that may be chosen, or of the address that was asked for.
    fn endpoint(&self, cluster: &Cluster, asked: std::net::SocketAddr) -> Option<String> {
        let service = self.snapshot.service(&cluster.key.service)?;
        let mut names = Vec::new();
        for endpoint in &service.endpoints {
            let is_in = is_member(cluster.subset.as_ref(), &endpoint.workload);
            if !is_in || !service.is_ready(endpoint.health) {
                continue;
            }
            let workload = self.snapshot.workload(&endpoint.workload)?;
            let port = service.target_port(endpoint, cluster.key.port)?;
            names.push(format!("{}:{port}", workload.name));
        }
        names.sort();
        let hosts: Vec<Host> = names.iter().map(|_| Host::new(1)).collect();
        let endpoints = Endpoints::new(hosts, Arc::new(Detector::new(Instant::now())));
        let ask = Ask { balance: cluster.balance, outliers: None, random: [0; 2], now: Instant::now() };
        match endpoints.pick(&ask, None) {
            Ok(Picked::Endpoint(_)) => Some(names.join("|")),
            Ok(Picked::AsAsked) => Some(format!("as asked {asked}")),
            Err(_) => None,
        }
    }
}

fn values<'v>(facts: &'v Facts<'v>) -> Values<'v> {
    let started = SystemTime::UNIX_EPOCH;
    Values {
        facts,
        protocol: "HTTP/1.1",
        started,
        route: "",
        upstream: None,
        flags: Flags::default(),
        details: "",
        response: None,
    }
}

/// An answer with what its route does to its headers.
fn edited(mut reply: Reply, chosen: Option<Chosen<'_>>, facts: &Facts<'_>, cors: HeaderMap) -> String {
    if let Some(Chosen { found, backend }) = chosen {
        let edits = Edits::of_response(found.route, backend, &values(facts));
        reply.edit(|headers| edits.apply(headers));
    }
    reply.headers.extend(cors);
    answered(reply)
}

/// Status, body, flag and headers, but for those of the body.
fn answered(mut reply: Reply) -> String {
    reply.headers.remove("content-length");
    if reply.headers.get("content-type").is_some_and(|kind| kind == "text/plain") {
        reply.headers.remove("content-type");
    }
    let mut out = reply.status.as_u16().to_string();
    if !reply.body.is_empty() {
        out.push_str(&format!(" {:?}", String::from_utf8_lossy(&reply.body)));
    }
    if let Some(flag) = reply.flag {
        out.push_str(&format!(" {}", flag.as_str()));
    }
    for line in lines(&reply.headers) {
        out.push_str(&format!(" {line}"));
    }
    out
}

/// What is new, and what is gone with a minus.
fn changes(before: &[String], after: &[String]) -> String {
    let gone = before.iter().filter(|line| !after.contains(line)).map(|line| format!(" -{line}"));
    let new = after.iter().filter(|line| !before.contains(line)).map(|line| format!(" +{line}"));
    gone.chain(new).collect()
}

/// Whether each request of a row comes to what the row says, and whether what the row has changes any of it.
#[track_caller]
fn check_rows(plain: &str, rows: &[(&str, &[(&str, &str)])], make: impl Fn(&str) -> String) {
    let plain = world(plain);
    let mut failed = Vec::new();
    for (fields, requests) in rows {
        let with = world(&make(fields));
        for (text, wanted) in *requests {
            let outcome = with.outcome(text);
            if outcome != *wanted {
                failed.push(format!("{fields}\n  {text:?}\n  is  {outcome}\n  not {wanted}"));
            }
        }
        if requests.iter().all(|(text, wanted)| plain.outcome(text) == *wanted) {
            failed.push(format!("{fields}\n  changes nothing"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
