//! HBONE: mutual TLS, HTTP/2 CONNECT, one stream per app connection.
//!
//! Everything here stays on the worker that created it: a tunnel, its streams and the apps' sockets are driven by one
//! thread, so that no wake-up crosses threads per request. It knows certificates and sockets, but no policy, no
//! snapshot and no pod: who may connect where is decided by its callers. Start with [`pool`] for the client side,
//! [`server`] for the other, [`relay`] for the bytes.

pub mod budget;
pub mod client;
mod gather;
pub mod guard;
pub mod headers;
pub mod link;
mod open_error;
pub mod orders;
pub mod outbox;
pub mod pool;
mod pulse;
mod queue;
mod records;
pub mod relay;
mod seldom;
pub mod server;
pub mod stream;
mod tail;
mod wire;

#[cfg(test)]
mod fixtures;

use std::time::Duration;

/// What both ends of a tunnel announce and allow. Defaults are the reference's, but for the connection window.
#[derive(Clone, Debug)]
pub struct Http2 {
    /// Bytes a peer may send on one stream before the app takes any.
    pub stream_window: u32,
    /// Bytes a peer may send on all streams; at least what all streams together may have unread, so that apps that do
    /// not read never stop the others.
    pub connection_window: u32,
    /// Largest frame taken.
    pub frame_size: u32,
    /// Bytes of one stream that may wait to be sent.
    pub send_buffer: usize,
    /// Streams a client opens on one tunnel.
    pub client_streams: usize,
    /// Streams a server allows on one tunnel.
    pub server_streams: u32,
}

/// Streams that a server allows on one tunnel.
const SERVER_STREAMS: u32 = 200;
/// What h2 may charge for small DATA frames that it has read and we have not yet taken, before it ends the tunnel: 256 bytes
/// a frame. They are taken each time it has read, so that only a socket buffer full of tiny frames comes near; derived from
/// a small connection window, as is its default, a few hundred would.
const SMALL_FRAMES: usize = 64 << 20;
/// Header lists that a client takes: an answer needs little.
const CLIENT_HEADER_LIST: u32 = 16 * 1024;
/// Header lists that a server takes.
const SERVER_HEADER_LIST: u32 = 64 * 1024;
/// Streams that were reset and whose late frames are still known to be late: as many as may be open at once.
const RESET_STREAMS: usize = 400;
/// HTTP/2 allows no larger window. Source: RFC 9113 §6.9.1.
const WINDOW_MAX: u64 = (1 << 31) - 1;

impl Http2 {
    /// `connection_window` of `None` is as many stream windows as a tunnel may have streams.
    pub fn new(
        stream_window: u32,
        connection_window: Option<u32>,
        frame_size: u32,
        client_streams: usize,
    ) -> Self {
        let all = u64::from(stream_window) * u64::from(SERVER_STREAMS).max(client_streams as u64);
        let fitting = u32::try_from(all.min(WINDOW_MAX)).unwrap_or(u32::MAX >> 1);
        Self {
            stream_window,
            connection_window: connection_window.unwrap_or(fitting),
            frame_size,
            send_buffer: 256 * 1024,
            client_streams,
            server_streams: SERVER_STREAMS,
        }
    }
}

impl Default for Http2 {
    fn default() -> Self {
        Self::new(4 << 20, None, 1 << 20, 100)
    }
}

/// How long each stage may take.
#[derive(Clone, Debug)]
pub struct Limits {
    /// TCP connect.
    pub connect: Duration,
    /// TLS handshake.
    pub tls: Duration,
    /// HTTP/2 preface and SETTINGS.
    pub preface: Duration,
    /// Answer to a CONNECT.
    pub answer: Duration,
    /// Each of the stages above, while there is something else to try: another endpoint, or a new tunnel in place of one
    /// that answers nothing.
    pub failover: Duration,
    /// Pause between two PINGs, and before the first.
    pub ping_interval: Duration,
    /// Answer to a PING.
    pub ping_timeout: Duration,
    /// A tunnel without streams is kept so long.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            tls: Duration::from_secs(10),
            preface: Duration::from_secs(10),
            answer: Duration::from_secs(15),
            failover: Duration::from_millis(1500),
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(20),
            idle: Duration::from_secs(300),
        }
    }
}

impl Limits {
    /// For a try that is not the last: no stage takes longer than [`Limits::failover`].
    pub fn hurried(&self) -> Self {
        let at_most = |limit: Duration| limit.min(self.failover);
        Self {
            connect: at_most(self.connect),
            tls: at_most(self.tls),
            preface: at_most(self.preface),
            answer: at_most(self.answer),
            ..self.clone()
        }
    }
}

/// PINGs until one is not answered in time.
async fn watch_pings(mut pings: h2::PingPong, limits: &Limits) {
    loop {
        tokio::time::sleep(limits.ping_interval).await;
        match tokio::time::timeout(limits.ping_timeout, pings.ping(h2::Ping::opaque())).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => std::future::pending().await, // the connection's own end says why
            Err(_) => return,
        }
    }
}
