//! Queries by TCP: one connection on to the name server for each of the pod's, opened for the first query that is not
//! answered here. What either side says in between passes in whole messages, as it is.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_common::dns::{self, Code, READ_MAX};
use culvert_common::net::socket::{self, DialOptions, original_destination};
use culvert_common::task::Scope;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Notify};
use tokio::time::{sleep, timeout};

use super::{Dns, LIMIT, Labels, RelayError, Verdict, decide, destinations, find_on_demand, relayed};
use crate::shared::Pod;
use crate::worker::Worker;

/// Connections of one socket.
const CONNECTIONS_MAX: usize = 64;
/// Queries of one connection that wait for an answer; the next is read after one of them.
const WAITING_MAX: usize = 64;
/// Pause after a failed accept: out of descriptors, the next one would fail too.
const PAUSE: Duration = Duration::from_millis(50);

/// Serves until the pod or `until` drains; what waits in the socket then is still taken where the pod stays.
pub(super) async fn serve(
    worker: Rc<Worker>,
    pod: &Arc<Pod>,
    listener: std::net::TcpListener,
    until: &Scope,
) -> io::Result<()> {
    let (local, listener) = (listener.local_addr()?, TcpListener::from_std(listener)?);
    let open = Rc::new(Cell::new(0_usize));
    let mut closing = false;
    loop {
        let accepted = tokio::select! {
            biased;
            () = pod.scope.draining() => return Ok(()),
            () = until.draining(), if !closing => {
                closing = true;
                continue;
            }
            accepted = listener.accept() => accepted,
            () = std::future::ready(()), if closing => return Ok(()),
        };
        match accepted {
            // Dropped: closed, as a name server does that is busy.
            Ok(_) if open.get() >= CONNECTIONS_MAX => {}
            Ok((stream, peer)) => {
                let (worker, owner, open) = (Rc::clone(&worker), Arc::clone(pod), Rc::clone(&open));
                open.set(open.get() + 1);
                pod.scope.spawn_local(async move {
                    connection(&worker, &owner, stream, (local, peer)).await;
                    open.set(open.get() - 1);
                });
            }
            Err(error) => {
                tracing::debug!(target: "dns", %error, "cannot accept a connection");
                sleep(PAUSE).await;
            }
        }
    }
}

async fn connection(worker: &Rc<Worker>, pod: &Pod, mut stream: TcpStream, ends: (SocketAddr, SocketAddr)) {
    let Some(dns) = &worker.shared.dns else { return };
    let (local, peer) = ends;
    let asked = original_destination(&stream, peer).ok().filter(|to| *to != local);
    pod.known(&worker.shared).await;
    let (read, write) = stream.split();
    let talk = Talk {
        worker,
        dns,
        pod,
        asked,
        client: Mutex::new(write),
        waiting: RefCell::default(),
        changed: Notify::new(),
        moved: Cell::new(Instant::now()),
    };
    let ended = tokio::select! {
        ended = talk.run(read) => ended,
        () = talk.idle() => Ok(()),
    };
    if let Err(error) = ended {
        tracing::debug!(target: "dns", pod = pod.local.to_string(), %error, "connection ended");
    }
    let error = RelayError::Timeout { to: asked.unwrap_or(local) };
    for waiting in talk.waiting.take() {
        relayed(&worker.shared, pod, &waiting.labels, Err(&error));
    }
}

/// A connection of the pod.
struct Talk<'a> {
    worker: &'a Worker,
    dns: &'a Dns,
    pod: &'a Pod,
    asked: Option<SocketAddr>,
    client: Mutex<WriteHalf<'a>>,
    /// Relayed queries without an answer.
    waiting: RefCell<VecDeque<Waiting>>,
    /// One of them less.
    changed: Notify,
    /// When something was last heard of either side.
    moved: Cell<Instant>,
}

struct Waiting {
    id: u16,
    began: Instant,
    labels: Labels,
}

