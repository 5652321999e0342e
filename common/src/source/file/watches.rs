//! Events of the file system, so that a change is read at once and not at the next look.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;
use tokio::time::{sleep, timeout};

use super::{DEPTH_MAX, FILES_MAX};

/// Quiet time after a change before the directory is read: editors and copies change a file in several steps.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// Longest time that changes which never pause can put off reading.
const DEBOUNCE_MAX: Duration = Duration::from_secs(1);
/// Events of the directory and of those below it. Without inotify (no descriptor left, say) only the rescan remains.
pub(super) struct Watches {
    inotify: Option<AsyncFd<Fd>>,
}

/// Gives the descriptor's number, which the reactor asks for.
struct Fd(Inotify);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Watches {
    pub(super) fn new() -> Self {
        let init = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(io::Error::from);
        #[expect(deprecated, reason = "its successor is unsafe; this descriptor's number never changes")]
        let inotify = init.and_then(|inotify| AsyncFd::new(Fd(inotify)));
        let inotify = inotify
            .inspect_err(|error| {
                tracing::warn!(target: "state", %error, "no inotify; changes are seen late");
            })
            .ok();
        Self { inotify }
    }

    /// Watches `dir` and the directories below it. A directory that is watched already stays so.
    pub(super) fn cover(&self, dir: &Path) {
        let Some(inotify) = &self.inotify else { return };
        // Not IN_MODIFY: a file that is being written is read when its writer closes it.
        let mask = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        let mut dirs = vec![(dir.to_owned(), 0)];
        let mut count = 0;
        while let Some((at, depth)) = dirs.pop() {
            // What cannot be watched is seen by the rescan.
            let _ = inotify.get_ref().0.add_watch(&at, mask);
            let entries = fs::read_dir(&at).into_iter().flatten().flatten();
            for path in entries.map(|entry| entry.path()).take(FILES_MAX) {
                let is_hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
                if !is_hidden && depth < DEPTH_MAX && count < FILES_MAX && path.is_dir() {
                    count += 1;
                    dirs.push((path, depth + 1));
                }
            }
        }
    }

    /// Resolves when something changed; takes the events. Cancel-safe.
    pub(super) async fn changed(&self) {
        let Some(inotify) = &self.inotify else { return std::future::pending().await };
        loop {
            let Ok(mut ready) = inotify.readable().await else { return std::future::pending().await };
            let read = ready.try_io(|fd| fd.get_ref().0.read_events().map_err(io::Error::from));
            match read {
                Ok(Ok(_)) => return,
                Ok(Err(_)) => sleep(DEBOUNCE).await, // never spin on a broken descriptor
                Err(_) => {}                         // not ready after all
            }
        }
    }

    /// Resolves when nothing has changed for [`DEBOUNCE`], or after [`DEBOUNCE_MAX`].
    pub(super) async fn settled(&self) {
        let quiet = async { while timeout(DEBOUNCE, self.changed()).await.is_ok() {} };
        let _ = timeout(DEBOUNCE_MAX, quiet).await;
    }
}
