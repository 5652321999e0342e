use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// A server on a free loopback port, in a scope of its own.
pub(in crate::admin) struct Server {
    pub(in crate::admin) addr: SocketAddr,
    scope: Scope,
}

impl Server {
    pub(in crate::admin) async fn start<F>(run: impl FnOnce(TcpListener, Scope) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let scope = Scope::new();
        scope.spawn(run(listener, scope.clone()));
        Self { addr, scope }
    }

    /// Every task must have ended without being cut.
    pub(in crate::admin) async fn stop(self) {
        assert_eq!(self.scope.shut_down(Duration::from_secs(10)).await, 0);
    }
}

/// Sends one request and returns the whole answer as text.
pub(in crate::admin) async fn exchange(addr: SocketAddr, method: &str, path: &str, more: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{more}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// As [`exchange`], split into status and body.
pub(in crate::admin) async fn get(addr: SocketAddr, method: &str, path: &str, more: &str) -> (u16, String) {
    let answer = exchange(addr, method, path, more).await;
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

const PLACES: usize = 8;

async fn start() -> Server {
    Server::start(|listener, scope| async move {
        serve_get(listener, &scope, PLACES, |_, _| text(StatusCode::OK, "x")).await;
    })
    .await
}

#[tokio::test]
async fn a_head_that_does_not_come_ends_the_connection() {
    let server = start().await;
    for sent in ["", "GET / HTT", "GET / HTTP/1.1\r\nHost: x\r\n\r\n"] {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        let limit = HEADER_TIMEOUT + Duration::from_secs(5);
        tokio::time::timeout(limit, stream.read_to_end(&mut rest)).await.expect("closed in time").unwrap();
    }
    server.stop().await;
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let server = start().await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    let head = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(4 * MAX_HEAD));
    let _reset_midway = stream.write_all(head.as_bytes()).await;
    let mut answer = Vec::new();
    let _reset_midway = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    server.stop().await;
}

#[tokio::test]
async fn connections_beyond_the_bound_are_closed_and_room_comes_back() {
    let server = start().await;
    let mut held = Vec::new();
    for _ in 0..PLACES {
        held.push(TcpStream::connect(server.addr).await.unwrap());
    }
    // Accepted in order, so that this one finds no place.
    let mut further = TcpStream::connect(server.addr).await.unwrap();
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_secs(1), further.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert!(rest.is_empty());
    drop(held);
    let mut answer = String::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        let _closed_before =
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
        answer.clear();
        if stream.read_to_string(&mut answer).await.is_ok() && answer.ends_with("\r\n\r\nx") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(answer.ends_with("\r\n\r\nx"), "{answer:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_kept_connection_does_not_hold_up_the_drain() {
    let server = start().await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut first = [0; 16];
    stream.read_exact(&mut first).await.unwrap();
    let started = std::time::Instant::now();
    server.stop().await;
    assert!(started.elapsed() < HEADER_TIMEOUT);
}
