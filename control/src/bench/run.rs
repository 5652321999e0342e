//! One run from its first lab to its last sample. Start reading at [`run`].

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::account::{self, Own, Reading};
use super::keep::Keeper;
use super::mode::Mode;
use super::plan::{self, Pace, Step};
use super::progress::{Position, Progress};
use super::record::{ModeRecord, Sample};
use super::stage::Scene;
use super::work::{self, Kind, Work};
use super::{restart, sample};

/// How long the machine is looked at before anything is measured.
const LOOK: Duration = Duration::from_secs(1);
/// Load that brings every mode up to its working size; its figures are dropped.
const WARM_UP: Kind = Kind::Closed { connections: 16, body: 100 };
const WARM_UP_TIME: Duration = Duration::from_secs(1);
/// A disturbed sample is taken at most so often in all.
const TRIES_MAX: u32 = 3;

/// What is asked for.
pub struct Asked {
    /// Ways, in the order of tables.
    pub modes: Vec<Box<dyn Mode>>,
    /// Works, in the order of tables.
    pub works: Vec<Work>,
    /// How often and how long.
    pub pace: Pace,
    /// The agent's binary.
    pub ztunnel: PathBuf,
}

/// A mode in the run.
pub(super) struct Slot {
    pub(super) name: String,
    /// `Err` with the reason once it cannot go on.
    pub(super) scene: Result<Scene, String>,
}

/// What a run has at hand.
pub(super) struct Running<'a> {
    works: Vec<Work>,
    pace: Pace,
    pub(super) slots: Vec<Slot>,
    pub(super) keeper: &'a Keeper,
    progress: &'a mut Progress,
    own: Own,
    /// Time that may still go into repetitions.
    spare: Duration,
}

/// Measures everything asked for; what was seen is in the keeper. A mode that fails does not end the run: its samples say
/// why they have no figures.
///
/// **Errors:** there is no mode or work left to measure, or the machine cannot be read.
pub fn run(asked: Asked, keeper: &Keeper, progress: &mut Progress) -> anyhow::Result<()> {
    let Asked { modes, works, pace, ztunnel } = asked;
    let steps = plan::steps(&works, modes.len(), pace.rounds);
    let estimate = plan::estimate(&works, &steps, modes.len(), pace.seconds);
    progress.say(&format!(
        "{} modes, {} works, {} rounds: {} ({} more if others disturb it)",
        modes.len(),
        works.len(),
        pace.rounds,
        plan::about(estimate),
        plan::about(estimate.mul_f64(pace.repeats)),
    ));
    keeper.update(|r| {
        r.about.rounds = pace.rounds;
        r.about.sample_seconds = pace.seconds.into();
        r.works = works.iter().flat_map(Work::records).collect();
    });
    let spare = estimate.mul_f64(pace.repeats);
    let mut running =
        Running { works, pace, slots: Vec::new(), keeper, progress, own: Own::default(), spare };
    running.build(modes, &ztunnel);
    anyhow::ensure!(running.slots.iter().any(|s| s.scene.is_ok()), "no mode could be started");
    let busy = running.look()?;
    running.warm_up();
    running.measure(&steps);
    running.finish(busy);
    Ok(())
}

