//! What an accept loop does without a free descriptor: one is kept in reserve, to accept and reset with, so that clients
//! hear a reset at once instead of waiting for an agent that cannot take them.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::os::fd::AsFd;
use std::time::Duration;

use culvert_common::net::socket::set_reset_on_drop;
use nix::libc;
use socket2::SockRef;
use tokio::time::Instant;

/// Waiting connections that are reset in one go; then the loop pauses.
const AT_ONCE: usize = 64;

/// A worker's descriptor in reserve.
pub(crate) struct Spare {
    file: RefCell<Option<File>>,
    told: Cell<Option<Instant>>,
}

impl Spare {
    pub(crate) fn new() -> Self {
        Self { file: RefCell::new(open()), told: Cell::new(None) }
    }

    /// Takes care of a failed accept; returns how many waiting connections were reset.
    pub(crate) fn failed(&self, listener: impl AsFd, error: &std::io::Error) -> usize {
        let scarce = matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
        let reset = if scarce { self.reset_waiting(listener) } else { 0 };
        let now = Instant::now();
        if self.told.get().is_none_or(|at| now.duration_since(at) >= Duration::from_secs(1)) {
            self.told.set(Some(now));
            tracing::warn!(%error, reset, "cannot accept connections; raise the limit of open files if this stays");
        }
        reset
    }

    fn reset_waiting(&self, listener: impl AsFd) -> usize {
        drop(self.file.borrow_mut().take());
        let listener = SockRef::from(&listener);
        let mut reset = 0;
        while reset < AT_ONCE
            && let Ok((socket, _)) = listener.accept()
        {
            // The tunnels' listener leaves it off; a reset is the answer that everybody understands at once.
            let _gone = set_reset_on_drop(&socket, true);
            reset += 1;
        }
        *self.file.borrow_mut() = open();
        reset
    }
}

/// Without one, connections wait in the kernel until there are descriptors again.
fn open() -> Option<File> {
    File::open("/dev/null").ok()
}
