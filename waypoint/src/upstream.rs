//! Connections of HTTP to endpoints, for one worker: those of HTTP/1.1 that wait for another request, those of HTTP/2 with
//! room, and who waits because a DestinationRule allows no more of them.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use culvert_common::hbone::link::Writer;
use culvert_common::l7::breaker::{Kind, Permit};
use culvert_common::l7::remove_hop_by_hop;
use culvert_common::model::TunnelProtocol;
use culvert_common::model::l7::{ClusterKey, ConnectionPool};
use culvert_common::state::Snapshot;
use culvert_common::types::{SpiffeId, WorkloadUid};
use tokio::sync::Notify;
use tokio::time::{Instant, interval_at};

use crate::current::Live;
use crate::dial::{Endpoint, UpstreamError, connect, is_there};
use crate::http1::head::Framing;
use crate::http2;
use crate::link_io::LinkIo;
use crate::message::{Input, Request};
use crate::tunnel::Client;
use crate::worker::Worker;

/// Streams on one HTTP/2 connection, if its server and its DestinationRule allow as many.
const STREAMS: usize = 1024;
/// Connections of HTTP/1.1 to one endpoint that wait for another request.
const IDLE_MAX: usize = 64;

/// Connections of one worker.
#[derive(Default)]
pub(crate) struct Connections {
    places: RefCell<HashMap<Place, Rc<Pool>>>,
}

/// Which connections are alike: settings, and counts, are those of a destination.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Place {
    cluster: Option<ClusterKey>,
    workload: WorkloadUid,
    address: SocketAddr,
}

/// Connections of one destination to one endpoint.
struct Pool {
    /// Whom they were made to, and how: an endpoint of another identity, or no longer captured, is another one.
    identity: SpiffeId,
    protocol: TunnelProtocol,
    idle: RefCell<Vec<Idle>>,
    shared: RefCell<Vec<Rc<Http2>>>,
    /// A connection of HTTP/2 that is being made, for all who wait for one.
    dial: RefCell<Option<Rc<Dial>>>,
    counts: Rc<Counts>,
}

#[derive(Default)]
struct Counts {
    /// Connections, those in use and those being made too.
    open: Cell<usize>,
    /// Told to one who waits when there may be a place.
    freed: Notify,
}

/// A connection's share of the counts, until it is dropped.
struct Counted {
    counts: Rc<Counts>,
    _permit: Option<Permit>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.counts.open.set(self.counts.open.get() - 1);
        self.counts.freed.notify_one();
    }
}

#[derive(Default)]
struct Dial {
    is_over: Cell<bool>,
    failed: RefCell<Option<Rc<UpstreamError>>>,
    over: Notify,
}

/// Ends a [`Dial`] however its owner's future ends.
struct DialGuard<'a>(&'a Pool, Rc<Dial>);

impl Drop for DialGuard<'_> {
    fn drop(&mut self) {
        self.1.is_over.set(true);
        self.0.dial.borrow_mut().take();
        self.1.over.notify_waiters();
    }
}

struct Idle {
    connection: Http1,
    since: Instant,
    /// None: as long as its server keeps it.
    until: Option<Instant>,
}

impl Idle {
    fn of(connection: Http1, idle: Option<Duration>) -> Self {
        let since = Instant::now();
        Self { connection, since, until: idle.and_then(|idle| since.checked_add(idle)) }
    }

    fn is_usable(&mut self, now: Instant) -> bool {
        self.until.is_none_or(|until| until > now) && !self.connection.input.has_ended()
    }
}

/// A server ends connections that nobody has used for a while. One that has waited no longer than this was hardly ended for that.
const HARDLY_WAITED: Duration = Duration::from_secs(1);

/// A connection of HTTP/1.1 to an endpoint.
pub(crate) struct Http1 {
    pub(crate) input: Input,
    pub(crate) output: Writer,
    /// Requests that it has had.
    pub(crate) served: u32,
    opened: Instant,
    _counted: Counted,
}

/// A connection of HTTP/2 to an endpoint.
pub(crate) struct Http2 {
    send: h2::client::SendRequest<Bytes>,
    streams: Cell<usize>,
    served: Cell<u32>,
    opened: Instant,
    /// How long it is kept without requests, and since when it has had none.
    idle: Option<Duration>,
    idle_since: Cell<Instant>,
    counts: Rc<Counts>,
}

