//! Connections that are opened, asked once each, and then held without traffic.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::answer::Answer;
use super::engine::allow_files;
use super::{CONNECTIONS_MAX, Failure, LoadError, Target};

/// Connections without traffic. Dropping it closes them.
#[derive(Debug)]
pub struct Idle {
    open: Vec<TcpStream>,
    /// Those that failed, by reason; all reasons are named.
    pub failures: BTreeMap<Failure, u64>,
}

impl Idle {
    /// Opens `count` connections one after another, with one request on each. `limit` is for each step of a connection.
    ///
    /// **Errors:** too many for the process, or not one could be opened. Single ones that fail are counted.
    pub fn open(target: &Target, count: u32, limit: Duration) -> Result<Self, LoadError> {
        if !(1..=CONNECTIONS_MAX).contains(&count) {
            let wrong = format!("{count} connections; 1 to {CONNECTIONS_MAX} are possible");
            return Err(LoadError::Plan { wrong });
        }
        allow_files(count)?;
        let mut idle = Self {
            open: Vec::new(),
            failures: Failure::ALL.into_iter().map(|failure| (failure, 0)).collect(),
        };
        let request = target.request(false);
        let mut why = Failure::Connect;
        for number in 1..=count {
            match open(target, &request, limit) {
                Ok(stream) => idle.open.push(stream),
                Err(failure) => {
                    why = failure;
                    *idle.failures.entry(failure).or_default() += 1;
                }
            }
            // A server that answers nobody would cost the limit so many times.
            if number == 8 && idle.open.is_empty() {
                break;
            }
        }
        if idle.open.is_empty() {
            return Err(LoadError::Unreachable { to: target.to, why: why.text() });
        }
        Ok(idle)
    }

    /// How many could be opened.
    pub fn opened(&self) -> usize {
        self.open.len()
    }

    /// How many of them the server still holds open.
    pub fn still_open(&self) -> usize {
        self.open.iter().filter(|stream| is_open(stream)).count()
    }

    /// How many could not be opened.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }
}

fn is_open(stream: &TcpStream) -> bool {
    let peeked = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0]));
    matches!(peeked, Err(e) if e.kind() == io::ErrorKind::WouldBlock)
}

fn open(target: &Target, request: &[u8], limit: Duration) -> Result<TcpStream, Failure> {
    let mut stream = TcpStream::connect_timeout(&target.to, limit).map_err(|e| Failure::of_connect(&e))?;
    let broken = |e: io::Error| match e.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Failure::Unanswered,
        _ => Failure::Reset,
    };
    stream
        .set_read_timeout(Some(limit))
        .and_then(|()| stream.set_write_timeout(Some(limit)))
        .map_err(broken)?;
    stream.write_all(request).map_err(broken)?;
    let (mut answer, mut buffer, start) = (Answer::default(), [0; 4096], Instant::now());
    loop {
        let count = match stream.read(&mut buffer) {
            Ok(0) => return Err(Failure::Closed),
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(broken(e)),
        };
        match answer.feed(buffer.get(..count).unwrap_or_default()) {
            Ok(Some(end)) if !(200..400).contains(&end.status) => return Err(Failure::Status),
            Ok(Some(end)) if !end.keep => return Err(Failure::Closed),
            Ok(Some(_)) => return Ok(stream),
            Ok(None) if start.elapsed() > limit => return Err(Failure::Unanswered),
            Ok(None) => {}
            Err(_) => return Err(Failure::Malformed),
        }
    }
}
