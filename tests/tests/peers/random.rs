//! Random bytes at every port that answers from outside: the agent stays up, holds nothing back, and serves.

use std::net::SocketAddr;
use std::time::Duration;

use culvert::lab::http;
use culvert_tests::dice::Dice;
use culvert_tests::peer::client::{assert_pod_serves, assert_serves, dial};
use culvert_tests::peer::net::{self, App};
use culvert_tests::peer::raw::{Frame, PREFACE, Raw, block};
use culvert_tests::peer::world::{APP, World};
use culvert_tests::peer::{PATIENCE, eventually, tls};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

/// Bytes that begin as something known, or not.
fn message(dice: &mut Dice) -> Vec<u8> {
    let starts: [&[u8]; 7] = [
        b"",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x16\x03\x03\xff\xff",
        b"\x15\x03\x03\x00\x02\x02\x28",
        b"GET /metrics HTTP/1.1\r\nHost: ",
        b"POST /healthz/ready HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
        PREFACE,
    ];
    let start = starts[dice.roll(starts.len())];
    [start, &dice.bytes(2000)].concat()
}

/// A frame that is right, nearly right, or not at all.
fn frame(dice: &mut Dice) -> Vec<u8> {
    let kind = u8::try_from(dice.roll(12)).expect("a byte");
    let flags = [0, 1, 4, 5, 8, 0x20, 0xff][dice.roll(7)];
    let stream = [0, 1, 1, 3, 5, 2, 0x7fff_ffff][dice.roll(7)];
    let payload = match dice.roll(4) {
        0 => block(&[(":method", b"CONNECT"), (":authority", b"10.244.1.10:8080")]),
        1 => vec![0; [0, 4, 5, 6, 8][dice.roll(5)]],
        _ => dice.bytes(300),
    };
    let mut bytes = Frame::new(kind, flags, stream, payload).encode();
    if dice.roll(10) == 0 {
        let at = dice.roll(bytes.len().min(9));
        bytes[at] ^= 1 << dice.roll(8);
    }
    bytes
}

#[tokio::test]
async fn random_bytes_harm_nobody() {
    let world = World::new(&["--tls-timeout", "2s", "--preface-timeout", "2s"]);
    let _echo = App::listen(&world.pod, APP).echo();
    let node = world.lab.host_addresses(world.pod.node)[0];
    let pod = world.pod.addresses();
    let targets =
        [(pod[0], 15008), (pod[1], 15008), (pod[0], 15006), (pod[0], 15001), (node, 15020), (node, 15021)];
    assert_serves(&world).await;
    // Leaves a tunnel behind that both ends of this agent keep.
    assert_pod_serves(&world).await;
    world.settle().await;
    let before = world.descriptors();
    let mut dice = Dice::new(0x5eed_0001);
    for number in 0..300 {
        let (ip, port) = targets[number % targets.len()];
        // A port that is not for others may be reset as soon as it is met.
        let Ok(mut tcp) = net::try_connect(&world.peer, SocketAddr::new(ip, port)) else {
            assert!([15001, 15006].contains(&port), "{port} must accept");
            continue;
        };
        // A broken pipe is an answer.
        let _refused = tcp.write_all(&message(&mut dice)).await;
        match dice.roll(3) {
            0 => net::reset(tcp),
            1 => {
                let _refused = tcp.shutdown().await;
                let _end = timeout(Duration::from_millis(50), tcp.read(&mut [0; 4096])).await;
            }
            _ => drop(tcp),
        }
    }
    for _ in 0..60 {
        let config = tls::client(Some(&world.leaf()), &["h2"]);
        let stream = dial(&world.peer, world.hbone(), config).await.expect("a TLS handshake");
        let mut raw = if dice.roll(4) == 0 { Raw::new(stream) } else { Raw::greet(stream).await };
        for _ in 0..dice.roll(40) {
            if raw.write(&frame(&mut dice)).await.is_err() {
                break;
            }
        }
        let _any = timeout(Duration::from_millis(10), raw.next()).await;
    }
    assert_serves(&world).await;
    assert_pod_serves(&world).await;
    world.settle().await;
    eventually("no descriptor left", || world.descriptors() <= before).await;
    let ready = SocketAddr::new(node, 15021);
    let answer = world.peer.run(|| http::get(ready, "/healthz/ready", PATIENCE)).unwrap().unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
    let panics: Vec<_> = world.agent.log().into_iter().filter(|l| l.as_str().contains("panicked")).collect();
    assert!(panics.is_empty(), "{panics:#?}");
}
