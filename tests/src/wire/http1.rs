//! HTTP/1.1 as bytes: an application that does what the path of a request says, and the other end of its connections.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use culvert::lab::Place;

use crate::net::{Server, connect};

/// A request, or an answer, as its bytes were read.
#[derive(Clone, Debug, Default)]
pub struct Message {
    /// First line and headers, with the empty line.
    pub head: String,
    /// Chunks as one.
    pub body: Vec<u8>,
    /// Lines between the last chunk and the end.
    pub trailers: String,
}

impl Message {
    /// Status of an answer; 0 if it has none.
    pub fn status(&self) -> u16 {
        self.head.split(' ').nth(1).and_then(|status| status.get(..3)?.parse().ok()).unwrap_or(0)
    }

    /// Values of a header, in their order.
    pub fn values(&self, name: &str) -> Vec<&str> {
        let lines = self.head.split("\r\n").skip(1).filter_map(|line| line.split_once(": "));
        lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
    }

    /// Its body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A connection, from either end.
#[derive(Debug)]
pub struct Wire {
    /// Its socket.
    pub stream: TcpStream,
    held: Vec<u8>,
}

impl Wire {
    /// Connects from inside a place.
    ///
    /// **Errors**: those of `connect(2)`.
    pub fn open(from: &Place, to: (IpAddr, u16)) -> io::Result<Self> {
        Ok(Self { stream: connect(from, to)?, held: Vec::new() })
    }

    /// Sends bytes.
    ///
    /// **Errors**: the other end has gone.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Says that nothing more follows.
    pub fn finish(&mut self) {
        let _gone = self.stream.shutdown(Shutdown::Write);
    }

    fn fill(&mut self) -> Option<()> {
        let mut buffer = [0; 16 << 10];
        match self.stream.read(&mut buffer) {
            Ok(0) | Err(_) => None,
            Ok(count) => {
                self.held.extend_from_slice(&buffer[..count]);
                Some(())
            }
        }
    }

    /// Bytes up to and with `end`; none if the connection ends first.
    fn until(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.held.windows(end.len()).position(|part| part == end) {
                return Some(self.held.drain(..at + end.len()).collect());
            }
            self.fill()?;
        }
    }

    /// Exactly so many bytes.
    pub fn exactly(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.held.len() < count {
            self.fill()?;
        }
        Some(self.held.drain(..count).collect())
    }

    /// Everything until the connection ends.
    pub fn rest(&mut self) -> Vec<u8> {
        while self.fill().is_some() {}
        std::mem::take(&mut self.held)
    }

    fn head(&mut self) -> Option<Message> {
        let head = self.until(b"\r\n\r\n")?;
        Some(Message { head: String::from_utf8_lossy(&head).into_owned(), ..Message::default() })
    }

    /// The next request, with its body.
    pub fn request(&mut self) -> Option<Message> {
        let head = self.head()?;
        self.body(head, false)
    }

    /// The next answer, or what comes before one, to a request of this method.
    pub fn answer(&mut self, method: &str) -> Option<Message> {
        let head = self.head()?;
        let status = head.status();
        if method == "HEAD" || status < 200 || matches!(status, 204 | 304) {
            return Some(head);
        }
        self.body(head, true)
    }

    fn body(&mut self, mut message: Message, is_answer: bool) -> Option<Message> {
        if message.values("transfer-encoding") == ["chunked"] {
            loop {
                let line = String::from_utf8_lossy(&self.until(b"\r\n")?).into_owned();
                let size = usize::from_str_radix(line.trim_end().split(';').next()?, 16).ok()?;
                if size == 0 {
                    break;
                }
                message.body.extend(self.exactly(size)?);
                self.exactly(2)?;
            }
            loop {
                let line = self.until(b"\r\n")?;
                if line == b"\r\n" {
                    return Some(message);
                }
                message.trailers.push_str(&String::from_utf8_lossy(&line));
            }
        }
        let length = message.values("content-length").first().and_then(|length| length.parse().ok());
        match length {
            Some(length) => message.body = self.exactly(length)?,
            None if is_answer => message.body = self.rest(),
            None => {}
        }
        Some(message)
    }
}

