//! Istio's certificate service over the embedded CA: for node proxies of others that fetch their certificates by gRPC.
//!
//! One method, `istio.v1.auth.IstioCertificateService/CreateCertificate`. Only listed identities are signed for, whoever
//! asks: for a benchmark or a test on one machine, where whoever reaches it could read the root's key as well.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response};
use prost::Message;
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::ca::{self, CaError};
use super::messages::{Asked, IMPERSONATED, METHOD, Reply};
use super::{EmbeddedCa, tls};
use crate::task::Scope;
use crate::types::SpiffeId;

const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
const REQUEST_MAX: Duration = Duration::from_secs(10);
/// A request for a P-256 key has about 600 bytes.
const REQUEST_BYTES_MAX: usize = 64 << 10;
const CONNECTIONS_MAX: usize = 64;
const STREAMS_MAX: u32 = 64;

/// gRPC's statuses, as far as they are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    InvalidArgument = 3,
    PermissionDenied = 7,
    Unimplemented = 12,
    Internal = 13,
}

/// Signs for the listed identities.
pub struct CertificateService {
    ca: EmbeddedCa,
    allowed: HashSet<SpiffeId>,
    tls: TlsAcceptor,
}

impl CertificateService {
    /// A service for callers that reach it as `host` and trust the CA's root.
    ///
    /// **Errors:** the CA cannot issue the service's own certificate.
    pub fn new(ca: EmbeddedCa, host: &str, allowed: HashSet<SpiffeId>) -> Result<Self, CaError> {
        let issued = ca.issue_for_host(host)?;
        let unusable = |source| CaError::Service { host: host.to_owned(), source };
        let mut config = ServerConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?
            .with_no_client_auth()
            .with_single_cert(issued.chain.clone(), issued.key.expose())
            .map_err(unusable)?;
        config.alpn_protocols = vec![tls::ALPN.to_vec()];
        Ok(Self { ca, allowed, tls: TlsAcceptor::from(Arc::new(config)) })
    }

    /// Answers until the scope drains.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, scope: &Scope) {
        while let Some(accepted) = scope_or(scope, listener.accept()).await {
            // Out of descriptors, or gone before it was accepted: the next one may do.
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            if scope.len() < CONNECTIONS_MAX {
                let (service, own) = (Arc::clone(&self), scope.clone());
                scope.spawn(async move { service.connection(stream, &own).await });
            }
        }
    }

    /// One connection; whatever is wrong with it ends it.
    async fn connection(self: Arc<Self>, stream: TcpStream, scope: &Scope) {
        let shake = async {
            let stream = self.tls.accept(stream).await.ok()?;
            h2::server::Builder::new()
                .max_concurrent_streams(STREAMS_MAX)
                .handshake::<_, Bytes>(stream)
                .await
                .ok()
        };
        let Ok(Some(mut connection)) = timeout(HANDSHAKE_MAX, shake).await else { return };
        while let Some(Some(Ok((request, respond)))) = scope_or(scope, connection.accept()).await {
            let service = Arc::clone(&self);
            // The connection has to be driven while a request is read.
            scope.spawn(async move {
                let _caller_went_away = timeout(REQUEST_MAX, service.answer(request, respond)).await;
            });
        }
    }

    async fn answer(
        &self,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) -> Result<(), h2::Error> {
        let answered = match request.uri().path() {
            METHOD => match message(request.into_body()).await {
                Some(bytes) => self.create(&bytes),
                None => Err((Status::InvalidArgument, "no gRPC message, or one too long".to_owned())),
            },
            other => Err((Status::Unimplemented, format!("no method {other}"))),
        };
        let mut head = Response::new(());
        let headers = head.headers_mut();
        headers.insert("content-type", HeaderValue::from_static("application/grpc"));
        match answered {
            Ok(reply) => {
                let mut stream = respond.send_response(head, false)?;
                stream.send_data(framed(&reply), false)?;
                let zero = HeaderValue::from_static("0");
                stream.send_trailers(HeaderMap::from_iter([(
                    http::HeaderName::from_static("grpc-status"),
                    zero,
                )]))
            }
            Err((status, text)) => {
                headers.insert("grpc-status", HeaderValue::from(status as u16));
                if let Ok(text) = HeaderValue::from_str(&text) {
                    headers.insert("grpc-message", text);
                }
                respond.send_response(head, true).map(|_| ())
            }
        }
    }

    fn create(&self, bytes: &[u8]) -> Result<Reply, (Status, String)> {
        let asked = Asked::decode(bytes).map_err(|e| (Status::InvalidArgument, e.to_string()))?;
        let name = asked.metadata.and_then(|mut m| m.fields.remove(IMPERSONATED)).map(|value| value.text);
        let name = name.ok_or((Status::InvalidArgument, format!("no {IMPERSONATED} in the metadata")))?;
        let id = name.parse::<SpiffeId>().map_err(|e| (Status::InvalidArgument, e.to_string()))?;
        if !self.allowed.contains(&id) {
            return Err((Status::PermissionDenied, format!("{id} is none of the identities served here")));
        }
        let chain = self.ca.sign(&id, &asked.csr).map_err(|e| match e {
            CaError::Request { .. } => (Status::InvalidArgument, e.to_string()),
            other => (Status::Internal, other.to_string()),
        })?;
        // The last one is the root.
        let all = chain.iter().chain([&self.ca.root()]).map(pem_of).collect();
        Ok(Reply { cert_chain: all })
    }
}

impl std::fmt::Debug for CertificateService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateService").field("allowed", &self.allowed).finish_non_exhaustive()
    }
}

fn pem_of(cert: &CertificateDer<'_>) -> String {
    ca::pem("CERTIFICATE", cert)
}

/// What `work` gives, or `None` once the scope drains.
async fn scope_or<T>(scope: &Scope, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        done = work => Some(done),
        () = scope.draining() => None,
    }
}

/// The one message of a unary call.
async fn message(mut body: RecvStream) -> Option<Bytes> {
    let mut all = BytesMut::new();
    while let Some(piece) = body.data().await {
        let piece = piece.ok()?;
        body.flow_control().release_capacity(piece.len()).ok()?;
        all.extend_from_slice(&piece);
        if all.len() > REQUEST_BYTES_MAX {
            return None;
        }
    }
    let mut all = all.freeze();
    // A flag that is 1 where it is compressed, then the length.
    let is_plain = all.len() >= 5 && all.get_u8() == 0;
    let length = if is_plain { usize::try_from(all.get_u32()).ok()? } else { return None };
    (all.len() == length).then_some(all)
}

fn framed(reply: &Reply) -> Bytes {
    let mut bytes = BytesMut::with_capacity(5 + reply.encoded_len());
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(reply.encoded_len()).unwrap_or(u32::MAX));
    bytes.extend_from_slice(&reply.encode_to_vec());
    bytes.freeze()
}

#[cfg(test)]
mod tests;