/// A request's place on a connection of HTTP/2.
pub(crate) struct Stream(Rc<Http2>);

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
        self.0.idle_since.set(Instant::now());
        self.0.counts.freed.notify_one();
    }
}

/// What a request that was begun on HTTP/2 has: its answer to come, what takes its body if it has one, its place.
pub(crate) type Begun = (h2::client::ResponseFuture, Option<h2::SendStream<Bytes>>, Stream);

impl Http2 {
    /// Sends a request's head; `uri` is that of it.
    ///
    /// **Errors**: the connection takes no new requests.
    pub(crate) async fn request(
        self: &Rc<Self>,
        request: &Request,
        uri: http::Uri,
    ) -> Result<Begun, h2::Error> {
        self.streams.set(self.streams.get() + 1);
        let place = Stream(Rc::clone(self));
        let mut send = self.send.clone().ready().await?;
        self.served.set(self.served.get().saturating_add(1));
        let mut head = http::Request::new(());
        *head.method_mut() = request.method.clone();
        *head.uri_mut() = uri;
        *head.version_mut() = http::Version::HTTP_2;
        head.headers_mut().clone_from(&request.headers);
        // What a route sets of Connection has no place here: the codec would refuse it.
        remove_hop_by_hop(head.headers_mut());
        let is_empty = request.framing == Framing::Empty;
        let (response, stream) = send.send_request(head, is_empty)?;
        Ok((response, (!is_empty).then_some(stream), place))
    }

    /// Whether it takes new requests: its server has not said that it goes, and it is not as old or used as it may become.
    fn is_open(&self, pool: &ConnectionPool) -> bool {
        let most = pool.max_requests_per_connection;
        let mut cx = Context::from_waker(Waker::noop());
        (most == 0 || self.served.get() < most)
            && pool.max_connection_duration.is_none_or(|most| self.opened.elapsed() < most)
            && !matches!(self.send.clone().poll_ready(&mut cx), Poll::Ready(Err(_)))
    }

    /// Whether nobody has used it for as long as it may be kept so.
    fn has_idled(&self, now: Instant) -> bool {
        self.streams.get() == 0 && self.idle.is_some_and(|idle| now - self.idle_since.get() >= idle)
    }

    fn has_room(&self, pool: &ConnectionPool) -> bool {
        let most = STREAMS.min(usize::try_from(pool.max_streams).unwrap_or(STREAMS));
        self.streams.get() < most.min(self.send.current_max_send_streams())
    }
}

/// What a request asks for, as HTTP/2 says it; none: it cannot.
pub(crate) fn uri(request: &Request) -> Option<http::Uri> {
    let scheme = if request.is_https { "https" } else { "http" };
    let uri = http::Uri::builder()
        .scheme(scheme)
        .authority(request.authority.as_bytes())
        .path_and_query(request.path.as_str());
    uri.build().ok()
}

impl Connections {
    /// Forgets connections that have ended or waited long enough, and those to endpoints that are gone.
    pub(crate) fn sweep(&self, snapshot: &Snapshot, now: Instant) {
        let serves = |place: &Place| is_there(snapshot, &place.workload, place.address.ip());
        self.places.borrow_mut().retain(|place, pool| {
            if serves(place) {
                pool.idle.borrow_mut().retain_mut(|one| one.is_usable(now));
                pool.shared.borrow_mut().retain(|one| !one.has_idled(now));
            } else {
                pool.close();
            }
            pool.counts.open.get() > 0 || Rc::strong_count(pool) > 1
        });
    }

    /// Takes no more requests: what waits is closed, what is under way goes on.
    pub(crate) fn close(&self) {
        self.places.borrow().values().for_each(|pool| pool.close());
    }

    fn at(&self, endpoint: &Endpoint, live: Option<&Arc<Live>>) -> Rc<Pool> {
        let place = Place {
            cluster: live.map(|live| live.cluster.key.clone()),
            workload: endpoint.workload.uid.clone(),
            address: endpoint.address,
        };
        let mut places = self.places.borrow_mut();
        let pool = places.entry(place).or_insert_with(|| Rc::new(Pool::to(endpoint)));
        if !pool.is_to(endpoint) {
            std::mem::replace(pool, Rc::new(Pool::to(endpoint))).close();
        }
        Rc::clone(pool)
    }
}

