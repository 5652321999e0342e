//! How connections end: FIN, half-close and RST from either end, with data in flight, through the mesh as without it.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::thread;

use culvert::lab::{Place, Pod, wait_until};
use culvert_tests::mesh::{Mesh, SOON};
use culvert_tests::net::{Acceptor, End, Pattern, connect, read_to_end, reset};

/// Client and server of one row.
type Ends = (TcpStream, TcpStream);
type Scenario = fn(Ends, usize) -> Result<(), String>;

const SIZES: [usize; 4] = [0, 1, 100 << 10, 5 << 20];

/// Sends `len` bytes of a pattern and closes this direction, on a thread.
fn send_all(stream: &TcpStream, seed: u64, len: usize) -> thread::JoinHandle<Result<(), String>> {
    let mut stream = stream.try_clone().unwrap();
    thread::spawn(move || {
        let sent =
            stream.write_all(&Pattern::bytes(seed, len)).and_then(|()| stream.shutdown(Shutdown::Write));
        sent.map_err(|e| format!("sending broke off: {e}"))
    })
}

fn expect_all(who: &str, stream: &mut TcpStream, seed: u64, len: usize) -> Result<(), String> {
    let (bytes, end) = read_to_end(stream);
    if end != End::Fin || bytes != Pattern::bytes(seed, len) {
        return Err(format!("the {who} read {} of {len} bytes, then {end:?}", bytes.len()));
    }
    Ok(())
}

/// Reads a true prefix and then a reset.
fn expect_reset(who: &str, stream: &mut TcpStream, seed: u64, len: usize) -> Result<(), String> {
    let (bytes, end) = read_to_end(stream);
    if end != End::Reset || !Pattern::bytes(seed, len).starts_with(&bytes) {
        return Err(format!("the {who} read {} of {len} bytes, then {end:?}", bytes.len()));
    }
    Ok(())
}

fn joined(thread: thread::JoinHandle<Result<(), String>>) -> Result<(), String> {
    thread.join().map_err(|_| "panicked".to_owned())?
}

/// The client closes its direction first; the server answers afterwards.
fn client_half_closes((mut client, mut server): Ends, len: usize) -> Result<(), String> {
    let sending = send_all(&client, 1, len);
    expect_all("server", &mut server, 1, len)?;
    joined(sending)?;
    let answering = send_all(&server, 2, len);
    expect_all("client", &mut client, 2, len)?;
    joined(answering)
}

/// The server closes its direction first; the client goes on sending.
fn server_half_closes((mut client, mut server): Ends, len: usize) -> Result<(), String> {
    let sending = send_all(&server, 1, len);
    expect_all("client", &mut client, 1, len)?;
    joined(sending)?;
    let answering = send_all(&client, 2, len);
    expect_all("server", &mut server, 2, len)?;
    joined(answering)
}

/// Both send and close at the same time.
fn both_close((mut client, mut server): Ends, len: usize) -> Result<(), String> {
    let sending = [send_all(&client, 1, len), send_all(&server, 2, len)];
    let reading = thread::spawn(move || expect_all("client", &mut client, 2, len));
    expect_all("server", &mut server, 1, len)?;
    joined(reading)?;
    sending.into_iter().try_for_each(joined)
}

/// The client closes for good what it has written: the bytes arrive all the same.
fn client_closes((client, mut server): Ends, len: usize) -> Result<(), String> {
    let sending = send_all(&client, 1, len);
    drop(client);
    expect_all("server", &mut server, 1, len)?;
    joined(sending)
}

fn server_closes((mut client, server): Ends, len: usize) -> Result<(), String> {
    let sending = send_all(&server, 1, len);
    drop(server);
    expect_all("client", &mut client, 1, len)?;
    joined(sending)
}

/// The client resets with its bytes on the way.
fn client_resets((mut client, mut server): Ends, len: usize) -> Result<(), String> {
    let reading = thread::spawn(move || expect_reset("server", &mut server, 1, len));
    let sent = client.write_all(&Pattern::bytes(1, len));
    reset(client);
    joined(reading)?;
    sent.map_err(|e| e.to_string())
}

fn server_resets((mut client, mut server): Ends, len: usize) -> Result<(), String> {
    let reading = thread::spawn(move || expect_reset("client", &mut client, 1, len));
    let sent = server.write_all(&Pattern::bytes(1, len));
    reset(server);
    joined(reading)?;
    sent.map_err(|e| e.to_string())
}

