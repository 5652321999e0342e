//! Plain TCP in the lab's namespaces: apps, and what they saw of an end.

use std::io::{self, ErrorKind};
use std::net::{Ipv6Addr, SocketAddr};

use culvert::lab::Place;
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::{PATIENCE, within};

/// How a connection ended for the one who reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// FIN, after these bytes.
    Orderly(Vec<u8>),
    /// RST, after these bytes.
    Reset(Vec<u8>),
}

/// Connects from within a namespace. The agent or the kernel's backlog answers, so this does not wait for the test.
pub fn connect(place: &Place, to: SocketAddr) -> TcpStream {
    try_connect(place, to).unwrap_or_else(|e| panic!("connect from {} to {to}: {e}", place.name()))
}

/// As [`connect`]; an error when nobody takes the connection.
pub fn try_connect(place: &Place, to: SocketAddr) -> io::Result<TcpStream> {
    let stream = place.run(|| std::net::TcpStream::connect_timeout(&to, PATIENCE)).expect("the namespace")?;
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    TcpStream::from_std(stream)
}

/// Reads to the end.
pub async fn read_end(stream: &mut TcpStream) -> End {
    let mut bytes = Vec::new();
    let mut chunk = vec![0; 64 * 1024];
    loop {
        match within("the end of a connection", stream.read(&mut chunk)).await {
            Ok(0) => return End::Orderly(bytes),
            Ok(n) => bytes.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == ErrorKind::ConnectionReset => return End::Reset(bytes),
            Err(e) => panic!("neither FIN nor RST: {e}"),
        }
    }
}

/// Sends `data` to somebody who refuses it: a reset that has come before counts as one that comes after.
pub async fn send_and_be_reset(stream: &mut TcpStream, data: &[u8]) {
    match stream.write_all(data).await {
        Ok(()) => assert_eq!(read_end(stream).await, End::Reset(Vec::new())),
        Err(e) => assert!(matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{e}"),
    }
}

/// Reads exactly `expected`.
pub async fn expect_bytes(stream: &mut TcpStream, expected: &[u8]) {
    let mut got = vec![0; expected.len()];
    within("bytes of a connection", stream.read_exact(&mut got)).await.expect("all bytes");
    assert!(got == expected, "other bytes than were sent");
}

/// Closes with a reset.
pub fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO)).expect("a socket");
    drop(stream);
}

/// An app that accepts when the test says so.
pub struct App {
    listener: TcpListener,
    kernel: std::net::TcpListener,
}

impl App {
    /// Listens on a port of both families.
    pub fn listen(place: &Place, port: u16) -> Self {
        let at = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let kernel = place.run(|| std::net::TcpListener::bind(at)).expect("the namespace");
        let kernel = kernel.unwrap_or_else(|e| panic!("listen on {port} of {}: {e}", place.name()));
        kernel.set_nonblocking(true).expect("a socket");
        let listener = TcpListener::from_std(kernel.try_clone().expect("a socket")).expect("a runtime");
        Self { listener, kernel }
    }

    /// The next connection, and its client's address.
    pub async fn accept(&self) -> (TcpStream, SocketAddr) {
        let accepted = within("a connection to the app", self.listener.accept()).await;
        let (stream, peer) = accepted.expect("a listening socket");
        stream.set_nodelay(true).expect("a socket");
        (stream, SocketAddr::new(peer.ip().to_canonical(), peer.port()))
    }

    /// Panics if anybody has connected that was not accepted: the kernel is asked, nothing is waited for.
    #[track_caller]
    pub fn assert_untouched(&self) {
        match self.kernel.accept() {
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Ok((_, peer)) => panic!("{peer} reached the app"),
            Err(e) => panic!("a broken listener: {e}"),
        }
    }

    /// Sends back whatever comes, on every connection, as long as the returned set lives.
    pub fn echo(self) -> JoinSet<()> {
        let mut set = JoinSet::new();
        set.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut stream, _)) = self.listener.accept().await {
                connections.spawn(async move {
                    let (mut read, mut write) = stream.split();
                    // A client that breaks off is its own test's business.
                    let _broken = copy(&mut read, &mut write).await;
                    let _broken = write.shutdown().await;
                });
            }
        });
        set
    }
}
