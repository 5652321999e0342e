//! TCP sockets with the options a node agent needs: mark, transparency, the client's source address, resets.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::TcpStream;

use super::sys;

/// TCP keepalive: first probe after `time` of silence, then each `interval`; the peer is given up after `retries` probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// TCP_KEEPIDLE; in whole seconds, a rest is cut off.
    pub time: Duration,
    /// TCP_KEEPINTVL; in whole seconds, a rest is cut off.
    pub interval: Duration,
    /// TCP_KEEPCNT.
    pub retries: u32,
    /// Give the peer up after the same time when it does not acknowledge data (TCP_USER_TIMEOUT).
    pub user_timeout: bool,
}

impl Keepalive {
    fn total(&self) -> Duration {
        self.time.saturating_add(self.interval.saturating_mul(self.retries))
    }
}

/// How a listening socket is made. Accepted sockets inherit mark, transparency, `nodelay`, `keepalive` and
/// `reset_on_drop` from it, so that they need no system call of their own.
#[derive(Clone, Debug)]
pub struct ListenOptions {
    /// SO_MARK; needs CAP_NET_ADMIN.
    pub mark: Option<u32>,
    /// Ask for IP_TRANSPARENT. Best effort: [`listen`] says whether it worked.
    pub transparent: bool,
    /// On a `[::]` address: leave IPv4 alone. Otherwise the socket takes both families.
    pub ipv6_only: bool,
    /// Connections the kernel completes before they are accepted; the system's `somaxconn` caps it.
    pub backlog: u32,
    /// None: no keepalive.
    pub keepalive: Option<Keepalive>,
    /// TCP_NODELAY: small writes go out at once.
    pub nodelay: bool,
    /// SO_LINGER(1, 0): a socket dropped before its orderly close sends a reset, also when the process is killed.
    pub reset_on_drop: bool,
    /// SO_REUSEPORT: sockets of other processes of this user may stand beside this one, and get a share of the connections.
    pub shared: bool,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self {
            mark: None,
            transparent: false,
            ipv6_only: false,
            backlog: 1024,
            keepalive: None,
            nodelay: false,
            reset_on_drop: false,
            shared: false,
        }
    }
}

/// Opens a non-blocking listening socket in the current namespace. The flag says whether it is transparent, that is
/// whether sockets in this namespace may take foreign source addresses ([`DialOptions::source`]).
///
/// SO_REUSEADDR is set (a restart must not wait for old connections), SO_REUSEPORT only if asked for: with it, any root
/// process in the pod can bind beside this socket and take a share of the connections.
///
/// Errors: the kernel's; `EADDRINUSE` when something in the namespace has the port.
pub fn listen(addr: SocketAddr, options: &ListenOptions) -> io::Result<(TcpListener, bool)> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if options.shared {
        socket.set_reuse_port(true)?;
    }
    if addr.is_ipv6() {
        socket.set_only_v6(options.ipv6_only)?;
    }
    apply(&socket, options.mark, options.keepalive, options.nodelay, options.reset_on_drop)?;
    let transparent =
        options.transparent && set_transparent(&socket, addr.is_ipv6(), !options.ipv6_only).is_ok();
    socket.bind(&addr.into())?;
    socket.listen(i32::try_from(options.backlog).unwrap_or(i32::MAX))?;
    Ok((socket.into(), transparent))
}

/// Whether other sockets may stand beside this one (SO_REUSEPORT).
///
/// Errors: the kernel's.
pub fn is_shared(socket: impl AsFd) -> io::Result<bool> {
    SockRef::from(&socket).reuse_port()
}

/// Lets others stand beside a listening socket from now on. For good: taking the option back does not close the port to
/// them, so that the socket has to be opened anew for that.
///
/// Errors: the kernel's.
pub fn share(socket: impl AsFd) -> io::Result<()> {
    SockRef::from(&socket).set_reuse_port(true)
}

