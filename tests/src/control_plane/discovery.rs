//! A discovery server that speaks delta xDS without TLS: what it has been told it says, and only what differs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use bytes::{BufMut as _, Bytes, BytesMut};
use culvert::lab::{LabError, Place};
use culvert_common::task::Scope;
use culvert_common::xds::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use h2::server::SendResponse;
use http::{Request, Response};
use prost::Message;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

use super::hostile::{self, Hostile};
use super::lock;
use super::resources::{ADDRESS, Said, resource};

/// Where it listens, in its namespace's loopback.
pub const PORT: u16 = 15010;

/// What the server says and has heard.
#[derive(Debug, Default)]
pub(super) struct World {
    /// By type and name.
    held: BTreeMap<(&'static str, String), Resource>,
    versions: u64,
    /// Names that are not answered.
    muted: BTreeSet<String>,
    /// No answer at all.
    is_silent: bool,
    pub(super) hostile: Option<Hostile>,
    heard: Vec<DeltaDiscoveryRequest>,
    streams: usize,
    /// What it did that no server should.
    pub(super) misdeeds: usize,
}

/// A running server. Dropping it ends it and all its connections.
#[derive(Debug)]
pub struct Discovery {
    place: Place,
    world: Arc<Mutex<World>>,
    changed: watch::Sender<u64>,
    stop: Option<watch::Sender<bool>>,
    thread: Option<JoinHandle<Result<(), LabError>>>,
}

impl Discovery {
    /// Starts a server in a namespace; it has nothing to say yet.
    pub fn start(place: &Place) -> Self {
        let mut server = Self {
            place: place.clone(),
            world: Arc::default(),
            changed: watch::channel(0).0,
            stop: None,
            thread: None,
        };
        server.start_again();
        server
    }

    /// The address that agents of the namespace use.
    pub fn url() -> String {
        format!("http://127.0.0.1:{PORT}")
    }

    /// Starts it after [`Discovery::stop`], with what it was told.
    pub fn start_again(&mut self) {
        let (stop, stopped) = watch::channel(false);
        let (world, changed) = (Arc::clone(&self.world), self.changed.clone());
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = self.place.thread(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async move {
                let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, PORT))).await;
                let listener = listener.expect("the discovery server's port");
                ready.send(()).expect("the test");
                serve(listener, (world, changed), stopped).await;
            });
        });
        is_ready.recv().expect("a discovery server");
        (self.stop, self.thread) = (Some(stop), Some(thread));
    }

    /// Ends it: its port is closed, and so are its connections.
    pub fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the discovery server").expect("its namespace");
        }
    }

    fn change<R>(&self, change: impl FnOnce(&mut World) -> R) -> R {
        let result = change(&mut lock(&self.world));
        self.changed.send_modify(|n| *n += 1);
        result
    }

    /// Has something said, in place of what was said under its name.
    pub fn say(&self, what: &impl Said) {
        self.say_all(std::iter::once(what));
    }

    /// Has many things said at once.
    pub fn say_all<'a, S: Said + 'a>(&self, all: impl Iterator<Item = &'a S>) {
        self.change(|world| {
            for what in all {
                let (kind, name, aliases, body) = what.said();
                world.versions += 1;
                let said =
                    Resource { aliases, ..resource(kind, &name, &format!("{:x}", world.versions), body) };
                world.held.insert((kind, name), said);
            }
        });
    }

    /// Has something taken back.
    pub fn take_back(&self, what: &impl Said) {
        let (kind, name, ..) = what.said();
        self.change(|world| world.held.remove(&(kind, name)));
    }

    /// Has questions for a name unanswered, or answered again.
    pub fn mute(&self, name: &str, is_muted: bool) {
        self.change(|world| match is_muted {
            true => world.muted.insert(name.to_owned()),
            false => world.muted.remove(name),
        });
    }

    /// Takes connections and answers nothing, or answers again.
    pub fn silence(&self, is_silent: bool) {
        self.change(|world| world.is_silent = is_silent);
    }

    /// Turns into a server that no agent should meet, or back. Streams that are open go on as they began.
    pub fn turn(&self, hostile: Option<Hostile>) {
        self.change(|world| (world.hostile, world.misdeeds) = (hostile, 0));
    }

    /// Streams that were opened so far.
    pub fn streams(&self) -> usize {
        lock(&self.world).streams
    }

    /// What it did that no server should, since it was turned.
    pub fn misdeeds(&self) -> usize {
        lock(&self.world).misdeeds
    }

    /// Whether a name was asked for.
    pub fn was_asked(&self, name: &str) -> bool {
        let heard = |request: &DeltaDiscoveryRequest| {
            request.resource_names_subscribe.iter().any(|asked| asked == name)
        };
        lock(&self.world).heard.iter().any(heard)
    }

    /// What agents said so far; forgets it.
    pub fn take_heard(&self) -> Vec<DeltaDiscoveryRequest> {
        std::mem::take(&mut lock(&self.world).heard)
    }
}

type Shared = (Arc<Mutex<World>>, watch::Sender<u64>);

async fn serve(listener: TcpListener, shared: Shared, mut stopped: watch::Receiver<bool>) {
    let scope = Scope::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.changed() => break,
        };
        if let Ok((socket, _)) = accepted {
            scope.spawn(connection(socket, shared.clone(), scope.clone()));
        }
    }
    scope.cut();
}

async fn connection(socket: TcpStream, shared: Shared, scope: Scope) {
    if lock(&shared.0).hostile == Some(Hostile::ClosesBefore) {
        lock(&shared.0).misdeeds += 1;
        return;
    }
    let Ok(mut connection) = h2::server::handshake(socket).await else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        scope.spawn(stream(request, respond, (shared.clone(), scope.clone())));
    }
}