impl Pool {
    fn to(endpoint: &Endpoint) -> Self {
        Self {
            identity: endpoint.workload.identity.clone(),
            protocol: endpoint.workload.protocol,
            idle: RefCell::default(),
            shared: RefCell::default(),
            dial: RefCell::default(),
            counts: Rc::default(),
        }
    }

    fn is_to(&self, endpoint: &Endpoint) -> bool {
        self.identity == endpoint.workload.identity && self.protocol == endpoint.workload.protocol
    }

    fn close(&self) {
        // Dropped after the borrow: a connection that ends wakes who waits here.
        let idle = std::mem::take(&mut *self.idle.borrow_mut());
        let shared = std::mem::take(&mut *self.shared.borrow_mut());
        drop((idle, shared));
    }

    /// A connection of HTTP/1.1 that waits, the last used first, and whether it did so for long.
    fn waiting(&self) -> Option<(Http1, bool)> {
        let now = Instant::now();
        loop {
            let mut one = self.idle.borrow_mut().pop()?;
            if one.is_usable(now) {
                return Some((one.connection, now - one.since > HARDLY_WAITED));
            }
        }
    }

    fn with_room(&self, pool: &ConnectionPool) -> Option<Rc<Http2>> {
        let (mut shared, now) = (self.shared.borrow_mut(), Instant::now());
        shared.retain(|one| one.is_open(pool) && !one.has_idled(now));
        shared.iter().find(|one| one.has_room(pool)).cloned()
    }

    /// One connection more, if there may be. An endpoint without any may always have one.
    fn count(&self, live: Option<&Arc<Live>>) -> Option<Counted> {
        let permit = match live {
            None => None,
            Some(live) => match live.breaker.take(Kind::Connections, &live.cluster) {
                None if self.counts.open.get() > 0 => return None,
                None => Some(live.breaker.take_anyway(Kind::Connections)),
                permit => permit,
            },
        };
        self.counts.open.set(self.counts.open.get() + 1);
        Some(Counted { counts: Rc::clone(&self.counts), _permit: permit })
    }
}

/// A place among those who wait for a connection.
fn pending(live: Option<&Arc<Live>>) -> Result<Option<Permit>, UpstreamError> {
    let Some(live) = live else { return Ok(None) };
    live.breaker.take(Kind::Pending, &live.cluster).map(Some).ok_or(UpstreamError::Overflow)
}

/// Who needs a connection, and where.
#[derive(Clone, Copy)]
pub(crate) struct Need<'a> {
    pub(crate) worker: &'a Rc<Worker>,
    pub(crate) client: &'a Client,
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) live: Option<&'a Arc<Live>>,
    pub(crate) pool: &'a ConnectionPool,
}

/// A connection of HTTP/1.1: one that waited, unless it must be `fresh`, or a new one; whether it waited for so long that its
/// server may be ending it.
///
/// **Errors**: see [`UpstreamError`]. **Cancel safety**: dropping it gives up.
pub(crate) async fn http1(need: Need<'_>, fresh: bool) -> Result<(Http1, bool), UpstreamError> {
    let place = need.worker.connections.at(need.endpoint, need.live);
    let waiting = || if fresh { None } else { place.waiting() };
    if let Some(found) = waiting() {
        return Ok(found);
    }
    let _pending = pending(need.live)?;
    let counted = loop {
        if let Some(found) = waiting() {
            return Ok(found);
        }
        match place.count(need.live) {
            Some(counted) => break counted,
            // Whoever wants a new one in place of one that waits.
            None if fresh && place.idle.borrow_mut().pop().is_some() => {}
            None => place.counts.freed.notified().await,
        }
    };
    let (reader, output) = connect(need.worker, need.client, need.endpoint, need.pool).await?;
    let (input, opened) = (Input::new(reader), Instant::now());
    Ok((Http1 { input, output, served: 0, opened, _counted: counted }, false))
}