impl Talk<'_> {
    /// Returns when neither side has moved for the limit.
    async fn idle(&self) {
        loop {
            let left = LIMIT.saturating_sub(self.moved.get().elapsed());
            if left.is_zero() {
                return;
            }
            sleep(left).await;
        }
    }

    async fn run(&self, mut client: ReadHalf<'_>) -> io::Result<()> {
        // Until the first query that is relayed.
        let mut server = loop {
            let Some(message) = self.message(&mut client).await? else { return Ok(()) };
            if let Some(labels) = self.answer(&message).await? {
                match self.connect().await {
                    Ok(mut server) => {
                        self.pass(&mut server.split().1, labels, &message).await?;
                        break server;
                    }
                    Err(error) => self.failed(&labels, &error, &message).await?,
                }
            }
        };
        let (mut answers, mut questions) = server.split();
        let asking = async {
            while let Some(message) = self.message(&mut client).await? {
                if let Some(labels) = self.answer(&message).await? {
                    self.pass(&mut questions, labels, &message).await?;
                }
            }
            // It asks no more, and takes what is still to come.
            while !self.waiting.borrow().is_empty() {
                self.changed.notified().await;
            }
            Ok(())
        };
        let answering = async {
            while let Some(message) = self.message(&mut answers).await? {
                self.heard(&message);
                self.say(&message).await?;
            }
            Ok(())
        };
        tokio::select! {
            ended = asking => ended,
            ended = answering => ended,
        }
    }

    /// Answers a query, or gives back what is to be told of one that is relayed.
    async fn answer(&self, message: &[u8]) -> io::Result<Option<Labels>> {
        let Some(query) = dns::read(message) else {
            return Err(io::Error::other("not a query"));
        };
        match decide(&self.worker.shared, self.dns, self.pod, &query, ("tcp", READ_MAX)) {
            (Verdict::Say(answer), _) => self.say(&answer).await.map(|()| None),
            (Verdict::Relay, labels) => {
                let (shared, about) = (&self.worker.shared, (&labels, READ_MAX));
                if let Some(answer) = find_on_demand(shared, self.dns, self.pod, &query, about).await {
                    return self.say(&answer).await.map(|()| None);
                }
                self.worker.shared.telemetry.metrics().dns().upstream_request(&labels.query());
                Ok(Some(labels))
            }
        }
    }

    async fn connect(&self) -> Result<TcpStream, RelayError> {
        let shared = &self.worker.shared;
        let servers = destinations(shared, self.dns, self.pod, self.asked);
        let options = DialOptions { mark: Some(shared.mark), nodelay: true, ..DialOptions::default() };
        let limit = LIMIT / u32::try_from(servers.len().max(1)).unwrap_or(1);
        let mut failed = RelayError::NoServer;
        for to in servers {
            let made = self.pod.enter(|| socket::dial_socket(to, &options)).and_then(|made| made);
            let connected = match made {
                Ok(made) => socket::connect(made, to, limit).await.map_err(io::Error::other),
                Err(error) => Err(error),
            };
            match connected {
                Ok(server) => return Ok(server),
                Err(source) => failed = RelayError::Io { to, source },
            }
        }
        Err(failed)
    }

    async fn failed(&self, labels: &Labels, error: &RelayError, message: &[u8]) -> io::Result<()> {
        relayed(&self.worker.shared, self.pod, labels, Err(error));
        match dns::read(message) {
            Some(query) => self.say(&dns::failure(&query, Code::ServFail)).await,
            None => Ok(()),
        }
    }

    /// Passes a query on.
    async fn pass(&self, server: &mut WriteHalf<'_>, labels: Labels, message: &[u8]) -> io::Result<()> {
        while self.waiting.borrow().len() >= WAITING_MAX {
            self.changed.notified().await;
        }
        let id = dns::read(message).map_or(0, |query| query.id());
        self.waiting.borrow_mut().push_back(Waiting { id, began: Instant::now(), labels });
        write(server, message).await
    }

    /// An answer has come. Further messages to the same query, as in a zone transfer, pass as well.
    fn heard(&self, message: &[u8]) {
        let id = message.first_chunk().copied().map(u16::from_be_bytes);
        let mut waiting = self.waiting.borrow_mut();
        let found = waiting.iter().position(|one| Some(one.id) == id);
        if let Some(one) = found.and_then(|at| waiting.remove(at)) {
            relayed(&self.worker.shared, self.pod, &one.labels, Ok(one.began.elapsed()));
            self.changed.notify_one();
        }
    }

    async fn say(&self, message: &[u8]) -> io::Result<()> {
        write(&mut *self.client.lock().await, message).await
    }

    /// The next message; none at the end.
    async fn message(&self, from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
        let length = match from.read_u16().await {
            Ok(length) => u64::from(length),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        };
        // Grows with what comes, not with what is announced.
        let mut message = Vec::new();
        from.take(length).read_to_end(&mut message).await?;
        self.moved.set(Instant::now());
        match u64::try_from(message.len()) {
            Ok(read) if read == length => Ok(Some(message)),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// Length and message in one write.
async fn write(to: &mut WriteHalf<'_>, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut framed = Vec::with_capacity(message.len() + 2);
    framed.extend(length.to_be_bytes());
    framed.extend(message);
    timeout(LIMIT, to.write_all(&framed)).await.map_err(|_| io::ErrorKind::TimedOut)?
}
