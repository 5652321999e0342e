use std::cell::Cell;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (near, listener.accept().await.unwrap().0)
}

fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

/// Copies between two ends that `test` holds; the result, and the bytes counted up and down.
async fn copied<T>(
    test: impl AsyncFnOnce(TcpStream, TcpStream) -> T,
) -> (Result<(), CopyError>, (u64, u64), T) {
    let ((client, downstream), (server, upstream)) = (pair().await, pair().await);
    let (up, down) = (Cell::new(0), Cell::new(0));
    let copy = copy_both_ways(&downstream, &upstream, |n| up.set(up.get() + n), |n| down.set(down.get() + n));
    let both = async { tokio::join!(copy, test(client, server)) };
    let (result, seen) = tokio::time::timeout(Duration::from_secs(20), both).await.expect("the test hangs");
    (result, (up.get(), down.get()), seen)
}

#[tokio::test]
async fn each_direction_closes_on_its_own() {
    let (result, counts, ()) = copied(async |mut client, mut server| {
        client.write_all(b"ping").await.unwrap();
        client.shutdown().await.unwrap();
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"ping");
        server.write_all(b"answer").await.unwrap();
        drop(server);
        got.clear();
        client.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"answer");
    })
    .await;
    result.unwrap();
    assert_eq!(counts, (4, 6));
}

#[tokio::test]
async fn a_reset_names_its_side() {
    let (result, _, _kept) = copied(async |client, server| {
        reset(client);
        server
    })
    .await;
    assert_eq!(result.unwrap_err().side, Side::Downstream);
    let (result, _, _kept) = copied(async |client, server| {
        reset(server);
        client
    })
    .await;
    assert_eq!(result.unwrap_err().side, Side::Upstream);
}

#[tokio::test]
async fn more_than_the_sockets_hold_arrives_whole() {
    let sent: Vec<u8> = (0..8 << 20).map(|i: u32| (i % 251) as u8).collect();
    let (result, counts, got) = copied(async |mut client, mut server| {
        let (mut got, mut nothing) = (Vec::new(), Vec::new());
        let write = async {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
            client.read_to_end(&mut nothing).await.unwrap();
        };
        let read = async {
            server.read_to_end(&mut got).await.unwrap();
            server.shutdown().await.unwrap();
        };
        tokio::join!(write, read);
        got
    })
    .await;
    result.unwrap();
    assert!(got == sent, "{} bytes of {}", got.len(), sent.len());
    assert_eq!(counts, (8 << 20, 0));
}
