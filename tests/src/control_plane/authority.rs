//! Istio's certificate service over the lab's root, for agents of one namespace; it may be away and come back.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use culvert::lab::{Lab, Place, Pod};
use culvert_common::identity::{CertificateService, EmbeddedCa, EmbeddedOptions};
use culvert_common::task::Scope;
use tokio::sync::oneshot;

/// Where it listens, in its namespace's loopback.
pub const PORT: u16 = 15013;

const END_MAX: Duration = Duration::from_secs(2);

/// A running certificate authority. Dropping it ends it.
#[derive(Debug)]
pub struct Authority {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Authority {
    /// Signs for these pods, with the root that the lab's other agents have.
    pub fn start(lab: &Lab, place: &Place, pods: &[&Pod]) -> Self {
        let ca = EmbeddedCa::open_or_create(&lab.ca_dir(), EmbeddedOptions::new("cluster.local"));
        let allowed: HashSet<_> =
            pods.iter().map(|pod| pod.identity().parse().expect("an identity")).collect();
        let service = CertificateService::new(ca.expect("a root"), "localhost", allowed);
        let service = Arc::new(service.expect("a certificate of its own"));
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
        // The socket belongs to its namespace wherever it is served from.
        let listener = place.run(|| TcpListener::bind(at)).expect("the node").expect("the authority's port");
        listener.set_nonblocking(true).expect("a socket");
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let (scope, listener) = (Scope::new(), tokio::net::TcpListener::from_std(listener));
                let (listener, own) = (listener.expect("a socket"), scope.clone());
                scope.spawn(async move { service.serve(listener, &own).await });
                let _the_sender_is_gone = stopped.await;
                scope.shut_down(END_MAX).await;
            });
        });
        Self { stop: Some(stop), thread: Some(thread) }
    }

    /// What an agent has to be told to use it.
    pub fn settings(lab: &Lab) -> [(String, String); 2] {
        let root: PathBuf = lab.ca_dir().join("root-cert.pem");
        [
            ("CA_ADDRESS".to_owned(), format!("https://localhost:{PORT}")),
            ("CA_ROOT_CA".to_owned(), root.display().to_string()),
        ]
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
