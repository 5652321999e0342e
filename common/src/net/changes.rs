//! Being told when somebody changes rules or routes of a namespace.

use std::io;
use std::os::fd::AsRawFd;

use nix::libc;
use nix::sys::socket::{NetlinkAddr, bind};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::unix::AsyncFd;

use super::sys;

/// `NFNLGRP_NFTABLES`, group 7.
const NFTABLES: u32 = 1 << 6;
/// `RTNLGRP_IPV4_ROUTE` (7), `…_IPV4_RULE` (8), `…_IPV6_ROUTE` (11), `…_IPV6_RULE` (19).
const ROUTING: u32 = 1 << 6 | 1 << 7 | 1 << 10 | 1 << 18;
/// What one read takes; the content is not looked at, and what does not fit is dropped with its message.
const READ_BYTES: usize = 256;
/// Messages taken at once; a writer that never ends must not keep the thread.
const READS_MAX: usize = 1024;

/// Tells of changes to nftables, policy rules and routes in the namespace where it was made; two descriptors.
///
/// Shape: needs a Tokio runtime. It says that something changed, not what: look at the rules then.
#[derive(Debug)]
pub struct Changes {
    netfilter: AsyncFd<Socket>,
    route: AsyncFd<Socket>,
}

impl Changes {
    /// Begins to watch the current namespace: call it inside `NetNs::run`, before the rules are read.
    ///
    /// Errors: the kernel's.
    pub fn watch() -> io::Result<Self> {
        Ok(Self {
            netfilter: listen(libc::NETLINK_NETFILTER, NFTABLES)?,
            route: listen(libc::NETLINK_ROUTE, ROUTING)?,
        })
    }

    /// Waits for a change; several at once are one.
    ///
    /// Errors: the kernel's; nothing will be told any more. Cancel safety: no change is lost.
    pub async fn next(&self) -> io::Result<()> {
        tokio::select! {
            told = readable(&self.netfilter) => told,
            told = readable(&self.route) => told,
        }
    }
}

fn listen(protocol: libc::c_int, groups: u32) -> io::Result<AsyncFd<Socket>> {
    let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(protocol)))?;
    socket.set_nonblocking(true)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    sys::watch(socket)
}

async fn readable(socket: &AsyncFd<Socket>) -> io::Result<()> {
    let mut ready = socket.readable().await?;
    for _ in 0..READS_MAX {
        let taken = ready.try_io(|socket| {
            nix::sys::socket::recv(
                socket.as_raw_fd(),
                &mut [0; READ_BYTES],
                nix::sys::socket::MsgFlags::empty(),
            )
            .map_err(io::Error::from)
        });
        match taken {
            // More was told than the socket could hold: something has changed all the same.
            Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
            Ok(taken) => drop(taken?),
            Err(_none_left) => break,
        }
    }
    Ok(())
}
