//! One noisy pod, stalled readers, no descriptors: what the others keep, and what a client at a limit sees.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use culvert::lab::{Agent, Pod, pause, wait_until};
use culvert_tests::mesh::{Mesh, SOON, fds, log_of};
use culvert_tests::net::{Acceptor, End, Server, connect, exchange};
use culvert_tests::traffic::Traffic;

fn refusals(agent: &Agent, limit: &str) -> f64 {
    agent.metric("culvert_budget_refusals_total", &[&format!("limit=\"{limit}\"")]).unwrap()
}

/// A connection on which one byte went there and back; or how it ended.
fn open(from: &Pod, to: (IpAddr, u16)) -> Result<TcpStream, End> {
    let mut stream = connect(from, to).map_err(|e| End::of(&e))?;
    let mut byte = [0];
    stream.write_all(b"?").and_then(|()| stream.read_exact(&mut byte)).map_err(|e| End::of(&e))?;
    Ok(stream)
}

fn ask(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"?")?;
    stream.read_exact(&mut [0])
}

#[test]
fn a_pod_at_its_limit_is_reset_and_its_neighbour_is_served() {
    let mut mesh = Mesh::new();
    let (noisy, calm) = (mesh.captured("a", "noisy"), mesh.captured("a", "calm"));
    let (server, other) = (mesh.outside("b", "server"), mesh.captured("b", "other"));
    mesh.start(&["--pod-connections", "40"]);
    let (echo, second) = (Server::echo(&server, 8080), Server::echo(&other, 8080));
    let traffic = Traffic::start(&calm, (other.v4.into(), 8080), 2);
    let tries: Vec<_> = (0..200).map(|n| open(&noisy, (server.addresses()[n % 2], 8080))).collect();
    let served = tries.iter().filter(|t| t.is_ok()).count();
    let ends: Vec<&End> = tries.iter().filter_map(|t| t.as_ref().err()).collect();
    assert_eq!(served, 40, "as many as one pod may have open");
    assert!(ends.iter().all(|end| **end == End::Reset), "{ends:?}");
    assert_eq!(refusals(mesh.agent("a"), "pod-connections"), 160.0);
    let flagged =
        mesh.agent("a").metric("culvert_refusals_total", &["class=\"limit\"", "reporter=\"source\""]);
    assert_eq!(flagged.unwrap(), 160.0);
    let lines = mesh.agent("a").log();
    let told = lines.iter().filter(|l| l.has(&[("flag", "CULVERT_LIMIT")])).count();
    assert!((1..=SOON.as_secs() as usize).contains(&told), "{told} lines for 160 refusals");
    traffic.more(20);
    traffic.end_well("beside a flood of connections");
    // What is closed makes room again.
    drop(tries);
    let again = || open(&noisy, (server.v4.into(), 8080)).ok();
    wait_until("room again", SOON, again, || log_of(mesh.agent("a"))).unwrap();
    drop((echo, second));
    mesh.finish();
}

#[test]
fn a_server_at_its_limit_says_so_through_the_tunnel() {
    let mut mesh = Mesh::new();
    let clients = [mesh.captured("a", "one"), mesh.captured("a", "two")];
    let server = mesh.captured("b", "server");
    mesh.start(&["--pod-connections", "20"]);
    let echo = Server::echo(&server, 8080);
    let tries: Vec<_> = (0..40).map(|n| open(&clients[n % 2], (server.v4.into(), 8080))).collect();
    let served = tries.iter().filter(|t| t.is_ok()).count();
    // Its tunnels count too.
    assert!((17..=19).contains(&served), "{served} served");
    assert!(tries.iter().flat_map(|t| t.as_ref().err()).all(|end| *end == End::Reset));
    assert!(refusals(mesh.agent("b"), "pod-connections") >= (40 - served) as f64);
    // A line is written when the app has heard, which may be a moment later.
    mesh.agent("a").wait_log(0, "class limit", |line| line.as_str().contains("class limit")).unwrap();
    drop((tries, echo));
    mesh.finish();
}

#[test]
fn new_connections_above_the_rate_are_reset() {
    let mut mesh = Mesh::new();
    let (noisy, calm) = (mesh.captured("a", "noisy"), mesh.captured("a", "calm"));
    let server = mesh.outside("b", "server");
    mesh.start(&["--pod-connection-rate", "20"]);
    let echo = Server::echo(&server, 8080);
    let to = (server.v4.into(), 8080);
    let start = Instant::now();
    let served = (0..200).filter(|_| open(&noisy, to).is_ok()).count();
    // A second's worth at once, and what came in by time.
    let most = 21 + start.elapsed().as_millis() as usize / 50;
    assert!((20..=most).contains(&served), "{served} of 200 served, at most {most}");
    assert!(open(&calm, to).is_ok(), "another pod has a rate of its own");
    assert_eq!(refusals(mesh.agent("a"), "pod-rate"), (200 - served) as f64);
    drop(echo);
    mesh.finish();
}

