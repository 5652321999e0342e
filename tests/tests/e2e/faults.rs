//! Faults of a whole node: agents killed at random moments, a wire that goes silent, an hour of churn in a minute.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use culvert::lab::{Place, Pod, pause, wait_until};
use culvert_tests::dice::Dice;
use culvert_tests::mesh::{Mesh, SOON, fds, log_of, rss};
use culvert_tests::net::{Acceptor, End, Pattern, Server, connect, read_to_end, reset, try_out};
use culvert_tests::traffic::Traffic;

const PORT: u16 = 8080;
const MARKER: &[u8] = b"never-in-plaintext";

/// A captured client on node a, a captured server on node b.
fn world(args: &[&str]) -> (Mesh, Pod, Pod) {
    let mut mesh = Mesh::new();
    let (client, server) = (mesh.captured("a", "client"), mesh.captured("b", "server"));
    mesh.start(args);
    (mesh, client, server)
}

/// What clients saw of their requests, each on a connection of its own.
#[derive(Debug, Default)]
struct Outcomes {
    stop: AtomicBool,
    good: AtomicU64,
    reset: AtomicU64,
    refused: AtomicU64,
    /// An end that looks orderly without the whole answer, or anything else that must not be.
    wrong: Mutex<Vec<String>>,
}

impl Outcomes {
    fn count(&self, of: &AtomicU64) {
        of.fetch_add(1, Ordering::Relaxed);
    }

    fn good(&self) -> u64 {
        self.good.load(Ordering::Relaxed)
    }

    /// One request: everything sent comes back and then a FIN, or the connection is refused or reset.
    fn ask(&self, from: &Place, to: (IpAddr, u16), text: &[u8]) {
        let mut stream = match connect(from, to) {
            Ok(stream) => stream,
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => return self.count(&self.refused),
            Err(e) if End::of(&e) == End::Reset => return self.count(&self.reset),
            Err(e) => return self.wrong(format!("connect: {e}")),
        };
        let sent = stream.write_all(text).and_then(|()| stream.shutdown(Shutdown::Write));
        match (sent.map_err(|e| End::of(&e)), read_to_end(&mut stream)) {
            (Ok(()), (bytes, End::Fin)) if bytes == text => self.count(&self.good),
            (_, (bytes, End::Reset)) if text.starts_with(&bytes) => self.count(&self.reset),
            // The kernel reports a reset once: the write had it, or the shutdown says "not connected".
            (Err(_), (bytes, _)) if bytes.is_empty() => self.count(&self.reset),
            (sent, (bytes, end)) => {
                self.wrong(format!("sent {sent:?}, {} of {} bytes, then {end:?}", bytes.len(), text.len()));
            }
        }
    }

    fn wrong(&self, what: String) {
        let mut wrong = self.wrong.lock().unwrap();
        wrong.push(what);
        // Something is plainly wrong: no need to fill the memory with it.
        self.stop.fetch_or(wrong.len() > 100, Ordering::Relaxed);
    }
}

/// Clients that ask without pause.
struct Clients {
    outcomes: Arc<Outcomes>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    fn start(from: &Place, to: [(IpAddr, u16); 2]) -> Self {
        let outcomes = Arc::new(Outcomes::default());
        let threads = (0..4).map(|n| {
            let (outcomes, from) = (Arc::clone(&outcomes), from.clone());
            std::thread::spawn(move || {
                let text = [MARKER, &Pattern::bytes(n, 3000)].concat();
                let targets = to.iter().cycle().skip(usize::try_from(n).unwrap_or(0));
                for to in targets {
                    if outcomes.stop.load(Ordering::Relaxed) {
                        return;
                    }
                    outcomes.ask(&from, *to, &text);
                }
            })
        });
        Self { threads: threads.collect(), outcomes }
    }

    fn end(self) -> Arc<Outcomes> {
        self.outcomes.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("a client panicked");
        }
        self.outcomes
    }
}

/// The pod's rules as the kernel lists them: tables, policy rules, and the routes of all tables.
fn rules(pod: &Pod) -> String {
    [
        "nft -s list ruleset",
        "ip rule",
        "ip -6 rule",
        "ip route show table all type local scope host",
        "ip -6 route show table 100",
    ]
    .map(|line| {
        let mut words = line.split(' ');
        let program = words.next().expect("a program");
        let done = pod.command(program).args(words).finish(SOON).expect("a program that lists rules");
        // A table without routes is an error to `ip`; both say the same each time.
        format!("{line}:\n{}{}", done.stdout, done.stderr)
    })
    .concat()
}

