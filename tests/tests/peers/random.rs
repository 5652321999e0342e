//! Random bytes at every port that answers from outside: the agent stays up, holds nothing back, and serves.

use std::net::SocketAddr;
use std::time::Duration;

use culvert::lab::http;
use culvert_tests::peer::client::{assert_pod_serves, assert_serves, dial};
use culvert_tests::peer::net::{self, App};
use culvert_tests::peer::raw::{Frame, PREFACE, Raw, block};
use culvert_tests::peer::world::{APP, World};
use culvert_tests::peer::{PATIENCE, eventually, tls};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

/// A small generator, so that a failure can be had again from its number.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        // xorshift64*: Marsaglia 2003, Vigna 2016.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(number).expect("31 bits") % sides
    }

    fn bytes(&mut self, max: usize) -> Vec<u8> {
        (0..self.roll(max)).map(|_| u8::try_from(self.roll(256)).expect("a byte")).collect()
    }

    /// Bytes that begin as something known, or not.
    fn message(&mut self) -> Vec<u8> {
        let starts: [&[u8]; 7] = [
            b"",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"\x16\x03\x03\xff\xff",
            b"\x15\x03\x03\x00\x02\x02\x28",
            b"GET /metrics HTTP/1.1\r\nHost: ",
            b"POST /healthz/ready HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
            PREFACE,
        ];
        let start = starts[self.roll(starts.len())];
        [start, &self.bytes(2000)].concat()
    }

    /// A frame that is right, nearly right, or not at all.
    fn frame(&mut self) -> Vec<u8> {
        let kind = u8::try_from(self.roll(12)).expect("a byte");
        let flags = [0, 1, 4, 5, 8, 0x20, 0xff][self.roll(7)];
        let stream = [0, 1, 1, 3, 5, 2, 0x7fff_ffff][self.roll(7)];
        let payload = match self.roll(4) {
            0 => block(&[(":method", b"CONNECT"), (":authority", b"10.244.1.10:8080")]),
            1 => vec![0; [0, 4, 5, 6, 8][self.roll(5)]],
            _ => self.bytes(300),
        };
        let mut bytes = Frame::new(kind, flags, stream, payload).encode();
        if self.roll(10) == 0 {
            let at = self.roll(bytes.len().min(9));
            bytes[at] ^= 1 << self.roll(8);
        }
        bytes
    }
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
    let mut dice = Dice(0x5eed_0001);
    for number in 0..300 {
        let (ip, port) = targets[number % targets.len()];
        // A port that is not for others may be reset as soon as it is met.
        let Ok(mut tcp) = net::try_connect(&world.peer, SocketAddr::new(ip, port)) else {
            assert!([15001, 15006].contains(&port), "{port} must accept");
            continue;
        };
        // A broken pipe is an answer.
        let _refused = tcp.write_all(&dice.message()).await;
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
            if raw.write(&dice.frame()).await.is_err() {
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
