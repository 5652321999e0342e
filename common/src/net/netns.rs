//! A network namespace as a value, and the one way to act inside it.

use std::cell::{Cell, OnceCell};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::fstatfs;

use super::sys;

/// `NSFS_MAGIC` of `linux/magic.h`.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// An open network namespace.
///
/// Shape: clones share one descriptor; the namespace lives at least as long as any of them. Two values are equal when
/// they stand for the same namespace, however each was opened.
#[derive(Clone, Debug)]
pub struct NetNs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    fd: OwnedFd,
    dev: u64,
    ino: u64,
}

thread_local! {
    /// The namespace this thread belongs to, opened when the thread first enters another one.
    static HOME: OnceCell<NetNs> = const { OnceCell::new() };
    static AWAY: Cell<bool> = const { Cell::new(false) };
}

impl NetNs {
    /// Opens the namespace that a path such as `/var/run/netns/a` or `/proc/7/ns/net` stands for.
    ///
    /// Errors: the path cannot be opened; `InvalidInput` when it is not a network namespace.
    pub fn open(path: &Path) -> io::Result<Self> {
        // O_NONBLOCK: the path may come from a configuration; a FIFO there must not hang us.
        let flags = OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
        Self::check(file, &path.display())
    }

    /// Takes over a descriptor that another process handed over.
    ///
    /// Errors: `InvalidInput` when it is not a network namespace.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        Self::check(fd.into(), &"the descriptor")
    }

    /// The namespace that a socket was made in, which is its own for life.
    ///
    /// Errors: not a socket, or no CAP_NET_ADMIN there.
    pub fn of_socket(socket: impl AsFd) -> io::Result<Self> {
        Self::from_fd(sys::socket_namespace(socket)?)
    }

    fn check(file: File, name: &dyn std::fmt::Display) -> io::Result<Self> {
        let wrong = |seen: &str| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("{name} is {seen}, not a network namespace"))
        };
        // Asked before the ioctl, whose number may mean anything on another kind of file.
        if !is_nsfs(&file)? {
            return Err(wrong("an ordinary file"));
        }
        if sys::namespace_type(&file)? != libc::CLONE_NEWNET {
            return Err(wrong("another kind of namespace"));
        }
        let about = file.metadata()?;
        Ok(Self(Arc::new(Inner { fd: file.into(), dev: about.dev(), ino: about.ino() })))
    }

    /// The namespace the calling thread is in now.
    pub fn current() -> io::Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Device and inode of the namespace: equal for two handles of one namespace, and for no others while either is open.
    pub fn id(&self) -> (u64, u64) {
        (self.0.dev, self.0.ino)
    }

    /// Runs `work` with the calling thread inside this namespace, then brings the thread back.
    ///
    /// Sockets that `work` creates stay in the namespace for life. `work` must not spawn threads: they would stay there.
    /// The thread must not change its own namespace by other means after its first call.
    ///
    /// Errors: the thread's own namespace cannot be opened, this one cannot be entered, or the thread is inside another
    /// call of `run`; `work` was not run. A thread that cannot come back would act for the wrong pod from then on, so the
    /// process aborts instead.
    pub fn run<R>(&self, work: impl FnOnce() -> R) -> io::Result<R> {
        if AWAY.get() {
            return Err(io::Error::other("already inside a namespace: leave it before entering another"));
        }
        let home = HOME.with(|cell| match cell.get() {
            Some(home) => Ok(home.clone()),
            None => Self::current().map(|home| cell.get_or_init(|| home).clone()),
        })?;
        if home == *self {
            return Ok(work());
        }
        setns(&self.0.fd, CloneFlags::CLONE_NEWNET)?;
        let back = ComeBack(home);
        AWAY.set(true);
        let result = work();
        drop(back);
        Ok(result)
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

impl PartialEq for NetNs {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}

impl Eq for NetNs {}

/// Brings the thread home when dropped, so also when the closure panics.
struct ComeBack(NetNs);

impl Drop for ComeBack {
    fn drop(&mut self) {
        if let Err(error) = setns(&self.0.0.fd, CloneFlags::CLONE_NEWNET) {
            tracing::error!(%error, "cannot return to the agent's own network namespace: aborting");
            std::process::abort();
        }
        AWAY.set(false);
    }
}

fn is_nsfs(file: &File) -> io::Result<bool> {
    let kind = fstatfs(file)?.filesystem_type();
    Ok(u64::try_from(kind.0).is_ok_and(|kind| kind == NSFS_MAGIC))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sched::unshare;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    /// Runs in a thread of its own, so that the test harness's threads keep their namespace.
    fn apart<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> R {
        std::thread::spawn(work).join().unwrap()
    }

    fn fresh() -> NetNs {
        apart(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: this test needs root");
            NetNs::current().unwrap()
        })
    }

    #[test]
    fn run_enters_and_comes_back() {
        let there = fresh();
        apart(move || {
            let home = NetNs::current().unwrap();
            assert_ne!(home, there);
            for _ in 0..3 {
                let inside = there.run(|| NetNs::current().unwrap()).unwrap();
                assert_eq!(inside.id(), there.id());
                assert_eq!(NetNs::current().unwrap(), home);
            }
            assert_eq!(home.run(|| 5).unwrap(), 5);
        });
    }

    #[test]
    fn a_panic_inside_comes_back_too() {
        let there = fresh();
        apart(move || {
            let home = NetNs::current().unwrap();
            let caught = catch_unwind(AssertUnwindSafe(|| there.run(|| panic!("on purpose"))));
            assert!(caught.is_err());
            assert_eq!(NetNs::current().unwrap(), home);
            assert_eq!(there.run(|| 1).unwrap(), 1);
        });
    }

    #[test]
    fn a_socket_tells_where_it_was_made() {
        let there = fresh();
        apart(move || {
            let here = NetNs::current().unwrap();
            let listen = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let udp = || std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
            assert_eq!(NetNs::of_socket(listen()).unwrap(), here);
            assert_eq!(NetNs::of_socket(there.run(udp).unwrap()).unwrap(), there);
            assert!(NetNs::of_socket(File::open("/dev/null").unwrap()).is_err());
        });
    }

    #[test]
    fn nesting_is_refused() {
        let (one, two) = (fresh(), fresh());
        apart(move || {
            let inner = one.run(|| two.run(|| 1).map_err(|e| e.to_string())).unwrap();
            assert!(inner.unwrap_err().contains("already inside"));
        });
    }

    #[test]
    fn what_is_no_network_namespace_is_refused() {
        for (path, seen) in [
            ("/proc/self/status", "an ordinary file"),
            ("/proc/self/ns/mnt", "another kind of namespace"),
            ("/dev/null", "an ordinary file"),
        ] {
            let error = NetNs::open(Path::new(path)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{path}");
            assert!(error.to_string().contains(seen), "{path}: {error}");
        }
        assert_eq!(NetNs::open(Path::new("/nowhere")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_descriptor_is_checked_as_a_path_is() {
        let here = NetNs::current().unwrap();
        let copy = NetNs::from_fd(here.as_fd().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!(copy.id(), here.id());
        let other = File::open("/dev/null").unwrap();
        assert_eq!(NetNs::from_fd(other.into()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
