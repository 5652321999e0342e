//! Servers and clients that run inside a lab's namespaces, on threads of the test.

use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher as _;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use culvert::lab::Place;
use socket2::{Domain, SockRef, Socket, Type};

/// Limit of each read and write of a test's own sockets: a test hangs for so long at most.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What a server has seen.
#[derive(Debug, Default)]
pub struct Seen {
    accepted: AtomicU64,
    bytes: AtomicU64,
    peers: Mutex<Vec<SocketAddr>>,
}

impl Seen {
    /// Connections accepted so far.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Bytes read so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }

    /// Clients' addresses, in order of arrival.
    pub fn peers(&self) -> Vec<SocketAddr> {
        lock(&self.peers).clone()
    }

    /// Adds bytes that were read.
    pub fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::SeqCst);
    }
}

/// A server on one port of a place, both families, a thread for each connection. Dropping it closes the port.
#[derive(Debug)]
pub struct Server {
    /// What it has seen.
    pub seen: Arc<Seen>,
    listener: Arc<TcpListener>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves each connection with `serve`.
    pub fn start(place: &Place, port: u16, serve: impl Fn(TcpStream, &Seen) + Send + Sync + 'static) -> Self {
        let listener = place
            .run(|| listen(port))
            .expect("enter the pod")
            .unwrap_or_else(|e| panic!("listen on {port}: {e}"));
        let (listener, seen, serve) = (Arc::new(listener), Arc::new(Seen::default()), Arc::new(serve));
        let (accepting, counts) = (Arc::clone(&listener), Arc::clone(&seen));
        let thread = std::thread::spawn(move || {
            // Ends with an error when the listener is shut down.
            while let Ok((stream, peer)) = accepting.accept() {
                lock(&counts.peers).push(canonical(peer));
                counts.accepted.fetch_add(1, Ordering::SeqCst);
                let (serve, counts) = (Arc::clone(&serve), Arc::clone(&counts));
                let work = move || {
                    patient(&stream);
                    serve(stream, &counts);
                };
                std::thread::Builder::new().stack_size(256 << 10).spawn(work).expect("a thread");
            }
        });
        Self { seen, listener, thread: Some(thread) }
    }

    /// Sends back what it gets; closes when the client has.
    pub fn echo(place: &Place, port: u16) -> Self {
        Self::start(place, port, |mut stream, seen| {
            let mut buffer = vec![0; 32 << 10];
            loop {
                match stream.read(&mut buffer) {
                    Ok(0) | Err(_) => return,
                    Ok(n) => {
                        seen.add(n);
                        if stream.write_all(&buffer[..n]).is_err() {
                            return;
                        }
                    }
                }
            }
        })
    }

    /// Says `text` at once, as server-first protocols do, then waits for the client's end.
    pub fn greeting(place: &Place, port: u16, text: &str) -> Self {
        let text = text.to_owned();
        Self::start(place, port, move |mut stream, seen| {
            let mut rest = Vec::new();
            let _gone = stream.write_all(text.as_bytes()).and_then(|()| stream.shutdown(Shutdown::Write));
            seen.add(stream.read_to_end(&mut rest).unwrap_or(0));
        })
    }
}

/// A server whose connections the test itself drives.
#[derive(Debug)]
pub struct Acceptor {
    /// The server.
    pub server: Server,
    accepted: Receiver<TcpStream>,
    to: (IpAddr, u16),
}

impl Acceptor {
    /// Listens on one port of a place; `to` is how clients reach it.
    pub fn new(place: &Place, to: (IpAddr, u16)) -> Self {
        let (hand, accepted) = channel();
        let hand = Mutex::new(hand);
        let server = Server::start(place, to.1, move |stream, _| {
            let _test_over = lock(&hand).send(stream);
        });
        Self { server, accepted, to }
    }

    /// A connection's two ends: the client's, the server's.
    pub fn pair(&self, from: &Place) -> (TcpStream, TcpStream) {
        let client = connect(from, self.to).unwrap_or_else(|e| panic!("connect to {:?}: {e}", self.to));
        let server = self.accepted.recv_timeout(PATIENCE);
        (client, server.unwrap_or_else(|e| panic!("no connection arrived at {:?}: {e}", self.to)))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A listener that is shut down lets `accept` fail.
        let _gone = nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _panic_seen_by_the_client = thread.join();
        }
    }
}

fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}

/// An IPv4 address as such, where a socket of both families shows it inside an IPv6 address.
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

fn patient(stream: &TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
    stream.set_write_timeout(Some(PATIENCE)).expect("a limit");
    stream.set_nodelay(true).expect("no delay");
}