/// Killed at random moments under load, twenty times: what clients see is a refusal or a reset and never a short answer
/// with an orderly end, nothing crosses in plaintext, and afterwards nothing is left over and the pods are served.
#[test]
fn killed_twenty_times_under_load() {
    let (mut mesh, client, server) = world(&[]);
    let echo = Server::echo(&server, PORT);
    let tap = mesh.lab.tap(&[MARKER]).unwrap();
    let before = [&client, &server].map(rules);
    let clients = Clients::start(&client, server.addresses().map(|ip| (ip, PORT)));
    let served = |mesh: &Mesh, node: &str| {
        let from = clients.outcomes.good();
        let again = || (clients.outcomes.good() >= from + 20).then_some(());
        wait_until("requests are served", SOON, again, || log_of(mesh.agent(node))).unwrap();
    };
    let mut dice = Dice::seeded_by_time();
    for _ in 0..20 {
        let node = ["a", "b"][dice.roll(2)];
        served(&mesh, node);
        pause(Duration::from_millis(dice.roll(300) as u64));
        mesh.forget(node).kill();
        if dice.roll(2) == 1 {
            // The kernel refuses on behalf of an agent that is not there.
            let (_, bytes, end) = try_out(&client, (server.v4.into(), PORT));
            assert!(bytes.is_empty() && end != End::Fin, "{bytes:?}, {end:?}");
        }
        mesh.start_node(node, &[]);
        served(&mesh, node);
    }
    let outcomes = clients.end();
    let wrong = outcomes.wrong.lock().unwrap();
    assert!(wrong.is_empty(), "{} wrong ends:\n{}", wrong.len(), wrong.join("\n"));
    println!("{outcomes:?}");
    let seen = tap.seen().unwrap();
    assert_eq!((seen.markers[0], seen.port(PORT).bytes), (0, 0), "plaintext between the nodes");
    assert_eq!([&client, &server].map(rules), before, "the rules after twenty kills");
    drop((tap, echo));
    mesh.finish();
}

/// Six seconds in which no packet crosses between the nodes: open connections wait, and no byte is lost.
#[test]
fn a_silent_wire_loses_nothing() {
    let (mesh, client, server) = world(&[]);
    let acceptor = Acceptor::new(&server, (server.v4.into(), 9000));
    let (near, mut far) = acceptor.pair(&client);
    const LEN: usize = 24 << 20;
    let stop = Arc::new(AtomicBool::new(false));
    let (slow, mut writer) = (Arc::clone(&stop), near.try_clone().unwrap());
    let sending = std::thread::spawn(move || {
        for piece in Pattern::bytes(7, LEN).chunks(64 << 10) {
            writer.write_all(piece).expect("send through the silence");
            if !slow.load(Ordering::Relaxed) {
                pause(Duration::from_millis(20));
            }
        }
        writer.shutdown(Shutdown::Write).expect("close");
    });
    let mut first = vec![0; 256 << 10];
    far.read_exact(&mut first).unwrap();
    let wire = mesh.lab.wire();
    wire.ip("link set br0 down\n").unwrap();
    pause(Duration::from_secs(6));
    wire.ip("link set br0 up\n").unwrap();
    stop.store(true, Ordering::Relaxed);
    let (rest, end) = read_to_end(&mut far);
    sending.join().expect("the sender");
    first.extend(rest);
    assert!(end == End::Fin && first == Pattern::bytes(7, LEN), "{} of {LEN} bytes, {end:?}", first.len());
    drop((near, far, acceptor));
    mesh.finish();
}

/// What an agent holds.
#[derive(Debug)]
struct Held {
    rss: u64,
    fds: usize,
    tasks: f64,
}

fn held(mesh: &Mesh, node: &str) -> Held {
    let agent = mesh.agent(node);
    let tasks = agent.metric("tokio_num_alive_tasks", &[]).unwrap();
    Held { rss: rss(agent.pid()), fds: fds(agent.pid()), tasks }
}

