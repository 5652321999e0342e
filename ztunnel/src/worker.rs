//! Traffic workers: each is one thread with a current-thread runtime that owns its connections, its tunnels and both
//! ends of every relay. A worker that accepts a connection hands it to the least loaded one, itself included.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use culvert_common::hbone::budget::Board;
use culvert_common::hbone::pool::Pool;
use culvert_common::model::Health;
use culvert_common::net::socket::set_reset_on_drop;
use culvert_common::net::trim::Trim;
use culvert_common::task::Scope;
use culvert_common::telemetry::Reporter;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, oneshot};
use tokio::task::yield_now;
use tokio::time::{Instant, interval, sleep_until, timeout};

use crate::admission::{Admitted, Refused};
use crate::connections::{ConnectionInfo, Connections};
use crate::dns::{self, DnsSocket};
use crate::outbound::failing::Failing;
use crate::outbound::prepared::Routes;
use crate::shared::{Pod, Shared};
use crate::spare::Spare;
use crate::tunnels::Tunnels;
use crate::young::Young;
use crate::{inbound, outbound, passthrough, recheck, tunnels};

/// Connections on their way to one worker; beyond, the worker that accepted keeps them.
const HAND_OVER: usize = 1024;
/// Connections that one listener may accept before the other tasks of its worker have their turn.
const ACCEPTS_IN_TURN: usize = 16;
/// A pod that leaves has redirects until just before: who was on the way to its listeners is let in until nobody has come
/// for so long.
const LATECOMERS: Duration = Duration::from_millis(100);
/// At most so long, if they keep coming.
const LATECOMERS_END: Duration = Duration::from_secs(1);
/// Pause after a failed accept: out of descriptors, the next one would fail too.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// A worker that does not tell its connections by then is left out of the list.
const LIST_WAIT: Duration = Duration::from_secs(5);

/// Which of a pod's listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    /// 15001
    Outbound,
    /// 15006
    Passthrough,
    /// 15008
    Hbone,
}

impl Port {
    fn reporter(self) -> Reporter {
        match self {
            Self::Outbound => Reporter::Source,
            Self::Passthrough | Self::Hbone => Reporter::Destination,
        }
    }

    /// All of a pod's listeners.
    pub(crate) const ALL: [Self; 3] = [Self::Hbone, Self::Passthrough, Self::Outbound];

    /// Its number, which rules and peers know.
    pub(crate) fn number(self) -> u16 {
        match self {
            Self::Outbound => 15001,
            Self::Passthrough => 15006,
            Self::Hbone => 15008,
        }
    }
}

enum Command {
    Listen { pod: Arc<Pod>, port: Port, listener: std::net::TcpListener, until: Scope },
    Take { port: Port, stream: std::net::TcpStream, to: Placed },
    Dns { pod: Arc<Pod>, socket: DnsSocket, until: Scope },
    List { tell: oneshot::Sender<Vec<ConnectionInfo>> },
}

/// A connection that was taken, on its way to whoever serves it.
struct Placed {
    pod: Arc<Pod>,
    peer: SocketAddr,
    admitted: Admitted,
}

/// All workers, from outside.
#[derive(Clone)]
pub(crate) struct Workers {
    all: Arc<[Handle]>,
}

struct Handle {
    commands: mpsc::Sender<Command>,
    /// Open connections, those on their way included.
    load: Arc<AtomicUsize>,
}

/// One worker, from inside. Not `Send`.
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pool: Pool,
    pub(crate) board: Board,
    pub(crate) connections: Connections,
    pub(crate) failing: Failing,
    pub(crate) routes: Routes,
    /// Outgoing connections that wait for their destination.
    pub(crate) held: Cell<usize>,
    spare: Spare,
    pub(crate) young: Young,
    pub(crate) tunnels: Tunnels,
    load: Arc<AtomicUsize>,
    workers: RefCell<Option<Workers>>,
    /// Drains with the whole agent.
    agent: Scope,
}

/// Counts a connection as long as it lives.
struct Load(Arc<AtomicUsize>);

