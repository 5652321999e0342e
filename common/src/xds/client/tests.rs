//! The client against hand-made discovery servers, good and hostile, and against what a real istiod once said.

use std::net::{Ipv4Addr, SocketAddr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut as _, BytesMut};
use http::{HeaderMap, Response as HttpResponse};
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::*;
use crate::grpc::{Roots, Token};
use crate::model::{Action, Mode, Visibility};
use crate::state::Snapshot;
use crate::task::Scope as Tasks;
use crate::types::{PolicyKey, ServiceKey, WorkloadUid};
use crate::xds::on_demand::{Lookup, OnDemand};
use crate::xds::proto::discovery::{Any, Resource};
use crate::xds::proto::{security as sec, workload as wl};

const LIMIT: Duration = Duration::from_secs(20);
const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
const POLICY: &str = "type.googleapis.com/istio.security.Authorization";

/// A server whose streams a test drives.
struct Server {
    at: SocketAddr,
    streams: mpsc::Receiver<Stream>,
    _tasks: Tasks,
}

struct Stream {
    requests: mpsc::Receiver<DeltaDiscoveryRequest>,
    send: h2::SendStream<Bytes>,
}

impl Server {
    async fn new() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (at, tasks) = (listener.local_addr().unwrap(), Tasks::new());
        let (new, streams) = mpsc::channel(16);
        let own = tasks.clone();
        tasks.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (new, own, inner) = (new.clone(), own.clone(), own.clone());
                own.spawn(async move {
                    let Ok(mut connection) = h2::server::handshake(socket).await else { return };
                    while let Some(Ok((request, mut respond))) = connection.accept().await {
                        assert_eq!(request.uri().path(), METHOD);
                        let answer = HttpResponse::builder().header("content-type", "application/grpc");
                        let send = respond.send_response(answer.body(()).unwrap(), false).unwrap();
                        let (said, requests) = mpsc::channel(64);
                        inner.spawn(listen(request.into_body(), said));
                        let _test_has_ended = new.send(Stream { requests, send }).await;
                    }
                });
            }
        });
        Self { at, streams, _tasks: tasks }
    }

    async fn stream(&mut self) -> Stream {
        timeout(LIMIT, self.streams.recv()).await.expect("a stream").unwrap()
    }

    /// A stream whose two first requests have been read.
    async fn opened(&mut self) -> (Stream, [DeltaDiscoveryRequest; 2]) {
        let mut stream = self.stream().await;
        let first = [stream.request().await, stream.request().await];
        (stream, first)
    }
}

/// Decodes what the client says.
async fn listen(mut body: h2::RecvStream, said: mpsc::Sender<DeltaDiscoveryRequest>) {
    let mut bytes = BytesMut::new();
    while let Some(Ok(piece)) = body.data().await {
        let _unlimited = body.flow_control().release_capacity(piece.len());
        bytes.extend_from_slice(&piece);
        while let Some(length) =
            bytes.get(1..5).map(|four| u32::from_be_bytes(four.try_into().unwrap()) as usize)
        {
            if bytes.len() < 5 + length {
                break;
            }
            let message = bytes.split_to(5 + length);
            let request = DeltaDiscoveryRequest::decode(&message[5..]).unwrap();
            if said.send(request).await.is_err() {
                return;
            }
        }
    }
}

impl Stream {
    async fn request(&mut self) -> DeltaDiscoveryRequest {
        timeout(LIMIT, self.requests.recv()).await.expect("a request").expect("an open stream")
    }

    fn raw(&mut self, bytes: Vec<u8>) {
        let _reset_by_the_client = self.send.send_data(bytes.into(), false);
    }

    fn message(&mut self, body: &[u8]) {
        let mut bytes = vec![0];
        bytes.put_u32(u32::try_from(body.len()).unwrap());
        bytes.extend_from_slice(body);
        self.raw(bytes);
    }

    fn answer(&mut self, type_url: &str, nonce: &str, resources: Vec<Resource>, removed: &[&str]) {
        let message = DeltaDiscoveryResponse {
            resources,
            type_url: type_url.into(),
            nonce: nonce.into(),
            removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
        };
        self.message(&message.encode_to_vec());
    }

    fn end(mut self, status: u8) {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", status.to_string().parse().unwrap());
        let _reset_by_the_client = self.send.send_trailers(trailers);
    }
}