/// Keeps a connection for another request.
pub(crate) fn keep(need: Need<'_>, connection: Http1) {
    let (worker, pool) = (need.worker, need.pool);
    let most = pool.max_requests_per_connection;
    let is_used_up = most > 0 && connection.served >= most;
    let is_old = pool.max_connection_duration.is_some_and(|most| connection.opened.elapsed() >= most);
    if is_used_up || is_old || worker.scope.is_draining() || connection.input.is_ahead() {
        return;
    }
    let place = worker.connections.at(need.endpoint, need.live);
    let mut idle = place.idle.borrow_mut();
    if idle.len() < IDLE_MAX {
        idle.push(Idle::of(connection, pool.http_idle));
        drop(idle);
        place.counts.freed.notify_one();
    }
}

/// A connection of HTTP/2 with room for a request, an open one or a new one.
///
/// **Errors**: see [`UpstreamError`]; all who wait for one get the same. **Cancel safety**: dropping it gives up.
pub(crate) async fn http2(need: Need<'_>) -> Result<Rc<Http2>, Rc<UpstreamError>> {
    let place = need.worker.connections.at(need.endpoint, need.live);
    if let Some(connection) = place.with_room(need.pool) {
        return Ok(connection);
    }
    let _pending = pending(need.live)?;
    loop {
        if let Some(connection) = place.with_room(need.pool) {
            return Ok(connection);
        }
        let running = place.dial.borrow().clone();
        if let Some(dial) = running {
            let over = dial.over.notified(); // before the check: an end in between is not missed
            if !dial.is_over.get() {
                over.await;
            }
            let failed = dial.failed.borrow().clone();
            match failed {
                Some(error) => return Err(error),
                None => continue,
            }
        }
        let Some(counted) = place.count(need.live) else {
            place.counts.freed.notified().await;
            continue;
        };
        let dial = Rc::new(Dial::default());
        place.dial.borrow_mut().replace(Rc::clone(&dial));
        let guard = DialGuard(&place, dial);
        match Box::pin(new_http2(need, &place, counted)).await {
            Ok(connection) => {
                place.shared.borrow_mut().push(connection);
                place.counts.freed.notify_one();
            }
            Err(error) => {
                let error = Rc::new(error);
                guard.1.failed.replace(Some(Rc::clone(&error)));
                return Err(error);
            }
        }
    }
}

