//! A waypoint between two nodes with one service behind it: what tests of load, replacement and abuse have in common.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use bytes::Bytes;
use culvert::lab::{Place, Pod, wait_until};
use http::Request;

use crate::documents::Service;
use crate::mesh::{Mesh, SOON, rss};
use crate::net::connect;
use crate::peer;
use crate::waypoint::{NAME, Waypoint, ask, bound, get, pod};

/// Address and port of the service.
pub const TO: (IpAddr, u16) = (IpAddr::V4(Ipv4Addr::new(10, 96, 0, 20)), 80);

/// The mesh with its waypoint.
#[derive(Debug)]
pub struct Stand {
    /// Nodes and agents.
    pub mesh: Mesh,
    /// Captured, on node `a`.
    pub client: Pod,
    /// The service's one endpoint, port 8080, on node `b`.
    pub shop: Pod,
    /// The waypoint, on node `b`.
    pub waypoint: Waypoint,
}

/// The service `shop`, behind the waypoint; `protocol` is what its port speaks.
pub fn service(protocol: &str) -> String {
    bound("shop", "10.96.0.20", ("app", "shop"), &[(protocol, 80, "8080")])
}

/// The Gateway and the Service of its name, whose address it has: it is ready when one of its pods is, and whatever becomes of
/// that pod, it is not a pod's.
pub fn gateway() -> String {
    let service = Service::new(NAME, &["10.96.0.99"]).selects("gateway.networking.k8s.io/gateway-name", NAME);
    let gateway = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
                   metadata: {name: waypoint, namespace: default, labels: {istio.io/waypoint-for: all}}\n\
                   spec:\n  gatewayClassName: culvert-waypoint\n  listeners: [{name: mesh, port: 15008, protocol: HBONE}]\n";
    format!("{gateway}{}", service.port(15008, "15008").yaml())
}

/// A VirtualService of `shop` with these routes, and behind them one that the waypoint answers itself and one to the service.
pub fn routes(first: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: shop, namespace: default}}\n\
         spec:\n  hosts: [shop]\n  http:\n{first}  - match: [{{uri: {{exact: /ready}}}}]\n    directResponse: {{status: 200}}\n  \
         - route: [{{destination: {{host: shop}}}}]\n"
    )
}

impl Stand {
    /// Starts everything but servers. `shop` is captured or not; its port speaks `protocol`; `first` are routes.
    pub fn new(shop_is_captured: bool, protocol: &str, first: &str, args: &[&str]) -> Self {
        let mut mesh = Mesh::new();
        let client = mesh.captured("a", "client");
        let shop = if shop_is_captured { mesh.captured("b", "shop") } else { mesh.outside("b", "shop") };
        let place = pod(&mut mesh, "b");
        mesh.put("service.yaml", &service(protocol));
        mesh.put("gateway.yaml", &gateway());
        mesh.put("routes.yaml", &routes(first));
        mesh.start(&[]);
        let waypoint = Waypoint::start(&mesh, place, args);
        let stand = Self { mesh, client, shop, waypoint };
        stand.wait_bound();
        stand
    }

    /// Waits until a request from the client is answered by the waypoint.
    pub fn wait_bound(&self) {
        let answer = || self.ask("/ready").ok().filter(|answer| answer.contains("200 OK"));
        wait_until("an answer of the waypoint", SOON, answer, || self.logs()).unwrap();
    }

    /// One request on a connection of its own.
    ///
    /// **Errors**: there was no answer.
    pub fn ask(&self, path: &str) -> io::Result<String> {
        ask(&self.client, TO, &get(path, ""))
    }

    /// A connection of the client.
    pub fn connect(&self) -> TcpStream {
        connect(&self.client, TO).unwrap_or_else(|e| panic!("connect: {e}\n{}", self.logs()))
    }

    /// The same for a runtime.
    pub fn connect_async(&self) -> tokio::net::TcpStream {
        peer::net::connect(&self.client, SocketAddr::from(TO))
    }

    /// Resident memory of the waypoint in bytes.
    pub fn rss(&self) -> u64 {
        rss(self.waypoint.process.pid())
    }

    /// The ends of all logs, for messages.
    pub fn logs(&self) -> String {
        let own = self.waypoint.log();
        let last = own.lines().rev().take(30).collect::<Vec<_>>().into_iter().rev();
        let own: String = last.map(|line| format!("{line}\n")).collect();
        format!("{own}\n{}", self.mesh.logs())
    }

    /// Ends everything; the agents must be left without a trace.
    pub fn finish(self) {
        let Self { mesh, waypoint, .. } = self;
        assert!(!waypoint.log().contains("panicked"), "{}", waypoint.log());
        drop(waypoint); // it keeps connections for the next request
        mesh.finish();
    }
}

