//! A request small enough to have no options: for metrics pages, and for clients that ask without pause.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Longest answer read.
const ANSWER_MAX: u64 = 4 << 20;

/// An HTTP answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Body.
    pub body: String,
}

/// One GET on a connection of its own.
///
/// **Errors:** connecting, writing or reading broke off or took longer than `limit` each; the answer is no HTTP.
pub fn get(to: SocketAddr, path: &str, limit: Duration) -> io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&to, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {to}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut bytes = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut bytes)?;
    parse(&bytes).ok_or_else(|| {
        let text = if bytes.is_empty() { "closed without an answer" } else { "the answer is no HTTP" };
        io::Error::new(io::ErrorKind::InvalidData, text)
    })
}

fn parse(bytes: &[u8]) -> Option<Answer> {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_a_status_and_a_body() {
        let answer = parse(b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\nhello");
        assert_eq!(answer, Some(Answer { status: 200, body: "hello".to_owned() }));
    }

    #[test]
    fn other_bytes_are_no_answer() {
        for bytes in [&b""[..], b"\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\n"] {
            assert_eq!(parse(bytes), None, "{bytes:?}");
        }
    }
}
