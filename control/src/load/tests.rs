//! The generator against servers that misbehave. What is asserted are counts and least latencies, which a slow machine
//! cannot change.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use super::*;
use crate::lab::{pause, wait_until};

const BOTH: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const SOON: Duration = Duration::from_secs(10);

/// What the server does with a request.
enum Then {
    Send(Vec<u8>),
    /// Sends it, then closes.
    Last(Vec<u8>),
    /// Takes the connection and says nothing.
    Silence,
}

/// A server with a thread for each connection. It listens until it is dropped.
struct Server {
    to: SocketAddr,
    accepted: Arc<AtomicU64>,
    asked: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Server {
    /// `answer` gets the number of the request, from 1, over all connections.
    fn new(ip: IpAddr, answer: impl Fn(u64) -> Then + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let to = listener.local_addr().unwrap();
        let (accepted, asked) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let over = Arc::new(AtomicBool::new(false));
        let (count, number, end, answer) =
            (Arc::clone(&accepted), Arc::clone(&asked), Arc::clone(&over), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if end.load(SeqCst) {
                    return;
                }
                count.fetch_add(1, SeqCst);
                let (number, answer) = (Arc::clone(&number), Arc::clone(&answer));
                std::thread::spawn(move || serve(stream.unwrap(), &number, &*answer));
            }
        });
        Self { to, accepted, asked, over }
    }

    fn plan(&self, rate: Option<u32>, milliseconds: u64) -> Plan {
        Plan {
            target: Target::new(self.to, "/x"),
            rate,
            connections: 4,
            close: false,
            duration: Duration::from_millis(milliseconds),
            warm_up: Duration::ZERO,
            limit: SOON,
        }
    }

    fn run(&self, plan: &Plan) -> Report {
        let report = run(plan, &AtomicBool::new(false)).unwrap();
        assert_eq!(report.due, report.answered + report.failed, "{report}");
        assert_eq!(report.failures.values().sum::<u64>(), report.failed, "{report}");
        assert!(
            report.distribution.is_sorted_by(|one, next| one.0 < next.0 && one.1 <= next.1),
            "{report:?}"
        );
        report
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, SeqCst);
        let _wakes_the_listener = TcpStream::connect(self.to);
    }
}

/// Answers until the peer closes.
fn serve(mut stream: TcpStream, number: &AtomicU64, answer: &dyn Fn(u64) -> Then) {
    let (mut seen, mut buffer) = (Vec::new(), [0; 1024]);
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        seen.extend_from_slice(&buffer[..count]);
        if !seen.ends_with(b"\r\n\r\n") {
            continue;
        }
        assert!(seen.starts_with(b"GET /x HTTP/1.1\r\nHost: "), "{seen:?}");
        seen.clear();
        match answer(number.fetch_add(1, SeqCst) + 1) {
            Then::Send(bytes) if stream.write_all(&bytes).is_ok() => {}
            Then::Silence => {}
            Then::Send(_) => return,
            Then::Last(bytes) => {
                let _closed_meanwhile = stream.write_all(&bytes);
                return;
            }
        }
    }
}

fn good(_number: u64) -> Then {
    Then::Send(OK.to_vec())
}

#[test]
fn a_constant_rate_is_kept_over_both_families() {
    for ip in BOTH {
        let server = Server::new(ip, good);
        let report = server.run(&Plan { warm_up: Duration::from_millis(100), ..server.plan(Some(500), 400) });
        assert_eq!((report.due, report.answered, report.warm_up_answered), (150, 150, 50), "{report}");
        assert_eq!((report.connections_made, report.connections_failed), (4, 0));
        assert_eq!(server.asked.load(SeqCst), 200);
        assert!(report.complete);
        assert_eq!(report.distribution.len(), PERCENTILES.len() + 1);
        assert_eq!(report.distribution.last(), Some(&(100.0, report.latency_us.max)));
    }
}

/// A generator that waits for answers would see four slow requests in a thousand.
#[test]
fn a_stall_is_seen_by_every_request_that_was_due_meanwhile() {
    let stall = std::sync::RwLock::new(());
    let server = Server::new(BOTH[0], move |number| {
        if number == 200 {
            let _all_wait = stall.write().unwrap();
            pause(Duration::from_millis(200));
        }
        drop(stall.read());
        good(number)
    });
    let report = server.run(&server.plan(Some(500), 1_000));
    assert_eq!((report.due, report.answered), (500, 500), "{report}");
    // 100 of the 500 were due while it stalled, and waited for 100 ms on average.
    let latency = report.latency_us;
    assert!(latency.max >= 195_000.0 && latency.p999 >= 190_000.0, "{report}");
    assert!(latency.p99 >= 150_000.0 && latency.p90 >= 70_000.0, "{report}");
    assert!(report.unsent_us.p90 >= 50_000.0, "most of them waited for a connection: {report}");
}

