use super::*;
use crate::telemetry::Metrics;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

struct Pair {
    guard: Guard<DuplexStream>,
    peer: DuplexStream,
    metrics: std::sync::Arc<Metrics>,
}

fn pair(side: Side) -> Pair {
    let (near, peer) = duplex(1 << 20);
    let metrics = Metrics::new("test");
    let identity = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
    let report =
        Report { violations: metrics.peer_violations(), peer: "10.0.0.1:1".parse().unwrap(), identity };
    let announced = Announced { frame: 1 << 20, header_list: 16_384, limit: Duration::from_secs(10) };
    Pair { guard: Guard::new(near, side, announced, report), peer, metrics }
}

fn counted(metrics: &Metrics, side: &str, kind: &str) -> bool {
    let line = format!("culvert_peer_violations_total{{kind=\"{kind}\",side=\"{side}\"}} 1");
    metrics.encode(false).lines().any(|l| l == line)
}

#[tokio::test]
async fn payload_goes_through_whatever_space_the_reader_has() {
    for space in [1, 10, 63, 64, 100, 5000] {
        let Pair { mut guard, mut peer, .. } = pair(Side::Client);
        let mut sent = SETTINGS.to_vec();
        for n in 0..50_u8 {
            sent.extend([0, 4, n, 0, 0, 0, 0, 0, 1]);
            sent.extend(vec![n; 1024 + usize::from(n)]);
        }
        peer.write_all(&sent).await.unwrap();
        drop(peer);
        let (mut got, mut buf) = (Vec::new(), vec![0; space]);
        loop {
            match guard.read(&mut buf).await.unwrap() {
                0 => break,
                n => got.extend_from_slice(&buf[..n]),
            }
        }
        assert!(got == sent, "{space}");
    }
}

#[tokio::test]
async fn a_violation_is_counted_once_and_told_between_two_frames() {
    let Pair { mut guard, mut peer, metrics } = pair(Side::Client);
    peer.write_all(
        &[&SETTINGS[..], &[0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8].repeat(3000)].concat(),
    )
    .await
    .unwrap();
    guard.write_all(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &SETTINGS[..]].concat()).await.unwrap();
    let mut all = Vec::new();
    let error = guard.read_to_end(&mut all).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    assert!(error.to_string().contains("PING"), "{error}");
    assert!(guard.read(&mut [0; 64]).await.is_err() && guard.write(b"more").await.is_err());
    assert!(counted(&metrics, "client", "ping_flood"));
    let mut told = Vec::new();
    peer.read_to_end(&mut told).await.unwrap();
    assert!(told.ends_with(&goaway(0, Violation::PingFlood)), "{told:?}");
}

#[tokio::test]
async fn in_the_middle_of_a_frame_the_peer_is_told_nothing() {
    let Pair { mut guard, mut peer, metrics } = pair(Side::Client);
    peer.write_all(&[0, 0, 8, 6, 0, 0, 0, 0, 0]).await.unwrap();
    let half = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &[0, 0, 100, 0, 0, 0, 0, 0, 1, b'x']].concat();
    guard.write_all(&half).await.unwrap();
    assert!(guard.read(&mut [0; 64]).await.is_err());
    assert!(counted(&metrics, "client", "no_settings"));
    let mut told = Vec::new();
    peer.read_to_end(&mut told).await.unwrap();
    assert_eq!(told, half);
}

#[tokio::test(start_paused = true)]
async fn settings_that_do_not_come_end_it() {
    let Pair { mut guard, mut peer, metrics } = pair(Side::Server);
    let start = tokio::time::Instant::now();
    peer.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut all = Vec::new();
    assert!(guard.read_to_end(&mut all).await.is_err());
    assert_eq!(start.elapsed(), Duration::from_secs(10));
    assert!(counted(&metrics, "server", "silent"));
    // Once they have come, nothing is waited for.
    let Pair { mut guard, mut peer, .. } = pair(Side::Server);
    peer.write_all(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &SETTINGS[..]].concat()).await.unwrap();
    let idle = tokio::time::timeout(Duration::from_secs(3600), guard.read_to_end(&mut all)).await;
    assert!(idle.is_err());
}
