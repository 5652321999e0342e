//! Many connections, much data, and readers that stop.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use culvert::lab::{Pod, wait_until};
use culvert_tests::mesh::{Mesh, SOON, log_of, rss};
use culvert_tests::net::{Acceptor, Server, connect, exchange, hash_all, send_pattern};
use culvert_tests::traffic::Traffic;

const MIB: u64 = 1 << 20;
/// What flows each way in the bulk test, which counts it by hash.
const BULK: u64 = 1024 * MIB;

fn world() -> (Mesh, Pod, Pod) {
    let mut mesh = Mesh::new();
    let (client, server) = (mesh.captured("a", "client"), mesh.captured("b", "server"));
    mesh.start(&[]);
    (mesh, client, server)
}

#[test]
fn five_hundred_connections_at_once() {
    let (mesh, client, server) = world();
    let echo = Server::echo(&server, 8080);
    let mut open: Vec<TcpStream> = (0..500)
        .map(|n| {
            let to = server.addresses()[n % 2];
            let mut stream = connect(&client, (to, 8080)).unwrap_or_else(|e| panic!("connection {n}: {e}"));
            stream.write_all(format!("{n:08}").as_bytes()).unwrap();
            stream
        })
        .collect();
    let sockets = |node: &str| mesh.agent(node).metric("istio_tcp_sockets_open", &[]).unwrap();
    let all = || (echo.seen.accepted() == 500 && [sockets("a"), sockets("b")] == [500.0; 2]).then_some(());
    wait_until("500 connections open at once", SOON, all, || {
        format!("{} at the server, {} and {} at the agents", echo.seen.accepted(), sockets("a"), sockets("b"))
    })
    .unwrap();
    let tunnels = mesh.agent("a").metric("culvert_hbone_tunnels_open", &["side=\"client\""]).unwrap();
    // 250 streams to each address, 100 to a tunnel, and one more tunnel where two dials met.
    assert!((6.0..=10.0).contains(&tunnels), "{tunnels} tunnels");
    for (n, stream) in open.iter_mut().enumerate() {
        let mut word = [0; 8];
        stream.read_exact(&mut word).unwrap_or_else(|e| panic!("connection {n}: {e}"));
        assert_eq!(word, format!("{n:08}").as_bytes(), "connection {n}");
    }
    drop(open);
    let closed = |node: &str| mesh.agent(node).metric("istio_tcp_connections_closed_total", &[]).unwrap();
    wait_until(
        "500 connections closed",
        SOON,
        || ([closed("a"), closed("b")] == [500.0; 2]).then_some(()),
        || log_of(mesh.agent("a")),
    )
    .unwrap();
    assert_eq!(mesh.agent("a").metric("istio_tcp_connections_failed_total", &[]).unwrap(), 0.0);
    drop(echo);
    mesh.finish();
}

/// Sends on one thread, reads on another; both hashes, what was sent and what came.
fn both_ways(stream: &TcpStream, seed: u64) -> [JoinHandle<(u64, u64)>; 2] {
    let (mut out, mut back) = (stream.try_clone().unwrap(), stream.try_clone().unwrap());
    let sending = std::thread::spawn(move || {
        let hash = send_pattern(&mut out, seed, BULK).expect("send");
        out.shutdown(Shutdown::Write).expect("close");
        (hash, BULK)
    });
    [sending, std::thread::spawn(move || hash_all(&mut back).expect("read"))]
}

#[test]
fn a_gibibyte_each_way_at_once() {
    let (mesh, client, server) = world();
    let acceptor = Acceptor::new(&server, (server.v4.into(), 9000));
    let (near, far) = acceptor.pair(&client);
    let start = Instant::now();
    let threads =
        [both_ways(&near, 1), both_ways(&far, 2)].map(|pair| pair.map(|thread| thread.join().unwrap()));
    let [[near_sent, near_got], [far_sent, far_got]] = threads;
    assert_eq!((near_sent, far_sent), (far_got, near_got), "hash and length");
    let rate = 2 * BULK / MIB * 1000 / u64::try_from(start.elapsed().as_millis()).unwrap_or(1).max(1);
    println!("{} MiB each way at once: {rate} MiB/s in all", BULK / MIB);
    for node in ["a", "b"] {
        let held = rss(mesh.agent(node).pid());
        assert!(held < 128 * MIB, "{held} bytes resident in the agent of {node}");
    }
    let bytes = |metric: &str| mesh.agent("b").metric(metric, &[]).unwrap();
    drop((near, far, acceptor));
    let counted = || {
        let counts = [bytes("istio_tcp_received_bytes_total"), bytes("istio_tcp_sent_bytes_total")];
        (counts == [BULK as f64; 2]).then_some(())
    };
    wait_until("all bytes counted", SOON, counted, || log_of(mesh.agent("b"))).unwrap();
    mesh.finish();
}

