//! Whether a mode does what it says: requests get through, and between the nodes nobody can read them.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use super::{HTTP_PORT, READY_MAX, Stage};
use crate::lab::{Place, pause};

const ASK_MAX: Duration = Duration::from_secs(3);
/// Longest answer that is read.
const ANSWER_MAX: u64 = 1 << 20;
/// What must not be read on the wire.
const MARKER: &str = "culvert-bench-plain-text-marker";

/// Sends requests from the client to `to` until one is answered, and looks at the wire meanwhile.
///
/// **Errors:** no good answer in [`READY_MAX`]; with `encrypted`, the request could be read between the nodes.
pub(super) fn check(stage: &Stage, to: IpAddr, encrypted: bool) -> anyhow::Result<()> {
    let tap = stage.lab.tap(&[MARKER.as_bytes()]).context("watch the wire")?;
    let to = SocketAddr::new(to, HTTP_PORT);
    // A page that the benchmark's server has.
    let path = format!("/19?{MARKER}");
    let start = Instant::now();
    loop {
        match status(&stage.client, to, &path)? {
            Ok(200) => break,
            seen if start.elapsed() >= READY_MAX => {
                let seen = seen.map_or_else(|e| e.to_string(), |status| format!("status {status}"));
                bail!("no request came through within {READY_MAX:?}; last seen: {seen}");
            }
            _ => pause(Duration::from_millis(50)),
        }
    }
    // On one node nothing crosses the wire.
    if encrypted && stage.nodes.len() > 1 {
        let seen = tap.seen().context("what crossed the wire")?;
        ensure!(seen.missed == 0, "{} frames crossed the wire unseen", seen.missed);
        ensure!(seen.frames > 0, "the request was answered and nothing crossed the wire");
        ensure!(
            seen.marked() == 0,
            "a request crossed the wire in plain text: the traffic does not go through the proxies, or they do not encrypt"
        );
    }
    Ok(())
}

/// The status of one GET in HTTP/1.1; Envoy takes no older one.
///
/// **Errors:** outer: the namespace cannot be entered; inner: no HTTP answer in time.
pub(super) fn status(place: &Place, to: SocketAddr, path: &str) -> anyhow::Result<io::Result<u16>> {
    status_of(place, "GET", (to, path))
}

/// The same with any method.
pub(super) fn status_of(
    place: &Place,
    method: &str,
    (to, path): (SocketAddr, &str),
) -> anyhow::Result<io::Result<u16>> {
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&to, ASK_MAX)?;
        stream.set_read_timeout(Some(ASK_MAX))?;
        stream.set_write_timeout(Some(ASK_MAX))?;
        let text = format!("{method} {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n");
        stream.write_all(text.as_bytes())?;
        // To its end: a connection that is cut would stand in the proxies' logs as an error.
        let mut answer = Vec::new();
        match stream.take(ANSWER_MAX).read_to_end(&mut answer) {
            // An Envoy that closes behind its answer resets the tunnel's stream.
            Err(error) if answer.is_empty() || error.kind() != io::ErrorKind::ConnectionReset => {
                return Err(error);
            }
            _ => {}
        }
        let status = answer.get(9..12).and_then(|s| std::str::from_utf8(s).ok()).and_then(|s| s.parse().ok());
        status.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the answer is no HTTP"))
    };
    Ok(place.run(ask)?)
}
