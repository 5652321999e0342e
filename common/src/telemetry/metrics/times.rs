//! Families whose values are read when they are asked for: the runtimes, and how old the configuration is.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::runtime::RuntimeMetrics;

use super::super::encode::{Kind, Scrape, push_label};
use crate::task::Scope;

/// The traffic workers' runtimes.
#[derive(Default)]
pub(super) struct Runtimes {
    pub(super) workers: BTreeMap<usize, RuntimeMetrics>,
    pub(super) tasks: Option<Scope>,
}

impl Runtimes {
    pub(super) fn encode(&self, scrape: &mut Scrape) {
        if self.workers.is_empty() {
            return;
        }
        let mut gauge = |name, help, value: usize| {
            scrape.family(name, Kind::Gauge, help);
            scrape.sample(name, &[], value);
        };
        gauge("tokio_num_workers", "Traffic workers.", self.workers.len());
        let queued = self.workers.values().map(RuntimeMetrics::global_queue_depth).sum();
        gauge("tokio_global_queue_depth", "Tasks woken by other threads and not yet polled.", queued);
        // The workers' own tasks are in local sets, which the runtimes do not count.
        let tasks = self.tasks.as_ref().map_or(0, Scope::len);
        gauge("tokio_num_alive_tasks", "Tasks of the traffic that have not ended.", tasks);
        let name = "tokio_worker_total_busy_duration_seconds_total";
        scrape.family(name, Kind::Counter, "Seconds that the worker was busy.");
        self.each(scrape, name, |worker| worker.worker_total_busy_duration(0).as_secs_f64());
        let name = "tokio_worker_park_count_total";
        scrape.family(name, Kind::Counter, "Times that the worker went to sleep.");
        self.each(scrape, name, |worker| worker.worker_park_count(0));
        let name = "tokio_worker_park_unpark_count_total";
        scrape.family(name, Kind::Counter, "Times that the worker went to sleep or was woken.");
        self.each(scrape, name, |worker| worker.worker_park_unpark_count(0));
    }

    fn each<T: std::fmt::Display>(&self, scrape: &mut Scrape, name: &str, of: impl Fn(&RuntimeMetrics) -> T) {
        for (number, worker) in &self.workers {
            let mut labels = String::new();
            push_label(&mut labels, "worker", &number.to_string());
            scrape.sample(name, &[&labels], of(worker));
        }
    }
}

/// When the configuration in force was taken, and since when others are refused.
#[derive(Default)]
pub(super) struct ConfigTimes {
    taken: Option<Instant>,
    refused: Option<Instant>,
}

impl ConfigTimes {
    pub(super) fn taken(&mut self, now: Instant) {
        (self.taken, self.refused) = (Some(now), None);
    }

    pub(super) fn refused(&mut self, now: Instant) {
        self.refused.get_or_insert(now);
    }

    pub(super) fn encode(&self, scrape: &mut Scrape, now: Instant) {
        let mut gauge = |name, help, seconds: Duration| {
            scrape.family(name, Kind::Gauge, help);
            scrape.sample(name, &[], seconds.as_secs());
        };
        let since = |at: Instant| now.saturating_duration_since(at);
        if let Some(taken) = self.taken {
            let help = "Seconds since the configuration in force was taken.";
            gauge("culvert_config_age_seconds", help, since(taken));
        }
        if self.taken.is_some() || self.refused.is_some() {
            let help = "Seconds for which a changed configuration has been refused; 0 if the one in force is what was read last.";
            gauge("culvert_config_stale_seconds", help, self.refused.map(since).unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_configuration_ages_until_one_is_taken() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut times = ConfigTimes::default();
        let shown = |times: &ConfigTimes, now| {
            let mut scrape = Scrape::new(false);
            times.encode(&mut scrape, now);
            let text = scrape.finish();
            let values = text.lines().filter(|l| !l.starts_with('#')).map(|l| l.rsplit_once(' ').unwrap().1);
            values.map(|v| v.parse().unwrap()).collect::<Vec<u64>>()
        };
        assert!(shown(&times, at(0)).is_empty());
        times.taken(at(10));
        assert_eq!(shown(&times, at(15)), [5, 0]);
        times.refused(at(20));
        times.refused(at(25));
        assert_eq!(shown(&times, at(30)), [20, 10]);
        times.taken(at(40));
        assert_eq!(shown(&times, at(41)), [1, 0]);
    }
}