#[test]
fn a_server_that_never_answers_costs_its_connections_only() {
    let server = Server::new(BOTH[1], |_| Then::Silence);
    let limit = Duration::from_millis(200);
    let report = server.run(&Plan { limit, ..server.plan(Some(10_000), 300) });
    assert_eq!((report.due, report.answered), (3_000, 0), "{report}");
    let of = |failure| report.failures[&failure];
    assert!(of(Failure::Unanswered) >= 4 && of(Failure::NotSent) > 2_000, "{report}");
    assert_eq!(of(Failure::Unanswered), server.asked.load(SeqCst), "nothing is sent twice");
    assert!(report.distribution.is_empty());
}

#[test]
fn nobody_there_is_an_error_that_names_the_address() {
    let free = TcpListener::bind((BOTH[0], 0)).unwrap().local_addr().unwrap();
    let mut server = Server::new(BOTH[0], good);
    let real = std::mem::replace(&mut server.to, free);
    let error = run(&server.plan(Some(10), 100), &AtomicBool::new(false)).unwrap_err();
    assert_eq!(error.to_string(), format!("no connection to {free}: refused; does the server listen there?"));
    let error = Idle::open(&Target::new(free, "/x"), 3, SOON).unwrap_err();
    assert!(matches!(error, LoadError::Unreachable { why: "refused", .. }), "{error}");
    // With a connection for each request, it is the requests that are refused, and nothing spins.
    let report = server.run(&Plan { close: true, ..server.plan(None, 200) });
    assert!(report.due > 0 && report.due < 1_000, "{report}");
    assert_eq!(report.failures[&Failure::Refused], report.due, "{report}");
    server.to = real;
}

#[test]
fn each_failure_is_counted_by_its_reason_and_once() {
    for (bytes, closes, reason) in [
        (&b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"[..], false, Failure::Status),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nshort", true, Failure::Closed),
        (b"", true, Failure::Closed),
        (b"SSH-2.0-server\r\n", false, Failure::Malformed),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok, and more", false, Failure::Malformed),
    ] {
        let short = bytes.strip_suffix(b"t").unwrap_or(bytes).to_vec();
        // Every fifth request, so that whoever gets out of step fails more often.
        let server = Server::new(BOTH[0], move |number| match (number % 5, closes) {
            (0, true) => Then::Last(short.clone()),
            (0, false) => Then::Send(short.clone()),
            _ => good(number),
        });
        let report = server.run(&server.plan(Some(500), 200));
        assert_eq!((report.due, report.failed), (100, 20), "{report}");
        assert_eq!(report.failures[&reason], 20, "{report}");
    }
}

#[test]
fn answers_of_every_form_are_good() {
    for (bytes, closes) in [
        (&b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"[..], false),
        (b"HTTP/1.1 204 No Content\r\n\r\n", false),
        (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", false),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", true),
        (b"HTTP/1.0 200 OK\r\n\r\nup to the end", true),
    ] {
        let server = Server::new(BOTH[0], move |_| {
            if closes { Then::Last(bytes.to_vec()) } else { Then::Send(bytes.to_vec()) }
        });
        let report = server.run(&server.plan(Some(500), 100));
        assert_eq!((report.due, report.failed), (50, 0), "{report}");
        // The first four were made before there was a request.
        assert_eq!(report.connections_made, if closes { 50 } else { 4 }, "{report}");
    }
}

#[test]
fn a_large_answer_is_read_to_its_end() {
    let mut bytes = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 1 << 20).into_bytes();
    bytes.resize(bytes.len() + (1 << 20), b'x');
    let server = Server::new(BOTH[0], move |_| Then::Send(bytes.clone()));
    let report = server.run(&server.plan(Some(50), 200));
    assert_eq!((report.due, report.failed, report.connections_made), (10, 0, 4), "{report}");
}