/// All requests that reached the application, in their order.
#[derive(Clone, Debug, Default)]
pub struct Heard(Arc<Mutex<Vec<Message>>>);

impl Heard {
    /// What came since the last call.
    pub fn take(&self) -> Vec<Message> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether anything has come.
    pub fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// An application on one port. The first segment of a path says what it does; any other is answered with the request.
    pub fn serve(&self, place: &Place, port: u16) -> Server {
        let heard = self.clone();
        Server::start(place, port, move |stream, seen| {
            let mut wire = Wire { stream, held: Vec::new() };
            while let Some(request) = wire.head() {
                seen.add(request.head.len());
                if heard.one(&mut wire, request).is_none() {
                    return;
                }
            }
        })
    }

    /// None at the connection's end.
    fn one(&self, wire: &mut Wire, head: Message) -> Option<()> {
        let path = head.head.split(' ').nth(1).unwrap_or_default().to_owned();
        let what = path.split(['/', '?']).nth(1).unwrap_or_default().to_owned();
        let keep = |message: Message| self.0.lock().unwrap_or_else(PoisonError::into_inner).push(message);
        match what.as_str() {
            "early" => {
                keep(head);
                wire.send("HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n").ok()?;
                wire.rest();
                return None;
            }
            "upgrade" => {
                keep(head);
                let protocol = "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: x";
                wire.send(format!("HTTP/1.1 101 Switching Protocols\r\n{protocol}\r\n\r\n")).ok()?;
                while wire.fill().is_some() {
                    let bytes = std::mem::take(&mut wire.held);
                    // An empty frame of type close is answered and ends it.
                    let is_close = bytes.windows(2).any(|two| two == b"\x88\x80");
                    wire.send(&bytes).ok()?;
                    if is_close {
                        return None;
                    }
                }
                wire.finish();
                return None;
            }
            "continue" => wire.send("HTTP/1.1 100 Continue\r\n\r\n").ok()?,
            "hints" => {
                let hints = "link: </a.css>; rel=preload\r\nconnection: x-mine\r\nx-mine: 1";
                wire.send(format!("HTTP/1.1 103 Early Hints\r\n{hints}\r\n\r\n")).ok()?;
                wire.send("HTTP/1.1 103 Early Hints\r\nlink: </b.css>; rel=preload\r\n\r\n").ok()?;
            }
            "refused" => {
                keep(head);
                wire.send("HTTP/1.1 417 Expectation Failed\r\ncontent-length: 2\r\n\r\nno").ok()?;
                return Some(());
            }
            _ => {}
        }
        let is_head = head.head.starts_with("HEAD ");
        let request = wire.body(head, false)?;
        let echo = format!("{}--\n{}{}", request.head, request.text(), request.trailers);
        keep(request);
        wire.send(answer(&what, &path, &echo, is_head)).ok()?;
        (what != "close").then_some(())
    }
}

fn answer(what: &str, path: &str, echo: &str, is_head: bool) -> Vec<u8> {
    let number = || path.rsplit('/').next().and_then(|text| text.parse().ok()).unwrap_or(0);
    let text = match what {
        // Until the connection ends.
        "close" => format!("HTTP/1.1 200 OK\r\n\r\n{echo}"),
        "empty" => "HTTP/1.1 204 No Content\r\nx-server: shop\r\n\r\n".to_owned(),
        "same" => "HTTP/1.1 304 Not Modified\r\netag: \"1\"\r\ncontent-length: 7\r\n\r\n".to_owned(),
        "trailers" => "HTTP/1.1 200 OK\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nx-sum: 9\r\n\r\n"
            .to_owned(),
        "chunks" => {
            let chunks: String = (0..number()).map(|i| format!("5;n={i}\r\n{i:05}\r\n")).collect();
            format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunks}0\r\n\r\n")
        }
        "large" => format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{}", number(), "x".repeat(number())),
        "status" => format!("HTTP/1.1 {} Text\r\ncontent-length: 3\r\n\r\nbad", number()),
        _ => {
            let body = if is_head { "" } else { echo };
            let length = echo.len();
            format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nX-Server: shop\r\n\r\n{body}")
        }
    };
    text.into_bytes()
}
