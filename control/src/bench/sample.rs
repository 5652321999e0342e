//! One sample: load, what the load program saw, and what it cost.

use std::time::Duration;

use anyhow::ensure;

use super::account::{Cost, Own};
use super::record::{Measure, Sample};
use super::run::readings;
use super::stage::Scene;
use super::work::{self, Kind, Outcome, Run, Work};

/// From the client's pod to where the mode has the server.
pub(super) fn between(scene: &Scene, duration: Duration) -> Run<'_> {
    Run { client: &scene.stage.client, server: scene.mode.address(&scene.stage), duration }
}

/// Puts the figures of one load into `sample`.
///
/// **Errors:** the load program failed, or nothing came through; a proxy is gone.
pub(super) fn take(
    scene: &Scene,
    work: &Work,
    (own, length): (&Own, Duration),
    sample: &mut Sample,
) -> anyhow::Result<()> {
    let run = between(scene, length);
    let (outcome, cost) = readings(scene, own, || work::perform(work, &run))?;
    ensure!(outcome.units > 0.0, "nothing came through");
    sample.disturbed.clone_from(&cost.disturbed);
    fill(sample, work, outcome, (&cost, scene.mode.has_proxies()));
    Ok(())
}

fn fill(sample: &mut Sample, work: &Work, outcome: Outcome, (cost, has_proxies): (&Cost, bool)) {
    let Outcome { units, values, latency } = outcome;
    sample.values = values;
    sample.latency = latency;
    // Requests and connections cost microseconds, a GiB seconds.
    let (measure, scale) = match work.kind {
        Kind::Bulk { .. } => (Measure::CpuSPerGib, 1.0),
        Kind::Connections { .. } => (Measure::CpuUsPerConnection, 1e6),
        _ => (Measure::CpuUsPerRequest, 1e6),
    };
    let each = |time: Duration| time.as_secs_f64() * scale / units;
    sample.values.insert(Measure::MachineCpu, each(cost.machine));
    if has_proxies {
        sample.values.insert(measure, each(cost.proxies()));
        // Exact up to 2^53.
        sample.values.insert(Measure::Switches, cost.switches as f64 / units);
        sample.by_process = cost.by_process.iter().map(|(name, time)| (name.clone(), each(*time))).collect();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn filled(kind: Kind, has_proxies: bool) -> Sample {
        let work = Work { name: "w".to_owned(), title: String::new(), kind };
        let cost = Cost {
            by_process: BTreeMap::from([
                ("node-a".to_owned(), Duration::from_millis(300)),
                ("node-b".to_owned(), Duration::from_millis(100)),
            ]),
            switches: 500,
            machine: Duration::from_secs(2),
            disturbed: None,
        };
        let outcome = Outcome {
            units: 1_000.0,
            values: BTreeMap::from([(Measure::P50Us, 80.0)]),
            latency: vec![(50.0, 80.0)],
        };
        let mut sample = Sample::default();
        fill(&mut sample, &work, outcome, (&cost, has_proxies));
        sample
    }

    #[test]
    fn cost_is_divided_by_what_was_done() {
        let http = filled(Kind::Closed { connections: 1, body: 100 }, true);
        assert_eq!(http.values[&Measure::CpuUsPerRequest], 400.0);
        assert_eq!(http.values[&Measure::MachineCpu], 2_000.0);
        assert_eq!(http.values[&Measure::Switches], 0.5);
        assert_eq!(http.values[&Measure::P50Us], 80.0);
        assert_eq!(http.by_process["node-a"], 300.0);
        let connections = filled(Kind::Connections { concurrency: 1 }, true);
        assert_eq!(connections.values[&Measure::CpuUsPerConnection], 400.0);
        let bulk = filled(Kind::Bulk { streams: 1, down: false }, true);
        assert!((bulk.values[&Measure::CpuSPerGib] - 0.0004).abs() < 1e-12);
    }

    #[test]
    fn what_has_no_proxies_has_no_cost_of_them() {
        let direct = filled(Kind::Closed { connections: 1, body: 100 }, false);
        assert_eq!(direct.values.keys().copied().collect::<Vec<_>>(), [Measure::P50Us, Measure::MachineCpu]);
        assert!(direct.by_process.is_empty());
    }
}
