//! How a tunnel's TCP connection is closed without losing its last bytes.
//!
//! Closing a socket that holds unread bytes is a reset, and a reset drops what is still unsent or overtakes it: a late
//! WINDOW_UPDATE would cost the last stream its end, an early request a refused client its alert. So what the peer still
//! sends is read, for a moment and up to a bound, before the socket is let go.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A peer that does not close by then is not waited for.
const WAIT: Duration = Duration::from_secs(1);
/// A peer that sends more than this is not listened to.
const READ_MAX: u64 = 1 << 20;

/// A second handle on a connection that the codec owns.
pub(super) struct Tail(Option<std::net::TcpStream>);

impl Tail {
    /// Without a descriptor to spare the connection closes as it comes.
    pub(super) fn of(tcp: &TcpStream) -> Self {
        Self(tcp.as_fd().try_clone_to_owned().ok().map(Into::into))
    }

    /// Call when the codec is gone. One that ended for an error has not sent its FIN.
    pub(super) async fn read_up(self) {
        if let Some(mut tcp) = self.0.and_then(|tcp| TcpStream::from_std(tcp).ok()) {
            let _gone = tcp.shutdown().await;
            read_up(tcp).await;
        }
    }
}

/// Reads until the peer closes.
pub(super) async fn read_up(tcp: TcpStream) {
    let all = async { tokio::io::copy(&mut tcp.take(READ_MAX), &mut tokio::io::sink()).await };
    let _closed: Result<io::Result<u64>, _> = timeout(WAIT, all).await;
}