fn uid(name: &str) -> String {
    format!("Kubernetes//Pod/shop/{name}")
}

fn resource(kind: &str, name: &str, body: Vec<u8>) -> Resource {
    let body = Any { type_url: kind.into(), value: body.into() };
    Resource { name: name.into(), version: "a1".into(), resource: Some(body), aliases: Vec::new() }
}

fn workload(name: &str, last: u8) -> Resource {
    let message = wl::Workload {
        uid: uid(name),
        name: name.into(),
        namespace: "shop".into(),
        addresses: vec![vec![10, 0, 0, last]],
        ..Default::default()
    };
    let body = wl::Address { kind: Some(wl::Kind::Workload(Box::new(message))) };
    resource(ADDRESS, &uid(name), body.encode_to_vec())
}

fn policy(name: &str) -> Resource {
    let message =
        sec::Authorization { name: name.into(), namespace: "shop".into(), scope: 1, ..Default::default() };
    resource(POLICY, &format!("shop/{name}"), message.encode_to_vec())
}

fn bad(kind: &str, name: &str) -> Resource {
    resource(kind, name, vec![0xff])
}

/// A client and what it publishes.
struct Agent {
    state: Arc<State>,
    metrics: Arc<Metrics>,
    synced: watch::Receiver<bool>,
    on_demand: OnDemand,
    _tasks: Tasks,
}

fn agent(at: SocketAddr, scope: Scope) -> Agent {
    keeping(at, scope, None)
}

fn keeping(at: SocketAddr, scope: Scope, kept: Option<(PathBuf, String)>) -> Agent {
    let target = Target {
        address: format!("http://{at}").parse().unwrap(),
        roots: Roots::System,
        alternative_host: None,
        token: Some(Token::Literal(grpc::Secret::new("token".into()))),
        headers: Vec::new(),
    };
    let node = Node { id: "ztunnel~1.1.1.1~a.b~b.svc.cluster.local".into(), ..Node::default() };
    let limits = Limits { message_max: 1 << 20, ..Limits::default() };
    let settings = Settings { target, limits, node, options: Options::default(), scope, kept };
    let (state, metrics, tasks) = (State::new(), Metrics::new("test"), Tasks::new());
    let (on_demand, asks) = OnDemand::new();
    let (client, synced) = Client::new(settings, asks, (Arc::clone(&state), Arc::clone(&metrics)));
    tasks.spawn(client.run());
    Agent { state, metrics, synced, on_demand, _tasks: tasks }
}

impl Agent {
    async fn until(&self, what: &str, holds: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let mut changes = self.state.changed();
        let waiting = async {
            loop {
                let snapshot = self.state.snapshot();
                if holds(&snapshot) {
                    return snapshot;
                }
                changes.changed().await.unwrap();
            }
        };
        timeout(LIMIT, waiting).await.unwrap_or_else(|_| panic!("never {what}: {:?}", self.names()))
    }

    fn names(&self) -> Vec<String> {
        let snapshot = self.state.snapshot();
        let mut names: Vec<_> = snapshot.workloads().map(|w| w.name.to_string()).collect();
        names.extend(snapshot.policies().map(|p| p.key.to_string()));
        names.sort();
        names
    }

    /// A server that has told one workload and one policy.
    async fn begun() -> (Self, Server, Stream) {
        let mut server = Server::new().await;
        let agent = agent(server.at, Scope::Everything);
        let (mut stream, _) = server.opened().await;
        stream.answer(ADDRESS, "1", vec![workload("a", 1)], &[]);
        stream.answer(POLICY, "2", vec![policy("p")], &[]);
        assert_eq!(
            (stream.request().await.response_nonce, stream.request().await.response_nonce),
            ("1".into(), "2".into())
        );
        agent.until("complete", |snapshot| snapshot.completeness == Completeness::Complete).await;
        (agent, server, stream)
    }
}

