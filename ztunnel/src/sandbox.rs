//! What the process gives up before it reads a byte that is not its own: core dumps, capabilities, privileges it could
//! gain, and system calls it never makes.
//!
//! Decides what each role needs, nothing else. Called once, before the first thread and the first socket: capabilities
//! belong to threads, and later ones inherit them. The filter denies (EPERM) rather than kills: a call that a library
//! makes on another machine should fail where it can be seen, not take a node's traffic down. Start with [`enter`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use caps::{CapSet, Capability, CapsHashSet};
use culvert_common::net::socket::{DialOptions, dial_socket};
use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

/// What the process is for, and so what it keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Carries traffic: namespaces come by descriptor, and rules are not its business.
    Proxy,
    /// Looks up where datagrams were going, and reads nothing that strangers send.
    Lookup,
    /// Writes rules, opens namespaces by path; also both roles in one process.
    Enroll,
}

/// Why the process cannot be confined.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SandboxError {
    #[error("cannot turn core dumps off: {0}")]
    Core(nix::Error),
    #[error("cannot drop capabilities: {0}")]
    Capabilities(#[from] caps::errors::CapsError),
    #[error("cannot give up new privileges: {0}")]
    Privileges(nix::Error),
    #[error("no system call filter can be built: {0}; CULVERT_SYSCALL_FILTER=false runs without")]
    Build(#[from] BackendError),
    #[error(
        "the kernel does not take the system call filter: {0}; CULVERT_SYSCALL_FILTER=false runs without"
    )]
    Filter(#[from] seccompiler::Error),
}

/// What [`enter`] did, to be logged once there is a log.
#[derive(Debug)]
pub(crate) struct Confined {
    kept: Vec<String>,
    filtered: bool,
    /// Capabilities the role needs and the process never had.
    missing: Vec<String>,
}

impl Confined {
    /// Says it.
    pub(crate) fn log(&self) {
        tracing::info!(
            capabilities = self.kept.join(","),
            syscall_filter = self.filtered,
            "process confined"
        );
        if !self.filtered {
            tracing::warn!(
                "the system call filter is off (CULVERT_SYSCALL_FILTER): run it so only to find a fault"
            );
        }
        if !self.missing.is_empty() {
            tracing::warn!(missing = self.missing.join(","), "the process lacks capabilities that it needs");
        }
    }
}

/// Gives up what `role` does not need, for this thread and those it starts. For good.
///
/// **Errors**: the kernel refuses; nothing has been served yet, so end the process.
pub(crate) fn enter(role: Role, filter: bool) -> Result<Confined, SandboxError> {
    // Keys and other pods' bytes are in this memory. It also keeps others of the same user from attaching.
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(SandboxError::Core)?;
    prctl::set_dumpable(false).map_err(SandboxError::Core)?;
    let confined = confine_thread(role)?;
    if filter {
        seccompiler::apply_filter_all_threads(&foreign_calls())?;
        seccompiler::apply_filter_all_threads(&denied_calls(role)?)?;
    }
    Ok(Confined { filtered: filter, ..confined })
}

/// Capabilities and the door to new ones.
fn confine_thread(role: Role) -> Result<Confined, SandboxError> {
    let permitted = caps::read(None, CapSet::Permitted)?;
    let wanted = capabilities(role);
    let keep: CapsHashSet = wanted.intersection(&permitted).copied().collect();
    // Without CAP_SETPCAP, as in a container, the bounding set stays: no program can be started that would profit.
    if permitted.contains(&Capability::CAP_SETPCAP) {
        for capability in caps::read(None, CapSet::Bounding)?.difference(&keep) {
            caps::drop(None, CapSet::Bounding, *capability)?;
        }
    }
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &keep)?;
    caps::set(None, CapSet::Permitted, &keep)?;
    prctl::set_no_new_privs().map_err(SandboxError::Privileges)?;
    Ok(Confined { kept: names(&keep), filtered: false, missing: names(&(&wanted - &keep)) })
}