/// A reset after the other direction has closed in order.
fn server_resets_after_half_close((mut client, mut server): Ends, len: usize) -> Result<(), String> {
    joined(send_all(&client, 1, 10))?;
    expect_all("server", &mut server, 1, 10)?;
    server_resets_now(&mut client, server, len)
}

fn server_resets_now(client: &mut TcpStream, mut server: TcpStream, len: usize) -> Result<(), String> {
    let mut reader = client.try_clone().unwrap();
    let reading = thread::spawn(move || expect_reset("client", &mut reader, 2, len));
    let sent = server.write_all(&Pattern::bytes(2, len));
    reset(server);
    joined(reading)?;
    sent.map_err(|e| e.to_string())
}

fn client_resets_after_half_close((mut client, mut server): Ends, len: usize) -> Result<(), String> {
    joined(send_all(&server, 1, 10))?;
    expect_all("client", &mut client, 1, 10)?;
    let reading = thread::spawn(move || expect_reset("server", &mut server, 2, len));
    let sent = client.write_all(&Pattern::bytes(2, len));
    reset(client);
    joined(reading)?;
    sent.map_err(|e| e.to_string())
}

/// The server leaves without reading what has arrived: the kernel resets, and the client's next writes fail.
fn server_leaves_unread((mut client, server): Ends, _len: usize) -> Result<(), String> {
    client.write_all(&Pattern::bytes(1, 1000)).map_err(|e| e.to_string())?;
    let mut first = [0];
    server.peek(&mut first).map_err(|e| e.to_string())?;
    drop(server);
    expect_reset("client", &mut client, 1, 0)
}

/// The client leaves in the middle of a download; the server's writes come to fail.
fn client_leaves_unread((mut client, mut server): Ends, _len: usize) -> Result<(), String> {
    let sending = thread::spawn(move || {
        let piece = vec![7; 64 << 10];
        // More than all buffers on the way take: only a failing write ends it.
        (0..4096).find_map(|_| server.write_all(&piece).err()).map(|e| End::of(&e))
    });
    client.read_exact(&mut [0; 1000]).map_err(|e| e.to_string())?;
    drop(client);
    match sending.join() {
        Ok(Some(End::Reset)) => Ok(()),
        other => Err(format!("the server's writes ended with {other:?}")),
    }
}

/// The server does not read, the client has filled all buffers on the way, then resets: the server hears of it all the
/// same, without reading.
fn client_resets_while_stopped((client, server): Ends, _len: usize) -> Result<(), String> {
    fill(&client);
    reset(client);
    heard(&server)
}

fn server_resets_while_stopped((client, server): Ends, _len: usize) -> Result<(), String> {
    fill(&server);
    reset(server);
    heard(&client)
}

/// Writes until nothing more is taken; returns how much was.
fn fill(stream: &TcpStream) -> usize {
    use std::io::ErrorKind::WouldBlock;
    stream.set_nonblocking(true).unwrap();
    let (mut quiet, mut taken) = (0, 0);
    while quiet < 30 {
        match (&mut &*stream).write(&[7; 64 << 10]) {
            Ok(n) => (quiet, taken) = (0, taken + n),
            Err(e) if e.kind() == WouldBlock => {
                quiet += 1;
                culvert::lab::pause(std::time::Duration::from_millis(10));
            }
            Err(e) => panic!("filling: {e}"),
        }
    }
    stream.set_nonblocking(false).unwrap();
    taken
}

/// The server does not read, the client has filled all buffers on the way, then closes: the server, when it reads at
/// last, gets every byte and then the end; the other direction works meanwhile.
fn client_closes_while_stopped((client, server): Ends, _len: usize) -> Result<(), String> {
    closes_while_stopped(client, server)
}

fn server_closes_while_stopped((client, server): Ends, _len: usize) -> Result<(), String> {
    closes_while_stopped(server, client)
}

fn closes_while_stopped(mut closes: TcpStream, mut stopped: TcpStream) -> Result<(), String> {
    let taken = fill(&closes);
    closes.shutdown(Shutdown::Write).map_err(|e| e.to_string())?;
    stopped.write_all(b"back").map_err(|e| e.to_string())?;
    closes.read_exact(&mut [0; 4]).map_err(|e| format!("the other direction: {e}"))?;
    let (bytes, end) = read_to_end(&mut stopped);
    if end != End::Fin || bytes.len() != taken || bytes.iter().any(|b| *b != 7) {
        return Err(format!("{} of {taken} bytes, then {end:?}", bytes.len()));
    }
    Ok(())
}

