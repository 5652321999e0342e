//! Istio's certificate service for proxies that ask for their certificates: on the loopback of each node and pod.

use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use culvert_common::identity::CertificateService;
use culvert_common::task::Scope;
use tokio::sync::oneshot;

use super::environment::CA_PORT;
use crate::bench::mode::{Stage, certificates};
use crate::lab::Place;

const END_MAX: Duration = Duration::from_secs(2);

/// A running service. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Authority {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Authority {
    /// Signs for the two pods.
    pub(super) fn start(stage: &Stage) -> anyhow::Result<Self> {
        let ca = certificates::authority(&stage.lab)?;
        let pods = [&stage.client, &stage.server];
        let allowed: Result<HashSet<_>, _> = pods.iter().map(|pod| pod.identity().parse()).collect();
        let service = CertificateService::new(ca, "localhost", allowed.context("an identity")?)?;
        // The sockets belong to their namespaces wherever they are served from.
        let mut listeners = Vec::new();
        for node in &stage.nodes {
            listeners.extend(bind(stage.lab.host(*node)?)?);
        }
        for pod in pods {
            listeners.extend(bind(pod)?);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || runtime.block_on(serve(Arc::new(service), listeners, stopped)));
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

async fn serve(
    service: Arc<CertificateService>,
    listeners: Vec<TcpListener>,
    stopped: oneshot::Receiver<()>,
) {
    let scope = Scope::new();
    for listener in listeners {
        let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { continue };
        let (service, own) = (Arc::clone(&service), scope.clone());
        scope.spawn(async move { service.serve(listener, &own).await });
    }
    let _the_sender_is_gone = stopped.await;
    scope.shut_down(END_MAX).await;
}

fn bind(place: &Place) -> anyhow::Result<Vec<TcpListener>> {
    let both =
        [SocketAddr::from((Ipv4Addr::LOCALHOST, CA_PORT)), SocketAddr::from((Ipv6Addr::LOCALHOST, CA_PORT))];
    let bound = place.run(|| both.map(TcpListener::bind))?;
    let each = bound.into_iter().map(|listener| {
        let listener = listener.map_err(|e| anyhow!("{}: port {CA_PORT}: {e}", place.name()))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    each.collect()
}