impl Load {
    fn new(of: &Arc<AtomicUsize>) -> Self {
        of.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(of))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Workers {
    /// Starts `count` threads named `ztunnel-<i>`. They end when `scope` has been shut down.
    pub(crate) fn start(
        count: usize,
        shared: &Arc<Shared>,
        scope: &Scope,
    ) -> std::io::Result<(Self, Vec<JoinHandle<()>>)> {
        let (handles, inner): (Vec<_>, Vec<_>) = (0..count.max(1))
            .map(|_| {
                let (commands, receiver) = mpsc::channel(HAND_OVER);
                let load = Arc::new(AtomicUsize::new(0));
                (Handle { commands, load: Arc::clone(&load) }, (receiver, load))
            })
            .unzip();
        let workers = Self { all: handles.into() };
        let threads = inner.into_iter().enumerate().map(|(i, (receiver, load))| {
            let (shared, scope, workers) = (Arc::clone(shared), scope.clone(), workers.clone());
            let name = format!("ztunnel-{i}");
            std::thread::Builder::new().name(name).spawn(move || {
                let worker = Rc::new(Worker {
                    board: Board::new(Arc::clone(&shared.budget)),
                    pool: Pool::default(),
                    connections: Connections::default(),
                    failing: Failing::default(),
                    routes: Routes::default(),
                    held: Cell::new(0),
                    spare: Spare::new(),
                    young: Young::default(),
                    tunnels: Tunnels::default(),
                    workers: RefCell::new((workers.all.len() > 1).then_some(workers)),
                    shared,
                    load,
                    agent: scope,
                });
                worker.run(i, receiver);
            })
        });
        let threads = threads.collect::<Result<_, _>>()?;
        Ok((workers, threads))
    }

    /// Has the least loaded worker accept from `listener` until the pod drains.
    pub(crate) async fn listen(&self, pod: &Arc<Pod>, port: Port, listener: std::net::TcpListener) {
        self.listen_until(pod, port, listener, pod.scope.clone()).await;
    }

    /// The same until `until` drains, which is the pod's scope or one below it.
    pub(crate) async fn listen_until(
        &self,
        pod: &Arc<Pod>,
        port: Port,
        listener: std::net::TcpListener,
        until: Scope,
    ) {
        let command = Command::Listen { pod: Arc::clone(pod), port, listener, until };
        // A worker ends only with the process.
        let _ended = self.least().commands.send(command).await;
    }

    /// Has the least loaded worker answer what arrives at `socket` until `until` drains, a scope below the pod's.
    pub(crate) async fn answer(&self, pod: &Arc<Pod>, socket: DnsSocket, until: Scope) {
        let command = Command::Dns { pod: Arc::clone(pod), socket, until };
        let _ended = self.least().commands.send(command).await;
    }

    /// What is open now, worker by worker.
    pub(crate) async fn connections(&self) -> Vec<ConnectionInfo> {
        let mut all = Vec::new();
        for worker in self.all.iter() {
            let (tell, told) = oneshot::channel();
            let asked = async {
                worker.commands.send(Command::List { tell }).await.ok()?;
                told.await.ok()
            };
            all.extend(timeout(LIST_WAIT, asked).await.ok().flatten().unwrap_or_default());
        }
        all
    }

    fn least(&self) -> &Handle {
        let by_load = self.all.iter().min_by_key(|h| h.load.load(Ordering::Relaxed));
        by_load.unwrap_or(&self.all[0])
    }
}

impl Worker {
    fn run(self: Rc<Self>, number: usize, mut commands: mpsc::Receiver<Command>) {
        // A local runtime, not a `LocalSet` in one: that has queues of its own, and with each task looks at all that
        // `block_on` waits for below.
        let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(%error, "no runtime for a traffic worker");
                std::process::abort();
            }
        };
        self.shared.telemetry.metrics().watch_worker(number, runtime.metrics());
        runtime.block_on(async {
            let tick = Rc::clone(&self);
            self.agent.spawn_local(async move { tick.keep_house().await });
            let recheck = async { tokio::join!(recheck::run(&self), tunnels::run(&self)) };
            tokio::pin!(recheck);
            loop {
                tokio::select! {
                    // Nobody left to command is no end: a drain lets go of the workers before their last connection.
                    Some(command) = commands.recv() => self.obey(command),
                    _ = &mut recheck => break, // never
                    () = self.agent.ended() => break,
                }
            }
            self.workers.borrow_mut().take();
        });
    }

    fn obey(self: &Rc<Self>, command: Command) {
        match command {
            Command::Listen { pod, port, listener, until } => {
                let (worker, scope) = (Rc::clone(self), until.clone());
                scope.spawn_local(async move { worker.accept(&pod, port, listener, &until).await });
            }
            Command::Take { port, stream, to } => match TcpStream::from_std(stream) {
                Ok(stream) => self.serve(port, stream, to),
                Err(error) => tracing::warn!(%error, "cannot watch an accepted connection"),
            },
            Command::Dns { pod, socket, until } => {
                let (worker, scope) = (Rc::clone(self), until.clone());
                scope.spawn_local(async move { dns::serve(worker, pod, socket, until).await });
            }
            Command::List { tell } => {
                let _gone = tell.send(self.connections.list()); // who asked may have given up
            }
        }
    }

    async fn accept(
        self: &Rc<Self>,
        pod: &Arc<Pod>,
        port: Port,
        listener: std::net::TcpListener,
        until: &Scope,
    ) {
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, ?port, "cannot watch a listener"),
        };
        let mut latecomers: Option<Latecomers> = None;
        for turn in 1_usize.. {
            if turn.is_multiple_of(ACCEPTS_IN_TURN) {
                yield_now().await;
            }
            let accepted = tokio::select! {
                biased;
                () = until.draining(), if latecomers.is_none() => {
                    // A successor has the same socket, with all that waits in it.
                    if self.shared.is_succeeded.load(Ordering::Relaxed) {
                        return;
                    }
                    let leaves = pod.scope.is_draining() && !self.agent.is_draining();
                    latecomers = Some(Latecomers::new(if leaves { LATECOMERS } else { Duration::ZERO }));
                    continue;
                }
                accepted = listener.accept() => accepted,
                () = Latecomers::end(latecomers.as_ref()) => return,
            };
            match accepted {
                Ok((stream, peer)) => match pod.admission.admit(std::time::Instant::now()) {
                    Ok(admitted) => self.place(port, stream, Placed { pod: Arc::clone(pod), peer, admitted }),
                    Err(refused) => self.refuse(pod, port, (stream, peer), refused),
                },
                Err(error) => {
                    let reset = self.spare.failed(&listener, &error);
                    self.shared.telemetry.metrics().accepts_reset(reset);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
            if latecomers.as_ref().is_some_and(|them| Instant::now() > them.end) {
                return;
            }
        }
    }

    /// Resets a connection that a limit forbids.
    fn refuse(&self, pod: &Pod, port: Port, (stream, peer): (TcpStream, SocketAddr), refused: Refused) {
        // The tunnels' sockets do not inherit it; fails only when the connection is gone already.
        let _gone = set_reset_on_drop(&stream, true);
        drop(stream);
        self.shared.refused(port.reporter(), pod, peer, refused);
    }

    /// Serves here, or hands over to a worker with less to do.
    fn place(self: &Rc<Self>, port: Port, stream: TcpStream, to: Placed) {
        let workers = self.workers.borrow();
        let other = workers.as_ref().map(Workers::least);
        let other = other.filter(|h| h.load.load(Ordering::Relaxed) < self.load.load(Ordering::Relaxed));
        let Some(other) = other else { return self.serve(port, stream, to) };
        match stream.into_std() {
            Ok(stream) => match other.commands.try_send(Command::Take { port, stream, to }) {
                Ok(()) => {}
                Err(
                    mpsc::error::TrySendError::Full(command) | mpsc::error::TrySendError::Closed(command),
                ) => {
                    self.obey(command);
                }
            },
            Err(error) => tracing::warn!(%error, "cannot hand a connection over"),
        }
    }

    fn serve(self: &Rc<Self>, port: Port, stream: TcpStream, to: Placed) {
        let Placed { pod, peer, admitted } = to;
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let (worker, load, owner) = (Rc::clone(self), (Load::new(&self.load), admitted), Arc::clone(&pod));
        let scope = &owner.scope;
        match port {
            Port::Outbound => scope.spawn_local(async move {
                pod.known(&worker.shared).await;
                outbound::serve(&worker, &pod, stream, peer).await;
                drop(load);
            }),
            Port::Passthrough => scope.spawn_local(async move {
                pod.known(&worker.shared).await;
                passthrough::serve(&worker, &pod, stream, peer).await;
                drop(load);
            }),
            Port::Hbone => scope.spawn_local(async move {
                pod.known(&worker.shared).await;
                inbound::serve(&worker, &pod, stream, peer).await;
                drop(load);
            }),
        }
    }

    /// Once a second: tunnels that nobody needs, streams that stall, after each revision those whose pod is gone, and
    /// memory that load has left behind.
    async fn keep_house(&self) {
        let (mut tick, mut trim) = (interval(Duration::from_secs(1)), Trim::default());
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = self.agent.draining() => return,
            }
            let snapshot = self.shared.state.snapshot();
            self.pool.sweep(self.shared.limits.idle, |key| {
                let serves = |w: &culvert_common::model::Workload| {
                    w.health != Health::Terminating && w.addresses.contains(&key.peer.ip())
                };
                snapshot.workload(&key.destination).is_some_and(|w| serves(w))
            });
            drop(snapshot);
            self.board.sweep(Instant::now());
            self.young.sweep(self.shared.keepalive);
            let (waits, waited) = self.pool.take_waits();
            self.shared.telemetry.metrics().pool_waits(waits, waited);
            self.shared.telemetry.metrics().budget_held(self.shared.budget.held());
            self.tunnels.sweep();
            trim.tick();
        }
    }
}

