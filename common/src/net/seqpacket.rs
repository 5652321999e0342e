//! Packets over a Unix socket (`SOCK_SEQPACKET`), with open descriptors beside the bytes.
//!
//! One send is one receive: a packet arrives whole or is marked as truncated. Knows nothing of what the packets mean.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, getsockopt, sendmsg, sockopt};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::unix::AsyncFd;

use super::sys;

/// Descriptors that one packet may carry here; the kernel's own limit is 253.
pub const FDS_MAX: usize = 64;
/// Peers that wait for being accepted.
const BACKLOG: i32 = 16;

/// One end of a connection that carries packets.
///
/// Shape: needs a Tokio runtime to be made. Descriptors received are close-on-exec.
#[derive(Debug)]
pub struct SeqPacket(AsyncFd<Socket>);

/// A packet as received.
#[derive(Debug)]
pub struct Packet {
    /// Never empty: an empty packet is the end of the connection.
    pub bytes: Vec<u8>,
    /// In the order they were sent; closed when dropped.
    pub fds: Vec<OwnedFd>,
    /// Bytes or descriptors are missing: the packet was larger than asked for, or this process has no descriptor free.
    pub truncated: bool,
}

impl SeqPacket {
    /// Connects to the listener at `path`.
    ///
    /// Errors: the kernel's; `WouldBlock` when more peers wait there than it has places for.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let socket = new_socket()?;
        socket.connect(&SockAddr::unix(path)?)?;
        Self::from_socket(socket)
    }

    /// Two ends of one connection, for two sides of one process.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None)?;
        Ok((Self::from_socket(one)?, Self::from_socket(other)?))
    }

    /// Takes over an end that was made elsewhere.
    ///
    /// Errors: `InvalidInput` when it is no socket of this kind.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let socket = Socket::from(fd);
        if socket.domain()? != Domain::UNIX || socket.r#type()? != Type::SEQPACKET {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a socket for packets"));
        }
        Self::from_socket(socket)
    }

    fn from_socket(socket: Socket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        sys::watch(socket).map(Self)
    }

    /// The user that the other end's process ran as when it connected or listened.
    pub fn peer_uid(&self) -> io::Result<u32> {
        Ok(getsockopt(self.0.get_ref(), sockopt::PeerCredentials)?.uid())
    }

    /// Sends one packet; the receiver gets descriptors of its own.
    ///
    /// Errors: `InvalidInput` for no bytes (they would be taken for the end) or more than [`FDS_MAX`] descriptors;
    /// `BrokenPipe` when the other end has gone.
    /// Cancel safety: dropped early, nothing was sent.
    pub async fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        if bytes.is_empty() || fds.len() > FDS_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        loop {
            let mut ready = self.0.writable().await?;
            let sent = ready.try_io(|socket| {
                let rights = [ControlMessage::ScmRights(&raw)];
                let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
                let parts = [IoSlice::new(bytes)];
                Ok(sendmsg::<()>(socket.as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None)?)
            });
            match sent {
                // A packet is sent whole or not at all.
                Ok(sent) => return sent.map(drop),
                Err(_not_ready) => {}
            }
        }
    }

    /// Receives one packet of up to `max` bytes; `None` is the end of the connection.
    ///
    /// Errors: the kernel's, `ConnectionReset` among them when the other end closed without reading.
    /// Cancel safety: dropped early, nothing was received.
    pub async fn recv(&self, max: usize) -> io::Result<Option<Packet>> {
        let mut bytes = vec![0; max];
        loop {
            let mut ready = self.0.readable().await?;
            let received = ready.try_io(|socket| sys::receive_with_descriptors(socket, &mut bytes));
            match received {
                Ok(received) => {
                    let sys::Received { length, fds, truncated } = received?;
                    bytes.truncate(length);
                    return Ok((length > 0).then_some(Packet { bytes, fds, truncated }));
                }
                Err(_not_ready) => {}
            }
        }
    }
}

impl AsFd for SeqPacket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

/// Accepts connections at a path. Dropped, it takes its file away, unless another has replaced it.
#[derive(Debug)]
pub struct SeqPacketListener {
    socket: AsyncFd<Socket>,
    path: PathBuf,
    /// Device and inode of the file.
    id: (u64, u64),
}

impl SeqPacketListener {
    /// Listens at `path` with these permissions, for instance 0o600. The last folder of the path is made, for the owner
    /// alone, if it is missing.
    ///
    /// A file that a former process left is replaced; one that somebody still answers at is not.
    ///
    /// Errors: `AddrInUse` when somebody answers at `path`; `AlreadyExists` when something else than a socket is there;
    /// else the kernel's.
    pub fn bind(path: &Path, mode: u32) -> io::Result<Self> {
        if let Some(folder) =
            path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.exists())
        {
            DirBuilder::new().mode(0o700).create(folder)?;
        }
        check_free(path)?;
        // Under another name first: from the moment it is at `path` it has its permissions and answers.
        let mut draft = path.as_os_str().to_owned();
        draft.push(format!(".{}", std::process::id()));
        let draft = PathBuf::from(draft);
        let _none_left = fs::remove_file(&draft);
        let socket = new_socket()?;
        socket.bind(&SockAddr::unix(&draft)?)?;
        let ready = fs::set_permissions(&draft, Permissions::from_mode(mode))
            .and_then(|()| socket.listen(BACKLOG))
            .and_then(|()| check_free(path))
            .and_then(|()| fs::rename(&draft, path));
        if let Err(error) = ready {
            let _reported_above = fs::remove_file(&draft);
            return Err(error);
        }
        let about = fs::symlink_metadata(path)?;
        Ok(Self { socket: sys::watch(socket)?, path: path.to_owned(), id: (about.dev(), about.ino()) })
    }

    /// The next peer. Who it is, [`SeqPacket::peer_uid`] tells.
    ///
    /// Errors: the kernel's, being out of descriptors among them: wait a moment before the next try.
    /// Cancel safety: dropped early, no peer was accepted.
    pub async fn accept(&self) -> io::Result<SeqPacket> {
        loop {
            let mut ready = self.socket.readable().await?;
            match ready.try_io(|socket| socket.get_ref().accept()) {
                Ok(accepted) => return SeqPacket::from_socket(accepted?.0),
                Err(_not_ready) => {}
            }
        }
    }
}

impl Drop for SeqPacketListener {
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path).is_ok_and(|a| (a.dev(), a.ino()) == self.id);
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "socket file left behind");
        }
    }
}

fn new_socket() -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Whether nobody answers at `path`: nothing is there, or what a former process left.
fn check_free(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(about) if !about.file_type().is_socket() => return Err(io::ErrorKind::AlreadyExists.into()),
        Ok(_) => {}
    }
    let answer = new_socket()?.connect(&SockAddr::unix(path)?);
    match answer.err().and_then(|error| error.raw_os_error()).map(Errno::from_raw) {
        Some(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(()),
        // None: accepted. EAGAIN: too many wait. EPROTOTYPE: another kind of socket answers.
        _ => Err(io::ErrorKind::AddrInUse.into()),
    }
}

#[cfg(test)]
mod tests;
