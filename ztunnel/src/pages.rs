//! The agent's own listening sockets, for its pages: opened, or taken over from a predecessor in the same namespace.
//!
//! A predecessor answers on them until its place has been taken, so that who asks for readiness hears of the agent that
//! serves. Knows nothing of what the pages say.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;

use nix::libc;
use tokio::sync::watch;

use crate::app::AppError;
use crate::successor::Inheritance;

/// Where the sockets of all pages come from.
pub(crate) struct PageSockets {
    ipv6: bool,
    inheritance: Option<Inheritance>,
    /// Turns true once the predecessor's sockets are this agent's.
    released: watch::Receiver<bool>,
    /// Copies, for a successor.
    copies: Vec<(String, OwnedFd)>,
}

/// A listening socket of a page.
pub(crate) struct PageSocket {
    listener: std::net::TcpListener,
    /// Whether a predecessor answers on it until then.
    released: Option<watch::Receiver<bool>>,
}

impl PageSocket {
    /// The socket, once nobody else answers on it.
    ///
    /// **Cancel safety**: the socket is closed.
    pub(crate) async fn open(self) -> io::Result<tokio::net::TcpListener> {
        if let Some(mut released) = self.released {
            // An error: the hand-over has ended with the agent.
            let _agent_ends = released.wait_for(|released| *released).await;
        }
        tokio::net::TcpListener::from_std(self.listener)
    }
}

impl PageSockets {
    pub(crate) fn new(ipv6: bool, inheritance: Option<Inheritance>, released: watch::Receiver<bool>) -> Self {
        Self { ipv6, inheritance, released, copies: Vec::new() }
    }

    /// The socket for the page `what`. Without IPv6 an address that stands for all stands for those of IPv4.
    ///
    /// **Errors**: the address is taken, most likely by another agent.
    pub(crate) fn open(&mut self, what: &'static str, addr: SocketAddr) -> Result<PageSocket, AppError> {
        let any_v4 = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), addr.port());
        let addr = if !self.ipv6 && addr.is_ipv6() { any_v4 } else { addr };
        let name = format!("{what}@{addr}");
        let failed = |source| AppError::Listen { addr, what, source };
        let inherited = self.inheritance.as_mut().and_then(|all| all.page(&name, addr));
        let (listener, released) = match inherited {
            Some(listener) => (listener, Some(self.released.clone())),
            None => (bind(addr, any_v4).map_err(failed)?, None),
        };
        self.copies.push((name, listener.try_clone().map_err(failed)?.into()));
        Ok(PageSocket { listener, released })
    }

    /// As [`PageSockets::open`] for an address that this machine may not have.
    pub(crate) fn open_if_there(
        &mut self,
        what: &'static str,
        addr: SocketAddr,
    ) -> Result<Option<PageSocket>, AppError> {
        match self.open(what, addr) {
            Err(AppError::Listen { source, .. })
                if matches!(source.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT)) =>
            {
                Ok(None)
            }
            opened => opened.map(Some),
        }
    }

    /// What a successor gets, and what is left of the inheritance: the pods' sockets.
    pub(crate) fn finish(self) -> (Vec<(String, OwnedFd)>, Option<Inheritance>) {
        (self.copies, self.inheritance)
    }
}

fn bind(addr: SocketAddr, any_v4: SocketAddr) -> io::Result<std::net::TcpListener> {
    let bound = match std::net::TcpListener::bind(addr) {
        Err(e) if e.raw_os_error() == Some(libc::EAFNOSUPPORT) && addr.ip().is_unspecified() => {
            std::net::TcpListener::bind(any_v4)
        }
        bound => bound,
    }?;
    bound.set_nonblocking(true)?;
    Ok(bound)
}