/// The limit of open files of a running process.
fn files_limit(pid: u32) -> usize {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find_map(|l| l.strip_prefix("Max open files")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Sets the limit of open files of a running process.
fn limit_files(pid: u32, files: usize) {
    let limit = format!("--nofile={files}:");
    let done = Command::new("prlimit").args(["--pid", &pid.to_string(), &limit]).status();
    assert!(done.expect("prlimit runs").success());
}

#[test]
fn without_descriptors_clients_are_reset_at_once_and_served_again_later() {
    let mut mesh = Mesh::new();
    let (client, server) = (mesh.captured("a", "client"), mesh.captured("b", "server"));
    mesh.start(&[]);
    let echo = Server::echo(&server, 8080);
    let to = (server.v4.into(), 8080);
    let mut before = open(&client, to).expect("an open tunnel");
    let agent = mesh.agent("a");
    let cpu = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", agent.pid())).unwrap();
        let after = stat.rsplit(')').next().unwrap().split_whitespace().skip(11).take(2);
        after.map(|ticks| ticks.parse::<u64>().unwrap()).sum::<u64>()
    };
    let usual = files_limit(agent.pid());
    limit_files(agent.pid(), fds(agent.pid()) + 20);
    let start = Instant::now();
    let tries: Vec<_> = (0..100).map(|_| open(&client, to)).collect();
    let served = tries.iter().filter(|t| t.is_ok()).count();
    let ends: Vec<&End> = tries.iter().filter_map(|t| t.as_ref().err()).collect();
    assert!((5..60).contains(&served), "{served} served");
    assert!(ends.iter().all(|end| **end == End::Reset), "{ends:?}");
    ask(&mut before).expect("what is open goes on");
    // Nothing to accept, nothing to do: an accept loop that spins uses all of this.
    let used = cpu();
    pause(Duration::from_secs(1));
    let used = cpu() - used;
    assert!(used < 50, "{used} of 100 ticks used while out of descriptors");
    let told = agent.log().iter().filter(|l| l.as_str().contains("cannot accept connections")).count();
    assert!((1..=start.elapsed().as_secs() as usize + 2).contains(&told), "{told} lines");
    limit_files(agent.pid(), usual);
    let again = || open(&client, to).ok();
    wait_until("served again", SOON, again, || log_of(agent)).unwrap();
    ask(&mut before).expect("what was open goes on");
    assert!(agent.metric("culvert_accepts_reset_total", &[]).unwrap() > 0.0);
    drop((tries, before, echo));
    mesh.finish();
}

#[test]
fn two_thousand_connections_at_once() {
    let mut mesh = Mesh::new();
    let (client, server) = (mesh.captured("a", "client"), mesh.captured("b", "server"));
    mesh.start(&[]);
    let acceptor = Acceptor::new(&server, (server.v4.into(), 9000));
    let mut pairs: Vec<(TcpStream, TcpStream)> = (0..2000).map(|_| acceptor.pair(&client)).collect();
    for (n, (near, far)) in pairs.iter_mut().enumerate() {
        let (word, mut got) = (format!("{n:08}"), [0; 8]);
        near.write_all(word.as_bytes()).unwrap();
        far.read_exact(&mut got).unwrap_or_else(|e| panic!("connection {n}, there: {e}"));
        assert_eq!(got, word.as_bytes());
        far.write_all(&got).unwrap();
        near.read_exact(&mut got).unwrap_or_else(|e| panic!("connection {n}, back: {e}"));
        assert_eq!(got, word.as_bytes());
    }
    assert_eq!(mesh.agent("a").metric("istio_tcp_connections_failed_total", &[]).unwrap(), 0.0);
    drop((pairs, acceptor));
    mesh.finish();
}

/// A bulk stream that goes on until it is dropped.
struct Bulk {
    moved: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Bulk {
    fn start(mut out: TcpStream, mut back: TcpStream) -> Self {
        let (moved, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (count, ended) = (Arc::clone(&moved), Arc::clone(&stop));
        let sending = std::thread::spawn(move || {
            let piece = vec![7; 64 << 10];
            while !ended.load(Ordering::Relaxed) && out.write_all(&piece).is_ok() {}
        });
        let reading = std::thread::spawn(move || {
            let mut buffer = vec![0; 256 << 10];
            while let Ok(n @ 1..) = back.read(&mut buffer) {
                count.fetch_add(n as u64, Ordering::Relaxed);
            }
        });
        Self { moved, stop, threads: vec![sending, reading] }
    }

    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|t| t.join().unwrap());
        self.moved.load(Ordering::Relaxed)
    }
}

/// Requests on one connection, one after the other, while a second passes.
fn requests(stream: &mut TcpStream) -> u64 {
    let (start, mut done) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_secs(1) {
        ask(stream).expect("a request");
        done += 1;
    }
    done
}

/// The share is a fraction of what `hack/fairness.sh` measures on an idle machine: here tests run side by side.
#[test]
fn small_requests_keep_a_share_beside_bulk_and_fifty_stalled_readers() {
    let mut mesh = Mesh::new();
    let (client, server) = (mesh.captured("a", "client"), mesh.captured("b", "server"));
    mesh.start(&[]);
    let echo = Server::echo(&server, 8080);
    let acceptor = Acceptor::new(&server, (server.v4.into(), 9000));
    let mut small = open(&client, (server.v4.into(), 8080)).expect("served");
    let alone = (0..3).map(|_| requests(&mut small)).max().unwrap();
    let stalled: Vec<(TcpStream, TcpStream)> = (0..50).map(|_| acceptor.pair(&client)).collect();
    let filling: Vec<_> = stalled
        .iter()
        .map(|(_, far)| {
            let mut far = far.try_clone().unwrap();
            std::thread::spawn(move || {
                far.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
                let piece = vec![7; 64 << 10];
                while far.write(&piece).is_ok() {}
            })
        })
        .collect();
    filling.into_iter().for_each(|t| t.join().unwrap());
    for upload in [true, false] {
        let (near, far) = acceptor.pair(&client);
        let bulk = if upload { Bulk::start(near, far) } else { Bulk::start(far, near) };
        let beside = (0..3).map(|_| requests(&mut small)).max().unwrap();
        let moved = bulk.end();
        println!("upload {upload}: {beside} of {alone} requests a second, {} MiB beside", moved >> 20);
        assert!(moved > 16 << 20, "upload {upload}: the bulk stream moved {moved} bytes");
        assert!(beside * 50 >= alone, "upload {upload}: {beside} requests a second, alone {alone}");
    }
    // Nobody was cut for it.
    assert_eq!(mesh.agent("a").metric("culvert_hbone_budget_resets_total", &[]).unwrap(), 0.0);
    drop((stalled, small, echo, acceptor));
    mesh.finish();
}

/// A pod that uses up its own budget loses its own streams; the process has room, and its neighbour is served.
#[test]
fn a_pod_over_its_memory_is_cut_and_its_neighbour_is_not() {
    let mut mesh = Mesh::new();
    let (noisy, calm) = (mesh.captured("a", "noisy"), mesh.captured("a", "calm"));
    let server = mesh.captured("b", "server");
    mesh.start(&["--memory-budget", "134217728", "--pod-memory-budget", "16777216"]);
    let echo = Server::echo(&server, 8080);
    let acceptor = Acceptor::new(&server, (server.v4.into(), 9000));
    let stalled: Vec<(TcpStream, TcpStream)> = (0..12).map(|_| acceptor.pair(&noisy)).collect();
    let traffic = Traffic::start(&calm, (server.v4.into(), 8080), 2);
    let filling: Vec<_> = stalled
        .iter()
        .map(|(_, far)| {
            let mut far = far.try_clone().unwrap();
            std::thread::spawn(move || {
                far.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
                let piece = vec![7; 64 << 10];
                while far.write(&piece).is_ok() {}
            })
        })
        .collect();
    let resets = || mesh.agent("a").metric("culvert_hbone_budget_resets_total", &[]).unwrap();
    // Twelve windows of 4 MiB against 16 MiB.
    wait_until(
        "stalled streams are reset",
        SOON,
        || (resets() >= 8.0).then_some(()),
        || log_of(mesh.agent("a")),
    )
    .unwrap();
    assert!(resets() < 12.0, "those that fit stay");
    traffic.more(20);
    traffic.end_well("beside a pod over its budget");
    exchange(&calm, (server.v4.into(), 8080), b"still here").unwrap();
    drop(stalled);
    filling.into_iter().for_each(|t| t.join().unwrap());
    drop((echo, acceptor));
    mesh.finish();
}
