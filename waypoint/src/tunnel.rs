//! One tunnel from a node agent: certificate, TLS, HTTP/2; each CONNECT of it is a connection of [`crate::serve`].

use std::net::SocketAddr;
use std::rc::Rc;

use culvert_common::hbone::client::Context;
use culvert_common::hbone::orders::Orders;
use culvert_common::hbone::server;
use culvert_common::telemetry::{Handshake, Side};
use culvert_common::types::SpiffeId;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::serve;
use crate::worker::Worker;

/// Who is at the other end of a tunnel.
pub(crate) struct Client {
    pub(crate) identity: SpiffeId,
    pub(crate) address: SocketAddr,
    /// How many proxies its `x-forwarded-for` tells of that are believed; none: it is not.
    pub(crate) trusted_hops: Option<u32>,
}

/// Serves one accepted connection of port 15008.
pub(crate) async fn serve(worker: &Rc<Worker>, tcp: TcpStream, address: SocketAddr) {
    let shared = &worker.shared;
    let start = Instant::now();
    let count = |result| shared.metrics.handshake(Side::Server, result, start.elapsed());
    let _may_fail = tcp.set_nodelay(true);
    let Some(identity) = shared.identity() else {
        count(Handshake::NoCertificate);
        return tracing::warn!(%address, "no identity for a tunnel: the configuration has not been read");
    };
    let certificate = match shared.certs.wait(&identity, shared.certificate_wait).await {
        Ok(certificate) => certificate,
        Err(error) => {
            count(Handshake::NoCertificate);
            return tracing::warn!(%address, %identity, %error, "no certificate for a tunnel");
        }
    };
    let context = Context {
        http2: &shared.from_clients,
        limits: &shared.limits,
        scope: &worker.scope,
        metrics: &shared.metrics,
    };
    let accepted = match Box::pin(server::accept(tcp, address, certificate.server_config(), &context)).await {
        Ok(accepted) => accepted,
        Err(error) => {
            count(error.result());
            return tracing::warn!(%address, %error, "a tunnel was not accepted");
        }
    };
    count(Handshake::Complete);
    let _open = shared.metrics.tunnel(Side::Server);
    let orders = Orders::default();
    let trusted_hops = shared.trusted_proxies.contains(&accepted.peer).then_some(shared.trusted_hops);
    let client = Rc::new(Client { identity: accepted.peer.clone(), address, trusted_hops });
    let drained = Box::pin(worker.scope.draining());
    let ended = Box::pin(accepted.run(&shared.limits, drained, &orders, |request| {
        let (worker, client, request) = (Rc::clone(worker), Rc::clone(&client), Box::new(request));
        worker.scope.clone().spawn_local(async move { serve::connect(&worker, &client, request).await });
    }));
    if let Err(error) = ended.await {
        tracing::debug!(%address, peer = %client.identity, error, "a tunnel broke");
    }
}
