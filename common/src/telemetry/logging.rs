//! The logger: one bounded queue and one writer thread, for the access log and for `tracing` events of all crates.
//!
//! A caller formats its line and appends it to the queue under a lock that is only ever held for a copy; it never
//! waits for the sink. When the sink stalls and the queue is full, lines are dropped and counted, and one line says
//! how many as soon as there is room again.

use std::io::Write;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tracing::Level;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::Registry;
use tracing_subscriber::reload;

use super::events::Events;
use super::filter::{Filter, Install};
use super::line::{Head, Line};

pub use super::filter::FilterError;
pub use super::line::LogFormat;

/// Lines that may wait for the sink.
const MAX_LINES: usize = 10_000;
/// Bytes that may wait for the sink; as many again may be on their way into it.
const MAX_BYTES: usize = 2 << 20;
/// How long the writer gathers lines, so that a busy worker does not wake it for each.
const GATHER: Duration = Duration::from_millis(100);
/// Bytes at which it stops gathering.
const BATCH_BYTES: usize = 48 << 10;
/// A buffer that grew beyond this in a burst is given back.
const KEEP_BYTES: usize = 128 << 10;

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter does not parse.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The writer thread could not be started.
    #[error("the log writer could not be started: {0}; check the limit on threads")]
    Thread(#[from] std::io::Error),
    /// Somebody set a subscriber before.
    #[error("logging is set up already; it can be set up once a process")]
    AlreadySet,
}

/// Hands lines to the writer thread. Clones share the queue; the thread ends when the last clone is dropped.
#[derive(Clone)]
pub struct Logger {
    owner: Arc<Owner>,
    format: LogFormat,
    filter: Arc<Mutex<Filter>>,
}

struct Owner(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    /// The writer waits here for lines.
    filled: Condvar,
    /// [`Logger::flush`] waits here for the writer.
    drained: Condvar,
    dropped: AtomicU64,
    /// The most talkative level that the access log takes, as [`access_rank`] counts.
    access: AtomicU8,
}

#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    lines: usize,
    /// Dropped and not yet told.
    dropped: u64,
    /// A batch is on its way into the sink.
    writing: bool,
    /// Somebody waits: do not gather.
    hurry: bool,
    closed: bool,
}

/// Sends all `tracing` events and the access log to standard output.
///
/// `filter` is a list in the syntax of `RUST_LOG`: `info`, `debug,access=off`, `ztunnel::outbound=trace`. A scope may be
/// given as it is printed, without the name of our crates. Without a level of its own the list starts from `info`.
///
/// **Errors**: the filter does not parse, no thread can be started, or logging was set up before.
pub fn init(format: LogFormat, filter: &str) -> Result<Logger, LoggingError> {
    let mut filter = Filter::parse(filter)?;
    let (targets, handle) = reload::Layer::new(filter.targets());
    let install: Install = Box::new(move |targets| {
        let _subscriber_gone = handle.reload(targets);
    });
    filter.on_change(install);
    let logger = Logger::start(format, filter, Box::new(std::io::stdout()))?;
    let subscriber = Registry::default().with(targets).with(Events::new(logger.clone()));
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LoggingError::AlreadySet)?;
    Ok(logger)
}

impl Logger {
    /// A logger that writes the access log into `sink`, not tied to `tracing`.
    ///
    /// **Errors**: as [`init`].
    pub fn to_sink(
        format: LogFormat,
        filter: &str,
        sink: Box<dyn Write + Send>,
    ) -> Result<Self, LoggingError> {
        Self::start(format, Filter::parse(filter)?, sink)
    }

