//! What labs need, asked before anything is built, so that everything that is missing can be said at once.

use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use culvert::lab::{LabError, find_program, package_of};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};
use nix::unistd::geteuid;

/// Everything that is missing of `programs`, the agent, rights and the kernel: one sentence each with what to do.
pub(super) fn missing(agent: &Result<PathBuf, LabError>, programs: &[&str]) -> Vec<String> {
    let agent = match agent {
        Ok(path) if path.is_file() => None,
        Ok(path) => Some(LabError::NoAgent { tried: path.display().to_string() }.to_string()),
        Err(e) => Some(e.to_string()),
    };
    let mut missing: Vec<String> = agent.into_iter().collect();
    let absent: Vec<&str> = programs.iter().copied().filter(|p| find_program(p).is_none()).collect();
    if !absent.is_empty() {
        let packages: Vec<&str> = absent.iter().map(|p| package_of(p)).collect();
        missing.push(format!(
            "not installed: {}; apt-get install -y {}",
            absent.join(", "),
            packages.join(" ")
        ));
    }
    let uid = geteuid().as_raw();
    if uid == 0 {
        missing.extend(kernel().err());
    } else {
        missing.push(format!("running as uid {uid}: network namespaces need root; run it with sudo"));
    }
    missing
}

/// Tries a network namespace and nf_tables in it, on a thread that ends there.
fn kernel() -> Result<(), String> {
    if !Path::new("/proc/sys/net/ipv6").exists() {
        return Err("no IPv6 in this kernel: start it without ipv6.disable=1".to_owned());
    }
    let tried = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|e| {
            format!("no new network namespace ({e}): run it outside a container, or with CAP_SYS_ADMIN and CAP_NET_ADMIN")
        })?;
        nf_tables().map_err(|e| {
            format!("no nf_tables in this kernel ({e}): modprobe nf_tables, or use a kernel with CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET and CONFIG_NFT_REDIR")
        })
    });
    tried.join().unwrap_or_else(|_| Err("trying a network namespace ended with a panic".to_owned()))
}

/// Asks nf_tables for its tables.
fn nf_tables() -> Result<(), io::Error> {
    let fd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(2))?;
    // nlmsghdr (length, NFT_MSG_GETTABLE of subsystem 10, REQUEST|DUMP, sequence, port) and nfgenmsg (inet, 0, 0).
    let mut request = Vec::new();
    request.extend(20_u32.to_ne_bytes());
    request.extend(0x0a01_u16.to_ne_bytes());
    request.extend(0x0301_u16.to_ne_bytes());
    request.extend([0; 8]);
    request.extend([1, 0, 0, 0]);
    sendto(fd.as_raw_fd(), &request, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut answer = [0_u8; 4096];
    let len = recv(fd.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let field = |at: usize| answer.get(..len).and_then(|a| a.get(at..at + 4)).and_then(|b| b.try_into().ok());
    let kind = field(4).map_or(0, |b: [u8; 4]| u32::from_ne_bytes(b) & 0xffff);
    // NLMSG_ERROR carries a negative errno; NLMSG_DONE or a table is what we hope for.
    match (kind, field(16).map(i32::from_ne_bytes)) {
        (2, Some(code)) if code < 0 => Err(Errno::from_raw(-code).into()),
        _ => Ok(()),
    }
}
