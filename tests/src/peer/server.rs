//! Port 15008 of the world's peer, answered by the test.

use std::io;
use std::sync::Arc;

use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::net::App;
use super::raw::{Frame, Raw, kind};
use super::world::{HBONE, World};
use super::{tls, within};

/// A listener with TLS.
pub struct Server {
    /// Its plain socket.
    pub tcp: App,
    config: Arc<ServerConfig>,
}

impl Server {
    /// With the right certificate of the world's peer.
    pub fn new(world: &World) -> Self {
        Self::with(world, tls::server(&world.leaf(), &world.pki, &["h2"]))
    }

    /// With any TLS.
    pub fn with(world: &World, config: Arc<ServerConfig>) -> Self {
        Self { tcp: App::listen(&world.peer, HBONE), config }
    }

    /// The next tunnel, after its handshake.
    pub async fn accept(&self) -> io::Result<TlsStream<TcpStream>> {
        let (tcp, _) = self.tcp.accept().await;
        within("a TLS handshake", TlsAcceptor::from(Arc::clone(&self.config)).accept(tcp)).await
    }

    /// The next tunnel with its first request, as frames: the stream's number is that of the CONNECT.
    pub async fn raw(&self, settings: &[(u16, u32)]) -> (Raw<TlsStream<TcpStream>>, u32) {
        let stream = self.accept().await.expect("a TLS handshake");
        let mut raw = Raw::welcome(stream, settings).await;
        let request = raw.find(|f| f.kind == kind::HEADERS).await.expect("a request");
        (raw, request.stream)
    }
}

/// The answer 200, with nothing else.
pub fn accepted(stream: u32) -> Frame {
    Frame::new(kind::HEADERS, super::raw::END_HEADERS, stream, vec![0x88])
}