async fn new_http2(need: Need<'_>, place: &Rc<Pool>, counted: Counted) -> Result<Rc<Http2>, UpstreamError> {
    let (reader, writer) = connect(need.worker, need.client, need.endpoint, need.pool).await?;
    let handshake = h2::client::Builder::new()
        .initial_window_size(http2::WINDOW)
        .initial_connection_window_size(http2::CONNECTION_WINDOW)
        .max_header_list_size(80 * 1024)
        .max_send_buffer_size(128 * 1024)
        .enable_push(false)
        .handshake::<_, Bytes>(LinkIo::new(Input::new(reader), writer, 0));
    let limit = need.pool.connect_timeout;
    let shaken = tokio::time::timeout(limit, handshake).await;
    let (send, mut driver) = shaken.map_err(|_| UpstreamError::Late(limit))??;
    let opened = Instant::now();
    let connection = Rc::new(Http2 {
        send,
        streams: Cell::new(0),
        served: Cell::new(0),
        opened,
        idle: need.pool.http_idle,
        idle_since: Cell::new(opened),
        counts: Rc::clone(&place.counts),
    });
    let (pings, times) = (driver.ping_pong(), need.pool.ping);
    let (weak, owner) = (Rc::downgrade(&connection), Rc::downgrade(place));
    need.worker.scope.spawn_local(async move {
        let _counted = counted;
        let unanswered = async {
            match (pings, times) {
                (Some(pings), Some(times)) => unanswered(pings, times).await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = driver => if let Err(error) = ended {
                tracing::debug!(%error, "a connection to an endpoint ended");
            },
            () = unanswered => tracing::debug!("an endpoint did not answer a PING"),
        }
        if let Some(place) = owner.upgrade() {
            place.shared.borrow_mut().retain(|one| !std::ptr::eq(Rc::as_ptr(one), weak.as_ptr()));
        }
    });
    Ok(connection)
}

/// Sends PINGs; ready when one is not answered in time.
async fn unanswered(mut pings: h2::PingPong, (every, limit): (Duration, Duration)) {
    let mut tick = interval_at(Instant::now() + every, every);
    loop {
        tick.tick().await;
        if !matches!(tokio::time::timeout(limit, pings.ping(h2::Ping::opaque())).await, Ok(Ok(_))) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use culvert_common::hbone::link;
    use culvert_common::model::Workload;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    fn endpoint(account: &str, protocol: TunnelProtocol) -> Endpoint {
        let identity = SpiffeId::new("cluster.local", "shop", account).unwrap();
        let workload = Workload { protocol, ..Workload::new(WorkloadUid("cart".into()), "cart", identity) };
        Endpoint { workload: Arc::new(workload), address: "10.0.0.1:80".parse().unwrap() }
    }

    async fn connection() -> (TcpStream, Http1) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (reader, output) = link::tcp(listener.accept().await.unwrap().0);
        let counted = Counted { counts: Rc::default(), _permit: None };
        counted.counts.open.set(1);
        let (input, opened) = (Input::new(reader), Instant::now());
        (server, Http1 { input, output, served: 1, opened, _counted: counted })
    }

    #[tokio::test]
    async fn an_endpoint_with_another_identity_gets_connections_of_its_own() {
        let connections = Connections::default();
        let at = |account, protocol| connections.at(&endpoint(account, protocol), None);
        let old = at("cart", TunnelProtocol::Hbone);
        let (_server, connection) = connection().await;
        old.idle.borrow_mut().push(Idle::of(connection, None));
        assert!(Rc::ptr_eq(&old, &at("cart", TunnelProtocol::Hbone)));
        let new = at("other", TunnelProtocol::Hbone);
        assert!(!Rc::ptr_eq(&old, &new) && new.waiting().is_none());
        assert!(old.waiting().is_none(), "closed");
        assert!(!Rc::ptr_eq(&new, &at("other", TunnelProtocol::Tcp)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_of_http2_that_nobody_uses_is_not_kept_for_longer() {
        const IDLE: Duration = Duration::from_secs(10);
        let (client, _server) = tokio::io::duplex(4096);
        let (send, _connection) = h2::client::handshake::<_>(client).await.unwrap();
        let (streams, served, now) = (Cell::new(1), Cell::new(1), Instant::now());
        let (idle, counts) = (Some(IDLE), Rc::default());
        let idle_since = Cell::new(now);
        let one = Rc::new(Http2 { send, streams, served, opened: now, idle, idle_since, counts });
        let connections = Connections::default();
        let endpoint = Endpoint::of_address(
            "10.0.0.1:80".parse().unwrap(),
            endpoint("cart", TunnelProtocol::Tcp).workload.identity.clone(),
        );
        let pool = connections.at(&endpoint, None);
        pool.shared.borrow_mut().push(Rc::clone(&one));
        let settings = ConnectionPool::default();
        let snapshot = culvert_common::state::State::new().snapshot();
        let place = Stream(one);
        tokio::time::advance(IDLE * 2).await;
        connections.sweep(&snapshot, Instant::now());
        assert!(pool.with_room(&settings).is_some(), "it is used");
        drop(place);
        tokio::time::advance(IDLE - Duration::from_millis(1)).await;
        connections.sweep(&snapshot, Instant::now());
        assert_eq!(pool.shared.borrow().len(), 1);
        tokio::time::advance(Duration::from_millis(1)).await;
        connections.sweep(&snapshot, Instant::now());
        assert!(pool.shared.borrow().is_empty());
    }

    #[tokio::test]
    async fn a_connection_waits_as_long_as_it_may() {
        let pool = Pool::to(&endpoint("cart", TunnelProtocol::Tcp));
        for (idle, is_kept) in [
            (None, true),
            (Some(Duration::MAX), true),
            (Some(Duration::from_secs(60)), true),
            (Some(Duration::ZERO), false),
        ] {
            let (_server, connection) = connection().await;
            pool.idle.borrow_mut().push(Idle::of(connection, idle));
            assert_eq!(pool.waiting().is_some(), is_kept, "{idle:?}");
        }
    }
}