    fn start(format: LogFormat, filter: Filter, sink: Box<dyn Write + Send>) -> Result<Self, LoggingError> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            filled: Condvar::new(),
            drained: Condvar::new(),
            dropped: AtomicU64::new(0),
            access: AtomicU8::new(access_rank(&filter)),
        });
        let writer = Arc::clone(&shared);
        std::thread::Builder::new().name("log".into()).spawn(move || writer.run(format, sink))?;
        Ok(Self { owner: Arc::new(Owner(shared)), format, filter: Arc::new(Mutex::new(filter)) })
    }

    /// Whether the access log takes lines of this level.
    pub(super) fn logs_access(&self, level: Level) -> bool {
        rank(level) <= self.owner.0.access.load(Ordering::Relaxed)
    }

    /// The filter in force, as a list of scopes and levels.
    pub fn filter(&self) -> String {
        self.lock_filter().to_string()
    }

    /// Adds `levels` to the filter, for the access log and, where [`init`] made this logger, for all events.
    ///
    /// With `reset` the filter is first what it was at the start. **Errors**: `levels` does not parse, or the filter would
    /// name too many scopes; then nothing changes.
    pub fn change_filter(&self, reset: bool, levels: &str) -> Result<(), FilterError> {
        let mut filter = self.lock_filter();
        filter.change(reset, levels)?;
        self.owner.0.access.store(access_rank(&filter), Ordering::Relaxed);
        Ok(())
    }

    fn lock_filter(&self) -> MutexGuard<'_, Filter> {
        self.filter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends one whole line. Never waits for the sink.
    pub(super) fn push(&self, line: &str) {
        self.owner.0.push(line);
    }

    /// Writes one line with the fields that `fields` adds.
    pub(super) fn line(&self, level: Level, head: (&str, &str), fields: impl FnOnce(&mut Line<'_>)) {
        thread_local! {
            static BUFFER: std::cell::Cell<String> = const { std::cell::Cell::new(String::new()) };
        }
        // Taken out, not borrowed: rendering a field may itself log.
        let mut buffer = BUFFER.take();
        buffer.clear();
        let (scope, message) = head;
        let head = Head { time: SystemTime::now(), level: level_name(level), scope, message };
        let mut line = Line::start(&mut buffer, self.format, head);
        fields(&mut line);
        line.end();
        self.push(&buffer);
        BUFFER.set(buffer);
    }

    /// Lines lost since the start (`culvert_log_lines_dropped_total`).
    pub fn dropped(&self) -> u64 {
        self.owner.0.dropped.load(Ordering::Relaxed)
    }

    /// Waits until everything logged before is in the sink, at most for `limit`; returns whether it is.
    ///
    /// Blocks the thread: for the end of the process and for tests, never for a worker.
    pub fn flush(&self, limit: Duration) -> bool {
        let shared = &self.owner.0;
        let mut queue = shared.lock();
        queue.hurry = true;
        shared.filled.notify_one();
        let busy = |q: &mut Queue| q.lines > 0 || q.dropped > 0 || q.writing;
        let (_queue, waited) =
            shared.drained.wait_timeout_while(queue, limit, busy).unwrap_or_else(PoisonError::into_inner);
        !waited.timed_out()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.filled.notify_one();
    }
}

impl Shared {
    /// A panic while the lock is held leaves a queue that is still whole: each change is one append.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &str) {
        let mut queue = self.lock();
        if queue.lines >= MAX_LINES || queue.bytes.len() + line.len() > MAX_BYTES {
            queue.dropped += 1;
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let before = queue.bytes.len();
        queue.bytes.extend_from_slice(line.as_bytes());
        queue.lines += 1;
        let full = before < BATCH_BYTES && queue.bytes.len() >= BATCH_BYTES;
        let wake = !queue.writing && (before == 0 || full);
        drop(queue);
        if wake {
            self.filled.notify_one();
        }
    }

    fn run(&self, format: LogFormat, mut sink: Box<dyn Write + Send>) {
        let mut batch = Vec::new();
        while let Some(dropped) = self.next_batch(&mut batch) {
            if dropped > 0 {
                push_notice(&mut batch, format, dropped);
            }
            // A sink that is gone (closed pipe) leaves nothing to tell it to; its lines count as dropped.
            if sink.write_all(&batch).and_then(|()| sink.flush()).is_err() {
                let lines = batch.iter().filter(|b| **b == b'\n').count();
                self.dropped.fetch_add(lines as u64, Ordering::Relaxed);
            }
            batch.clear();
            if batch.capacity() > KEEP_BYTES {
                batch = Vec::new();
            }
            self.lock().writing = false;
            self.drained.notify_all();
        }
    }

    /// Swaps the queue's bytes into `batch` and returns how many lines were dropped since; `None` at the end.
    fn next_batch(&self, batch: &mut Vec<u8>) -> Option<u64> {
        let mut queue = self.lock();
        while queue.lines == 0 && queue.dropped == 0 {
            if queue.closed {
                return None;
            }
            queue.hurry = false;
            queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        let until = Instant::now() + GATHER;
        while !queue.hurry && !queue.closed && queue.bytes.len() < BATCH_BYTES {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            (queue, _) = self.filled.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::swap(&mut queue.bytes, batch);
        queue.lines = 0;
        queue.writing = true;
        queue.hurry = false;
        Some(std::mem::take(&mut queue.dropped))
    }
}

fn push_notice(batch: &mut Vec<u8>, format: LogFormat, dropped: u64) {
    let mut text = String::new();
    let head = Head {
        time: SystemTime::now(),
        level: level_name(Level::WARN),
        scope: "logging",
        message: "log lines were dropped because the output did not keep up",
    };
    let mut line = Line::start(&mut text, format, head);
    line.number("lines", dropped);
    line.end();
    batch.extend_from_slice(text.as_bytes());
}

/// 1 for errors only, up to 4 for debug; the access log has nothing below.
fn rank(level: Level) -> u8 {
    match level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG | Level::TRACE => 4,
    }
}

fn access_rank(filter: &Filter) -> u8 {
    let levels = [Level::DEBUG, Level::INFO, Level::WARN, Level::ERROR];
    levels.into_iter().find(|level| filter.takes("access", *level)).map_or(0, rank)
}

/// Lower case, as the reference prints levels.
pub(super) fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

#[cfg(test)]
mod tests;