#[test]
fn with_close_each_request_has_a_connection_of_its_own() {
    for (ip, rate) in BOTH.into_iter().zip([None, Some(200)]) {
        let server = Server::new(ip, |_| Then::Last(OK.to_vec()));
        let report = server.run(&Plan { close: true, ..server.plan(rate, 250) });
        let asked = server.asked.load(SeqCst);
        assert_eq!((report.answered, report.failed), (asked, 0), "{report}");
        assert_eq!((report.connections_made, server.accepted.load(SeqCst)), (asked, asked), "{report}");
        assert!(rate.is_none() || asked == 50, "{report}");
    }
}

#[test]
fn a_closed_loop_asks_as_fast_as_it_is_answered() {
    let server = Server::new(BOTH[0], good);
    let report = server.run(&server.plan(None, 200));
    assert_eq!((report.failed, report.connections_made, report.asked_per_second), (0, 4, None), "{report}");
    assert_eq!(report.answered, server.asked.load(SeqCst));
}

#[test]
fn a_server_that_goes_away_meanwhile_is_told_by_its_failures() {
    let listener = TcpListener::bind((BOTH[0], 0)).unwrap();
    let to = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let mut open: Vec<TcpStream> = (0..4).map(|_| listener.accept().unwrap().0).collect();
        // One request each; then all are closed, the listener as well.
        for stream in &mut open {
            let count = stream.read(&mut [0; 1024]).unwrap();
            assert!(count > 0);
            stream.write_all(OK).unwrap();
        }
    });
    let plan = Plan {
        target: Target::new(to, "/x"),
        rate: Some(100),
        connections: 4,
        close: false,
        duration: Duration::from_millis(500),
        warm_up: Duration::ZERO,
        limit: SOON,
    };
    let report = run(&plan, &AtomicBool::new(false)).unwrap();
    server.join().unwrap();
    assert_eq!((report.due, report.answered), (50, 4), "{report}");
    assert!(report.failures[&Failure::Refused] >= 30, "{report}");
}

#[test]
fn a_stop_reports_what_there_is() {
    let server = Server::new(BOTH[0], good);
    let stop = AtomicBool::new(false);
    let plan = server.plan(Some(500), 3_600_000);
    let report = std::thread::scope(|scope| {
        let load = scope.spawn(|| run(&plan, &stop).unwrap());
        let asked = || (server.asked.load(SeqCst) >= 100).then_some(());
        wait_until("100 requests", SOON, asked, || format!("{}", server.asked.load(SeqCst))).unwrap();
        stop.store(true, SeqCst);
        load.join().unwrap()
    });
    assert!(!report.complete && report.answered >= 100, "{report}");
    assert_eq!(report.failed, 0, "what was under way was answered: {report}");
    assert!(report.to_string().contains("stopped before its end"));
}

#[test]
fn plans_that_cannot_be_are_refused() {
    let server = Server::new(BOTH[0], good);
    let plan = server.plan(Some(10), 100);
    for (wrong, text) in [
        (Plan { connections: 0, ..plan.clone() }, "0 connections"),
        (Plan { connections: CONNECTIONS_MAX + 1, ..plan.clone() }, "20001 connections"),
        (Plan { rate: Some(0), ..plan.clone() }, "0 requests a second"),
        (Plan { warm_up: plan.duration, ..plan.clone() }, "leaves nothing"),
        (Plan { limit: Duration::ZERO, ..plan.clone() }, "a time limit of nothing"),
    ] {
        let error = run(&wrong, &AtomicBool::new(false)).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
}

#[test]
fn idle_connections_are_held_until_the_server_closes_them() {
    for ip in BOTH {
        // Each tenth is told that it will be closed: it is not idle, and counted.
        let server = Server::new(ip, |number| {
            if number % 10 == 0 {
                Then::Last(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".to_vec())
            } else {
                good(number)
            }
        });
        let idle = Idle::open(&Target::new(server.to, "/x"), 50, SOON).unwrap();
        assert_eq!((idle.opened(), idle.failed(), idle.failures[&Failure::Closed]), (45, 5, 5));
        assert_eq!((idle.still_open(), server.accepted.load(SeqCst)), (45, 50));
    }
    let server = Server::new(BOTH[0], |number| {
        // Says that it stays, and closes.
        if number == 3 { Then::Last(OK.to_vec()) } else { good(number) }
    });
    let idle = Idle::open(&Target::new(server.to, "/x"), 5, SOON).unwrap();
    assert_eq!(idle.opened(), 5);
    let closed = || (idle.still_open() == 4).then_some(());
    wait_until("one to be closed", SOON, closed, || format!("{} open", idle.still_open())).unwrap();
}
