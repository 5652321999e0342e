//! Bounded tables of series, each found by its rendered labels.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A full table forgets what nobody holds and nobody used for this many seconds.
pub(super) const IDLE_SECONDS: u32 = 600;
/// What was not used for so long is forgotten at the next scrape, full table or not: its pods are gone, or might be.
pub(super) const FORGET_SECONDS: u32 = 6 * 3600;
/// A full table is searched for idle series at most once in this many seconds.
const SWEEP_SECONDS: u32 = 10;

/// What is counted under labels of its own.
pub(super) trait Series {
    /// Rendered, and never another.
    fn labels(&self) -> &str;

    /// Seconds since the start of the table.
    fn used(&self) -> &AtomicU32;
}

/// Series that are counted apart, up to a limit; beyond, idle ones are forgotten, and new ones counted together in one of
/// `N` places.
pub(super) struct Table<T, const N: usize> {
    held: Mutex<Held<T, N>>,
    max: usize,
    start: Instant,
}

struct Held<T, const N: usize> {
    series: HashSet<ByLabels<T>>,
    overflow: [Option<Arc<T>>; N],
    swept: u32,
}

impl<T: Series, const N: usize> Table<T, N> {
    pub(super) fn new(max: usize) -> Self {
        let held = Held { series: HashSet::new(), overflow: [const { None }; N], swept: 0 };
        Self { held: Mutex::new(held), max, start: Instant::now() }
    }

    pub(super) fn seconds(&self, now: Instant) -> u32 {
        u32::try_from(now.saturating_duration_since(self.start).as_secs()).unwrap_or(u32::MAX)
    }

    /// The series of these labels, made if there is none; while the table is full of used ones, the shared one of this place.
    pub(super) fn series(
        &self,
        labels: String,
        seconds: u32,
        make: impl FnOnce(String) -> T,
        (place, make_shared): (usize, impl FnOnce() -> T),
    ) -> Arc<T> {
        let mut held = self.lock();
        if let Some(found) = held.series.get(labels.as_str()) {
            return Arc::clone(&found.0);
        }
        if held.series.len() >= self.max && !held.sweep(self.max, seconds) {
            let shared = || Arc::new(make_shared());
            return match held.overflow.get_mut(place) {
                Some(place) => Arc::clone(place.get_or_insert_with(shared)),
                None => shared(),
            };
        }
        let series = Arc::new(make(labels));
        series.used().store(seconds, Relaxed);
        held.series.insert(ByLabels(Arc::clone(&series)));
        series
    }

    /// Forgets what nobody holds and nobody used for hours.
    pub(super) fn forget(&self, seconds: u32) {
        self.lock().retain_used_within(FORGET_SECONDS, seconds);
    }

    /// All by their labels, the shared ones too. Only the handles are taken under the lock, so that no worker waits for
    /// what is done with them.
    pub(super) fn sorted(&self) -> Vec<Arc<T>> {
        let mut all: Vec<Arc<T>> = {
            let held = self.lock();
            held.series
                .iter()
                .map(|series| &series.0)
                .chain(held.overflow.iter().flatten())
                .cloned()
                .collect()
        };
        all.sort_by(|a, b| a.labels().cmp(b.labels()));
        all
    }

    fn lock(&self) -> MutexGuard<'_, Held<T, N>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Series, const N: usize> Held<T, N> {
    /// Forgets idle series. Returns whether there is room.
    fn sweep(&mut self, max: usize, seconds: u32) -> bool {
        if self.swept != 0 && seconds.saturating_sub(self.swept) < SWEEP_SECONDS {
            return false;
        }
        self.swept = seconds.max(1);
        self.retain_used_within(IDLE_SECONDS, seconds);
        self.series.len() < max
    }

    fn retain_used_within(&mut self, limit: u32, seconds: u32) {
        self.series.retain(|series| {
            // Workers' caches hold weak references: a second strong one is an open connection, or a request that counts.
            let is_held = Arc::strong_count(&series.0) > 1;
            is_held || seconds.saturating_sub(series.0.used().load(Relaxed)) < limit
        });
    }
}

/// A series in the set, found by its labels alone.
struct ByLabels<T>(Arc<T>);

impl<T: Series> Borrow<str> for ByLabels<T> {
    fn borrow(&self) -> &str {
        self.0.labels()
    }
}

impl<T: Series> PartialEq for ByLabels<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0.labels() == other.0.labels()
    }
}

impl<T: Series> Eq for ByLabels<T> {}

impl<T: Series> Hash for ByLabels<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.labels().hash(state);
    }
}
