//! One connection to a control plane.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use rustls::{CertificateError, ClientConfig};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::call::{Channel, Tasks};
use super::error::{ConnectError, Stage, TargetError};
use super::target::{Limits, Target};
use crate::crypto;

const ALPN: &[u8] = b"h2";
/// TCP keepalive, as the reference has it: first probe, between probes, probes.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(300), Duration::from_secs(75), 9);
/// Addresses of a name that are tried.
const ADDRESSES_MAX: usize = 4;
/// Bytes of an answer's headers.
const HEADERS_MAX: u32 = 64 << 10;

/// Makes one fresh connection; roots are read again for it.
///
/// **Errors**: name, TCP, TLS or HTTP/2, each within its limit; whether and when to try again is the caller's decision.
/// **Cancel safety**: a dropped call leaves nothing behind.
pub async fn connect(target: &Target, limits: Limits) -> Result<Channel, ConnectError> {
    let address = Address::of(&target.address)?;
    let tls = if address.is_tls { Some((client_config(target)?, address.name()?)) } else { None };
    let stream = dial(&address, &limits).await?;
    let host = &address.shown;
    let Some((config, name)) = tls else { return start(stream, target, (limits, host)).await };
    let shaken = timeout(limits.handshake, TlsConnector::from(config).connect(name, stream)).await;
    let stream = shaken
        .map_err(|_| ConnectError::Timeout {
            host: host.clone(),
            stage: Stage::Tls,
            limit: limits.handshake,
        })?
        .map_err(|error| tls_error(host, target, error))?;
    if stream.get_ref().1.alpn_protocol() != Some(ALPN) {
        return Err(ConnectError::NoHttp2 { host: host.clone() });
    }
    start(stream, target, (limits, host)).await
}

/// The parts of a target's address.
struct Address {
    host: String,
    port: u16,
    is_tls: bool,
    /// Host and port for messages.
    shown: String,
}

impl Address {
    fn of(uri: &Uri) -> Result<Self, TargetError> {
        let bad = || TargetError::Address { address: uri.to_string() };
        let is_tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(bad()),
        };
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(bad)?;
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let shown = format!("{host}:{port}");
        // The brackets of an IPv6 address belong to the URI only.
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { host, port, is_tls, shown })
    }

    fn name(&self) -> Result<ServerName<'static>, TargetError> {
        server_name(&self.host)
    }
}

fn server_name(host: &str) -> Result<ServerName<'static>, TargetError> {
    ServerName::try_from(host.to_owned()).map_err(|_| TargetError::Address { address: host.to_owned() })
}

/// Each address of the name in turn.
async fn dial(address: &Address, limits: &Limits) -> Result<TcpStream, ConnectError> {
    let host = &address.shown;
    let limit = limits.connect;
    let found = timeout(limit, tokio::net::lookup_host((address.host.as_str(), address.port))).await;
    let resolve = |cause| ConnectError::Resolve { host: address.host.clone(), cause };
    let found: Vec<SocketAddr> = found
        .map_err(|_| ConnectError::Timeout { host: host.clone(), stage: Stage::Resolve, limit })?
        .map_err(resolve)?
        .take(ADDRESSES_MAX)
        .collect();
    let mut last = resolve(io::Error::new(io::ErrorKind::NotFound, "no address"));
    for addr in found {
        match timeout(limit, TcpStream::connect(addr)).await {
            Ok(Ok(stream)) => {
                keep_alive(&stream).map_err(|cause| ConnectError::Tcp { host: host.clone(), addr, cause })?;
                return Ok(stream);
            }
            Ok(Err(cause)) => last = ConnectError::Tcp { host: host.clone(), addr, cause },
            Err(_) => last = ConnectError::Timeout { host: host.clone(), stage: Stage::Tcp, limit },
        }
    }
    Err(last)
}

fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    let (time, interval, retries) = KEEPALIVE;
    stream.set_nodelay(true)?;
    SockRef::from(stream)
        .set_tcp_keepalive(&TcpKeepalive::new().with_time(time).with_interval(interval).with_retries(retries))
}

async fn start(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    target: &Target,
    (limits, host): (Limits, &str),
) -> Result<Channel, ConnectError> {
    let tasks = Tasks::default();
    let mut builder = http2::Builder::new(tasks.clone());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(limits.ping_interval)
        .keep_alive_timeout(limits.ping)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(limits.window)
        .initial_connection_window_size(limits.window)
        .max_header_list_size(HEADERS_MAX);
    let (send, connection) = timeout(limits.handshake, builder.handshake(TokioIo::new(stream)))
        .await
        .map_err(|_| ConnectError::Timeout {
            host: host.to_owned(),
            stage: Stage::Http2,
            limit: limits.handshake,
        })?
        .map_err(|cause| ConnectError::Http2 { host: host.to_owned(), cause })?;
    tasks.spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "the connection to a control plane ended");
        }
    });
    Ok(Channel::new(send, tasks, target, &limits))
}

/// TLS for a control plane: its host's name is verified, or the other one that is allowed.
fn client_config(target: &Target) -> Result<Arc<ClientConfig>, ConnectError> {
    let from = target.roots.describe();
    let roots = Arc::new(target.roots.load()?);
    let bad = |seen: String| TargetError::BadRoot { from: from.clone(), seen };
    let chain = WebPkiServerVerifier::builder_with_provider(roots, crypto::provider())
        .build()
        .map_err(|error| bad(error.to_string()))?;
    let other = target.alternative_host.as_deref().map(server_name).transpose()?;
    let mut config = ClientConfig::builder_with_provider(crypto::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| bad(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { chain, other }))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

fn tls_error(host: &str, target: &Target, error: io::Error) -> ConnectError {
    use CertificateError as Bad;
    let host = host.to_owned();
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::InvalidCertificate(bad)) = tls else {
        return ConnectError::Tls { host, cause: error };
    };
    match bad {
        Bad::NotValidForName => ConnectError::WrongName { host, names: "another".to_owned() },
        Bad::NotValidForNameContext { presented, .. } => {
            ConnectError::WrongName { host, names: presented.join(", ") }
        }
        // The second: another root of the same name.
        Bad::UnknownIssuer | Bad::BadSignature => {
            ConnectError::UnknownRoot { host, roots: target.roots.describe() }
        }
        Bad::Expired | Bad::ExpiredContext { .. } | Bad::NotValidYet | Bad::NotValidYetContext { .. } => {
            ConnectError::NotValidNow { host, cause: bad.clone().into() }
        }
        _ => ConnectError::Tls { host, cause: error },
    }
}

/// The usual verification, for either of two names.
#[derive(Debug)]
struct Verifier {
    chain: Arc<WebPkiServerVerifier>,
    other: Option<ServerName<'static>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verify = |name: &ServerName<'_>| {
            self.chain.verify_server_cert(end_entity, intermediates, name, ocsp_response, now)
        };
        match (verify(server_name), &self.other) {
            (Ok(verified), _) => Ok(verified),
            (Err(error), Some(other)) => verify(other).map_err(|_| error),
            (Err(error), None) => Err(error),
        }
    }

    crypto::verify_signatures!();
}
