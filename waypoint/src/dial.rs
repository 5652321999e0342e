//! A connection to an endpoint's application: through its agent's tunnel where it is captured, else in plain TCP.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use culvert_common::crypto::random;
use culvert_common::hbone::Limits;
use culvert_common::hbone::client::{AnswerWait, Connect, Context, OpenError, Tunnel};
use culvert_common::hbone::headers::TraceParent;
use culvert_common::hbone::link::{self, Reader, Writer};
use culvert_common::hbone::pool::Key;
use culvert_common::model::l7::{self, ConnectionPool};
use culvert_common::model::{Health, TunnelProtocol, Workload};
use culvert_common::net::socket::{self, ConnectError, DialOptions, Keepalive};
use culvert_common::state::Snapshot;
use culvert_common::telemetry::{Handshake, Side};
use culvert_common::types::{SpiffeId, WorkloadUid};
use http::HeaderValue;
use http::uri::Authority;
use tokio::time::Instant;

use crate::tunnel::Client;
use crate::worker::Worker;

/// Port of HBONE.
const HBONE: u16 = 15008;

/// Of a plain connection whose DestinationRule says nothing.
const KEEPALIVE: Keepalive = Keepalive {
    time: Duration::from_secs(180),
    interval: Duration::from_secs(60),
    retries: 3,
    user_timeout: false,
};

/// Where one try goes.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) workload: Arc<Workload>,
    /// Address of the application.
    pub(crate) address: SocketAddr,
}

/// What the key of something begins with that is no more than an address.
const ADDRESS: &str = "address/";

impl Endpoint {
    /// An address that no workload has, spoken to in plain TCP.
    pub(crate) fn of_address(address: SocketAddr, own: SpiffeId) -> Self {
        let uid = WorkloadUid(format!("{ADDRESS}{}", address.ip()).into());
        Self { workload: Arc::new(Workload::new(uid, "", own)), address }
    }

    /// Its workload; none where it is no more than an address.
    pub(crate) fn known(&self) -> Option<&Arc<Workload>> {
        Some(&self.workload).filter(|workload| !workload.name.is_empty())
    }
}