/// The kernel knows that the connection was reset.
fn heard(stream: &TcpStream) -> Result<(), String> {
    let mut last = None;
    let look = || {
        last = stream.take_error().ok().flatten();
        last.as_ref().map(|e| End::of(e) == End::Reset)
    };
    match wait_until("the other end hears of the reset", SOON, look, || "no error".to_owned()) {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!("{last:?}")),
        Err(e) => Err(e.to_string()),
    }
}

const ORDERLY_AND_RESETS: [(&str, Scenario); 9] = [
    ("client half-closes", client_half_closes),
    ("server half-closes", server_half_closes),
    ("both close", both_close),
    ("client closes", client_closes),
    ("server closes", server_closes),
    ("client resets", client_resets),
    ("server resets", server_resets),
    ("server resets after half-close", server_resets_after_half_close),
    ("client resets after half-close", client_resets_after_half_close),
];

const WITHOUT_SIZE: [(&str, Scenario); 6] = [
    ("server leaves unread", server_leaves_unread),
    ("client leaves unread", client_leaves_unread),
    ("client closes while stopped", client_closes_while_stopped),
    ("server closes while stopped", server_closes_while_stopped),
    ("client resets while stopped", client_resets_while_stopped),
    ("server resets while stopped", server_resets_while_stopped),
];

#[test]
fn every_end_crosses_as_without_a_mesh() {
    let mut mesh = Mesh::new();
    let (client_in, client_out) = (mesh.captured("a", "client-in"), mesh.outside("a", "client-out"));
    let (server_in, server_out) = (mesh.captured("b", "server-in"), mesh.outside("b", "server-out"));
    mesh.start(&[]);
    let routes: [(&str, &Pod, &Pod, IpAddr); 5] = [
        ("direct", &client_out, &server_out, server_out.v4.into()),
        ("tunnel v4", &client_in, &server_in, server_in.v4.into()),
        ("tunnel v6", &client_in, &server_in, server_in.v6.into()),
        ("plain in", &client_out, &server_in, server_in.v4.into()),
        ("plain out", &client_in, &server_out, server_out.v4.into()),
    ];
    let mut wrong = Vec::new();
    for (port, (route, client, server, to)) in (9000..).zip(routes) {
        let acceptor = Acceptor::new(server, (to, port));
        let mut row = |name: &str, scenario: Scenario, len: usize| {
            if let Err(error) = scenario(acceptor.pair(client), len) {
                wrong.push(format!("{route}, {name}, {len} bytes: {error}"));
            }
        };
        for (name, scenario) in ORDERLY_AND_RESETS {
            SIZES.iter().for_each(|len| row(name, scenario, *len));
        }
        WITHOUT_SIZE.iter().for_each(|(name, scenario)| row(name, *scenario, 0));
        if let Err(error) = refused(client, to, route == "direct") {
            wrong.push(format!("{route}, refused: {error}"));
        }
    }
    assert!(wrong.is_empty(), "{} rows failed:\n{}", wrong.len(), wrong.join("\n"));
    mesh.finish();
}

/// Nobody listens: without a mesh `connect` fails, through one the connection is reset after it.
fn refused(from: &Place, to: IpAddr, direct: bool) -> Result<(), String> {
    match connect(from, (to, 9)) {
        Err(e) if direct && e.kind() == std::io::ErrorKind::ConnectionRefused => Ok(()),
        Ok(mut stream) if !direct => expect_reset("client", &mut stream, 1, 0),
        // The reset can be quicker than the client's own return from `connect`.
        Err(e) if !direct && End::of(&e) == End::Reset => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

/// The byte that was sent as urgent arrives, in its place among the others; that it was urgent is lost on the way.
#[test]
fn urgent_bytes_stay_in_the_stream() {
    let mut mesh = Mesh::new();
    let (client_in, client_out) = (mesh.captured("a", "client-in"), mesh.outside("a", "client-out"));
    let server = mesh.captured("b", "server");
    mesh.start(&[]);
    for (port, client, to) in [
        (9000, &client_in, server.v4.into()),
        (9001, &client_in, server.v6.into()),
        (9002, &client_out, server.v4.into()),
    ] {
        let acceptor = Acceptor::new(&server, (to, port));
        let (client, mut server) = acceptor.pair(client);
        let socket = socket2::SockRef::from(&client);
        socket.send(b"before ").unwrap();
        socket.send_out_of_band(b"!").unwrap();
        socket.send(b" behind").unwrap();
        drop(client);
        assert_eq!(read_to_end(&mut server), (b"before ! behind".to_vec(), End::Fin), "to {to}:{port}");
        assert!(
            !socket2::SockRef::from(&server).out_of_band_inline().unwrap(),
            "the app itself asked for nothing"
        );
    }
    mesh.finish();
}
