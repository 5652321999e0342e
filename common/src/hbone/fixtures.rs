//! What the tests of this folder share: a server with certificates of its own, and tunnels to it over loopback.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use http::HeaderValue;
use http::uri::Authority;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::LocalSet;

use super::client::{AnswerWait, Connect, Context, OpenError, Tunnel};
use super::headers::TraceParent;
use super::orders::Orders;
use super::server::{ConnectRequest, accept};
use super::{Http2, Limits};
use crate::identity::WorkloadCert;
use crate::identity::fixtures::live;
use crate::net::copy::copy_both_ways;
use crate::task::Scope;
use crate::telemetry::Metrics;
use crate::types::SpiffeId;

/// No test waits longer for anything.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// For the answer to a CONNECT.
pub(super) const WAIT: AnswerWait = AnswerWait { limit: PATIENCE, patience: PATIENCE };

/// Runs a test on a thread's own tasks, with an end.
pub(super) fn local<'a, T>(test: impl Future<Output = T> + 'a) -> impl Future<Output = T> + 'a {
    let test = Box::pin(tokio::time::timeout(PATIENCE, test));
    async { LocalSet::new().run_until(test).await.expect("the test hangs") }
}

/// A server and all that a client needs to open tunnels to it.
pub(super) struct Mesh {
    pub(super) addr: SocketAddr,
    pub(super) cart: WorkloadCert,
    pub(super) web: Rc<WorkloadCert>,
    pub(super) http2: Http2,
    pub(super) limits: Limits,
    pub(super) client: Scope,
    pub(super) server: Scope,
    pub(super) metrics: Arc<Metrics>,
    pub(super) requests: mpsc::UnboundedReceiver<ConnectRequest>,
    /// Tunnels that [`Mesh::establish`] was asked for.
    pub(super) dials: Cell<usize>,
}

impl Mesh {
    /// `streams` is what a client opens on one tunnel.
    pub(super) async fn new(streams: usize) -> Self {
        let [cart, web] = live(["cart", "web"]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (addr, web) = (listener.local_addr().unwrap(), Rc::new(web));
        let http2 = Http2::new(1 << 20, None, 1 << 16, streams);
        let (limits, server) = (Limits::default(), Scope::new());
        let (sender, requests) = mpsc::unbounded_channel();
        let (config, tasks, settings, times) =
            (web.server_config(), server.clone(), http2.clone(), limits.clone());
        let metrics = Metrics::new("test");
        let counts = Arc::clone(&metrics);
        server.spawn_local(async move {
            while let Ok((tcp, from)) = listener.accept().await {
                let (config, settings, times) = (config.clone(), settings.clone(), times.clone());
                let (sender, scope, metrics) = (sender.clone(), tasks.clone(), Arc::clone(&counts));
                tasks.spawn_local(async move {
                    let context =
                        Context { http2: &settings, limits: &times, scope: &scope, metrics: &metrics };
                    if let Ok(accepted) = accept(tcp, from, config, &context).await {
                        let (orders, drained) = (Orders::default(), scope.draining());
                        let _ended =
                            accepted.run(&times, drained, &orders, |r| sender.send(r).unwrap()).await;
                    }
                });
            }
        });
        Self {
            addr,
            cart,
            web,
            http2,
            limits,
            client: Scope::new(),
            server,
            metrics,
            requests,
            dials: Cell::new(0),
        }
    }

    /// A tunnel whose certificates end no later than `expires`, to a server that must prove `expected`.
    pub(super) async fn tunnel(
        &self,
        expected: &SpiffeId,
        expires: SystemTime,
    ) -> Result<Rc<Tunnel>, OpenError> {
        self.tunnel_by(self.addr, expected, expires).await
    }

    async fn tunnel_by(
        &self,
        addr: SocketAddr,
        expected: &SpiffeId,
        expires: SystemTime,
    ) -> Result<Rc<Tunnel>, OpenError> {
        self.dials.set(self.dials.get() + 1);
        let tcp = TcpStream::connect(addr).await.unwrap();
        let tls = self.cart.client_config(std::slice::from_ref(expected));
        let context =
            Context { http2: &self.http2, limits: &self.limits, scope: &self.client, metrics: &self.metrics };
        Tunnel::establish(tcp, addr, tls, expires, &context).await
    }

    /// A tunnel as it should be.
    pub(super) async fn establish(&self) -> Result<Rc<Tunnel>, OpenError> {
        self.tunnel(&self.web.identity, self.cart.not_after).await
    }

    /// What a server of this mesh needs.
    pub(super) fn context(&self) -> Context<'_> {
        Context { http2: &self.http2, limits: &self.limits, scope: &self.server, metrics: &self.metrics }
    }

    /// The same, by way of another address.
    pub(super) async fn establish_by(&self, addr: SocketAddr) -> Result<Rc<Tunnel>, OpenError> {
        self.tunnel_by(addr, &self.web.identity, self.cart.not_after).await
    }

    /// Answers every CONNECT with 200 and keeps the streams open until the task is cut.
    pub(super) fn accept_all(&mut self) {
        let (_, nothing) = mpsc::unbounded_channel();
        let mut requests = std::mem::replace(&mut self.requests, nothing);
        self.server.spawn_local(async move {
            let mut open = Vec::new();
            while let Some(request) = requests.recv().await {
                open.extend(request.accept(None));
            }
        });
    }
}

/// Forwards connections to a server.
pub(super) struct Wires {
    pub(super) addr: SocketAddr,
    moving: Rc<RefCell<Scope>>,
}

impl Wires {
    pub(super) async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let wires = Self { addr: listener.local_addr().unwrap(), moving: Rc::default() };
        let moving = Rc::clone(&wires.moving);
        tokio::task::spawn_local(async move {
            let mut kept = Vec::new();
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(server).await.unwrap();
                let ends = Rc::new((near, far));
                kept.push(Rc::clone(&ends));
                moving.borrow().spawn_local(async move {
                    let _ended = copy_both_ways(&ends.0, &ends.1, |_| {}, |_| {}).await;
                });
            }
        });
        wires
    }

    /// From now on nothing passes over the connections that are open, and nobody is told; new ones are as before.
    pub(super) fn cut(&self) {
        self.moving.replace(Scope::new()).cut();
    }
}

pub(super) fn connect() -> Connect<'static> {
    static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| Authority::from_static("10.0.0.1:80"));
    static BAGGAGE: LazyLock<HeaderValue> =
        LazyLock::new(|| HeaderValue::from_static("k8s.namespace.name=shop"));
    Connect {
        authority: &AUTHORITY,
        baggage: &BAGGAGE,
        source: "10.0.0.2:4242".parse().unwrap(),
        host: Some("cart.shop.svc.cluster.local"),
        trace: TraceParent::new(0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c, 0xb7ad_6b71_6920_3331),
    }
}
