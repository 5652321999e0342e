//! A recording as a reader sees it: which works are of one kind, which measure is the cost of each, who is compared with whom.

use std::collections::BTreeSet;

use crate::bench::record::{Measure, ModeRecord, Recording, Sample, WorkRecord};
use crate::bench::statistics::{Counts, Series, Spread, counts, series};

/// What a work is about, told by what was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// Requests as fast as they are answered.
    Closed,
    /// Requests at a constant rate, in requests a second.
    Open(f64),
    /// A connection for each request.
    Connections,
    /// Bulk streams.
    Bulk,
    /// Memory in one phase.
    Memory,
    /// Start-up.
    Start,
    /// Nothing was measured.
    Nothing,
}

/// All of a recording that reports draw on.
pub(crate) struct View<'a> {
    pub(crate) recording: &'a Recording,
    /// Whom the others are compared with.
    pub(crate) reference: Option<&'a ModeRecord>,
    pub(crate) works: Vec<WorkView<'a>>,
}

/// One work.
pub(crate) struct WorkView<'a> {
    pub(crate) record: &'a WorkRecord,
    pub(crate) kind: Kind,
}

/// Name of the mode with nothing between the pods.
pub(crate) const DIRECT: &str = "direct";
const REFERENCE: &str = "culvert";

impl<'a> View<'a> {
    pub(crate) fn of(recording: &'a Recording) -> Self {
        let modes = &recording.modes;
        let reference = modes.iter().find(|m| m.name == REFERENCE);
        let reference =
            reference.or_else(|| modes.iter().find(|m| m.name != DIRECT)).or_else(|| modes.first());
        let works =
            recording.works.iter().map(|record| WorkView { record, kind: kind(recording, &record.name) });
        Self { recording, reference, works: works.collect() }
    }

    /// Works of a kind, in their order.
    pub(crate) fn of_kind(&self, wanted: impl Fn(Kind) -> bool) -> Vec<&WorkView<'a>> {
        self.works.iter().filter(|work| wanted(work.kind)).collect()
    }

    /// Modes that have at least one sample of the work, in their order.
    pub(crate) fn modes_of(&self, work: &str) -> Vec<&'a ModeRecord> {
        let samples = &self.recording.samples;
        let took_part = |m: &&ModeRecord| samples.iter().any(|s| s.work == work && s.mode == m.name);
        self.recording.modes.iter().filter(took_part).collect()
    }

    pub(crate) fn series(&self, mode: &str, work: &str, measure: Measure) -> Series {
        series(self.recording, mode, work, measure)
    }

    /// What the mode adds to the median latency of the direct way, round by round.
    pub(crate) fn added(&self, mode: &str, work: &str) -> Series {
        if mode == DIRECT {
            return Series::default();
        }
        self.series(mode, work, Measure::P50Us).less(&self.series(DIRECT, work, Measure::P50Us))
    }

    pub(crate) fn counts(&self, mode: &str, work: &str) -> Counts {
        counts(self.recording, mode, work)
    }

    /// Samples that were left out, with the reason, in the order they were taken.
    pub(crate) fn left_out(&self) -> impl Iterator<Item = LeftOut<'a>> {
        self.recording.samples.iter().filter_map(|sample| {
            let failed = sample.failed.as_deref().map(|why| ("failed", why));
            let (what, why) = failed.or_else(|| sample.disturbed.as_deref().map(|why| ("disturbed", why)))?;
            Some(LeftOut { sample, what, why })
        })
    }

    /// The same in few lines: each failure with the modes that had it, and how often each work was disturbed.
    pub(crate) fn left_out_in_short(&self) -> Vec<String> {
        let mut failures: Vec<(&str, &str, BTreeSet<&str>)> = Vec::new();
        let mut disturbed: Vec<(&str, usize)> = Vec::new();
        let mut example = None;
        for LeftOut { sample, what, why } in self.left_out() {
            if what == "failed" {
                match failures.iter_mut().find(|(work, other, _)| *work == sample.work && *other == why) {
                    Some((.., modes)) => {
                        modes.insert(&sample.mode);
                    }
                    None => failures.push((&sample.work, why, BTreeSet::from([sample.mode.as_str()]))),
                }
                continue;
            }
            example.get_or_insert(why);
            match disturbed.iter_mut().find(|(work, _)| *work == sample.work) {
                Some((_, count)) => *count += 1,
                None => disturbed.push((&sample.work, 1)),
            }
        }
        let told = failures.into_iter().map(|(work, why, modes)| {
            format!("{work} failed with {}: {why}", modes.into_iter().collect::<Vec<_>>().join(", "))
        });
        let works: Vec<String> = disturbed.iter().map(|(work, count)| format!("{work} {count}")).collect();
        let disturbed = example.map(|why| format!("disturbed: {}; the first: {why}", works.join(", ")));
        told.chain(disturbed).collect()
    }

    /// Whether the mode is the one that the others are compared with.
    pub(crate) fn is_reference(&self, mode: &ModeRecord) -> bool {
        self.reference.is_some_and(|r| r.name == mode.name)
    }
}

/// A sample that does not count.
pub(crate) struct LeftOut<'a> {
    pub(crate) sample: &'a Sample,
    pub(crate) what: &'static str,
    pub(crate) why: &'a str,
}

impl Kind {
    /// What the mode's proxies cost.
    pub(crate) fn cost(self) -> Option<Measure> {
        match self {
            Self::Closed | Self::Open(_) => Some(Measure::CpuUsPerRequest),
            Self::Connections => Some(Measure::CpuUsPerConnection),
            Self::Bulk => Some(Measure::CpuSPerGib),
            Self::Memory => Some(Measure::RssMib),
            Self::Start => Some(Measure::StartMs),
            Self::Nothing => None,
        }
    }

    /// What the user gets.
    pub(crate) fn rate(self) -> Option<Measure> {
        match self {
            Self::Closed | Self::Open(_) => Some(Measure::RequestsPerSecond),
            Self::Connections => Some(Measure::ConnectionsPerSecond),
            Self::Bulk => Some(Measure::GbitPerSecond),
            Self::Start => Some(Measure::RssMib),
            Self::Memory | Self::Nothing => None,
        }
    }
}

/// `own` as a share of `theirs`, where both are above nothing in all rounds: what is lost in the noise has no ratio.
pub(crate) fn share_of_added(own: &Series, theirs: &Series) -> Option<Spread> {
    let is_clear = |s: &Series| s.by_round.values().all(|v| *v > 0.0);
    own.ratio(theirs).filter(|_| is_clear(own) && is_clear(theirs))
}

fn kind(recording: &Recording, work: &str) -> Kind {
    let figure = |measure: Measure| {
        let samples = recording.samples.iter().filter(|s| s.work == work);
        samples.filter_map(|s| s.values.get(&measure).copied()).next()
    };
    let any = |measures: &[Measure]| measures.iter().any(|m| figure(*m).is_some());
    if let Some(asked) = figure(Measure::AskedPerSecond) {
        return Kind::Open(asked);
    }
    match () {
        () if any(&[Measure::CpuSPerGib, Measure::GbitPerSecond]) => Kind::Bulk,
        () if any(&[Measure::CpuUsPerConnection, Measure::ConnectionsPerSecond]) => Kind::Connections,
        () if any(&[Measure::CpuUsPerRequest, Measure::RequestsPerSecond]) => Kind::Closed,
        () if any(&[Measure::StartMs]) => Kind::Start,
        () if any(&[Measure::RssMib, Measure::PssMib, Measure::LargestRssMib]) => Kind::Memory,
        () => Kind::Nothing,
    }
}