async fn stream(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    (shared, scope): (Shared, Scope),
) {
    let answer = Response::builder().header("content-type", "application/grpc").body(()).expect("a head");
    let Ok(mut send) = respond.send_response(answer, false) else { return };
    let (say, mut requests) = mpsc::channel(256);
    scope.spawn(listen(request.into_body(), say));
    let (world, changed) = shared;
    lock(&world).streams += 1;
    let hostile = lock(&world).hostile;
    if let Some(hostile) = hostile {
        hostile::misbehave(hostile, &mut send, requests, &world).await;
        return send.send_reset(h2::Reason::CANCEL);
    }
    let (mut changed, mut told) = (changed.subscribe(), Told::default());
    loop {
        tokio::select! {
            request = requests.recv() => match request {
                None => return,
                Some(request) => {
                    told.hear(&request);
                    lock(&world).heard.push(request);
                }
            },
            _ = changed.changed() => {}
        }
        let answers = told.answers(&lock(&world));
        for answer in answers {
            if send.send_data(framed(&answer.encode_to_vec()), false).is_err() {
                return;
            }
        }
        if lock(&world).hostile.is_some() {
            // What it says from now on is said on a new stream.
            return send.send_reset(h2::Reason::CANCEL);
        }
    }
}

/// gRPC's frame around a message.
pub(super) fn framed(body: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(5 + body.len());
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(body.len()).expect("a length"));
    bytes.extend_from_slice(body);
    bytes.freeze()
}

/// Decodes what the client says.
async fn listen(mut body: h2::RecvStream, say: mpsc::Sender<DeltaDiscoveryRequest>) {
    let mut bytes = BytesMut::new();
    while let Some(Ok(piece)) = body.data().await {
        let _unlimited = body.flow_control().release_capacity(piece.len());
        bytes.extend_from_slice(&piece);
        while let Some((_, head)) = bytes.split_first_chunk::<1>().filter(|_| bytes.len() >= 5) {
            let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
            if bytes.len() < 5 + length {
                break;
            }
            let message = bytes.split_to(5 + length);
            let request = DeltaDiscoveryRequest::decode(&message[5..]).expect("a request");
            if say.send(request).await.is_err() {
                return;
            }
        }
    }
}

/// What one stream has been told.
#[derive(Default)]
struct Told {
    types: BTreeMap<String, Subscription>,
    nonces: u64,
}

#[derive(Default)]
struct Subscription {
    is_wildcard: bool,
    names: BTreeSet<String>,
    /// Versions that the client has.
    sent: BTreeMap<String, String>,
    missing: BTreeSet<String>,
    is_answered: bool,
}

impl Told {
    fn hear(&mut self, request: &DeltaDiscoveryRequest) {
        let known = self.types.contains_key(&request.type_url);
        let of = self.types.entry(request.type_url.clone()).or_default();
        if !known {
            of.is_wildcard = request.resource_names_subscribe.is_empty();
            of.sent.extend(request.initial_resource_versions.clone());
        }
        of.names.extend(request.resource_names_subscribe.iter().filter(|name| *name != "*").cloned());
        for name in &request.resource_names_unsubscribe {
            of.names.remove(name);
            of.missing.remove(name);
        }
    }

    fn answers(&mut self, world: &World) -> Vec<DeltaDiscoveryResponse> {
        if world.is_silent {
            return Vec::new();
        }
        let nonces = &mut self.nonces;
        let answer = |(kind, of): (&String, &mut Subscription)| {
            let (resources, removed_resources) = of.differs(kind, world);
            let is_due = !of.is_answered || !resources.is_empty() || !removed_resources.is_empty();
            of.is_answered = true;
            *nonces += 1;
            let nonce = format!("{nonces:x}");
            is_due.then(|| DeltaDiscoveryResponse {
                resources,
                type_url: kind.clone(),
                nonce,
                removed_resources,
            })
        };
        self.types.iter_mut().filter_map(answer).collect()
    }
}

impl Subscription {
    fn differs(&mut self, kind: &str, world: &World) -> (Vec<Resource>, Vec<String>) {
        let all = || world.held.iter().filter(|((of, _), _)| *of == kind).map(|(_, resource)| resource);
        let keys =
            |one: &Resource| std::iter::once(&one.name).chain(&one.aliases).cloned().collect::<Vec<_>>();
        let is_wanted = |one: &Resource| {
            let keys = keys(one);
            let is_asked = keys.iter().any(|key| self.names.contains(key) && !world.muted.contains(key));
            self.is_wildcard || is_asked || self.sent.contains_key(&one.name)
        };
        let new: Vec<_> = all()
            .filter(|one| is_wanted(one) && self.sent.get(&one.name) != Some(&one.version))
            .cloned()
            .collect();
        let there: BTreeSet<String> = all().flat_map(keys).collect();
        let mut removed: Vec<String> =
            self.sent.keys().filter(|name| !there.contains(*name)).cloned().collect();
        if kind == ADDRESS && !self.is_wildcard {
            let is_missing = |name: &&String| {
                !there.contains(*name) && !world.muted.contains(*name) && !self.missing.contains(*name)
            };
            let missing: Vec<_> = self.names.iter().filter(is_missing).cloned().collect();
            self.missing.extend(missing.iter().cloned());
            removed.extend(missing);
            self.missing.retain(|name| !there.contains(name));
        }
        self.sent.retain(|name, _| there.contains(name));
        self.sent.extend(new.iter().map(|one| (one.name.clone(), one.version.clone())));
        (new, removed)
    }
}
