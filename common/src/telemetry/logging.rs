//! The logger: one bounded queue and one writer thread, for the access log and for `tracing` events of all crates.
//!
//! A caller formats its line and appends it to the queue under a lock that is only ever held for a copy; it never
//! waits for the sink. When the sink stalls and the queue is full, or fails, lines are dropped and counted, and one line
//! says how many as soon as it takes lines again.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
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
/// Pause before a sink that takes nothing without waiting is asked again.
const RETRY: Duration = Duration::from_millis(20);
/// A buffer that grew beyond this in a burst is given back.
const KEEP_BYTES: usize = 128 << 10;

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter does not parse.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The writer thread could not be started, or standard output is closed.
    #[error(
        "the log writer could not be started: {0}; check the limit on threads and that standard output is open"
    )]
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
    panics: AtomicU64,
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
    /// The sink failed last time: what was dropped is told with the next line, not at once.
    failing: bool,
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
    // Its own descriptor: nothing of the standard library's buffers is between a line and the sink.
    let sink = File::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    let logger = Logger::start(format, filter, Box::new(sink))?;
    let subscriber = Registry::default().with(targets).with(Events::new(logger.clone()));
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LoggingError::AlreadySet)?;
    log_panics(&logger);
    Ok(logger)
}

/// A panic is logged and counted. Only the main thread also writes to standard error, which could block: it carries no
/// traffic, and its panic may be the last thing that the process says.
fn log_panics(logger: &Logger) {
    let (before, logger) = (std::panic::take_hook(), logger.clone());
    std::panic::set_hook(Box::new(move |info| {
        logger.owner.0.panics.fetch_add(1, Ordering::Relaxed);
        let thread = std::thread::current();
        let name = thread.name().unwrap_or_default();
        logger.line(Level::ERROR, ("panic", "panicked"), |line| {
            line.text("thread", name);
            line.text("at", &info.location().map(ToString::to_string).unwrap_or_default());
            line.text("message", info.payload_as_str().unwrap_or("of another kind than text"));
        });
        if name == "main" {
            before(info);
        }
    }));
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
            panics: AtomicU64::new(0),
            access: AtomicU8::new(access_rank(&filter)),
        });
        let writer = Arc::clone(&shared);
        std::thread::Builder::new().name("log".into()).spawn(move || writer.run(format, sink))?;
        Ok(Self { owner: Arc::new(Owner(shared)), format, filter: Arc::new(Mutex::new(filter)) })
    }

    /// Appends a line of the access log, as it is but for its end. Never waits for the sink.
    pub fn access(&self, line: &mut String) {
        line.push('\n');
        self.push(line);
    }

    /// Whether the access log takes lines that tell of what went well.
    pub fn takes_access(&self) -> bool {
        self.logs_access(Level::INFO)
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

    /// Panics since the start, of all threads (`culvert_panics_total`).
    pub fn panics(&self) -> u64 {
        self.owner.0.panics.load(Ordering::Relaxed)
    }

    /// Waits until everything logged before is in the sink or given up, at most for `limit`; returns whether it is.
    ///
    /// Blocks the thread: for the end of the process and for tests, never for a worker.
    pub fn flush(&self, limit: Duration) -> bool {
        let shared = &self.owner.0;
        let mut queue = shared.lock();
        queue.hurry = true;
        shared.filled.notify_one();
        let busy = |q: &mut Queue| q.has_work() || q.writing;
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

impl Queue {
    fn has_work(&self) -> bool {
        self.lines > 0 || self.dropped > 0 && !self.failing
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
        let mut torn = false;
        while let Some(told) = self.next_batch(&mut batch) {
            if torn {
                batch.insert(0, b'\n'); // ends the line of which the sink took only a part
            }
            let own = batch.len();
            if told > 0 {
                push_notice(&mut batch, format, told);
            }
            let taken = self.deliver(&mut *sink, &batch);
            let rest = batch.get(taken..own).unwrap_or_default();
            let lost = rest.iter().filter(|b| **b == b'\n').count() as u64;
            self.dropped.fetch_add(lost, Ordering::Relaxed);
            torn = torn && taken == 0 || taken > 0 && batch.get(taken - 1) != Some(&b'\n');
            let failing = taken < batch.len();
            batch.clear();
            if batch.capacity() > KEEP_BYTES {
                batch = Vec::new();
            }
            let mut queue = self.lock();
            queue.writing = false;
            queue.failing = failing;
            if failing {
                queue.dropped += told + lost;
            }
            drop(queue);
            self.drained.notify_all();
        }
    }

    /// Writes until the sink fails; returns how many bytes it took.
    ///
    /// A sink that would have to wait (a pipe that somebody made non-blocking) is asked again, as a blocking one waits.
    fn deliver(&self, sink: &mut dyn Write, batch: &[u8]) -> usize {
        let mut taken = 0;
        while let Some(rest) = batch.get(taken..).filter(|rest| !rest.is_empty()) {
            match sink.write(rest) {
                Ok(0) => break,
                Ok(count) => taken += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock && !self.lock().closed => {
                    std::thread::park_timeout(RETRY);
                }
                Err(_) => break,
            }
        }
        let _nothing_to_tell_it_to = sink.flush();
        taken
    }

    /// Swaps the queue's bytes into `batch` and returns how many lines were dropped since; `None` at the end.
    fn next_batch(&self, batch: &mut Vec<u8>) -> Option<u64> {
        let mut queue = self.lock();
        while !queue.has_work() {
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