/// A sender that writes as long as somebody takes it, and counts.
struct Pump {
    sent: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Pump {
    fn start(mut stream: TcpStream) -> Self {
        let sent = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&sent);
        let thread = std::thread::spawn(move || {
            stream.set_write_timeout(Some(Duration::from_secs(600))).unwrap();
            let piece = vec![7; 64 << 10];
            // Ends when the test resets the connection.
            while let Ok(n) = stream.write(&piece) {
                count.fetch_add(n as u64, Ordering::Relaxed);
            }
        });
        Self { sent, thread }
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Waits until nothing has been taken for a second; how much had been.
    fn stopped(&self, what: &str) -> u64 {
        let mut last = (self.sent(), Instant::now());
        let look = || {
            if self.sent() != last.0 {
                last = (self.sent(), Instant::now());
            }
            (last.1.elapsed() > Duration::from_secs(1)).then_some(last.0)
        };
        wait_until(what, SOON, look, || format!("{} bytes taken", self.sent()))
            .unwrap_or_else(|e| panic!("{e}"))
    }
}

/// Readers that stop stop their own senders and nobody else, in either direction.
#[test]
fn stalled_readers_stop_nobody_else() {
    let (mesh, client, server) = world();
    let echo = Server::echo(&server, 8080);
    let to: (IpAddr, u16) = (server.v4.into(), 9000);
    let acceptor = Acceptor::new(&server, to);
    let before = ["a", "b"].map(|node| rss(mesh.agent(node).pid()));
    let pairs: Vec<(TcpStream, TcpStream)> = (0..6).map(|_| acceptor.pair(&client)).collect();
    // Three downloads and three uploads that nobody reads.
    let pumps: Vec<Pump> = pairs
        .iter()
        .enumerate()
        .map(|(n, (near, far))| Pump::start(if n % 2 == 0 { near } else { far }.try_clone().unwrap()))
        .collect();
    let taken: Vec<u64> = pumps.iter().map(|pump| pump.stopped("a stalled sender is stopped")).collect();
    // The stream's window, what two sockets' buffers hold on each side, and a little for what is on its way.
    assert!(taken.iter().all(|bytes| (MIB..64 * MIB).contains(bytes)), "{taken:?}");
    // Others of the same pair of pods, on the same tunnels, go on: small requests and a stream.
    let traffic = Traffic::start(&client, (server.v4.into(), 8080), 2);
    let (mut near, far) = acceptor.pair(&client);
    let reading = std::thread::spawn(move || hash_all(&mut { far }).expect("read"));
    let hash = send_pattern(&mut near, 3, 64 * MIB).expect("a stream beside stalled ones");
    drop(near);
    assert_eq!(reading.join().unwrap(), (hash, 64 * MIB));
    traffic.more(50);
    traffic.end_well("beside stalled readers");
    exchange(&client, (server.v6.into(), 8080), b"another tunnel").unwrap();
    assert_eq!(
        pumps.iter().map(Pump::sent).collect::<Vec<_>>(),
        taken,
        "nobody reads: nothing more is taken"
    );
    for (node, before) in ["a", "b"].into_iter().zip(before) {
        let grown = rss(mesh.agent(node).pid()).saturating_sub(before);
        // Six windows of 4 MiB, three at each end, with what the codec and the allocator add.
        assert!(grown < 64 * MIB, "the agent of {node} has grown by {grown} bytes");
    }
    // Readers that read again are served again.
    let (first, _) = &pairs[1];
    let mut first = first.try_clone().unwrap();
    let mut buffer = vec![0; 1 << 20];
    for _ in 0..32 {
        first.read_exact(&mut buffer).expect("read again");
    }
    assert!(buffer.iter().all(|byte| *byte == 7) && pumps[1].sent() > taken[1]);
    // The pumps hold their sockets as well: only this ends their writes.
    pairs.iter().flat_map(|(near, far)| [near, far]).for_each(|end| drop(end.shutdown(Shutdown::Both)));
    drop(pairs);
    pumps.into_iter().for_each(|pump| pump.thread.join().unwrap());
    drop((echo, acceptor));
    mesh.finish();
}