/// How many sockets of the current network namespace listen on a TCP port, in both families.
///
/// Errors: `/proc` is not there or cannot be read.
pub fn listeners_on(port: u16) -> io::Result<usize> {
    let mut count = 0;
    for any in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
        match listeners_of(SocketAddr::new(any, port)) {
            Ok(found) => count += found,
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound && any.is_ipv6() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

/// The same in the family of `addr` only.
///
/// Errors: as [`listeners_on`]'s.
pub fn listeners_of(addr: SocketAddr) -> io::Result<usize> {
    let file = if addr.is_ipv4() { "/proc/thread-self/net/tcp" } else { "/proc/thread-self/net/tcp6" };
    let table = std::fs::read_to_string(file)?;
    Ok(table.lines().filter(|line| listens_on(line, addr.port())).count())
}

/// How many sockets of the current network namespace are bound to a UDP port, in the family of `addr`.
///
/// Errors: `/proc` is not there or cannot be read.
pub fn datagram_sockets_on(addr: SocketAddr) -> io::Result<usize> {
    let file = if addr.is_ipv4() { "/proc/thread-self/net/udp" } else { "/proc/thread-self/net/udp6" };
    let table = std::fs::read_to_string(file)?;
    Ok(table.lines().filter(|line| local_port(line) == Some(addr.port())).count())
}

/// Whether a line of the kernel's table (`sl local_address rem_address st …`) is of a socket that listens on `port`.
fn listens_on(line: &str, port: u16) -> bool {
    /// TCP_LISTEN, as it is written there.
    const LISTEN: &str = "0A";
    local_port(line) == Some(port) && line.split_ascii_whitespace().nth(3) == Some(LISTEN)
}

fn local_port(line: &str) -> Option<u16> {
    let (_, hex) = line.split_ascii_whitespace().nth(1)?.rsplit_once(':')?;
    u16::from_str_radix(hex, 16).ok()
}

/// Takes over a listening socket that another process handed over, and gives it `options`; both processes share them.
/// The flag is that of [`listen`]. What is bound stays as it is, and so does what waits to be accepted.
///
/// Errors: `InvalidInput` when it is no listening TCP socket; else the kernel's.
pub fn adopt(fd: OwnedFd, options: &ListenOptions) -> io::Result<(TcpListener, bool)> {
    let socket = Socket::from(fd);
    let is_tcp = socket.r#type()? == Type::STREAM && socket.protocol()? == Some(Protocol::TCP);
    if !is_tcp || !socket.is_listener()? {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a listening TCP socket"));
    }
    socket.set_nonblocking(true)?;
    apply(&socket, options.mark, options.keepalive, options.nodelay, options.reset_on_drop)?;
    let is_ipv6 = socket.local_addr()?.is_ipv6();
    let transparent = options.transparent && set_transparent(&socket, is_ipv6, !options.ipv6_only).is_ok();
    Ok((socket.into(), transparent))
}

/// Where the connection of `peer` was going before a rule redirected it, or the local address when none did.
///
/// Shape: never an IPv4-mapped IPv6 address.
/// Errors: the kernel's, for instance when the peer is gone already.
pub fn original_destination(fd: impl AsFd, peer: SocketAddr) -> io::Result<SocketAddr> {
    // By family, rather than IPv4 first as usual: for an IPv6 socket the IPv4 look-up uses a made-up address, and might
    // find a connection that has nothing to do with it.
    let found = if canonical(peer).is_ipv4() {
        getsockopt(&fd, sockopt::OriginalDst).map(|found| {
            let ip = u32::from_be(found.sin_addr.s_addr);
            SocketAddr::V4(SocketAddrV4::new(ip.into(), u16::from_be(found.sin_port)))
        })
    } else {
        getsockopt(&fd, sockopt::Ip6tOriginalDst).map(|found| {
            let (ip, port) = (found.sin6_addr.s6_addr, u16::from_be(found.sin6_port));
            SocketAddr::V6(SocketAddrV6::new(ip.into(), port, 0, found.sin6_scope_id))
        })
    };
    match found {
        Ok(addr) => Ok(canonical(addr)),
        // Not tracked, or no connection tracking in this kernel: then nothing redirected it.
        Err(Errno::ENOENT | Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => {
            let local = SockRef::from(&fd).local_addr()?.as_socket();
            Ok(canonical(local.ok_or(io::ErrorKind::InvalidInput)?))
        }
        Err(errno) => Err(errno.into()),
    }
}

/// How a connection is opened.
#[derive(Clone, Debug, Default)]
pub struct DialOptions {
    /// SO_MARK; needs CAP_NET_ADMIN.
    pub mark: Option<u32>,
    /// Source address, which need not be one of this machine's (IP_TRANSPARENT); port 0: the kernel picks one.
    pub source: Option<SocketAddr>,
    /// TCP_NODELAY: small writes go out at once.
    pub nodelay: bool,
    /// None: no keepalive.
    pub keepalive: Option<Keepalive>,
    /// SO_LINGER(1, 0), see [`ListenOptions::reset_on_drop`].
    pub reset_on_drop: bool,
}

/// Creates, in the current namespace, a non-blocking socket that [`connect`] then connects to `to`.
///
/// Errors: `InvalidInput` when `source` and `to` are of different families; `PermissionDenied` for a foreign source or a
/// mark without CAP_NET_ADMIN; `AddrInUse` for a source port that another socket has, unless both only dial.
pub fn dial_socket(to: SocketAddr, options: &DialOptions) -> io::Result<Socket> {
    let to = canonical(to);
    let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    apply(&socket, options.mark, options.keepalive, options.nodelay, options.reset_on_drop)?;
    let Some(source) = options.source.map(canonical) else { return Ok(socket) };
    if source.is_ipv4() != to.is_ipv4() {
        let seen = format!("source {source} and destination {to} are of different families");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, seen));
    }
    // A transparent socket may bind to what is no address of this machine, without IP_FREEBIND.
    set_transparent(&socket, to.is_ipv6(), false)?;
    if source.port() == 0 {
        // The port is chosen in connect(), per four-tuple: at bind() time it would be taken for all destinations, and
        // one busy client would run out of 28,000 ports.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
    } else {
        // Others may dial from the same port elsewhere; a four-tuple that is in use is refused by connect().
        socket.set_reuse_address(true)?;
    }
    socket.bind(&source.into())?;
    Ok(socket)
}

/// Why a connection could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nothing answered in time.
    #[error(
        "no answer from {to} within {limit:?}: check that it is up and that no NetworkPolicy drops the port"
    )]
    Timeout {
        /// The destination.
        to: SocketAddr,
        /// How long was waited.
        limit: Duration,
    },
    /// The kernel or the peer refused.
    #[error("connecting to {to}: {source}")]
    Io {
        /// The destination.
        to: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Connects a socket of [`dial_socket`] on the current runtime.
///
/// Cancel safety: dropping the future closes the socket.
/// Errors: [`ConnectError::Timeout`] after `limit`, otherwise what the kernel said.
pub async fn connect(socket: Socket, to: SocketAddr, limit: Duration) -> Result<TcpStream, ConnectError> {
    let to = canonical(to);
    let failed = |source| ConnectError::Io { to, source };
    let up = start_connect(&socket, to).map_err(failed)?;
    let stream = TcpStream::from_std(socket.into()).map_err(failed)?;
    if up {
        return Ok(stream);
    }
    let waited = tokio::time::timeout(limit, stream.writable()).await;
    waited.map_err(|_| ConnectError::Timeout { to, limit })?.map_err(failed)?;
    match stream.take_error() {
        Ok(None) => Ok(stream),
        Ok(Some(source)) | Err(source) => Err(failed(source)),
    }
}

/// Starts the connection; true when it is up already.
fn start_connect(socket: &Socket, to: SocketAddr) -> io::Result<bool> {
    let addr = to.into();
    // Inside one machine the handshake is over when the first call returns, though it says EINPROGRESS: the packets are
    // worked off as it lets go of the socket. Asking again costs a system call and saves a trip through epoll.
    for _ in 0..2 {
        match socket.connect(&addr) {
            Ok(()) => return Ok(true),
            Err(error) => match error.raw_os_error() {
                Some(libc::EINPROGRESS | libc::EALREADY | libc::EINTR) => {}
                Some(libc::EISCONN) => return Ok(true),
                _ => return Err(error),
            },
        }
    }
    Ok(false)
}

/// Turns SO_LINGER(1, 0) on or off: whether closing the socket resets the connection.
pub fn set_reset_on_drop(socket: impl AsFd, on: bool) -> io::Result<()> {
    SockRef::from(&socket).set_linger(on.then_some(Duration::ZERO))
}

/// Asks a silent peer from time to time whether it is still there.
///
/// Errors: the kernel's.
pub fn set_keepalive(socket: impl AsFd, keepalive: Keepalive) -> io::Result<()> {
    let socket = SockRef::from(&socket);
    let wanted = TcpKeepalive::new().with_time(keepalive.time).with_interval(keepalive.interval);
    socket.set_tcp_keepalive(&wanted.with_retries(keepalive.retries))?;
    if keepalive.user_timeout {
        socket.set_tcp_user_timeout(Some(keepalive.total()))?;
    }
    Ok(())
}

/// Lets a write succeed only while less than `bytes` wait in the socket for being sent (TCP_NOTSENT_LOWAT).
pub fn limit_unsent(socket: impl AsFd, bytes: u32) -> io::Result<()> {
    SockRef::from(&socket).set_tcp_notsent_lowat(bytes)
}

/// Bytes that were written and that the kernel has not sent yet.
///
/// Errors: the kernel's.
pub fn unsent(socket: impl AsFd) -> io::Result<u32> {
    Ok(sys::tcp_info(socket)?.0)
}

/// The shortest round trip of the connection, as the kernel has seen it so far.
///
/// Errors: the kernel's.
pub fn shortest_round_trip(socket: impl AsFd) -> io::Result<Duration> {
    Ok(Duration::from_micros(sys::tcp_info(socket)?.1.into()))
}

/// Fixes the receive buffer, which otherwise grows to the system's `tcp_rmem`. The kernel adds as much for its own
/// bookkeeping.
///
/// Errors: without CAP_NET_ADMIN.
pub fn fix_receive_buffer(socket: impl AsFd, bytes: usize) -> io::Result<()> {
    Ok(setsockopt(&socket, sockopt::RcvBufForce, &bytes)?)
}

/// Lets the peer send at most so many bytes ahead of what was read; what it was allowed before stays allowed.
///
/// Errors: the kernel's.
pub fn limit_window(socket: impl AsFd, bytes: usize) -> io::Result<()> {
    let bytes = i32::try_from(bytes).unwrap_or(i32::MAX);
    sys::set_socket_option(socket, libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, bytes)
}

fn apply(
    socket: &Socket,
    mark: Option<u32>,
    keepalive: Option<Keepalive>,
    nodelay: bool,
    reset_on_drop: bool,
) -> io::Result<()> {
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    if let Some(keepalive) = keepalive {
        set_keepalive(socket, keepalive)?;
    }
    if nodelay {
        socket.set_tcp_nodelay(true)?;
    }
    if reset_on_drop {
        set_reset_on_drop(socket, true)?;
        // An app's socket: its urgent bytes stay where they are in the stream, rather than being skipped (RFC 6093 §3.1).
        socket.set_out_of_band_inline(true)?;
    }
    Ok(())
}

/// Makes a socket transparent for its family, and for IPv4 too when it is an IPv6 socket that takes both.
fn set_transparent(socket: &Socket, ipv6: bool, both: bool) -> io::Result<()> {
    if ipv6 {
        socket.set_ip_transparent_v6(true)?;
    }
    if !ipv6 || both {
        socket.set_ip_transparent_v4(true)?;
    }
    Ok(())
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(ip) => SocketAddr::V4(SocketAddrV4::new(ip, v6.port())),
            None => addr,
        },
        SocketAddr::V4(_) => addr,
    }
}

#[cfg(test)]
mod tests;
