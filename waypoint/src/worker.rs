//! Traffic workers: each is one thread with a current-thread runtime that owns the tunnels it was given, in and out, and
//! all requests on them.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use culvert_common::hbone::budget::Board;
use culvert_common::hbone::pool::Pool;
use culvert_common::net::trim::Trim;
use culvert_common::task::{Essential, Scope};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc;
use tokio::time::{Instant, interval};

use crate::dial::is_there;
use crate::mirror::UnderWay;
use crate::shared::Shared;
use crate::tunnel;
use crate::upstream::Connections;

/// Connections on their way to one worker; beyond, new ones wait to be accepted.
const HAND_OVER: usize = 256;

/// All workers, from outside.
pub(crate) struct Workers {
    all: Vec<Handle>,
}

struct Handle {
    take: mpsc::Sender<(std::net::TcpStream, SocketAddr)>,
    /// Open tunnels, those on their way included.
    load: Arc<AtomicUsize>,
}

/// One worker, from inside. Not `Send`.
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) scope: Scope,
    pub(crate) tunnels: Pool,
    pub(crate) connections: Connections,
    pub(crate) board: Board,
    /// Copies for mirrors that are under way.
    pub(crate) copies: Rc<UnderWay>,
    load: Arc<AtomicUsize>,
}

impl Workers {
    /// Starts `count` threads named `waypoint-<i>`. They end when `scope` has been shut down.
    pub(crate) fn start(
        count: usize,
        shared: &Arc<Shared>,
        (scope, essential): (&Scope, &Essential),
    ) -> std::io::Result<(Self, Vec<JoinHandle<()>>)> {
        let mut all = Vec::new();
        let mut threads = Vec::new();
        for number in 0..count {
            let (take, taken) = mpsc::channel(HAND_OVER);
            let load = Arc::new(AtomicUsize::new(0));
            all.push(Handle { take, load: Arc::clone(&load) });
            let (shared, scope) = (Arc::clone(shared), scope.clone());
            let watched = essential.watched("a traffic worker");
            let thread = std::thread::Builder::new().name(format!("waypoint-{number}")).spawn(move || {
                let _until_its_end = watched;
                let board = Board::new(Arc::clone(&shared.budget));
                let (tunnels, connections) = (Pool::default(), Connections::default());
                let copies = UnderWay::new(&shared.budget);
                Rc::new(Worker { shared, scope, tunnels, connections, board, copies, load })
                    .run(number, taken);
            })?;
            threads.push(thread);
        }
        Ok((Self { all }, threads))
    }

    /// Gives a connection to the worker with the fewest.
    pub(crate) async fn take(&self, tcp: std::net::TcpStream, peer: SocketAddr) {
        let Some(least) = self.all.iter().min_by_key(|handle| handle.load.load(Ordering::Relaxed)) else {
            return;
        };
        least.load.fetch_add(1, Ordering::Relaxed);
        // A worker ends only with the process.
        let _ended = least.take.send((tcp, peer)).await;
    }
}

impl Worker {
    fn run(self: Rc<Self>, number: usize, mut taken: mpsc::Receiver<(std::net::TcpStream, SocketAddr)>) {
        let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(%error, "no runtime for a traffic worker");
                std::process::abort();
            }
        };
        self.shared.metrics.watch_worker(number, runtime.metrics());
        runtime.block_on(async {
            let mut house = std::pin::pin!(self.keep_house());
            loop {
                tokio::select! {
                    Some((tcp, peer)) = taken.recv() => self.serve(tcp, peer),
                    () = &mut house => {}
                    () = self.scope.ended() => break,
                }
            }
        });
    }

    fn serve(self: &Rc<Self>, tcp: std::net::TcpStream, peer: SocketAddr) {
        let tcp = match TcpStream::from_std(tcp) {
            Ok(tcp) => tcp,
            Err(error) => return tracing::warn!(%error, "cannot watch an accepted connection"),
        };
        let worker = Rc::clone(self);
        self.scope.spawn_local(async move {
            tunnel::serve(&worker, tcp, peer).await;
            worker.load.fetch_sub(1, Ordering::Relaxed);
        });
    }

    /// Once a second: tunnels and connections that nobody needs, streams that stall, memory that load has left behind. It does
    /// not end.
    async fn keep_house(&self) {
        let (mut tick, mut trim) = (interval(Duration::from_secs(1)), Trim::default());
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = self.scope.draining() => break,
            }
            let snapshot = self.shared.state.snapshot();
            self.tunnels
                .sweep(self.shared.limits.idle, |key| is_there(&snapshot, &key.destination, key.peer.ip()));
            self.connections.sweep(&snapshot, Instant::now());
            self.board.sweep(Instant::now());
            trim.tick();
        }
        // What waits for a request would hold the drain up until its deadline. The last requests leave some behind too.
        loop {
            self.connections.close();
            self.tunnels.sweep(Duration::ZERO, |_| false);
            self.board.sweep(Instant::now());
            tick.tick().await;
        }
    }
}
