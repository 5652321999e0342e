//! A pod's DNS sockets: taken over from a predecessor, or opened in the pod's namespace.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;

use culvert_common::net::datagram;
use culvert_common::net::netns::NetNs;
use culvert_common::net::socket::{self, ListenOptions};
use nix::libc;

/// Connections that wait for being accepted.
const BACKLOG: u32 = 128;

/// A socket that takes a pod's queries.
#[derive(Debug)]
pub(crate) enum DnsSocket {
    Udp(UdpSocket),
    Tcp(TcpListener),
}

/// Which of a pod's DNS sockets: the text between two agents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Udp4,
    Udp6,
    Tcp4,
    Tcp6,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Udp4, Self::Udp6, Self::Tcp4, Self::Tcp6];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Udp4 => "udp4",
            Self::Udp6 => "udp6",
            Self::Tcp4 => "tcp4",
            Self::Tcp6 => "tcp6",
        }
    }

    fn of(addr: SocketAddr) -> [Self; 2] {
        if addr.is_ipv4() { [Self::Udp4, Self::Tcp4] } else { [Self::Udp6, Self::Tcp6] }
    }
}

impl DnsSocket {
    /// Whether others may stand beside it.
    pub(crate) fn is_shared(&self) -> bool {
        let shared = match self {
            Self::Udp(socket) => socket::is_shared(socket),
            Self::Tcp(listener) => socket::is_shared(listener),
        };
        shared.unwrap_or(false)
    }

    /// A copy for a successor.
    pub(crate) fn copy(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Udp(socket) => socket.try_clone().map(Into::into),
            Self::Tcp(listener) => listener.try_clone().map(Into::into),
        }
    }

    /// Where it takes queries.
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Udp(socket) => socket.local_addr(),
            Self::Tcp(listener) => listener.local_addr(),
        }
    }
}

/// Opens the sockets at `addresses`; those that `inherited` has are used as they are, and told by the flag. An address of
/// a family that the namespace does not have is left out.
///
/// **Errors**: the namespace cannot be entered, or something in it has the port.
pub(crate) fn open(
    netns: &NetNs,
    addresses: &[SocketAddr],
    (mark, reuse): (u32, bool),
    mut inherited: impl FnMut(Kind) -> Option<OwnedFd>,
) -> io::Result<Vec<(Kind, DnsSocket, bool)>> {
    let options = options(mark);
    let mut opened = Vec::with_capacity(Kind::ALL.len());
    for &addr in addresses {
        for kind in Kind::of(addr) {
            let taken = inherited(kind).and_then(|fd| take_over(fd, kind, (netns, addr), &options));
            if let Some(taken) = taken {
                opened.push((kind, taken, true));
                continue;
            }
            match open_one(netns, addr, kind, (mark, reuse)) {
                Ok(made) => opened.push((kind, made, false)),
                Err(error) if addr.is_ipv6() && is_missing(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(opened)
}

/// One of a pod's sockets: for this agent alone, or beside another's where that has the port and it is allowed.
///
/// **Errors**: as [`open`]'s, and a family that is not there.
pub(crate) fn open_one(
    netns: &NetNs,
    addr: SocketAddr,
    kind: Kind,
    (mark, reuse): (u32, bool),
) -> io::Result<DnsSocket> {
    let listen = |shared| {
        netns.run(|| match kind {
            Kind::Udp4 | Kind::Udp6 => datagram::bind(addr, mark, shared).map(DnsSocket::Udp),
            Kind::Tcp4 | Kind::Tcp6 => {
                let options = ListenOptions { ipv6_only: true, shared, ..options(mark) };
                socket::listen(addr, &options).map(|(listener, _)| DnsSocket::Tcp(listener))
            }
        })
    };
    match listen(false)? {
        Err(error) if reuse && error.kind() == io::ErrorKind::AddrInUse => listen(true)?,
        made => made,
    }
}

/// Whether no other socket of the namespace is at this address.
pub(crate) fn is_alone(netns: &NetNs, addr: SocketAddr, kind: Kind) -> bool {
    let count = netns.run(|| match kind {
        Kind::Udp4 | Kind::Udp6 => socket::datagram_sockets_on(addr),
        Kind::Tcp4 | Kind::Tcp6 => socket::listeners_of(addr),
    });
    count.and_then(|count| count).is_ok_and(|count| count <= 1)
}

fn options(mark: u32) -> ListenOptions {
    ListenOptions { mark: Some(mark), backlog: BACKLOG, nodelay: true, ..ListenOptions::default() }
}

/// No IPv6 in the kernel, or not on the loopback interface.
fn is_missing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// The predecessor's socket, if it is what it is said to be.
fn take_over(
    fd: OwnedFd,
    kind: Kind,
    (netns, addr): (&NetNs, SocketAddr),
    options: &ListenOptions,
) -> Option<DnsSocket> {
    let checked = NetNs::of_socket(&fd).and_then(|of| {
        if of != *netns {
            return Err(io::Error::other("it is of another network namespace"));
        }
        let mark = options.mark.unwrap_or_default();
        let socket = match kind {
            Kind::Udp4 | Kind::Udp6 => datagram::adopt(fd, mark).map(DnsSocket::Udp)?,
            Kind::Tcp4 | Kind::Tcp6 => DnsSocket::Tcp(socket::adopt(fd, options)?.0),
        };
        match socket.local_addr()? {
            found if found == addr => Ok(socket),
            found => Err(io::Error::other(format!("it is at {found}, not {addr}"))),
        }
    });
    checked
        .inspect_err(|error| {
            tracing::warn!(kind = kind.as_str(), "a predecessor's DNS socket is of no use: {error}")
        })
        .ok()
}