fn names(set: &CapsHashSet) -> Vec<String> {
    let mut names: Vec<String> = set.iter().map(ToString::to_string).collect();
    names.sort();
    names
}

fn capabilities(role: Role) -> CapsHashSet {
    // setns to a pod's network namespace; marks and clients' addresses on sockets.
    let mut keep = CapsHashSet::from([Capability::CAP_SYS_ADMIN, Capability::CAP_NET_ADMIN]);
    if role == Role::Enroll {
        // Namespaces of other processes by /proc/<pid>/ns/net; directories that belong to the user who calls sudo.
        keep.extend([Capability::CAP_SYS_PTRACE, Capability::CAP_DAC_OVERRIDE]);
    }
    keep
}

/// Calls with numbers of another convention (x32, which the list below would not catch) do not exist here; nor does
/// clone3, whose flags lie in memory where no filter sees them: the C library falls back to clone.
fn foreign_calls() -> BpfProgram {
    // Codes of linux/bpf_common.h; only constants and the number are looked at, so that the kernel can cache the answer.
    const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
    const AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
    const EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    const X32: u32 = 0x4000_0000;
    let clone3 = u32::try_from(libc::SYS_clone3).unwrap_or(435);
    let step = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    vec![
        step(LOAD, 0, 0, 0),
        step(AT_LEAST, 2, 0, X32),
        step(EQUAL, 1, 0, clone3),
        step(RETURN, 0, 0, SeccompAction::Allow.into()),
        step(RETURN, 0, 0, SeccompAction::Errno(libc::ENOSYS.unsigned_abs()).into()),
    ]
}

/// The filter of `role`: everything that is not named here is allowed.
fn denied_calls(role: Role) -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = NEVER.iter().map(|call| (*call, Vec::new())).collect();
    // Another kind of namespace, or any kind (0), would lead out of the container.
    rules.insert(libc::SYS_setns, vec![all([argument(1, SeccompCmpOp::Ne, libc::CLONE_NEWNET)?])?]);
    rules.insert(libc::SYS_clone, new_processes()?);
    rules.insert(libc::SYS_socket, sockets(role)?);
    rules.insert(libc::SYS_setsockopt, tables()?);
    let arch: TargetArch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(libc::EPERM.unsigned_abs()), arch)?
        .try_into()
}

fn argument(index: u8, op: SeccompCmpOp, value: libc::c_int) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, op, u64::from(value.cast_unsigned()))
}

/// A rule that holds when all conditions do.
fn all<const N: usize>(conditions: [SeccompCondition; N]) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(conditions.into())
}

fn bits(mask: libc::c_int) -> SeccompCmpOp {
    SeccompCmpOp::MaskedEq(u64::from(mask.cast_unsigned()))
}

/// Threads are started; processes and namespaces are not.
fn new_processes() -> Result<Vec<SeccompRule>, BackendError> {
    let namespaces = [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWCGROUP,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
    ];
    let no_thread = all([argument(0, bits(libc::CLONE_THREAD), 0)?]);
    let each = namespaces.into_iter().map(|flag| all([argument(0, bits(flag), flag)?]));
    std::iter::once(no_thread).chain(each).collect()
}

/// TCP, UDP and Unix sockets; netlink for who writes rules. Never raw, packet, or a family that is not known here.
fn sockets(role: Role) -> Result<Vec<SeccompRule>, BackendError> {
    /// SOCK_PACKET, deprecated: packets of any protocol.
    const PACKETS: libc::c_int = 10;
    let family = |family| argument(0, SeccompCmpOp::Ne, family);
    let kind = |family, kind| all([argument(0, SeccompCmpOp::Eq, family)?, argument(1, bits(0xf), kind)?]);
    let known = [family(libc::AF_UNIX)?, family(libc::AF_INET)?, family(libc::AF_INET6)?];
    let known = match role {
        // A proxy that was taken over must not be able to change the rules that hold its pods.
        Role::Proxy => all(known)?,
        Role::Lookup => all([family(libc::AF_UNIX)?, family(libc::AF_NETLINK)?])?,
        Role::Enroll => {
            let [unix, v4, v6] = known;
            all([unix, v4, v6, family(libc::AF_NETLINK)?])?
        }
    };
    let mut rules = vec![known];
    for inet in [libc::AF_INET, libc::AF_INET6] {
        rules.extend([kind(inet, libc::SOCK_RAW)?, kind(inet, PACKETS)?]);
    }
    Ok(rules)
}