#[tokio::test]
async fn everything_is_asked_for_and_in_force_once_every_type_is_answered() {
    let mut server = Server::new().await;
    let agent = agent(server.at, Scope::Everything);
    let (mut stream, [addresses, policies]) = server.opened().await;
    assert_eq!((&*addresses.type_url, &*policies.type_url), (ADDRESS, POLICY));
    assert!(addresses.node.is_some_and(|node| node.id.starts_with("ztunnel~")));
    assert!(addresses.resource_names_subscribe.is_empty() && addresses.initial_resource_versions.is_empty());
    stream.answer(ADDRESS, "1", vec![workload("a", 1)], &[]);
    let ack = stream.request().await;
    assert_eq!((&*ack.type_url, &*ack.response_nonce, ack.error_detail), (ADDRESS, "1", None));
    assert_eq!(agent.state.snapshot().revision, 0, "policies may be missing");
    assert!(!*agent.synced.borrow());
    stream.answer(POLICY, "2", vec![policy("p")], &[]);
    agent.until("complete", |snapshot| snapshot.completeness == Completeness::Complete).await;
    assert_eq!(agent.names(), ["a", "shop/p"]);
    assert!(*agent.synced.borrow());
    stream.answer(ADDRESS, "3", vec![workload("b", 2)], &[&uid("a")]);
    agent.until("b alone", |snapshot| snapshot.workload(&WorkloadUid(uid("b").into())).is_some()).await;
    assert_eq!(agent.names(), ["b", "shop/p"]);
}

#[tokio::test]
async fn a_first_push_with_bad_resources_does_not_keep_the_agent_unready() {
    let mut server = Server::new().await;
    let agent = agent(server.at, Scope::Everything);
    let (mut stream, _) = server.opened().await;
    stream.answer(ADDRESS, "1", vec![bad(ADDRESS, "x"), workload("a", 1)], &[]);
    let nack = stream.request().await.error_detail.expect("a NACK");
    assert!(nack.code == 3 && nack.message.starts_with("x: cannot be decoded"), "{nack:?}");
    stream.answer(POLICY, "2", vec![bad(POLICY, "shop/p")], &[]);
    assert!(stream.request().await.error_detail.is_some());
    agent.until("complete", |snapshot| snapshot.completeness == Completeness::Complete).await;
    assert_eq!(agent.names(), ["a", "shop/p"], "what stands in for the policy denies");
    assert!(agent.metrics.encode(false).contains("culvert_xds_rejected_resources_total 2"));
}

#[tokio::test]
async fn a_new_stream_tells_what_is_known_and_gets_what_differs() {
    let (agent, mut server, stream) = Agent::begun().await;
    stream.end(0);
    let (mut stream, [addresses, policies]) = server.opened().await;
    assert_eq!(agent.names(), ["a", "shop/p"], "it stays while the server is away");
    assert_eq!(addresses.initial_resource_versions, [(uid("a"), "a1".to_owned())].into());
    assert_eq!(policies.initial_resource_versions, [("shop/p".to_owned(), "a1".to_owned())].into());
    stream.answer(ADDRESS, "1", vec![workload("b", 2)], &[&uid("a")]);
    stream.answer(POLICY, "2", vec![], &[]);
    agent.until("b", |snapshot| snapshot.workload(&WorkloadUid(uid("b").into())).is_some()).await;
    assert_eq!(agent.names(), ["b", "shop/p"]);
    assert!(
        agent
            .metrics
            .encode(false)
            .contains("istio_xds_connection_terminations_total{reason=\"Complete\"} 1")
    );
}

/// What a hostile or broken server does after it has said something good.
#[derive(Clone, Copy, Debug)]
enum Does {
    Garbage,
    HalfAMessage,
    AGiantMessage,
    Compressed,
    AnError,
    NoStatus,
    Reset,
}

#[tokio::test]
async fn a_server_that_breaks_the_stream_leaves_the_last_good_state_and_is_asked_again() {
    for does in [
        Does::Garbage,
        Does::HalfAMessage,
        Does::AGiantMessage,
        Does::Compressed,
        Does::AnError,
        Does::NoStatus,
        Does::Reset,
    ] {
        let (agent, mut server, mut stream) = Agent::begun().await;
        let mut kept = None;
        match does {
            Does::Garbage => {
                stream.message(&[0xff; 64]);
                kept = Some(stream);
            }
            Does::HalfAMessage => {
                stream.raw(vec![0, 0, 0, 0, 100, 1, 2, 3]);
                stream.end(0);
            }
            Does::AGiantMessage => {
                stream.raw(vec![0, 0x7f, 0xff, 0xff, 0xff]);
                kept = Some(stream);
            }
            Does::Compressed => {
                stream.raw(vec![1, 0, 0, 0, 1, 0]);
                kept = Some(stream);
            }
            Does::AnError => stream.end(13),
            Does::NoStatus => {
                let _ended = stream.send.send_data(Bytes::new(), true);
            }
            Does::Reset => stream.send.send_reset(h2::Reason::INTERNAL_ERROR),
        }
        let (mut next, [addresses, _]) = server.opened().await;
        assert_eq!(agent.names(), ["a", "shop/p"], "{does:?}");
        assert_eq!(addresses.initial_resource_versions.len(), 1, "{does:?}");
        next.answer(ADDRESS, "1", vec![workload("b", 2)], &[]);
        next.answer(POLICY, "2", vec![], &[]);
        agent.until("b", |snapshot| snapshot.workload(&WorkloadUid(uid("b").into())).is_some()).await;
        drop(kept);
    }
}

