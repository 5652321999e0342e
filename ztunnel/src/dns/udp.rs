//! Queries by UDP: answered at once where the mesh has the name, else each relayed from a socket of its own.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_common::crypto::random;
use culvert_common::dns::{self, Code, HEADER, READ_MAX};
use culvert_common::net::datagram;
use culvert_common::task::Scope;
use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::{
    Dns, LIMIT, Labels, RelayError, Verdict, decide, destinations, find_on_demand, is_waiting, relayed,
};
use crate::shared::Pod;
use crate::worker::Worker;

/// Queries of one socket that wait for an answer, or for their pod to be known.
const WAITING_MAX: usize = 256;
/// Queries that are taken before other tasks of the worker have their turn.
const QUERIES_IN_TURN: usize = 16;
/// Pause after the kernel refused to let a datagram be read.
const PAUSE: Duration = Duration::from_millis(50);

thread_local! {
    /// Where a worker reads datagrams: they are answered, or copied in their size, before the next.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn with_buffer<R>(work: impl FnOnce(&mut [u8]) -> R) -> R {
    BUFFER.with_borrow_mut(|buffer| {
        buffer.resize(READ_MAX, 0);
        work(buffer)
    })
}

/// One of a pod's UDP sockets.
struct Listener {
    worker: Rc<Worker>,
    pod: Arc<Pod>,
    /// Open as long as it is served, whoever waits for an answer.
    socket: Weak<UdpSocket>,
    local: SocketAddr,
    waiting: Cell<usize>,
    /// None waits any more.
    quiet: Notify,
}

/// Serves until the pod drains; or until `until` does, which means that the pod stays and the socket is opened anew: what
/// has come to this one is answered first. What waits for an answer gets it by the socket that it came to.
pub(super) async fn serve(
    worker: Rc<Worker>,
    pod: &Arc<Pod>,
    socket: std::net::UdpSocket,
    until: &Scope,
) -> io::Result<()> {
    let (local, socket) = (socket.local_addr()?, Rc::new(UdpSocket::from_std(socket)?));
    let listener = Rc::new(Listener {
        worker,
        pod: Arc::clone(pod),
        socket: Rc::downgrade(&socket),
        local,
        waiting: Cell::new(0),
        quiet: Notify::new(),
    });
    let mut closing = false;
    loop {
        tokio::select! {
            biased;
            () = pod.scope.draining() => {
                listener.answered().await;
                return Ok(());
            }
            () = until.draining(), if !closing => closing = true,
            ready = socket.readable() => ready?,
            () = listener.answered(), if closing => return Ok(()),
        }
        for _ in 0..QUERIES_IN_TURN {
            match with_buffer(|buffer| listener.take(&socket, buffer)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    tracing::debug!(target: "dns", %error, "cannot read a query");
                    sleep(PAUSE).await;
                    break;
                }
            }
        }
        tokio::task::yield_now().await;
    }
}

impl Listener {
    /// Resolves when no query waits for its answer. Cancel-safe.
    async fn answered(&self) {
        while self.waiting.get() > 0 {
            self.quiet.notified().await;
        }
    }