impl Running<'_> {
    /// Prepares, builds and starts each mode.
    fn build(&mut self, modes: Vec<Box<dyn Mode>>, ztunnel: &std::path::Path) {
        for mut mode in modes {
            let name = mode.name().to_owned();
            self.progress.doing(&format!("starting {name}"));
            let progress = &mut *self.progress;
            let scene = mode.prepare(&mut |text| progress.doing(text)).and_then(|()| {
                let record =
                    ModeRecord { name: name.clone(), title: mode.title(), deviations: mode.deviations() };
                self.keeper.update(|r| r.modes.push(record));
                let mut scene = Scene::build(mode, ztunnel)?;
                scene.start(0)?;
                // A described mode asks for its version when it knows where it is.
                let tools = scene.mode.tools();
                self.keeper.update(|r| r.about.tools.extend(tools));
                Ok(scene)
            });
            let scene = scene.map_err(|e| format!("{e:#}"));
            match &scene {
                Ok(scene) => self.adopt(scene),
                Err(reason) => self.note(&format!("{name} is left out: {reason}")),
            }
            self.slots.push(Slot { name, scene });
        }
        if let Some(Ok(scene)) = self.slots.iter().map(|s| &s.scene).find(|s| s.is_ok()) {
            let control = scene.congestion_control();
            self.keeper.update(|r| r.about.machine.congestion_control = control);
        }
    }

    /// What runs in the scene's namespaces is no foreign load.
    fn adopt(&mut self, scene: &Scene) {
        let stage = &scene.stage;
        let nodes = stage.nodes.iter().copied().chain(stage.beside.as_ref().map(|pod| pod.node));
        let hosts = nodes.filter_map(|node| stage.lab.host(node).ok());
        let pods = [&stage.client, &stage.server].into_iter().chain(&stage.beside).map(|pod| &**pod);
        let places = hosts.chain([stage.lab.wire()]).chain(pods);
        for place in places {
            self.own.add_namespace(&place.netns_path());
        }
        self.own.add_processes(scene.mode.proxies().into_iter().map(|p| p.pid));
    }

    /// Looks whether the machine is quiet, and says so if not.
    fn look(&mut self) -> anyhow::Result<Option<String>> {
        self.progress.doing("looking whether the machine is quiet");
        let busy = account::watch(&self.own, LOOK)?;
        if let Some(what) = &busy {
            self.progress.say(&format!(
                "warning: the machine is busy ({what}): disturbed samples are marked and repeated, and may stay"
            ));
        }
        Ok(busy)
    }

    fn warm_up(&mut self) {
        let warm = Work { name: "warm-up".to_owned(), title: String::new(), kind: WARM_UP };
        for index in 0..self.slots.len() {
            let Some(Slot { name, scene: Ok(scene) }) = self.slots.get(index) else { continue };
            self.progress.doing(&format!("warming up {name}"));
            let run = sample::between(scene, WARM_UP_TIME);
            if let Err(e) = work::perform(&warm, &run) {
                self.lose(index, &format!("warm-up: {e:#}"));
            }
        }
    }

    fn measure(&mut self, steps: &[Step]) {
        let costs: Vec<Duration> = steps
            .iter()
            .map(|s| self.works.get(s.work).map(|w| plan::cost(w, self.pace.seconds)).unwrap_or_default())
            .collect();
        let begin = Instant::now();
        let mut planned = Duration::ZERO;
        for (done, (step, cost)) in steps.iter().zip(&costs).enumerate() {
            let left: Duration = costs.iter().skip(done).sum();
            // What remains is as much slower than planned as what is done was.
            let pace = if planned.is_zero() {
                1.0
            } else {
                begin.elapsed().div_duration_f64(planned).clamp(0.2, 5.0)
            };
            self.step(*step, (done, steps.len(), left.mul_f64(pace)));
            planned += *cost;
        }
        self.progress.end();
    }

    fn step(&mut self, step: Step, (done, total, left): (usize, usize, Duration)) {
        let Some(work) = self.works.get(step.work).cloned() else { return };
        let Some(slot) = self.slots.get(step.mode) else { return };
        let part = format!("round {}/{}, {}", step.round, self.pace.rounds, work.name);
        self.progress.at(Position { part: &part, mode: &slot.name, done, total, left });
        if let Err(reason) = &slot.scene {
            let reason = reason.clone();
            return self.fail(step, &work, &reason);
        }
        if plan::restarts(&work) {
            return restart::measure(self, step, &work);
        }
        for attempt in 1..=TRIES_MAX {
            let begin = Instant::now();
            let Some(taken) = self.take(step, &work) else { return };
            let again = taken.disturbed.is_some() && attempt < TRIES_MAX && begin.elapsed() <= self.spare;
            self.keeper.add(taken);
            if !again {
                return;
            }
            self.spare = self.spare.saturating_sub(begin.elapsed());
        }
    }

    /// Takes one sample; `None` if the mode cannot do this work.
    fn take(&mut self, step: Step, work: &Work) -> Option<Sample> {
        let Some(Slot { scene: Ok(scene), .. }) = self.slots.get(step.mode) else { return None };
        if let Some(reason) = scene.mode.cannot(work) {
            let text = format!("{} does not do {}: {reason}", scene.mode.name(), work.name);
            self.note_once(&text);
            return None;
        }
        let mut taken = self.blank(step, &work.name);
        let begin = Instant::now();
        let done = sample::take(scene, work, (&self.own, plan::length(work, self.pace.seconds)), &mut taken);
        taken.seconds = begin.elapsed().as_secs_f64();
        if let Err(e) = done {
            taken.failed = Some(format!("{e:#}"));
        }
        if let Some(gone) = scene.lost() {
            let reason = format!("{} (process {}) has ended", gone.name, gone.pid);
            taken.failed = Some(reason.clone());
            self.lose(step.mode, &reason);
        }
        Some(taken)
    }

    /// A sample without figures.
    pub(super) fn blank(&self, step: Step, work: &str) -> Sample {
        let mode = self.slots.get(step.mode).map(|s| s.name.clone()).unwrap_or_default();
        Sample {
            round: step.round,
            mode,
            work: work.to_owned(),
            at: self.keeper.seconds(),
            ..Sample::default()
        }
    }

    /// Samples of a work that has no figures.
    pub(super) fn fail(&self, step: Step, work: &Work, reason: &str) {
        for record in work.records() {
            self.keeper.add(Sample { failed: Some(reason.to_owned()), ..self.blank(step, &record.name) });
        }
    }

    /// A mode is no longer there: what it should still do fails with the reason.
    pub(super) fn lose(&mut self, mode: usize, reason: &str) {
        let Some(slot) = self.slots.get_mut(mode) else { return };
        let name = slot.name.clone();
        // Its lab goes now: what is left of it would only be in the way of the others.
        slot.scene = Err(reason.to_owned());
        self.note(&format!("{name} is out: {reason}"));
    }

    /// Processes that a mode has started anew.
    pub(super) fn adopt_again(&mut self, mode: usize) {
        if let Some(Slot { scene: Ok(scene), .. }) = self.slots.get(mode) {
            self.own.add_processes(scene.mode.proxies().into_iter().map(|p| p.pid));
        }
    }

    /// Seconds of one sample.
    pub(super) fn seconds(&self) -> u32 {
        self.pace.seconds
    }

    /// Tells people, now and in the report.
    pub(super) fn note(&mut self, text: &str) {
        self.progress.say(&format!("note: {text}"));
        self.keeper.update(|r| r.about.notes.push(text.to_owned()));
    }

    fn note_once(&mut self, text: &str) {
        if !self.keeper.recording().about.notes.iter().any(|n| n == text) {
            self.note(text);
        }
    }

    fn finish(&mut self, busy: Option<String>) {
        let recording = self.keeper.recording();
        let (all, disturbed) =
            (recording.samples.len(), recording.samples.iter().filter(|s| s.disturbed.is_some()).count());
        if disturbed > 0 {
            self.note(&format!("{disturbed} of {all} samples were disturbed by other load on the machine"));
        }
        if let Some(what) = busy {
            self.note(&format!("the machine was busy when the run began: {what}"));
        }
        self.keeper.update(|r| r.about.complete = true);
    }
}

/// Counters around one load.
pub(super) fn readings<T>(
    scene: &Scene,
    own: &Own,
    load: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<(T, account::Cost)> {
    let proxies = scene.mode.proxies();
    let before = Reading::before(&proxies, own)?;
    let got = load()?;
    let after = Reading::after(&proxies, own)?;
    Ok((got, after.since(&before)))
}
