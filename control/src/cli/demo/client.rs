//! A client that asks without pause, each time on a new connection, and remembers how each request went.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use culvert::lab::{LabError, Place, http, pause, wait_until};

const ANSWER_MAX: Duration = Duration::from_secs(3);

/// How one request went.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// When it was over.
    pub(super) at: Instant,
    /// First word of the answer, which is the pod's name, or what went wrong.
    pub(super) outcome: Result<String, String>,
}

/// A running client. Dropping it stops it.
pub(super) struct Client {
    samples: Arc<Mutex<Vec<Sample>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<(), LabError>>>,
}

impl Client {
    /// Asks the addresses in turn from inside `place`, with a short breath in between.
    pub(super) fn start(place: &Place, to: &[SocketAddr], path: &str) -> Self {
        let samples = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (to, path) = (to.to_vec(), path.to_owned());
        let (out, stopped) = (Arc::clone(&samples), Arc::clone(&stop));
        let thread = place.thread(move || {
            for address in to.iter().cycle() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let outcome = match http::get(*address, &path, ANSWER_MAX) {
                    Ok(answer) if answer.status == 200 => {
                        Ok(answer.body.split_whitespace().next().unwrap_or_default().to_owned())
                    }
                    Ok(answer) => Err(format!("status {}", answer.status)),
                    Err(e) => Err(e.to_string()),
                };
                let sample = Sample { at: Instant::now(), outcome };
                out.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
                pause(Duration::from_millis(2));
            }
        });
        Self { samples, stop, thread: Some(thread) }
    }

    /// All requests so far.
    pub(super) fn samples(&self) -> Vec<Sample> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Requests that ended after `since`.
    pub(super) fn since(&self, since: Instant) -> Vec<Sample> {
        self.samples().into_iter().filter(|s| s.at > since).collect()
    }

    /// Waits until a request that ended after `since` is as wanted, and returns the time in between.
    pub(super) fn wait(
        &self,
        what: &str,
        since: Instant,
        wanted: impl Fn(&Sample) -> bool,
    ) -> anyhow::Result<Duration> {
        let find = || self.since(since).into_iter().find(|s| wanted(s));
        let seen = || {
            self.samples().last().map_or_else(|| "no request yet".to_owned(), |s| format!("{:?}", s.outcome))
        };
        let found = wait_until(what, Duration::from_secs(8), find, seen)?;
        Ok(found.at.duration_since(since))
    }

    /// Stops it and returns all requests.
    pub(super) fn stop(mut self) -> anyhow::Result<Vec<Sample>> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow!("the client's thread panicked"))??;
        }
        Ok(self.samples())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}