#[tokio::test]
async fn a_server_that_contradicts_itself_changes_only_what_it_says() {
    let (agent, _server, mut stream) = Agent::begun().await;
    // A type that nobody asked for is not acknowledged and changes nothing.
    stream.answer("type.googleapis.com/istio.workload.Workload", "3", vec![workload("x", 9)], &[]);
    // A nonce of none, one that was used, both in and out, a policy among addresses, one name twice.
    stream.answer(ADDRESS, "", vec![workload("b", 2)], &[]);
    stream.answer(ADDRESS, "1", vec![workload("c", 3)], &[&uid("c"), "", "/", "no/such"]);
    assert_eq!(stream.request().await.response_nonce, "1");
    stream.answer(ADDRESS, "4", vec![policy("q"), workload("d", 4), workload("d", 5)], &[]);
    let nack = stream.request().await;
    assert!(nack.error_detail.is_some_and(|status| status.message.starts_with("shop/q: has the type")));
    let last = |snapshot: &Snapshot| snapshot.workload_by_ip("10.0.0.5".parse().unwrap()).is_some();
    agent.until("the last word", last).await;
    assert_eq!(agent.names(), ["a", "b", "c", "d", "shop/p"]);
}

#[tokio::test]
async fn a_flood_of_pushes_ends_in_what_was_said_last() {
    let (agent, _server, mut stream) = Agent::begun().await;
    for n in 0..300u32 {
        let last = u8::try_from(n % 250).unwrap();
        stream.answer(
            ADDRESS,
            &n.to_string(),
            vec![workload("a", last), workload(&format!("n{}", n % 7), last)],
            &[],
        );
        assert_eq!(stream.request().await.response_nonce, n.to_string());
    }
    agent
        .until("the last", |snapshot| {
            snapshot.workloads().any(|w| &*w.name == "a" && w.addresses[0].to_string() == "10.0.0.49")
        })
        .await;
    assert_eq!(agent.state.snapshot().workloads().count(), 8);
}

#[test]
fn publications_take_a_bounded_share() {
    let (mut pace, now, took) = (Pace::default(), Instant::now(), Duration::from_millis(50));
    assert_eq!(pace.publish_at(), None);
    pace.is_due = true;
    assert!(pace.publish_at().is_some_and(|at| at <= Instant::now()), "a lone change at once");
    pace.published(now, took);
    assert_eq!(pace.publish_at(), None);
    pace.is_due = true;
    assert_eq!(pace.publish_at(), Some(now + took * PAUSE));
}