/// Those who are let in by a listener that closes: closed at once it would reset what waits in its queue.
struct Latecomers {
    quiet: Duration,
    end: Instant,
}

impl Latecomers {
    /// Until nobody has come for `quiet`; who waits already is always let in.
    fn new(quiet: Duration) -> Self {
        Self { quiet, end: Instant::now() + LATECOMERS_END }
    }

    /// Ends when nobody more is waited for; never while the listener stays open.
    async fn end(them: Option<&Self>) {
        match them {
            Some(them) => sleep_until(them.end.min(Instant::now() + them.quiet)).await,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use culvert_common::hbone::Limits;
    use culvert_common::hbone::orders::Orders;
    use culvert_common::hbone::server::Accepted;

    use super::*;

    /// Bytes of the future that `serve` returns.
    fn size<'a, C, D, F: Future>(_serve: impl Fn(&'a Rc<Worker>, &'a Arc<Pod>, C, D) -> F) -> usize {
        size_of::<F>()
    }

    fn http2<'a, F: Future>(_run: impl Fn(Accepted, &'a Limits, &'a Scope, &'a Orders) -> F) -> usize {
        size_of::<F>()
    }

    /// Each open connection holds its future: what makes one of them larger should be boxed, or worth it.
    #[test]
    fn connections_stay_small() {
        for (what, got, limit) in [
            ("outbound", size(outbound::serve), 800),
            ("plaintext", size(passthrough::serve), 1300),
            ("tunnel", size(inbound::serve), 3400),
            (
                "tunnel's HTTP/2",
                http2(|tunnel, l, s, o| tunnel.run(l, Box::pin(s.draining()), o, |_| {})),
                8000,
            ),
            ("stream", inbound::stream_size(), 700),
        ] {
            assert!(got <= limit, "{what}: {got} bytes, at most {limit}");
        }
    }
}