/// Socket options that replace packet filter tables (iptables, ip6tables, arptables, ebtables): the other way round
/// netlink.
fn tables() -> Result<Vec<SeccompRule>, BackendError> {
    let option =
        |level, option| all([argument(1, SeccompCmpOp::Eq, level)?, argument(2, SeccompCmpOp::Eq, option)?]);
    [(libc::SOL_IP, 64), (libc::SOL_IPV6, 64), (libc::SOL_IP, 96), (libc::SOL_IP, 128)]
        .into_iter()
        .map(|(level, name)| option(level, name))
        .collect()
}

/// Calls that neither role makes.
const NEVER: &[i64] = &[
    // programs and other processes
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    // mounts, roots and namespaces
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_open_by_handle_at,
    libc::SYS_mknodat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mknod,
    // code in the kernel, and large surfaces of it
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_fanotify_init,
    libc::SYS_lookup_dcookie,
    // the machine
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_personality,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
];

/// Whether the process may do what traffic needs: enter network namespaces and mark sockets.
///
/// **Errors**: the kernel refuses one of them.
pub(crate) fn check_means(mark: u32) -> io::Result<()> {
    let refused = |what: &str, error: io::Error| {
        io::Error::new(
            error.kind(),
            format!("{what}: {error}; the agent needs CAP_SYS_ADMIN and CAP_NET_ADMIN"),
        )
    };
    let own = File::open("/proc/thread-self/ns/net")
        .map_err(|e| refused("cannot open the own network namespace", e))?;
    setns(&own, CloneFlags::CLONE_NEWNET)
        .map_err(|e| refused("cannot enter network namespaces", e.into()))?;
    let options = DialOptions { mark: Some(mark), ..DialOptions::default() };
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    dial_socket(to, &options).map(drop).map_err(|e| refused("cannot mark sockets", e))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use culvert_common::net::netns::NetNs;
    use nix::errno::Errno;
    use nix::mount::{MsFlags, mount};
    use nix::sched::unshare;
    use socket2::{Domain, Socket, Type};

    use super::*;

    /// Runs in a thread that is confined as `role` is; the test program's other threads are not.
    fn confined<R: Send + 'static>(role: Role, work: impl FnOnce() -> R + Send + 'static) -> R {
        let inside = move || {
            confine_thread(role).unwrap();
            seccompiler::apply_filter(&foreign_calls()).unwrap();
            seccompiler::apply_filter(&denied_calls(role).unwrap()).unwrap();
            work()
        };
        std::thread::spawn(inside).join().unwrap()
    }

    fn refused<T: std::fmt::Debug>(what: &str, result: io::Result<T>) {
        let errno = result.expect_err(what).raw_os_error().map(Errno::from_raw);
        assert_eq!(errno, Some(Errno::EPERM), "{what}");
    }

    fn socket(domain: i32, kind: Type) -> io::Result<Socket> {
        Socket::new(Domain::from(domain), kind, None)
    }

    #[test]
    fn what_traffic_needs_is_left() {
        let there = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: this test needs root");
            NetNs::current().unwrap()
        });
        let there = there.join().unwrap();
        for role in [Role::Proxy, Role::Enroll] {
            let there = there.clone();
            confined(role, move || {
                check_means(1337).unwrap();
                let inside = there.run(|| NetNs::current().unwrap()).unwrap();
                assert_eq!(inside, there);
                std::thread::spawn(|| ()).join().expect("threads can be started");
                let inherited = std::thread::spawn(|| caps::read(None, CapSet::Permitted).unwrap());
                assert_eq!(inherited.join().unwrap(), capabilities(role));
                for family in [libc::AF_INET, libc::AF_INET6] {
                    socket(family, Type::STREAM).unwrap();
                    socket(family, Type::DGRAM).unwrap();
                }
                socket(libc::AF_UNIX, Type::SEQPACKET).unwrap();
            });
        }
        confined(Role::Enroll, || socket(libc::AF_NETLINK, Type::RAW).map(drop).unwrap());
    }

    #[test]
    fn what_leads_out_is_refused() {
        for role in [Role::Proxy, Role::Enroll, Role::Lookup] {
            confined(role, || {
                let own = File::open("/proc/self/ns/net").unwrap();
                let mounts = File::open("/proc/self/ns/mnt").unwrap();
                for flags in [CloneFlags::CLONE_NEWNS, CloneFlags::empty(), CloneFlags::CLONE_NEWUSER] {
                    refused("setns", setns(&mounts, flags).map_err(Into::into));
                }
                refused("setns of any kind", setns(&own, CloneFlags::empty()).map_err(Into::into));
                for kind in [CloneFlags::CLONE_NEWNS, CloneFlags::CLONE_NEWNET, CloneFlags::CLONE_NEWUSER] {
                    refused("unshare", unshare(kind).map_err(Into::into));
                }
                let tmpfs = mount(Some("none"), "/tmp", Some("tmpfs"), MsFlags::empty(), None::<&str>);
                refused("mount", tmpfs.map_err(Into::into));
                refused("umount", nix::mount::umount("/proc").map_err(Into::into));
                refused("chroot", nix::unistd::chroot("/").map_err(Into::into));
                refused("a program", Command::new("/bin/true").status());
                for family in [libc::AF_INET, libc::AF_INET6] {
                    refused("a raw socket", socket(family, Type::RAW));
                    refused("a raw socket with a flag", socket(family, Type::RAW.nonblocking()));
                }
                for family in [libc::AF_PACKET, libc::AF_ALG, libc::AF_VSOCK, libc::AF_XDP] {
                    refused("another family", socket(family, Type::DGRAM));
                }
            });
        }
        confined(Role::Proxy, || refused("netlink", socket(libc::AF_NETLINK, Type::RAW)));
    }

    /// It enters namespaces, asks the kernel over netlink and answers on the socket it has; no network is open to it.
    #[test]
    fn who_looks_up_destinations_can_do_that_and_nothing_else() {
        let there = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: this test needs root");
            NetNs::current().unwrap()
        });
        let there = there.join().unwrap();
        confined(Role::Lookup, move || {
            assert_eq!(there.run(|| NetNs::current().unwrap()).unwrap(), there);
            let asked = there.run(|| {
                let addr = |text: &str| text.parse().unwrap();
                culvert_common::net::conntrack::udp_destination(addr("127.0.0.1:15053"), addr("10.0.0.1:9"))
            });
            assert_eq!(asked.unwrap().unwrap(), None, "the kernel answers");
            socket(libc::AF_UNIX, Type::SEQPACKET).unwrap();
            for family in [libc::AF_INET, libc::AF_INET6] {
                for kind in [Type::STREAM, Type::DGRAM] {
                    refused("a network", socket(family, kind));
                }
            }
            assert_eq!(caps::read(None, CapSet::Effective).unwrap(), capabilities(Role::Lookup));
            assert!(!capabilities(Role::Lookup).contains(&Capability::CAP_DAC_OVERRIDE));
        });
    }

    /// `unsafe` belongs elsewhere, so that the calls without a wrapper are looked up in the filter's list.
    #[test]
    fn calls_without_a_wrapper_are_on_the_list() {
        for call in [
            libc::SYS_bpf,
            libc::SYS_ptrace,
            libc::SYS_open_tree,
            libc::SYS_move_mount,
            libc::SYS_io_uring_setup,
            libc::SYS_open_by_handle_at,
            libc::SYS_kexec_file_load,
            libc::SYS_finit_module,
            libc::SYS_keyctl,
            libc::SYS_userfaultfd,
            libc::SYS_perf_event_open,
            libc::SYS_process_vm_readv,
        ] {
            assert!(NEVER.contains(&call), "{call}");
        }
    }
}