    /// Takes one datagram.
    fn take(self: &Rc<Self>, socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<()> {
        let (length, client) = socket.try_recv_from(buffer)?;
        let bytes = buffer.get(..length).unwrap_or_default();
        let (Some(query), Some(dns)) = (dns::read(bytes), &self.worker.shared.dns) else { return Ok(()) };
        let is_full = self.waiting.get() >= WAITING_MAX;
        if is_waiting(&self.pod) && !is_full {
            self.later(bytes, client, None);
            return Ok(());
        }
        // What is known is answered, however many wait for other servers.
        match decide(&self.worker.shared, dns, &self.pod, &query, ("udp", query.udp_limit())) {
            (Verdict::Say(answer), _) => self.say(&answer, client),
            (Verdict::Relay, labels) if is_full => {
                relayed(&self.worker.shared, &self.pod, &labels, Err(&RelayError::Full));
                self.say(&dns::failure(&query, Code::ServFail), client);
            }
            (Verdict::Relay, labels) => self.later(bytes, client, Some(labels)),
        }
        Ok(())
    }

    /// A full socket buffer loses an answer, as a network would.
    fn say(&self, answer: &[u8], client: SocketAddr) {
        let Some(socket) = self.socket.upgrade() else { return };
        if let Err(error) = socket.try_send_to(answer, client) {
            tracing::debug!(target: "dns", %client, %error, "cannot send an answer");
        }
    }

    /// Goes on with a query in a task of its own.
    fn later(self: &Rc<Self>, bytes: &[u8], client: SocketAddr, labels: Option<Labels>) {
        let (listener, bytes) = (Rc::clone(self), Box::from(bytes));
        self.waiting.set(self.waiting.get() + 1);
        self.pod.scope.spawn_local(async move {
            listener.finish(bytes, client, labels).await;
            listener.waiting.set(listener.waiting.get() - 1);
            if listener.waiting.get() == 0 {
                listener.quiet.notify_one();
            }
        });
    }

    async fn finish(&self, bytes: Box<[u8]>, client: SocketAddr, labels: Option<Labels>) {
        let (shared, pod) = (&self.worker.shared, &self.pod);
        let (Some(dns), Some(query)) = (&shared.dns, dns::read(&bytes)) else { return };
        let labels = match labels {
            Some(labels) => labels,
            None => {
                pod.known(shared).await;
                match decide(shared, dns, pod, &query, ("udp", query.udp_limit())) {
                    (Verdict::Say(answer), _) => return self.say(&answer, client),
                    (Verdict::Relay, labels) => labels,
                }
            }
        };
        if let Some(answer) = find_on_demand(shared, dns, pod, &query, (&labels, query.udp_limit())).await {
            return self.say(&answer, client);
        }
        let began = Instant::now();
        match self.relay(dns, &labels, &bytes, client).await {
            Ok(answer) => {
                relayed(shared, pod, &labels, Ok(began.elapsed()));
                self.say(&answer, client);
            }
            Err(error) => {
                relayed(shared, pod, &labels, Err(&error));
                self.say(&dns::failure(&query, Code::ServFail), client);
            }
        }
    }

    /// The answer of whom the pod was asking.
    async fn relay(
        &self,
        dns: &Dns,
        labels: &Labels,
        query: &[u8],
        client: SocketAddr,
    ) -> Result<Vec<u8>, RelayError> {
        let (shared, pod) = (&self.worker.shared, &self.pod);
        let asked = dns.origins.of(pod, self.local, client).await;
        let servers = destinations(shared, dns, pod, asked);
        shared.telemetry.metrics().dns().upstream_request(&labels.query());
        let limit = LIMIT / u32::try_from(servers.len().max(1)).unwrap_or(1);
        let mut failed = RelayError::NoServer;
        for to in servers {
            let socket = pod.enter(|| datagram::connected(to, shared.mark)).and_then(|made| made);
            let answered = match socket {
                Ok(socket) => ask(socket, query, limit).await,
                Err(error) => Err(error),
            };
            match answered {
                Ok(answer) => return Ok(answer),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => failed = RelayError::Timeout { to },
                Err(source) => failed = RelayError::Io { to, source },
            }
        }
        Err(failed)
    }
}

/// Asks by a connected socket, under a random id, and waits for the answer to just this question.
///
/// **Errors**: the kernel's, among them that nobody listens there; `TimedOut`. **Cancel safety**: dropped early, the
/// socket is closed and the answer lost.
pub(super) async fn ask(socket: std::net::UdpSocket, query: &[u8], limit: Duration) -> io::Result<Vec<u8>> {
    let socket = UdpSocket::from_std(socket)?;
    let id = (random() as u16).to_be_bytes();
    let mut asked = query.to_vec();
    asked.splice(..2, id);
    socket.send(&asked).await?;
    let heard = async {
        loop {
            socket.readable().await?;
            let answer: io::Result<_> = with_buffer(|buffer| {
                let length = socket.try_recv(buffer)?;
                let bytes = buffer.get(..length).unwrap_or_default();
                let is_it = length >= HEADER && bytes.starts_with(&id) && dns::answers(bytes, query);
                Ok(is_it.then(|| bytes.to_vec()))
            });
            match answer {
                Ok(Some(mut answer)) => {
                    answer.splice(..2, query.iter().take(2).copied());
                    return Ok(answer);
                }
                Ok(None) => tracing::debug!(target: "dns", "an answer to something else"),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    };
    timeout(limit, heard).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
