use super::*;
use std::io::Read;
use std::net::{Ipv4Addr, Ipv6Addr};

const MARK: u32 = 0x539;

fn all_options() -> ListenOptions {
    ListenOptions {
        mark: Some(MARK),
        transparent: true,
        keepalive: Some(Keepalive {
            time: Duration::from_secs(91),
            interval: Duration::from_secs(17),
            retries: 4,
            user_timeout: true,
        }),
        nodelay: true,
        reset_on_drop: true,
        ..ListenOptions::default()
    }
}

/// A listener on a free port and its address.
fn listener(ip: IpAddr, options: &ListenOptions) -> (TcpListener, SocketAddr) {
    let (listener, _) = listen(SocketAddr::new(ip, 0), options).unwrap();
    listener.set_nonblocking(false).unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

#[test]
fn accepted_sockets_inherit_what_the_listener_has() {
    let (listener, addr) = listener(Ipv6Addr::UNSPECIFIED.into(), &all_options());
    for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        let _client = std::net::TcpStream::connect((ip, addr.port())).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let accepted = SockRef::from(&accepted);
        assert_eq!(accepted.mark().expect("SO_MARK: this test needs root"), MARK);
        assert_eq!(accepted.linger().unwrap(), Some(Duration::ZERO));
        assert!(accepted.tcp_nodelay().unwrap());
        assert!(accepted.keepalive().unwrap());
        assert_eq!(accepted.tcp_keepalive_time().unwrap(), Duration::from_secs(91));
        assert_eq!(accepted.tcp_keepalive_interval().unwrap(), Duration::from_secs(17));
        assert_eq!(accepted.tcp_keepalive_retries().unwrap(), 4);
        assert_eq!(accepted.tcp_user_timeout().unwrap(), Some(Duration::from_secs(91 + 4 * 17)));
        assert!(accepted.ip_transparent_v6().unwrap());
    }
}

#[test]
fn the_listener_reports_transparency() {
    let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
    assert!(listen(any, &all_options()).unwrap().1, "IP_TRANSPARENT: this test needs root");
    assert!(!listen(any, &ListenOptions::default()).unwrap().1);
}

#[test]
fn dropping_resets_only_when_asked() {
    for (clear, want) in [(false, Err(io::ErrorKind::ConnectionReset)), (true, Ok(0))] {
        let (listener, addr) = listener(Ipv4Addr::LOCALHOST.into(), &all_options());
        let mut client = std::net::TcpStream::connect(addr).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        if clear {
            set_reset_on_drop(&accepted, false).unwrap();
        }
        drop(accepted);
        assert_eq!(client.read(&mut [0; 8]).map_err(|e| e.kind()), want, "cleared: {clear}");
    }
}

#[test]
fn without_redirection_the_original_destination_is_the_local_address() {
    let (listener, addr) = listener(Ipv6Addr::UNSPECIFIED.into(), &ListenOptions::default());
    for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        let to = SocketAddr::new(ip, addr.port());
        let _client = std::net::TcpStream::connect(to).unwrap();
        let (accepted, peer) = listener.accept().unwrap();
        assert_eq!(original_destination(&accepted, peer).unwrap(), to);
    }
}

#[test]
fn a_second_listener_is_refused() {
    let (_first, addr) = listener(Ipv6Addr::UNSPECIFIED.into(), &ListenOptions::default());
    let second = listen(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), addr.port()), &ListenOptions::default());
    assert_eq!(second.unwrap_err().kind(), io::ErrorKind::AddrInUse);
}

