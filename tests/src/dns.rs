//! DNS as a pod's resolver and a name server speak it, by hand: what passes between them is compared byte by byte.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use culvert::lab::Place;

/// Types of records.
pub const A: u16 = 1;
/// Types of records.
pub const TXT: u16 = 16;
/// Types of records.
pub const AAAA: u16 = 28;
/// Types of records.
pub const SRV: u16 = 33;

const PORT: u16 = 53;

/// How a query travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// One datagram.
    Udp,
    /// A connection.
    Tcp,
}

/// A query: its id, and an OPT record with an option in it that nobody knows.
pub fn query(id: u16, name: &str, kind: u16, edns: bool) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([0x01, 0x20, 0, 1, 0, 0, 0, 0, 0, u8::from(edns)]);
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).expect("a label"));
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0, 1]);
    if edns {
        bytes.extend([0, 0, 41, 0x10, 0, 0, 0, 0x80, 0, 0, 8, 0xff, 0xfe, 0, 4, 1, 2, 3, 4]);
    }
    bytes
}

/// The name that a query asks for.
pub fn name(query: &[u8]) -> String {
    let (mut at, mut labels) = (12, Vec::new());
    while query[at] != 0 {
        let length = usize::from(query[at]);
        labels.push(String::from_utf8_lossy(&query[at + 1..=at + length]).into_owned());
        at += length + 1;
    }
    labels.join(".")
}

/// Code, number of answers and of authorities, and whether it is cut off.
pub fn summary(reply: &[u8]) -> (u8, u8, u8, bool) {
    (reply[3] & 15, reply[7], reply[9], reply[2] & 2 != 0)
}

/// The addresses in a reply to a query for A or AAAA records, in order.
pub fn addresses(reply: &[u8]) -> Vec<String> {
    let mut at = 12;
    while reply[at] != 0 {
        at += usize::from(reply[at]) + 1;
    }
    at += 5;
    let mut found = Vec::new();
    for _ in 0..u16::from_be_bytes([reply[6], reply[7]]) {
        // All owners are pointers.
        let (kind, length) =
            (reply[at + 3], usize::from(u16::from_be_bytes([reply[at + 10], reply[at + 11]])));
        let data = &reply[at + 12..at + 12 + length];
        match kind {
            1 => found.push(IpAddr::from(<[u8; 4]>::try_from(data).expect("an address")).to_string()),
            28 => found.push(IpAddr::from(<[u8; 16]>::try_from(data).expect("an address")).to_string()),
            _ => {}
        }
        at += 12 + length;
    }
    found.sort();
    found
}

/// A reply that no resolver would have made: flags, records and bytes of its own. It depends on the query alone.
pub fn odd_reply(query: &[u8], server: &str) -> Vec<u8> {
    let mut reply = query.to_vec();
    reply[2] = 0x80 | query[2] & 0x79;
    reply[3] = 0x33; // NXDOMAIN, authentic data, checking disabled
    reply.extend(server.as_bytes());
    reply.extend([0xde, 0xad, 0xbe, 0xef]);
    reply
}

/// Queries, and how they came.
type Asked = Arc<Mutex<Vec<(Way, Vec<u8>)>>>;

/// A name server that answers everything with [`odd_reply`] and remembers what it was asked.
///
/// Names that begin with `never` get no answer, with `slow` one after a second, with `large` one of 3000 bytes, with
/// `cut` one that says it is cut off.
#[derive(Debug)]
pub struct NameServer {
    asked: Asked,
}

impl NameServer {
    /// Starts one in `place`, at port 53 of both families.
    pub fn start(place: &Place, says: &'static str) -> Self {
        let asked = Asked::default();
        let (udp, tcp) = place
            .run(|| {
                (
                    UdpSocket::bind(("::", PORT)).expect("a socket"),
                    TcpListener::bind(("::", PORT)).expect("a socket"),
                )
            })
            .expect("enter the place");
        let seen = Arc::clone(&asked);
        std::thread::spawn(move || {
            let mut buffer = [0; 65_535];
            while let Ok((length, from)) = udp.recv_from(&mut buffer) {
                let query = buffer[..length].to_vec();
                seen.lock().expect("the list").push((Way::Udp, query.clone()));
                if let Some(reply) = reply(&query, says) {
                    let _gone = udp.send_to(&reply, from);
                }
            }
        });
        let seen = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                let seen = Arc::clone(&seen);
                std::thread::spawn(move || serve(stream, says, &seen));
            }
        });
        Self { asked }
    }

    /// What it was asked for this name, the newest last.
    pub fn asked(&self, of: &str) -> Vec<(Way, Vec<u8>)> {
        let all = self.asked.lock().expect("the list");
        all.iter().filter(|(_, query)| name(query) == of).cloned().collect()
    }
}

