//! The application of the waypoint's demo: servers of HTTP/1.1 that fail or dawdle when they are told to, and a client.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use culvert::lab::{LabError, Place, pause};

/// Port of the servers.
pub(super) const PORT: u16 = 8080;
/// How long a server takes over `/slow`.
const SLOW: Duration = Duration::from_millis(1500);
/// How often a thread looks whether it is over.
const LOOK: Duration = Duration::from_millis(20);
/// Longest time for one answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Longest time for all requests of a step.
const ALL_MAX: Duration = Duration::from_secs(20);
/// Longest head that is read.
const HEAD_MAX: usize = 16 * 1024;

/// What a server's threads and its owner share.
#[derive(Default)]
struct Shared {
    stops: AtomicBool,
    fails: AtomicBool,
    asked: AtomicUsize,
}

/// A running server. Dropping it stops it.
pub(super) struct Server {
    pub(super) name: String,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<(), LabError>>>,
}

impl Server {
    /// Listens in `place`; answers with its name and the path.
    pub(super) fn start(place: &Place, name: &str) -> Self {
        let shared = Arc::<Shared>::default();
        let (of, own) = (Arc::clone(&shared), name.to_owned());
        // What cannot listen is found out by those who wait for the port.
        let thread = place.thread(move || drop(serve(&of, &own)));
        Self { name: name.to_owned(), shared, thread: Some(thread) }
    }

    /// From now on every answer is 503, or none is.
    pub(super) fn fail(&self, fails: bool) {
        self.shared.fails.store(fails, Relaxed);
    }

    /// Requests since the last call of [`Server::forget_asked`], copies among them.
    pub(super) fn asked(&self) -> usize {
        self.shared.asked.load(Relaxed)
    }

    /// Counts from 0 again.
    pub(super) fn forget_asked(&self) {
        self.shared.asked.store(0, Relaxed);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stops.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

fn serve(shared: &Arc<Shared>, name: &str) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
    listener.set_nonblocking(true)?;
    let mut threads = Vec::new();
    while !shared.stops.load(Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => {
                let (shared, name) = (Arc::clone(shared), name.to_owned());
                threads.push(std::thread::spawn(move || drop(connection(stream, &shared, &name))));
            }
            Err(_) => pause(LOOK),
        }
    }
    for thread in threads {
        let _ended = thread.join();
    }
    Ok(())
}

fn connection(mut stream: TcpStream, shared: &Shared, name: &str) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(LOOK))?;
    let mut held = Vec::new();
    while !shared.stops.load(Relaxed) && held.len() < HEAD_MAX {
        if let Some(end) = held.windows(4).position(|four| four == b"\r\n\r\n") {
            let head: Vec<u8> = held.drain(..end + 4).collect();
            answer(&mut stream, shared, name, &String::from_utf8_lossy(&head))?;
            continue;
        }
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => held.extend_from_slice(buffer.get(..count).unwrap_or_default()),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn answer(stream: &mut TcpStream, shared: &Shared, name: &str, head: &str) -> io::Result<()> {
    let path = head.split(' ').nth(1).unwrap_or("/");
    shared.asked.fetch_add(1, Relaxed);
    if path == "/slow" {
        pause(SLOW);
    }
    let status = if shared.fails.load(Relaxed) { "503 Service Unavailable" } else { "200 OK" };
    let body = format!("{name} {path}");
    let text = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(text.as_bytes())
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
}

impl Answer {
    /// Name of the server that made it, if one did.
    pub(super) fn server(&self) -> &str {
        self.body.split(' ').next().unwrap_or_default()
    }
}

/// Asks so often for `path`, one request after the other on connections of their own.
///
/// **Errors:** the place cannot be entered; requests that get no answer are none of the answers.
pub(super) fn ask(
    place: &Place,
    to: IpAddr,
    asked: (&str, &str),
    times: usize,
) -> anyhow::Result<Vec<Answer>> {
    ask_each(place, to, (asked, times), |_| {})
}

/// The same, with each answer shown as it comes.
pub(super) fn ask_each(
    place: &Place,
    to: IpAddr,
    ((path, header), times): ((&str, &str), usize),
    mut show: impl FnMut(&Answer) + Send,
) -> anyhow::Result<Vec<Answer>> {
    let all = || {
        let start = Instant::now();
        let mut answers = Vec::new();
        for _ in (0..times).take_while(|_| start.elapsed() < ALL_MAX) {
            if let Ok(answer) = one(SocketAddr::new(to, 80), path, header) {
                show(&answer);
                answers.push(answer);
            }
        }
        answers
    };
    place.run(all).context("ask from a pod")
}

fn one(to: SocketAddr, path: &str, header: &str) -> anyhow::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&to, ANSWER_MAX)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    let text = format!("GET {path} HTTP/1.1\r\nHost: cart\r\n{header}Connection: close\r\n\r\n");
    stream.write_all(text.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    parse(&String::from_utf8_lossy(&answer)).context("an answer of HTTP")
}

fn parse(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    Some(Answer { status: head.split(' ').nth(1)?.parse().ok()?, body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        let answer = parse("HTTP/1.1 200 OK\r\na: b\r\n\r\ncart-v1 /x").unwrap();
        assert_eq!((answer.status, answer.server()), (200, "cart-v1"));
        assert_eq!(parse("HTTP/1.1 2xx OK\r\n\r\n"), None);
        assert_eq!(parse(""), None);
    }
}
