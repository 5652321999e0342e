//! System calls that neither nix nor socket2 wraps. The only file of this crate that may hold `unsafe`.
#![expect(unsafe_code, reason = "system calls without a safe wrapper; each block says why it is sound")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::libc;

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