/// One connection, ended in one of the ways connections end.
fn short_life(n: u64, from: &Place, to: (IpAddr, u16)) -> std::io::Result<()> {
    let mut stream = connect(from, to)?;
    let text = n.to_le_bytes();
    let mut back = [0; 8];
    stream.write_all(&text)?;
    match n % 4 {
        0 => reset(stream),
        1 => drop(stream),
        2 => {
            stream.read_exact(&mut back)?;
            drop(stream);
        }
        _ => {
            stream.shutdown(Shutdown::Write)?;
            let (bytes, end) = read_to_end(&mut stream);
            if (&bytes[..], &end) != (&text[..], &End::Fin) {
                return Err(std::io::Error::other(format!("{bytes:?}, {end:?}")));
            }
        }
    }
    Ok(())
}

/// `total` short connections from eight clients, none of which may fail.
fn churn(total: u64, mesh: &Mesh, [client, server]: [&Pod; 2]) {
    let (next, failed) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    let to = server.addresses().map(|ip| (ip, PORT));
    let lives = || {
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= total || !failed.lock().unwrap().is_empty() {
                return;
            }
            if let Err(e) = short_life(n, client, to[usize::from(n / 4 % 2 == 1)]) {
                failed.lock().unwrap().push(format!("connection {n}: {e}"));
            }
        }
    };
    std::thread::scope(|scope| (0..8).for_each(|_| drop(scope.spawn(lives))));
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{}\n{}", failed.join("\n"), mesh.logs());
}

/// The churn of an hour at ten connections a second, a changed document a minute and a pod that comes and goes every
/// two minutes: descriptors and tasks end where they began, and memory does not grow with it.
#[test]
fn an_hour_of_churn_leaves_nothing_behind() {
    const ROUNDS: u64 = 30;
    const CONNECTIONS: u64 = 36_000;
    let (mut mesh, client, server) = world(&["--log", "info,access=off"]);
    let echo = Server::echo(&server, PORT);
    let quiet = |mesh: &Mesh| {
        let open = |node: &str| {
            let agent = mesh.agent(node);
            let count = |name| agent.metric(name, &[]).unwrap();
            count("istio_tcp_sockets_open") + count("culvert_hbone_tunnels_open")
        };
        let idle = || (open("a") + open("b") == 0.0).then_some(());
        wait_until("idle agents", SOON, idle, || log_of(mesh.agent("b"))).unwrap();
        ["a", "b"].map(|node| held(mesh, node))
    };
    // What caches, pools and the allocator keep is there after the first round.
    churn(CONNECTIONS / ROUNDS, &mesh, [&client, &server]);
    let visitor = mesh.captured("b", "visitor");
    let pods = mesh.lab.pods().to_vec();
    let document = |with: bool| {
        let wanted = pods.iter().filter(|pod| with || pod.spec.name != visitor.spec.name);
        wanted.map(|pod| pod.document(true)).collect::<String>()
    };
    let mut before = BTreeMap::new();
    for round in 0..ROUNDS {
        mesh.settle(|| mesh.put("pods.yaml", &document(round % 2 == 0)));
        mesh.settle(|| {
            mesh.put(
                "policy.yaml",
                &format!(
                    "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: round, namespace: \
                     default}}\nspec: {{action: DENY, rules: [{{to: [{{operation: {{ports: [\"{}\"]}}}}]}}]}}\n",
                    20_000 + round
                ),
            );
        });
        churn(CONNECTIONS / ROUNDS, &mesh, [&client, &server]);
        if round == 1 {
            before.extend(["a", "b"].into_iter().zip(quiet(&mesh)));
        }
    }
    for (node, after) in ["a", "b"].into_iter().zip(quiet(&mesh)) {
        let before = &before[node];
        println!("agent of {node}: {before:?}, then {after:?}");
        assert!(after.rss < before.rss + (8 << 20), "agent of {node}: {before:?}, then {after:?}");
        // A released pod's namespace is held until its connections' grace is over.
        let back = || {
            let now = held(&mesh, node);
            (now.fds <= before.fds && now.tasks <= before.tasks).then_some(())
        };
        wait_until("descriptors and tasks back", SOON, back, || {
            format!("{before:?}, then {:?}", held(&mesh, node))
        })
        .unwrap();
    }
    drop(echo);
    mesh.finish();
}

