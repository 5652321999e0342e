//! The three listening sockets of a pod: taken over from a predecessor, or opened in the pod's namespace.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use culvert_common::net::netns::NetNs;
use culvert_common::net::socket::{self, Keepalive, ListenOptions};
use nix::libc;

use crate::settings::OriginalSource;
use crate::worker::Port;

/// Connections of one listener that wait for being accepted.
const BACKLOG: u32 = 1024;

/// Why a pod cannot be served now.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error("its network namespace is already served for {other}; check the paths of both pods")]
    Shared { other: String },
    #[error("cannot enter its network namespace: {0}; the agent needs CAP_SYS_ADMIN")]
    Enter(io::Error),
    #[error(
        "cannot listen on port {port} in its network namespace: {source}; does another proxy run there? \
         INPOD_PORT_REUSE=true lets this one stand beside it while the node is handed over"
    )]
    Listen { port: u16, source: io::Error },
    #[error(
        "cannot take its DNS queries: {0}; does another DNS server run at the same port in its network namespace?"
    )]
    Dns(io::Error),
    #[error("the kernel does not let sockets take the clients' addresses (ENABLE_ORIG_SRC=true asks for it)")]
    NotTransparent,
    #[error("cannot keep its sockets for a successor: {0}")]
    Copy(io::Error),
}

/// How pods' sockets are made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ListenSettings {
    pub(crate) ipv6: bool,
    pub(crate) mark: u32,
    pub(crate) original_source: OriginalSource,
    pub(crate) keepalive: Option<Keepalive>,
    /// Stand beside another agent's sockets where it has the ports.
    pub(crate) port_reuse: bool,
}

/// A listening socket of a pod.
pub(super) struct Opened {
    pub(super) port: Port,
    pub(super) listener: TcpListener,
    /// A predecessor still accepts from it.
    pub(super) is_inherited: bool,
}

/// Opens all of a pod's sockets; those that `inherited` has are used as they are. The flag says whether the app can see
/// its clients' addresses.
pub(super) fn open(
    netns: &NetNs,
    settings: &ListenSettings,
    mut inherited: impl FnMut(Port) -> Option<OwnedFd>,
) -> Result<(Vec<Opened>, bool), StartError> {
    let mut opened = Vec::with_capacity(Port::ALL.len());
    let mut transparent = true;
    for port in Port::ALL {
        let taken = inherited(port).and_then(|fd| take_over(fd, port, netns, &options(settings, port)));
        let is_inherited = taken.is_some();
        let (listener, can) = match taken {
            Some(taken) => taken,
            None => open_one(netns, settings, port)?,
        };
        transparent &= can;
        opened.push(Opened { port, listener, is_inherited });
    }
    if !transparent && settings.original_source == OriginalSource::True {
        return Err(StartError::NotTransparent);
    }
    Ok((opened, transparent && settings.original_source != OriginalSource::False))
}

/// One of a pod's sockets: for this agent alone, or beside another's where that has the port and it is allowed.
pub(super) fn open_one(
    netns: &NetNs,
    settings: &ListenSettings,
    port: Port,
) -> Result<(TcpListener, bool), StartError> {
    let alone = options(settings, port);
    let beside = ListenOptions { shared: true, ..alone.clone() };
    let opened = netns.run(|| match listen_on(port.number(), settings.ipv6, &alone) {
        Err(taken) if settings.port_reuse && taken.raw_os_error() == Some(libc::EADDRINUSE) => {
            listen_on(port.number(), settings.ipv6, &beside)
        }
        opened => opened,
    });
    let opened = opened.map_err(StartError::Enter)?;
    opened.map_err(|source| StartError::Listen { port: port.number(), source })
}

fn options(settings: &ListenSettings, port: Port) -> ListenOptions {
    ListenOptions {
        mark: Some(settings.mark),
        transparent: settings.original_source != OriginalSource::False,
        ipv6_only: false,
        backlog: BACKLOG,
        keepalive: settings.keepalive,
        nodelay: true,
        // A tunnel's last frames wait in its socket when it closes behind its last stream: never dropped.
        reset_on_drop: port != Port::Hbone,
        shared: false,
    }
}

/// The predecessor's socket, if it is what it is said to be.
fn take_over(fd: OwnedFd, port: Port, netns: &NetNs, options: &ListenOptions) -> Option<(TcpListener, bool)> {
    let checked = NetNs::of_socket(&fd).and_then(|of| {
        if of != *netns {
            return Err(io::Error::other("it is of another network namespace"));
        }
        let (listener, transparent) = socket::adopt(fd, options)?;
        match listener.local_addr()?.port() {
            found if found == port.number() => Ok((listener, transparent)),
            found => Err(io::Error::other(format!("it listens on port {found}"))),
        }
    });
    checked
        .inspect_err(|error| {
            tracing::warn!(port = port.number(), "a predecessor's socket is of no use: {error}")
        })
        .ok()
}

fn listen_on(port: u16, ipv6: bool, options: &ListenOptions) -> io::Result<(TcpListener, bool)> {
    let v4 = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
    if !ipv6 {
        return socket::listen(v4, options);
    }
    match socket::listen(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port), options) {
        // A namespace without IPv6 at all.
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => socket::listen(v4, options),
        other => other,
    }
}
