//! Ctrl-C: everything the process made is removed before it ends.

use std::io::Write as _;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use culvert::lab;
use tokio::signal::unix::{SignalKind, signal};

static SIGNALLED: AtomicBool = AtomicBool::new(false);
/// The main thread has nothing left to clean up.
static HELD: AtomicBool = AtomicBool::new(false);
/// How long the main thread may take to notice that what it waited for was killed.
const HELD_MAX: Duration = Duration::from_secs(2);

/// Never returns once a signal has come: what fails from then on fails because of the removal, and is not worth telling.
pub(super) fn hold_if_signalled() {
    while SIGNALLED.load(Ordering::Relaxed) {
        HELD.store(true, Ordering::Relaxed);
        std::thread::park();
    }
}

/// What is done last, once everything is removed; returns what to tell.
pub(super) type LastWords = Box<dyn FnOnce() -> String>;

/// Starts the thread that waits for SIGINT, SIGTERM and SIGHUP. It calls `signalled` at once, removes all labs, kills what else
/// this process has started, calls what `signalled` returned, and ends the process with 128 + the signal's number, as a shell would report it.
pub(super) fn watch(signalled: impl FnOnce() -> LastWords + Send + 'static) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().context("watch for signals")?;
    let (mut int, mut term, mut hup) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?)
    };
    std::thread::spawn(move || {
        let number = runtime.block_on(async {
            tokio::select! {
                _ = int.recv() => 2,
                _ = term.recv() => 15,
                _ = hup.recv() => 1,
            }
        });
        SIGNALLED.store(true, Ordering::Relaxed);
        let last = signalled();
        lab::remove_all();
        if lab::kill_children() {
            // Whoever waited for them takes away what they had begun to write.
            let held = || HELD.load(Ordering::Relaxed).then_some(());
            let _in_time = lab::wait_until("the main thread", HELD_MAX, held, String::new);
        }
        let _nobody_to_tell = writeln!(std::io::stderr(), "\nculvert: {}, all removed", last());
        process::exit(128 + number);
    });
    Ok(())
}