fn serve(mut stream: TcpStream, says: &str, seen: &Asked) {
    while let Ok(query) = read(&mut stream) {
        seen.lock().expect("the list").push((Way::Tcp, query.clone()));
        if let Some(reply) = reply(&query, says)
            && write(&mut stream, &reply).is_err()
        {
            return;
        }
    }
}

fn reply(query: &[u8], says: &str) -> Option<Vec<u8>> {
    let (name, mut reply) = (name(query), odd_reply(query, says));
    match name.split('.').next().unwrap_or_default() {
        "never" => return None,
        "slow" => culvert::lab::pause(Duration::from_secs(1)),
        "large" => reply.resize(3000, 0x55),
        "cut" => reply[2] |= 2,
        _ => {}
    }
    Some(reply)
}

/// Asks `server` from `place`, and waits up to `limit` for the reply.
///
/// **Errors**: the socket's; `WouldBlock` or `TimedOut` without a reply.
pub fn ask(place: &Place, server: IpAddr, way: Way, query: &[u8], limit: Duration) -> io::Result<Vec<u8>> {
    ask_at(place, SocketAddr::new(server, PORT), way, query, limit)
}

/// The same at any port.
///
/// **Errors**: as [`ask`].
pub fn ask_at(place: &Place, to: SocketAddr, way: Way, query: &[u8], limit: Duration) -> io::Result<Vec<u8>> {
    let asked = || match way {
        Way::Udp => {
            let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
            let socket = UdpSocket::bind((any, 0))?;
            // As glibc does: an answer from anywhere else is not heard.
            socket.connect(to)?;
            socket.set_read_timeout(Some(limit))?;
            socket.send(query)?;
            let mut buffer = vec![0; 65_535];
            let length = socket.recv(&mut buffer)?;
            buffer.truncate(length);
            Ok(buffer)
        }
        Way::Tcp => {
            let mut stream = TcpStream::connect_timeout(&to, limit)?;
            stream.set_read_timeout(Some(limit))?;
            write(&mut stream, query)?;
            read(&mut stream)
        }
    };
    place.run(asked).map_err(io::Error::other)?
}

/// Asks several queries at once over one connection; the replies in the order they come.
///
/// **Errors**: the socket's.
pub fn ask_all(
    place: &Place,
    server: IpAddr,
    queries: &[Vec<u8>],
    limit: Duration,
) -> io::Result<Vec<Vec<u8>>> {
    let asked = || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(server, PORT), limit)?;
        stream.set_read_timeout(Some(limit))?;
        for query in queries {
            write(&mut stream, query)?;
        }
        queries.iter().map(|_| read(&mut stream)).collect()
    };
    place.run(asked).map_err(io::Error::other)?
}

fn write(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat())
}

fn read(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message)?;
    Ok(message)
}

/// Answers A and AAAA queries for these names over UDP, and everything else with nothing; for as long as the test lives.
pub fn serve_names(place: &Place, names: &[(&str, IpAddr)]) {
    let names: Vec<(String, IpAddr)> = names.iter().map(|(name, ip)| ((*name).to_owned(), *ip)).collect();
    let socket = place.run(|| UdpSocket::bind(("::", PORT)).expect("a socket")).expect("enter the place");
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let query = &buffer[..length];
            // Header, labels with their end, type and class.
            let end = 12 + query[12..].iter().position(|byte| *byte == 0).expect("a name") + 5;
            let kind = u16::from_be_bytes([query[end - 4], query[end - 3]]);
            let asked = name(query);
            let data = |ip: &IpAddr| match (ip, kind) {
                (IpAddr::V4(ip), A) => Some(ip.octets().to_vec()),
                (IpAddr::V6(ip), AAAA) => Some(ip.octets().to_vec()),
                _ => None,
            };
            let found = names.iter().filter(|(of, _)| of.eq_ignore_ascii_case(asked.trim_end_matches('.')));
            let found: Vec<Vec<u8>> = found.filter_map(|(_, ip)| data(ip)).collect();
            let count = u8::try_from(found.len()).expect("few addresses");
            let mut reply =
                [&query[..2], &[0x81, 0x80, 0, 1, 0, count, 0, 0, 0, 0], &query[12..end]].concat();
            for data in found {
                let length = u8::try_from(data.len()).expect("an address");
                let [high, low] = kind.to_be_bytes();
                reply.extend([0xc0, 12, high, low, 0, 1, 0, 0, 0, 1, 0, length]);
                reply.extend(data);
            }
            let _gone = socket.send_to(&reply, from);
        }
    });
}
