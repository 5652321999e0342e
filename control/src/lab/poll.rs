//! Bounded waiting for real processes.

use std::time::{Duration, Instant};

use super::LabError;

/// Lets `time` pass; for polling something that gives no event.
#[expect(clippy::disallowed_methods, reason = "blocks a thread that has nothing else to do, no worker")]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Asks every 10 ms until `check` gives a value, for at most `limit`.
///
/// **Errors:** [`LabError::Timeout`] with `seen()` as the state at the end.
pub fn wait_until<T>(
    what: &str,
    limit: Duration,
    mut check: impl FnMut() -> Option<T>,
    seen: impl FnOnce() -> String,
) -> Result<T, LabError> {
    let start = Instant::now();
    loop {
        if let Some(value) = check() {
            return Ok(value);
        }
        if start.elapsed() >= limit {
            return Err(LabError::Timeout { what: what.to_owned(), limit, seen: seen() });
        }
        pause(Duration::from_millis(10));
    }
}