#[tokio::test]
async fn on_demand_a_hit_by_address_a_miss_and_no_answer_are_told_apart() {
    let mut server = Server::new().await;
    let agent = agent(server.at, Scope::OnDemand);
    let (mut stream, [addresses, _]) = server.opened().await;
    assert_eq!(
        (&*addresses.resource_names_subscribe, &*addresses.resource_names_unsubscribe),
        (&["*".to_owned()][..], &["*".to_owned()][..])
    );
    stream.answer(POLICY, "1", vec![], &[]);
    assert_eq!(stream.request().await.response_nonce, "1");
    let ip = "10.0.0.1".parse().unwrap();
    let server_side = async {
        assert_eq!(stream.request().await.resource_names_subscribe, ["net/10.0.0.1"]);
        stream.answer(
            ADDRESS,
            "2",
            vec![Resource { aliases: vec!["net/10.0.0.1".into()], ..workload("a", 1) }],
            &[],
        );
        assert_eq!(stream.request().await.response_nonce, "2");
    };
    let (found, ()) = tokio::join!(agent.on_demand.address("net", ip, LIMIT), server_side);
    assert_eq!(found, Lookup::Known);
    assert!(agent.state.snapshot().workload_by_ip(ip).is_some(), "in the snapshot by then");

    let ip = "10.0.0.2".parse().unwrap();
    let server_side = async {
        assert_eq!(stream.request().await.resource_names_subscribe, ["net/10.0.0.2"]);
        stream.answer(ADDRESS, "3", vec![], &["net/10.0.0.2"]);
    };
    let (found, ()) = tokio::join!(agent.on_demand.address("net", ip, LIMIT), server_side);
    assert_eq!(found, Lookup::Missing);
    let short = Duration::from_millis(20);
    assert_eq!(agent.on_demand.address("net", "10.0.0.3".parse().unwrap(), short).await, Lookup::TimedOut);
    stream.send.send_reset(h2::Reason::CANCEL);
    // What was asked for is asked for again.
    let (_stream, [addresses, _]) = server.opened().await;
    let asked = &addresses.resource_names_subscribe;
    assert!(asked.contains(&"net/10.0.0.1".to_owned()) && asked.contains(&"*".to_owned()), "{asked:?}");
    assert_eq!(addresses.initial_resource_versions.len(), 1);
}

#[tokio::test]
async fn a_restarted_agent_begins_with_what_was_kept_and_asks_for_what_differs() {
    let dir = std::env::temp_dir().join(format!("culvert-xds-{:016x}", getrandom::u64().unwrap()));
    let kept = || Some((dir.clone(), "cluster=c".to_owned()));
    let mut server = Server::new().await;
    let before = keeping(server.at, Scope::Everything, kept());
    let (mut stream, _) = server.opened().await;
    stream.answer(ADDRESS, "1", vec![workload("a", 1), workload("gone", 2)], &[]);
    stream.answer(POLICY, "2", vec![policy("p"), bad(POLICY, "shop/bad")], &[]);
    stream.answer(ADDRESS, "3", vec![], &[&uid("gone")]);
    before.until("without what is gone", |snapshot| snapshot.workloads().count() == 1).await;
    stream.end(0);
    let _written_by_then = server.opened().await;
    drop(before);

    // Nobody takes connections there.
    let nowhere = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
    let alone = keeping(nowhere, Scope::Everything, kept());
    alone.until("what was kept", |snapshot| snapshot.workloads().count() == 1).await;
    assert_eq!(alone.names(), ["a", "shop/bad", "shop/p"], "what could not be used denies still");
    assert_eq!(alone.state.snapshot().completeness, Completeness::Stale);
    assert!(*alone.synced.borrow(), "pods are served");
    drop(alone);

    let after = keeping(server.at, Scope::Everything, kept());
    let (mut stream, [addresses, _]) = server.opened().await;
    assert_eq!(addresses.initial_resource_versions, [(uid("a"), "a1".to_owned())].into());
    stream.answer(ADDRESS, "1", vec![], &[]);
    stream.answer(POLICY, "2", vec![], &["shop/bad"]);
    after.until("complete", |snapshot| snapshot.completeness == Completeness::Complete).await;
    assert_eq!(after.names(), ["a", "shop/p"]);
    let foreign = keeping(nowhere, Scope::Everything, Some((dir.clone(), "cluster=other".to_owned())));
    assert!(foreign.names().is_empty());
    std::fs::remove_dir_all(&dir).unwrap();
}

/// Each line of a recording is a message in base64: `>` what the client said, `<` what istiod said; and at the end, after
/// `=`, what was there. `examples/record_discovery.rs` makes it.
async fn replayed(recording: &str) -> (Agent, Arc<Snapshot>) {
    let mut server = Server::new().await;
    let agent = agent(server.at, Scope::Everything);
    let mut stream = server.stream().await;
    let mut said = 0;
    let mut wanted = Vec::new();
    for (who, text) in recording.lines().map(|line| line.split_at(2)) {
        match who {
            "> " => {
                let bytes = STANDARD.decode(text).unwrap();
                let (told, got) =
                    (DeltaDiscoveryRequest::decode(&bytes[..]).unwrap(), stream.request().await);
                assert_eq!((&got.type_url, &got.response_nonce), (&told.type_url, &told.response_nonce));
                assert_eq!(got.error_detail, told.error_detail);
            }
            "< " => {
                stream.message(&STANDARD.decode(text).unwrap());
                said += 1;
            }
            _ => wanted.push(text),
        }
    }
    assert!(said > 5, "{said}");
    let all = |snapshot: &Snapshot| {
        let mut names: Vec<String> = snapshot.workloads().map(|w| w.uid.to_string()).collect();
        names.extend(snapshot.services().map(|s| format!("{} {}", s.key, s.endpoints.len())));
        names.extend(snapshot.policies().map(|p| p.key.to_string()));
        names.sort();
        names == wanted
    };
    let snapshot = agent.until("what was there in the end", all).await;
    (agent, snapshot)
}