/// Whether connections to this address of a workload may go on: it is there and not about to go. Which addresses a host name
/// has is not asked here: those that it had stay until nobody uses them.
pub(crate) fn is_there(snapshot: &Snapshot, uid: &WorkloadUid, ip: IpAddr) -> bool {
    match snapshot.workload(uid) {
        Some(of) if of.addresses.is_empty() => of.health != Health::Terminating && !of.hostname.is_empty(),
        Some(of) => of.health != Health::Terminating && of.addresses.contains(&ip),
        None => uid.0.starts_with(ADDRESS),
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    #[error(transparent)]
    Tunnel(#[from] OpenError),
    #[error(transparent)]
    Tcp(#[from] ConnectError),
    #[error("HTTP/2: {0}")]
    Http2(#[from] h2::Error),
    #[error("no connection within {0:?}")]
    Late(Duration),
    #[error("more connections, or requests that wait for one, than the DestinationRule allows")]
    Overflow,
}

impl UpstreamError {
    /// Whether it took too long.
    pub(crate) fn is_timeout(&self) -> bool {
        matches!(
            self,
            Self::Tunnel(OpenError::TcpTimeout { .. } | OpenError::AnswerTimeout { .. })
                | Self::Tcp(ConnectError::Timeout { .. })
                | Self::Late(_)
        )
    }

    /// Whether the endpoint's agent could not, or would not, reach the application.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Tunnel(OpenError::Refused { .. }))
    }
}

/// A connection to an endpoint's application.
///
/// **Errors**: see [`UpstreamError`]. **Cancel safety**: dropping it gives up.
pub(crate) async fn connect(
    worker: &Rc<Worker>,
    client: &Client,
    endpoint: &Endpoint,
    pool: &ConnectionPool,
) -> Result<(Reader, Writer), UpstreamError> {
    let limit = pool.connect_timeout;
    let dialled = tokio::time::timeout(limit, Box::pin(dial(worker, client, endpoint, pool))).await;
    dialled.unwrap_or(Err(UpstreamError::Late(limit)))
}

async fn dial(
    worker: &Rc<Worker>,
    client: &Client,
    endpoint: &Endpoint,
    pool: &ConnectionPool,
) -> Result<(Reader, Writer), UpstreamError> {
    let shared = &worker.shared;
    let limits = Limits { connect: pool.connect_timeout, tls: pool.connect_timeout, ..shared.limits.clone() };
    if endpoint.workload.protocol == TunnelProtocol::Tcp {
        // A host that is lost without a word is noticed: an answer may otherwise be waited for without a limit.
        let keepalive = Some(pool.keepalive.map_or(KEEPALIVE, keepalive));
        let options =
            DialOptions { mark: None, source: None, nodelay: true, keepalive, reset_on_drop: false };
        let to = endpoint.address;
        let made = socket::dial_socket(to, &options).map_err(|source| ConnectError::Io { to, source })?;
        let stream = socket::connect(made, to, limits.connect).await?;
        return Ok(link::tcp(stream));
    }
    let peer = SocketAddr::new(endpoint.address.ip(), HBONE);
    let expected = vec![endpoint.workload.identity.clone()];
    let identity = shared.identity().ok_or_else(|| OpenError::Identity("this waypoint has none".into()))?;
    let key = Key::new("waypoint".into(), identity, endpoint.workload.uid.clone(), peer, expected);
    let authority = authority(endpoint.address);
    let connect = Connect {
        authority: &authority,
        baggage: &HeaderValue::from_static(""),
        source: client.address,
        host: None,
        trace: TraceParent::new(random(), random() as u64),
    };
    let establish = || Box::pin(establish(worker, &key, &limits));
    let opened = worker.tunnels.open(&key, &connect, AnswerWait::of(&limits), establish).await?;
    Ok(link::tunnel(opened.stream, Some(opened.slot), &worker.board))
}

/// A new tunnel: our certificate, TCP, TLS, HTTP/2.
async fn establish(worker: &Rc<Worker>, key: &Key, limits: &Limits) -> Result<Rc<Tunnel>, OpenError> {
    let shared = &worker.shared;
    let start = Instant::now();
    let count = |result| shared.metrics.handshake(Side::Client, result, start.elapsed());
    let certificate = match shared.certs.current(&key.identity) {
        Some(certificate) => certificate,
        None => shared.certs.wait(&key.identity, shared.certificate_wait).await.map_err(|error| {
            count(Handshake::NoCertificate);
            OpenError::Identity(error.to_string())
        })?,
    };
    let peer = key.peer;
    let options =
        DialOptions { mark: None, source: None, nodelay: true, keepalive: None, reset_on_drop: false };
    let made = socket::dial_socket(peer, &options).map_err(|source| ConnectError::Io { to: peer, source })?;
    let tcp = socket::connect(made, peer, limits.connect).await?;
    let tls = certificate.client_config(&key.expected);
    let context =
        Context { http2: &shared.to_endpoints, limits, scope: &worker.scope, metrics: &shared.metrics };
    let tunnel = Tunnel::establish(tcp, peer, tls, certificate.not_after, &context).await;
    count(tunnel.as_ref().map_or_else(OpenError::result, |_| Handshake::Complete));
    tunnel
}

/// What is not said is as Linux has it.
fn keepalive(wanted: l7::Keepalive) -> Keepalive {
    Keepalive {
        time: wanted.time.unwrap_or(Duration::from_secs(7200)),
        interval: wanted.interval.unwrap_or(Duration::from_secs(75)),
        retries: wanted.probes.unwrap_or(9),
        user_timeout: false,
    }
}

/// `<address>:<port>`
fn authority(address: SocketAddr) -> Authority {
    // The text of an address is an authority.
    Authority::try_from(address.to_string()).unwrap_or(Authority::from_static("0.0.0.0:0"))
}

#[cfg(test)]
mod tests {
    use culvert_common::model::Model;
    use culvert_common::state::State;

    use super::*;

    #[test]
    fn connections_stay_while_their_end_is_there() {
        let own: SpiffeId = "spiffe://cluster.local/ns/shop/sa/wp".parse().unwrap();
        let ip: IpAddr = "10.0.0.1".parse().unwrap();
        let of = |name: &str| Workload::new(WorkloadUid(name.into()), name, own.clone());
        let state = State::new();
        let workloads = vec![
            Workload { addresses: vec![ip], ..of("pod") },
            Workload { addresses: vec![ip], health: Health::Terminating, ..of("going") },
            Workload { addresses: vec!["fd00::1".parse().unwrap()], ..of("moved") },
            Workload { hostname: "far.example".into(), ..of("named") },
        ];
        state.publish(Model { workloads, ..Model::default() });
        let snapshot = state.snapshot();
        for (uid, is_kept) in
            [("pod", true), ("going", false), ("moved", false), ("named", true), ("gone", false)]
        {
            assert_eq!(is_there(&snapshot, &WorkloadUid(uid.into()), ip), is_kept, "{uid}");
        }
        let unknown = Endpoint::of_address(SocketAddr::new(ip, 80), own);
        assert!(is_there(&snapshot, &unknown.workload.uid, ip));
        assert!(unknown.known().is_none(), "nobody is told that it is a workload");
    }
}
