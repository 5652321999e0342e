//! What several tests of this folder need.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::*;
use crate::model::{Locality, Service, TunnelProtocol, Workload};
use crate::types::{ServiceKey, SpiffeId, WorkloadUid};

/// A sink that keeps what it is given.
#[derive(Clone, Default)]
pub(super) struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Sink {
    pub(super) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// Lines so far, each without its time and with `duration` made constant.
    pub(super) fn lines(&self, logger: &Logger) -> Vec<String> {
        assert!(logger.flush(Duration::from_secs(10)));
        let constant = |line: &str| {
            let mut line = line.to_owned();
            if let (false, Some(at)) = (line.starts_with('{'), line.find('\t')) {
                line = line.split_off(at + 1);
            }
            for (before, after) in [("\"time\":\"", "\""), ("duration=\"", "\""), ("\"duration\":\"", "\"")] {
                if let Some(at) = line.find(before).map(|at| at + before.len()) {
                    let rest = line.split_off(at);
                    line.push('*');
                    line.push_str(rest.split_at(rest.find(after).unwrap()).1);
                }
            }
            line
        };
        self.text().lines().map(constant).collect()
    }
}

/// Telemetry into a sink.
pub(super) fn telemetry(format: LogFormat, filter: &str) -> (Arc<Telemetry>, Sink) {
    let sink = Sink::default();
    let logger = Logger::to_sink(format, filter, Box::new(sink.clone())).unwrap();
    (Telemetry::new(Metrics::new("1.2.3"), logger), sink)
}

pub(super) fn identity(namespace: &str, name: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", namespace, name).unwrap()
}

pub(super) fn workload(namespace: &str, name: &str, zone: &str) -> Arc<Workload> {
    let uid = WorkloadUid(format!("Kubernetes//Pod/{namespace}/{name}-0").into());
    Arc::new(Workload {
        protocol: TunnelProtocol::Hbone,
        node: "node-1".into(),
        canonical_name: format!("{name}-app").into(),
        canonical_revision: "v2".into(),
        workload_name: format!("{name}-deploy").into(),
        cluster: "Kubernetes".into(),
        locality: Locality { region: "eu".into(), zone: zone.into(), subzone: "".into() },
        ..Workload::new(uid, format!("{name}-0"), identity(namespace, name))
    })
}

pub(super) fn service() -> Arc<Service> {
    let key = ServiceKey { namespace: "shop".into(), hostname: "cart.shop.svc.cluster.local".into() };
    Arc::new(Service { canonical: true, ..Service::new(key, "cart") })
}

/// `web` calls service `cart` through the tunnel.
pub(super) fn outbound() -> Flow {
    Flow {
        reporter: Reporter::Source,
        source: Some(workload("front", "web", "eu-1")),
        source_identity: Some(identity("front", "web")),
        destination: Some(workload("shop", "cart", "")),
        destination_identity: None,
        service: Some(service()),
        security: Security::MutualTls,
        src_addr: "10.0.0.1:40000".parse().unwrap(),
        dst_addr: "10.0.1.2:15008".parse().unwrap(),
        hbone_addr: Some(Target::Addr("10.0.1.2:8080".parse().unwrap())),
        trace: None,
    }
}

/// Somebody whom nobody knows calls something that nobody knows.
pub(super) fn unknown() -> Flow {
    Flow {
        source: None,
        source_identity: None,
        destination: None,
        service: None,
        security: Security::Unknown,
        src_addr: "[fd00::1]:40000".parse().unwrap(),
        dst_addr: "[fd00::2]:80".parse().unwrap(),
        hbone_addr: None,
        ..outbound()
    }
}

/// A gRPC request from `source` to nobody.
pub(super) fn request(source: &Arc<Workload>) -> EndedRequest<'_> {
    EndedRequest {
        between: Between {
            source: Some(source),
            source_identity: &source.identity,
            destination: None,
            service: None,
        },
        status: 503,
        grpc: Some(GrpcStatus::Known(14)),
        flags: "UH",
        took: Duration::from_micros(1500),
        bytes: (300, 90_000),
    }
}

/// A refusal by policy.
pub(super) fn denied() -> Failure {
    Failure {
        flag: ResponseFlag::Deny,
        error: "denied by policy shop/only-web".into(),
        denial: Some(DenialNote {
            id: "0a1b2c3d".into(),
            class: "policy",
            policy: Some("shop/only-web".into()),
        }),
    }
}
