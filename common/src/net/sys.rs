//! System calls that neither nix nor socket2 wraps. The only file of this crate that may hold `unsafe`.
#![expect(unsafe_code, reason = "system calls without a safe wrapper; each block says why it is sound")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::libc;
use socket2::Socket;
use tokio::io::unix::AsyncFd;

/// `NS_GET_NSTYPE` of `linux/nsfs.h`, `_IO(0xb7, 0x3)`.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

/// The `CLONE_NEW…` constant of the namespace that `fd`, a file of nsfs, stands for.
///
/// Errors: the kernel's, when `fd` is no namespace.
pub(super) fn namespace_type(fd: impl AsFd) -> io::Result<libc::c_int> {
    // SAFETY: the descriptor is open for the whole call; this request takes no argument and writes to no memory.
    let kind = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), NS_GET_NSTYPE) };
    if kind < 0 { Err(io::Error::last_os_error()) } else { Ok(kind) }
}

/// Where the kernel's `struct tcp_info` has what is used of it; its fields never move. Source: linux/tcp.h.
const TCPI_NOTSENT_BYTES: usize = 144;
const TCPI_MIN_RTT: usize = 148;
const TCP_INFO_USED: usize = 152;

/// Bytes that the kernel has not sent yet, and the shortest round trip it has seen, in microseconds.
///
/// Errors: the kernel's; `Unsupported` when it is too old to know (Linux 4.6).
pub(super) fn tcp_info(fd: impl AsFd) -> io::Result<(u32, u32)> {
    let mut info = [0_u8; TCP_INFO_USED];
    let mut size = libc::socklen_t::try_from(info.len()).unwrap_or(0);
    // SAFETY: the pointer and the size describe `info`, a local that outlives the call; the kernel writes no more than
    // `size` bytes and says there how many.
    let done = unsafe {
        let at = info.as_mut_ptr().cast::<libc::c_void>();
        libc::getsockopt(fd.as_fd().as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, at, &raw mut size)
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    let field = |at: usize| {
        let bytes = info.get(at..at + 4).filter(|_| size as usize >= at + 4)?;
        bytes.try_into().ok().map(u32::from_ne_bytes)
    };
    field(TCPI_NOTSENT_BYTES).zip(field(TCPI_MIN_RTT)).ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// Gives pages of which the allocator uses nothing back to the system.
#[cfg(target_env = "gnu")]
pub(super) fn trim_heap() {
    // SAFETY: takes the allocator's own locks and touches only what nobody has allocated.
    unsafe { libc::malloc_trim(0) };
}

/// Other C libraries have no such call.
#[cfg(not(target_env = "gnu"))]
pub(super) fn trim_heap() {}

/// `SIOCGSKNS` of `linux/sockios.h`.
const SIOCGSKNS: libc::Ioctl = 0x894c;

/// A descriptor of the network namespace that a socket was made in.
///
/// Errors: the kernel's, when `fd` is no socket or the caller lacks CAP_NET_ADMIN there.
pub(super) fn socket_namespace(fd: impl AsFd) -> io::Result<OwnedFd> {
    // SAFETY: the descriptor is open for the whole call; this request takes no argument and writes to no memory.
    let found = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), SIOCGSKNS) };
    if found < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened it for this call, and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(found) })
}

/// Sets a socket option whose value is a C `int`.
///
/// Errors: the kernel's, among them `ENOPROTOOPT` where it does not know the option.
pub(super) fn set_socket_option(fd: impl AsFd, level: i32, name: i32, value: libc::c_int) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(4);
    // SAFETY: the pointer and the size describe `value`, a local that outlives the call; the kernel only reads it.
    let done = unsafe {
        libc::setsockopt(fd.as_fd().as_raw_fd(), level, name, (&raw const value).cast::<libc::c_void>(), size)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Has the runtime tell when the socket is ready.
///
/// Errors: the kernel's.
pub(super) fn watch(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: a `Socket` owns its descriptor and always gives the same one; it is closed only when dropped, which
    // `AsyncFd` does after taking it back from the runtime.
    Ok(unsafe { AsyncFd::register(socket) }?)
}

/// What [`receive_with_descriptors`] received.
pub(super) struct Received {
    /// Bytes written to the buffer.
    pub(super) length: usize,
    /// Close-on-exec.
    pub(super) fds: Vec<OwnedFd>,
    /// Bytes or descriptors did not fit, or the process may not open as many.
    pub(super) truncated: bool,
}

/// `SCM_MAX_FD`: the kernel passes no more with one packet, so that no descriptor is ever lost for want of room.
const DESCRIPTORS_MAX: usize = 253;
/// Room for their control message, in 8-byte words, which align it.
const CONTROL_WORDS: usize = (DESCRIPTORS_MAX * size_of::<RawFd>()).div_ceil(8) + 4;

/// Receives one packet and the descriptors beside it.
///
/// Not nix's `recvmsg`: when the process is out of descriptors, that reports an error and leaks those which were received.
///
/// Errors: the kernel's.
pub(super) fn receive_with_descriptors(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<Received> {
    let mut control = [0_u64; CONTROL_WORDS];
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: all-zero is a valid `msghdr`: null pointers with zero lengths.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: the header points to one part, which is all of `bytes`, and to `control` with its true size; the kernel
    // writes within these bounds, and both outlive the call.
    let length =
        unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    let mut fds = Vec::new();
    // SAFETY: the header is as the kernel left it, and `control` still lives: the macro stays within `msg_controllen`.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !next.is_null() {
        // SAFETY: not null, so a whole control message header within `control`, aligned as its words are.
        let (level, kind, size) = unsafe { ((*next).cmsg_level, (*next).cmsg_type, (*next).cmsg_len) };
        if (level, kind) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: pure arithmetic.
            let head = unsafe { libc::CMSG_LEN(0) } as usize;
            let count = size.saturating_sub(head) / size_of::<RawFd>();
            // SAFETY: the kernel wrote `count` descriptors behind this header.
            let data = unsafe { libc::CMSG_DATA(next) }.cast::<RawFd>();
            for at in 0..count {
                // SAFETY: within the data, see above; read unaligned as nothing promises alignment. The descriptor is
                // open, was made for this process by this call, and nobody else knows of it.
                fds.push(unsafe { OwnedFd::from_raw_fd(data.add(at).read_unaligned()) });
            }
        }
        // SAFETY: as for the first header; `next` came from this same message.
        next = unsafe { libc::CMSG_NXTHDR(&raw const message, next) };
    }
    let truncated = message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0;
    Ok(Received { length, fds, truncated })
}