#[tokio::test]
async fn what_a_real_istiod_said_is_understood() {
    replayed(include_str!("dialogue.txt")).await;
}

/// Entries of every kind: by address and host name, of other networks, ranges, wildcards, weights; policies with all fields.
#[tokio::test]
async fn what_a_real_istiod_said_of_entries_and_policies_is_understood() {
    let (agent, snapshot) = replayed(include_str!("entries.txt")).await;
    assert!(agent.metrics.encode(false).contains("culvert_xds_rejected_resources_total 0"));
    let entry = |name: &str| {
        let uid = WorkloadUid(format!("Kubernetes/networking.istio.io/{name}").into());
        snapshot.workload(&uid).unwrap_or_else(|| panic!("{name}"))
    };
    let by_name = entry("ServiceEntry/shop/dns-none/a.example.com");
    assert_eq!((&*by_name.hostname, by_name.addresses.len()), ("a.example.com", 0));
    let vm = entry("WorkloadEntry/shop/vm");
    assert_eq!((vm.capacity, vm.native_tunnel, &*vm.network), (7, true, "net3"));
    let service = |host: &str| {
        let key = ServiceKey { namespace: "shop".into(), hostname: host.into() };
        Arc::clone(snapshot.service(&key).unwrap_or_else(|| panic!("{host}")))
    };
    let wild = service("*.wild.example.com");
    assert_eq!((wild.load_balancing.mode, wild.cidr_vips.len()), (Mode::Passthrough, 2));
    assert_eq!(service("near.shop.svc.cluster.local").load_balancing.mode, Mode::Strict);
    let shared = service("s.example.com");
    assert_eq!(
        (shared.visibility, shared.vips.len(), shared.subject_alt_names.len()),
        (Visibility::Public, 2, 1)
    );
    let key = PolicyKey { namespace: "shop".into(), name: "p1".into() };
    let policy = snapshot.policy(&key).unwrap();
    assert_eq!((policy.action, policy.rules[0].clauses.len()), (Action::Deny, 7));
}

#[tokio::test]
async fn a_real_istiod_is_asked_by_every_kind_of_name() {
    let mut server = Server::new().await;
    let agent = agent(server.at, Scope::OnDemand);
    let (mut stream, _) = server.opened().await;
    let address = |text: &str| agent.on_demand.address("", text.parse().unwrap(), LIMIT);
    let keys = ["s.example.com", "nothing.example.com"]
        .map(|host| ServiceKey { namespace: "shop".into(), hostname: host.into() });
    let web = WorkloadUid(uid("web").into());
    let istiod = async {
        let mut asked = std::collections::BTreeSet::new();
        while asked.len() < 7 {
            asked.extend(stream.request().await.resource_names_subscribe);
        }
        for text in include_str!("asked.txt").lines().filter_map(|line| line.strip_prefix("< ")) {
            stream.message(&STANDARD.decode(text).unwrap());
        }
    };
    let (by_vip, by_ip, by_second_vip, nowhere, by_host, no_host, by_uid, ()) = tokio::join!(
        address("10.96.0.77"),
        address("10.244.0.11"),
        address("240.0.0.9"),
        address("10.99.99.99"),
        agent.on_demand.service(&keys[0], LIMIT),
        agent.on_demand.service(&keys[1], LIMIT),
        agent.on_demand.workload(&web, LIMIT),
        istiod
    );
    assert_eq!([by_vip, by_ip, by_second_vip, by_host, by_uid], [Lookup::Known; 5]);
    assert_eq!([nowhere, no_host], [Lookup::Missing; 2]);
    let snapshot = agent.state.snapshot();
    let service = snapshot.service_by_vip("10.96.0.77".parse().unwrap(), "shop").unwrap();
    assert_eq!(service.endpoints.len(), 1, "what stands behind it comes unasked");
}