#[test]
fn source_and_destination_must_be_of_one_family() {
    let options = DialOptions { source: Some((Ipv6Addr::LOCALHOST, 0).into()), ..DialOptions::default() };
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
    assert_eq!(dial_socket(to, &options).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    // The mapped form is IPv4 and therefore fits.
    let mapped = (Ipv4Addr::LOCALHOST.to_ipv6_mapped(), 0);
    let options = DialOptions { source: Some(mapped.into()), ..DialOptions::default() };
    dial_socket(to, &options).unwrap();
}

/// Several connections leave from one port, to other places; a four-tuple in use is told apart from a refusal.
#[tokio::test]
async fn a_source_port_is_taken_per_destination() {
    let from = SocketAddr::from(([127, 0, 0, 77], 61_234));
    let options = DialOptions { source: Some(from), ..DialOptions::default() };
    let listeners = [(); 2].map(|()| listener(Ipv4Addr::LOCALHOST.into(), &ListenOptions::default()));
    let dial = async |to| connect(dial_socket(to, &options).unwrap(), to, Duration::from_secs(5)).await;
    let mut open = Vec::new();
    for (listener, to) in &listeners {
        open.push(dial(*to).await.unwrap());
        assert_eq!(listener.accept().unwrap().1, from);
    }
    let Err(ConnectError::Io { source, .. }) = dial(listeners[0].1).await else {
        panic!("two of one four-tuple")
    };
    assert_eq!(source.kind(), io::ErrorKind::AddrNotAvailable);
}

#[tokio::test]
async fn connecting_carries_options_and_source() {
    let (listener, addr) = listener(Ipv4Addr::UNSPECIFIED.into(), &ListenOptions::default());
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, addr.port()));
    let source = IpAddr::from([127, 0, 0, 77]);
    let options = DialOptions {
        mark: Some(MARK),
        source: Some((source, 0).into()),
        nodelay: true,
        keepalive: None,
        reset_on_drop: true,
    };
    let socket = dial_socket(to, &options).unwrap();
    let stream = connect(socket, to, Duration::from_secs(5)).await.unwrap();
    let (_accepted, peer) = listener.accept().unwrap();
    assert_eq!(peer.ip(), source);
    assert_eq!(stream.local_addr().unwrap(), peer);
    assert_eq!(SockRef::from(&stream).mark().unwrap(), MARK);
    assert_eq!(SockRef::from(&stream).linger().unwrap(), Some(Duration::ZERO));
}

#[tokio::test]
async fn a_refused_connection_says_so() {
    let (gone, addr) = listener(Ipv4Addr::LOCALHOST.into(), &ListenOptions::default());
    drop(gone);
    let socket = dial_socket(addr, &DialOptions::default()).unwrap();
    match connect(socket, addr, Duration::from_secs(5)).await {
        Err(ConnectError::Io { to, source }) => {
            assert_eq!((to, source.kind()), (addr, io::ErrorKind::ConnectionRefused));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn silence_is_a_timeout() {
    // A listener whose queue is full answers no further SYN.
    let options = ListenOptions { backlog: 0, ..ListenOptions::default() };
    let (_listener, addr) = listener(Ipv4Addr::LOCALHOST.into(), &options);
    let limit = Duration::from_secs(3);
    let mut held = Vec::new();
    for _ in 0..8 {
        let socket = dial_socket(addr, &DialOptions::default()).unwrap();
        match connect(socket, addr, limit).await {
            Ok(stream) => held.push(stream),
            Err(error) => {
                assert_eq!(error.to_string(), ConnectError::Timeout { to: addr, limit }.to_string());
                return;
            }
        }
    }
    panic!("{} connections to a full queue", held.len());
}

#[tokio::test]
async fn a_late_answer_is_waited_for() {
    let options = ListenOptions { backlog: 0, ..ListenOptions::default() };
    let (listener, addr) = listener(Ipv4Addr::LOCALHOST.into(), &options);
    let _first = std::net::TcpStream::connect(addr).unwrap();
    // The queue is full now. The kernel tries again after a second, when there is room.
    let socket = dial_socket(addr, &DialOptions::default()).unwrap();
    let waiting = connect(socket, addr, Duration::from_secs(10));
    let accepting = async {
        tokio::task::yield_now().await;
        listener.accept().unwrap()
    };
    let (stream, first) = tokio::join!(waiting, accepting);
    let stream = stream.unwrap();
    let (_second, peer) = listener.accept().unwrap();
    assert_eq!(stream.local_addr().unwrap(), peer);
    assert_ne!(first.1, peer);
}

#[test]
fn an_adopted_listener_goes_on_with_its_queue() {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let (first, _) = listen(any, &ListenOptions::default()).unwrap();
    let heirloom = first.try_clone().unwrap();
    // Waits to be accepted while the listener changes hands.
    let client = std::net::TcpStream::connect(first.local_addr().unwrap()).unwrap();
    drop(first);
    let options = ListenOptions { nodelay: true, ..ListenOptions::default() };
    let (second, transparent) = adopt(heirloom.into(), &options).unwrap();
    let (_waited, peer) = second.accept().unwrap();
    assert!(!transparent);
    assert_eq!(peer, client.local_addr().unwrap());
    // The options are those of connections from now on.
    let later = std::net::TcpStream::connect(second.local_addr().unwrap()).unwrap();
    let (accepted, peer) = second.accept().unwrap();
    assert_eq!((peer, accepted.nodelay().unwrap()), (later.local_addr().unwrap(), true));
    let refused: [OwnedFd; 3] = [
        client.into(),
        std::net::UdpSocket::bind(any).unwrap().into(),
        std::fs::File::open("/dev/null").unwrap().into(),
    ];
    for fd in refused {
        assert!(adopt(fd, &options).is_err());
    }
}