/// Reads one answer whose body has a length: its head and body. `held` is what came behind it.
///
/// **Errors**: the connection ended before.
pub fn read_answer(stream: &mut TcpStream, held: &mut Vec<u8>) -> io::Result<(String, Vec<u8>)> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        if let Some(end) = held.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4) {
            let head = String::from_utf8_lossy(&held[..end]).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            let whole = end + length.unwrap_or(0_usize);
            if held.len() >= whole {
                let rest = held.split_off(whole);
                let body = held.split_off(end);
                *held = rest;
                return Ok((head, body));
            }
        }
        match stream.read(&mut buffer)? {
            0 => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed before an answer")),
            n => held.extend_from_slice(&buffer[..n]),
        }
    }
}

/// How a client of [`Asking`] asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Each request on a connection of its own.
    New,
    /// HTTP/1.1, until an answer says that the connection closes.
    Again,
    /// HTTP/2, until the connection says that it goes.
    Http2,
}

/// Clients that ask without pause; what is not answered with 200 counts as failed, whatever the reason.
#[derive(Debug)]
pub struct Asking {
    shared: Arc<Counts>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Counts {
    stop: AtomicBool,
    good: AtomicU64,
    bad: Mutex<Vec<String>>,
}

impl Counts {
    fn count(&self, what: &str, result: Result<String, String>) {
        match result {
            Ok(head) if head.starts_with("http/1.1 200") || head == "200" => {
                self.good.fetch_add(1, Ordering::Relaxed);
            }
            Ok(other) | Err(other) => self.bad.lock().unwrap().push(format!("{what}: {other}")),
        }
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

impl Asking {
    /// Starts clients in a place; each asks for the paths that `path` makes of a number.
    pub fn start(from: &Place, hows: &[How], path: fn(usize) -> String) -> Self {
        let shared = Arc::new(Counts::default());
        let threads = hows.iter().map(|&how| {
            let (shared, from) = (Arc::clone(&shared), from.clone());
            std::thread::spawn(move || match how {
                How::New => by_new(&from, &shared, path),
                How::Again => by_http1(&from, &shared, path),
                How::Http2 => by_http2(&from, &shared, path),
            })
        });
        Self { threads: threads.collect(), shared }
    }

    /// Waits for `n` more requests, good or bad.
    pub fn more(&self, n: u64) {
        let done = || self.shared.good.load(Ordering::Relaxed) + self.shared.bad.lock().unwrap().len() as u64;
        let from = done();
        wait_until("requests go on", SOON * 2, || (done() >= from + n).then_some(()), String::new).unwrap();
    }

    /// Ends the clients: how many requests were answered, and what the others were told.
    pub fn stop(self) -> (u64, Vec<String>) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("a client");
        }
        let bad = std::mem::take(&mut *self.shared.bad.lock().unwrap());
        (self.shared.good.load(Ordering::Relaxed), bad)
    }
}

fn by_new(from: &Place, counts: &Counts, path: fn(usize) -> String) {
    for n in 0.. {
        if counts.is_over() {
            return;
        }
        let answer = ask(from, TO, &get(&path(n), "")).map(|answer| answer.to_ascii_lowercase());
        counts.count("a new connection", answer.map_err(|error| error.to_string()));
    }
}

fn by_http1(from: &Place, counts: &Counts, path: fn(usize) -> String) {
    let mut open: Option<(TcpStream, Vec<u8>)> = None;
    for n in 0.. {
        if counts.is_over() {
            return;
        }
        let mut once = || {
            let (mut stream, mut held) = match open.take() {
                Some(open) => open,
                None => (connect(from, TO)?, Vec::new()),
            };
            stream.write_all(format!("GET {} HTTP/1.1\r\nHost: shop\r\n\r\n", path(n)).as_bytes())?;
            let (head, _) = read_answer(&mut stream, &mut held)?;
            if !head.contains("connection: close") {
                open = Some((stream, held));
            }
            Ok(head)
        };
        counts.count("a connection kept", once().map_err(|error: io::Error| error.to_string()));
    }
}

fn by_http2(from: &Place, counts: &Counts, path: fn(usize) -> String) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut number = 0..;
        while !counts.is_over() {
            let Ok(stream) = peer::net::try_connect(from, SocketAddr::from(TO)) else {
                counts.count("HTTP/2", Err("no connection".into()));
                continue;
            };
            let greeting = h2::client::Builder::new().handshake::<_, Bytes>(stream);
            let Ok((mut send, connection)) = peer::within("HTTP/2", greeting).await else {
                counts.count("HTTP/2", Err("no greeting".into()));
                continue;
            };
            let mut driver = tokio::task::JoinSet::new();
            driver.spawn(connection);
            while !counts.is_over() {
                // A connection that says that it goes takes no more requests, and has lost none.
                let Ok(mut ready) = peer::within("room for a request", send.ready()).await else { break };
                let number = number.next().unwrap_or_default();
                let request =
                    Request::get(format!("http://shop{}", path(number))).body(()).expect("a request");
                let Ok((answer, _)) = ready.send_request(request, true) else { break };
                let answer = peer::within("an answer", answer).await;
                let status = answer.map(|answer| answer.status().as_u16().to_string());
                counts.count("HTTP/2", status.map_err(|error| error.to_string()));
                send = ready;
            }
        }
    });
}
