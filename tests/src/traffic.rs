//! Requests without pause, while something changes.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use culvert::lab::{Place, wait_until};

use crate::mesh::SOON;
use crate::net::exchange;

/// Clients that ask an echo server again and again, each request on a connection of its own.
#[derive(Debug)]
pub struct Traffic {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    good: AtomicU64,
    /// Requests that each client has ended, good or bad.
    ended: Vec<AtomicU64>,
    bad: Mutex<Vec<String>>,
}

impl Traffic {
    /// Starts `clients` of them in a place; returns when the first request has succeeded.
    pub fn start(from: &Place, to: (IpAddr, u16), clients: usize) -> Self {
        let ended = (0..clients).map(|_| AtomicU64::new(0)).collect();
        let shared = Arc::new(Shared { ended, ..Shared::default() });
        let threads = (0..clients).map(|client| {
            let (shared, from) = (Arc::clone(&shared), from.clone());
            std::thread::spawn(move || {
                let start = Instant::now();
                for n in 0_u64.. {
                    if shared.stop.load(Ordering::Relaxed) {
                        return;
                    }
                    shared.ask(&from, to, &format!("request {n} of {client}"), start);
                    shared.ended[client].fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        let traffic = Self { threads: threads.collect(), shared };
        traffic.more(1);
        traffic
    }

    /// Waits for `n` more requests, good or bad.
    pub fn more(&self, n: u64) {
        let done = || self.shared.good.load(Ordering::Relaxed) + self.shared.bad.lock().unwrap().len() as u64;
        let from = done();
        wait_until(
            "requests go on",
            SOON,
            || (done() >= from + n).then_some(()),
            || format!("{:?}", self.shared),
        )
        .unwrap_or_else(|e| panic!("{e}"));
    }

    /// Waits until each client has begun a request and ended it: what was under way is over.
    pub fn all_anew(&self) {
        let ended = || self.shared.ended.iter().map(|n| n.load(Ordering::Relaxed)).collect::<Vec<_>>();
        let from = ended();
        let anew = || ended().iter().zip(&from).all(|(now, from)| *now >= from + 2).then_some(());
        wait_until("a new request of each client", SOON, anew, || format!("{:?}", self.shared))
            .unwrap_or_else(|e| panic!("{e}"));
    }

    /// Ends them: how many succeeded, and what failed.
    pub fn end(self) -> (u64, Vec<String>) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("a client panicked");
        }
        (self.shared.good.load(Ordering::Relaxed), self.shared.bad.lock().unwrap().clone())
    }

    /// Ends them; none may have failed.
    pub fn end_well(self, what: &str) {
        self.end_well_or_tell(what, String::new);
    }

    /// The same, with what else is to be known of a failure.
    pub fn end_well_or_tell(self, what: &str, tell: impl FnOnce() -> String) {
        let (good, bad) = self.end();
        assert!(
            bad.is_empty(),
            "{what}: {} of {} requests failed:\n{}\n{}",
            bad.len(),
            bad.len() as u64 + good,
            bad.join("\n"),
            tell()
        );
    }
}

impl Shared {
    fn ask(&self, from: &Place, to: (IpAddr, u16), text: &str, start: Instant) {
        let error = match exchange(from, to, text.as_bytes()) {
            Ok((_, answer)) if answer == text.as_bytes() => {
                self.good.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Ok((own, answer)) => format!("{own} got {:?}", String::from_utf8_lossy(&answer)),
            Err(error) => error.to_string(),
        };
        let mut bad = self.bad.lock().unwrap();
        bad.push(format!("{} to {to:?}, {text} after {:?}: {error}", from.name(), start.elapsed()));
        // Something is plainly wrong: no need to fill the memory with it.
        self.stop.fetch_or(bad.len() > 200, Ordering::Relaxed);
    }
}
