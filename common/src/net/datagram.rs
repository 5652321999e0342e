//! UDP sockets of the node agent: those that pods' queries are redirected to, and those that ask on.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;

use socket2::{Domain, Protocol, Socket, Type};

/// Opens a non-blocking UDP socket at `addr`, in the current namespace. What it sends carries `mark`.
///
/// SO_REUSEADDR is never set, and SO_REUSEPORT only when asked for: with them another process of the pod could take the
/// datagrams.
/// Errors: the kernel's; `EADDRINUSE` when something in the namespace has the port, `EADDRNOTAVAIL` without this family.
pub fn bind(addr: SocketAddr, mark: u32, reuse_port: bool) -> io::Result<UdpSocket> {
    let socket = open(addr, mark)?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_port(reuse_port)?;
    socket.bind(&addr.into())?;
    Ok(socket.into())
}

/// Opens a non-blocking UDP socket, in the current namespace, that hears nobody but `to`. The kernel picks its port at
/// random.
///
/// Errors: the kernel's; `ENETUNREACH` without a route.
pub fn connected(to: SocketAddr, mark: u32) -> io::Result<UdpSocket> {
    let socket = open(to, mark)?;
    socket.connect(&to.into())?;
    Ok(socket.into())
}

/// Takes over a UDP socket that another process handed over; both share it from then on.
///
/// Errors: `InvalidInput` when it is no UDP socket that is bound and open to all; else the kernel's.
pub fn adopt(fd: OwnedFd, mark: u32) -> io::Result<UdpSocket> {
    let socket = Socket::from(fd);
    let is_udp = socket.r#type()? == Type::DGRAM && socket.protocol()? == Some(Protocol::UDP);
    if !is_udp || socket.peer_addr().is_ok() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a UDP socket that takes queries"));
    }
    socket.set_nonblocking(true)?;
    socket.set_mark(mark)?;
    Ok(socket.into())
}

fn open(addr: SocketAddr, mark: u32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    socket.set_mark(mark)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};

    use super::*;

    #[test]
    fn sockets_are_bound_connected_and_taken_over() {
        for ip in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
            let server = bind(SocketAddr::new(ip, 0), 0, false).unwrap();
            let addr = server.local_addr().unwrap();
            assert!(bind(addr, 0, false).is_err(), "nobody binds beside it");
            let client = connected(addr, 0).unwrap();
            client.send(b"a").unwrap();
            let heir = adopt(server.try_clone().unwrap().into(), 0).unwrap();
            drop(server);
            let mut bytes = [0; 9];
            let (length, from) = heir.recv_from(&mut bytes).unwrap();
            assert_eq!((length, from), (1, client.local_addr().unwrap()));
            assert!(adopt(client.into(), 0).is_err(), "one that is connected");
        }
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(adopt(tcp.into(), 0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