/// A connection whose end nobody told: the app at one end is frozen for longer than anybody waits, then goes on.
#[test]
fn a_frozen_app_goes_on_where_it_stood() {
    let (mesh, client, server) = world(&[]);
    let acceptor = Acceptor::new(&server, (server.v6.into(), 9000));
    let (mut near, mut far) = acceptor.pair(&client);
    near.write_all(b"before").unwrap();
    let mut word = [0; 6];
    far.read_exact(&mut word).unwrap();
    // Idle on both sides for longer than unused tunnels are kept (1 s in tests) and a PING's pause takes.
    pause(Duration::from_secs(12));
    near.write_all(b"behind").unwrap();
    far.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"behind");
    drop::<TcpStream>(near);
    assert_eq!(read_to_end(&mut far), (Vec::new(), End::Fin));
    drop((far, acceptor));
    mesh.finish();
}

/// A memory cgroup of its own; gone when dropped, once its processes are.
struct Cgroup(PathBuf);

impl Cgroup {
    /// With a limit in bytes. v2 at the usual place, or v1 with its memory controller.
    fn new(name: &str, limit: u64) -> Self {
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let (root, file) = if v1.is_dir() {
            (v1, "memory.limit_in_bytes")
        } else {
            let root = Path::new("/sys/fs/cgroup");
            let on = fs::write(root.join("cgroup.subtree_control"), "+memory");
            on.expect("turn the memory controller on: needs root and a writable cgroup tree");
            (root, "memory.max")
        };
        let dir = root.join(format!("{name}-{}", std::process::id()));
        fs::create_dir(&dir).expect("make a cgroup: needs root and a writable cgroup tree");
        let cgroup = Self(dir);
        fs::write(cgroup.0.join(file), limit.to_string()).expect("limit a cgroup's memory");
        cgroup
    }

    /// Processes that the kernel has killed for memory.
    fn killed(&self) -> u64 {
        let events =
            ["memory.events", "memory.oom_control"].map(|file| fs::read_to_string(self.0.join(file)));
        let text = events.into_iter().find_map(Result::ok).expect("the cgroup's events");
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.expect("a count of kills").trim().parse().expect("a number")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let gone = || fs::remove_dir(&self.0).ok();
        let _left = wait_until("the cgroup's end", SOON, gone, String::new);
    }
}

/// An agent that may use 128 MiB derives its budgets from that, so that apps that do not read cost their own streams and
/// neither the process nor their neighbour.
#[test]
fn a_small_cgroup_is_not_overrun() {
    const LIMIT: u64 = 128 << 20;
    let cgroup = Cgroup::new("culvert-e2e", LIMIT);
    let mut mesh = Mesh::new();
    let (noisy, calm) = (mesh.captured("a", "noisy"), mesh.captured("a", "calm"));
    let server = mesh.captured("b", "server");
    mesh.start_by("a", &format!("echo $$ > {}/cgroup.procs\nexec \"$@\"", cgroup.0.display()), &[]);
    let budget = mesh.agent("a").metric("culvert_budget_limit", &["limit=\"memory\""]).unwrap();
    assert_eq!(budget, (LIMIT / 2) as f64, "derived from the cgroup");
    let echo = Server::echo(&server, PORT);
    let acceptor = Acceptor::new(&server, (server.v4.into(), 9000));
    let stalled: Vec<_> = (0..50).map(|_| acceptor.pair(&noisy)).collect();
    let traffic = Traffic::start(&calm, (server.v4.into(), PORT), 2);
    // Fifty windows of 4 MiB want more than the cgroup has.
    let filling: Vec<_> = stalled
        .iter()
        .map(|(_, far)| {
            let mut far = far.try_clone().unwrap();
            std::thread::spawn(move || {
                far.set_write_timeout(Some(Duration::from_secs(4))).unwrap();
                while far.write(&[7; 64 << 10]).is_ok() {}
            })
        })
        .collect();
    filling.into_iter().for_each(|thread| thread.join().unwrap());
    traffic.more(20);
    traffic.end_well("beside apps that do not read, in a small cgroup");
    assert_eq!(cgroup.killed(), 0, "killed for memory");
    assert!(mesh.agent("a").metric("culvert_hbone_budget_resets_total", &[]).unwrap() > 0.0);
    drop((stalled, echo, acceptor));
    mesh.finish();
}
