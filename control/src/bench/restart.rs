//! Works that restart a mode: its memory in several states, its start, a large cluster.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::account;
use super::mode::Proxy;
use super::plan::{LATER, Step};
use super::record::{Measure, Sample};
use super::run::{Running, Slot};
use super::sample::between;
use super::stage::Scene;
use super::work::{self, Kind, MEMORY_CONNECTIONS, MEMORY_IDLE, MEMORY_LATER, MEMORY_LOADED, Work};
use crate::lab::pause;

/// How long memory must have stayed the same to be called settled.
const SETTLED: Duration = Duration::from_secs(1);
/// Memory that has not settled by then is taken as it is.
const SETTLED_MAX: Duration = Duration::from_secs(15);
/// Less than this share is no change.
const SAME: f64 = 0.01;
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Measures one of these works in one mode.
pub(super) fn measure(running: &mut Running<'_>, step: Step, work: &Work) {
    let Some(Slot { scene: Ok(scene), .. }) = running.slots.get(step.mode) else { return };
    if !scene.mode.has_proxies() {
        return;
    }
    if let Some(reason) = scene.mode.cannot(work) {
        let text = format!("{} does not do {}: {reason}", scene.mode.name(), work.name);
        if step.round == 1 {
            running.note(&text);
        }
        return;
    }
    let workloads = if let Kind::Start { workloads } = work.kind { workloads } else { 0 };
    let Some(Slot { scene: Ok(scene), .. }) = running.slots.get_mut(step.mode) else { return };
    let ready = match scene.restart(workloads) {
        Ok(ready) => ready,
        Err(e) => {
            let reason = format!("{e:#}");
            running.fail(step, work, &reason);
            // Perhaps it cannot know so many workloads: without them it may go on.
            let Some(Slot { scene: Ok(scene), .. }) = running.slots.get_mut(step.mode) else { return };
            match scene.restart(0) {
                Ok(_) => running.adopt_again(step.mode),
                Err(_) => running.lose(step.mode, &reason),
            }
            return;
        }
    };
    running.adopt_again(step.mode);
    let Some(Slot { scene: Ok(scene), .. }) = running.slots.get(step.mode) else { return };
    let done = match work.kind {
        Kind::Start { .. } => started(running, scene, (step, work, ready)),
        Kind::Memory { idle } => states(running, scene, (step, idle)),
        _ => Ok(()),
    };
    if let Err(e) = done {
        running.fail(step, work, &format!("{e:#}"));
    }
    if let Some(gone) = scene.lost() {
        running.lose(step.mode, &format!("{} (process {}) has ended", gone.name, gone.pid));
    }
}

fn started(
    running: &Running<'_>,
    scene: &Scene,
    (step, work, ready): (Step, &Work, Duration),
) -> anyhow::Result<()> {
    let mut sample = running.blank(step, &work.name);
    settle(&scene.mode.proxies())?;
    fill(&mut sample, &scene.mode.proxies())?;
    sample.values.insert(Measure::StartMs, ready.as_secs_f64() * 1e3);
    sample.seconds = running.keeper.seconds() - sample.at;
    running.keeper.add(sample);
    Ok(())
}

/// The states one after the other in one life of the proxies.
fn states(running: &Running<'_>, scene: &Scene, (step, idle): (Step, u32)) -> anyhow::Result<()> {
    let keep = |name: &str| -> anyhow::Result<()> {
        let mut sample = running.blank(step, name);
        fill(&mut sample, &scene.mode.proxies())?;
        running.keeper.add(sample);
        Ok(())
    };
    let proxies = scene.mode.proxies();
    settle(&proxies)?;
    keep(MEMORY_IDLE)?;
    let length = Duration::from_secs(running.seconds().into());
    let run = between(scene, length);
    let held = work::hold_idle(idle, &run).context("hold idle connections")?;
    settle(&proxies)?;
    keep(MEMORY_CONNECTIONS)?;
    drop(held);
    let loads = [Kind::Closed { connections: 64, body: 100 }, Kind::Bulk { streams: 4, down: false }];
    for kind in loads {
        let load = Work { name: "load".to_owned(), title: String::new(), kind };
        work::perform(&load, &run).context("load before memory is measured")?;
    }
    keep(MEMORY_LOADED)?;
    pause(LATER);
    keep(MEMORY_LATER)
}

/// Memory of each proxy, into a sample.
fn fill(sample: &mut Sample, proxies: &[Proxy]) -> anyhow::Result<()> {
    let mut rss = BTreeMap::new();
    let mut pss = 0.0;
    for proxy in proxies {
        let (resident, share) =
            account::memory(proxy.pid).with_context(|| format!("memory of {}", proxy.name))?;
        rss.insert(proxy.name.clone(), resident);
        pss += share;
    }
    sample.values.insert(Measure::RssMib, rss.values().sum());
    sample.values.insert(Measure::PssMib, pss);
    sample.values.insert(Measure::LargestRssMib, rss.values().copied().fold(0.0, f64::max));
    sample.by_process = rss;
    Ok(())
}

/// Waits until memory stays the same for a while.
fn settle(proxies: &[Proxy]) -> anyhow::Result<()> {
    let sum = || proxies.iter().map(|p| account::memory(p.pid).map(|(rss, _)| rss)).sum::<Result<f64, _>>();
    let begin = Instant::now();
    let (mut last, mut since) = (sum()?, Instant::now());
    while since.elapsed() < SETTLED && begin.elapsed() < SETTLED_MAX {
        pause(LOOK_EVERY);
        let now = sum()?;
        if (now - last).abs() > last * SAME {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(())
}