/// Connects from inside a place.
///
/// **Errors**: those of `connect(2)`.
pub fn connect(from: &Place, to: (IpAddr, u16)) -> io::Result<TcpStream> {
    let to = SocketAddr::from(to);
    let stream = from.run(|| TcpStream::connect_timeout(&to, PATIENCE)).map_err(io::Error::other)??;
    patient(&stream);
    Ok(stream)
}

/// Sends `text`, closes, and reads to the end; with the client's own address.
///
/// **Errors**: connecting, sending or reading broke off.
pub fn exchange(from: &Place, to: (IpAddr, u16), text: &[u8]) -> io::Result<(SocketAddr, Vec<u8>)> {
    let mut stream = connect(from, to)?;
    let own = canonical(stream.local_addr()?);
    let mut answer = Vec::new();
    let mut asked = || {
        stream.write_all(text)?;
        stream.shutdown(Shutdown::Write)?;
        stream.read_to_end(&mut answer)
    };
    match asked() {
        Ok(_) => Ok((own, answer)),
        Err(error) => Err(io::Error::new(error.kind(), format!("as {own}: {error}"))),
    }
}

/// How a connection ended, seen from one end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// A FIN.
    Fin,
    /// ECONNRESET or EPIPE.
    Reset,
    /// Anything else.
    Other(String),
}

impl End {
    /// What an error says.
    pub fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Reset,
            _ => Self::Other(error.to_string()),
        }
    }
}

/// Reads to the end, whatever it is.
pub fn read_to_end(stream: &mut TcpStream) -> (Vec<u8>, End) {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => (bytes, End::Fin),
        Err(error) => (bytes, End::of(&error)),
    }
}

/// Connects, sends one byte and reads: how an app sees a refusal. With the client's own address, which it has even if
/// the reset comes before `connect` has returned.
pub fn try_out(from: &Place, to: (IpAddr, u16)) -> (SocketAddr, Vec<u8>, End) {
    let to = SocketAddr::from(to);
    let made = from.run(|| {
        // The kernel's choice of an address, without sending anything.
        let any =
            if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { IpAddr::from(Ipv6Addr::UNSPECIFIED) };
        let probe = UdpSocket::bind((any, 0))?;
        probe.connect(to)?;
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(probe.local_addr()?.ip(), 0).into())?;
        let own = socket.local_addr()?.as_socket().expect("an IP address");
        Ok::<_, io::Error>((socket, own))
    });
    let (socket, own) = made.expect("enter the pod").expect("a socket");
    if let Err(error) = socket.connect_timeout(&to.into(), PATIENCE) {
        return (own, Vec::new(), End::of(&error));
    }
    let mut stream = TcpStream::from(socket);
    patient(&stream);
    // A quick refusal is seen here, and only once.
    if let Err(error) = stream.write_all(b"?") {
        return (own, Vec::new(), End::of(&error));
    }
    let (bytes, end) = read_to_end(&mut stream);
    (own, bytes, end)
}

/// Closes with a RST in place of a FIN.
pub fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("linger");
    drop(stream);
}

/// Bytes that anybody can make again from a number: `fill` continues where it stopped.
#[derive(Clone, Debug)]
pub struct Pattern(u64);

impl Pattern {
    /// Starts at `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// Fills `buffer` with the next bytes.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            // xorshift64
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            chunk.copy_from_slice(&self.0.to_le_bytes()[..chunk.len()]);
        }
    }

    /// The first `len` bytes.
    pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        Self::new(seed).fill(&mut bytes);
        bytes
    }
}

/// Hash of all bytes read until the end, and how many.
pub fn hash_all(stream: &mut TcpStream) -> io::Result<(u64, u64)> {
    let (mut hasher, mut total, mut buffer) = (DefaultHasher::new(), 0, vec![0; 256 << 10]);
    loop {
        match fill_or_end(stream, &mut buffer)? {
            0 => return Ok((hasher.finish(), total)),
            n => {
                hasher.write(&buffer[..n]);
                total += n as u64;
            }
        }
    }
}

/// Sends `len` bytes of the pattern; hash as [`hash_all`] makes it.
pub fn send_pattern(stream: &mut TcpStream, seed: u64, len: u64) -> io::Result<u64> {
    let (mut hasher, mut pattern, mut buffer) =
        (DefaultHasher::new(), Pattern::new(seed), vec![0; 256 << 10]);
    let mut left = len;
    while left > 0 {
        let n = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        pattern.fill(&mut buffer[..n]);
        hasher.write(&buffer[..n]);
        stream.write_all(&buffer[..n])?;
        left -= n as u64;
    }
    Ok(hasher.finish())
}

/// Reads until the buffer is full or the stream ends, so that hashes do not depend on how bytes were cut.
fn fill_or_end(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let mut at = 0;
    while at < buffer.len() {
        match stream.read(&mut buffer[at..])? {
            0 => break,
            n => at += n,
        }
    }
    Ok(at)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
