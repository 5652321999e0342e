//! What changed between two runs, and whether it is more than noise.
//!
//! For each mode, work and measure that both runs have, the rounds of one are held against the rounds of the other. A
//! change is **more than noise** if the medians differ by at least [`CHANGE_MIN`] and the exact two-sided Mann-Whitney
//! test on the rounds gives at most [`LEVEL`], which needs five rounds in each. With three or four the most that is said is
//! **perhaps**, where all rounds of one lie beyond all of the other; with fewer nothing is.
//!
//! A machine has good and bad days, so figures are also held against an anchor, round by round: what the direct way did
//! in the same round. On one machine a change counts that either shows, unless the anchor moved likewise: then it is the
//! machine's, not the mode's. Between different machines only the anchored figures count.

mod ranks;
mod text;

use std::collections::BTreeMap;

use serde::Serialize;

use super::record::{About, FORMAT, Measure, Recording};
use super::report::Style;
use super::statistics::{Series, Spread, series};

/// What is smaller is of no interest, even if it is no chance.
pub const CHANGE_MIN: f64 = 0.05;
/// How often chance alone may look like a change.
pub const LEVEL: f64 = 0.01;
/// With fewer rounds nothing is said.
const ROUNDS_MIN: usize = 3;
/// Anchor where both runs have it.
const DIRECT: &str = "direct";
/// Anchors otherwise: modes that no change of ours touches.
const FOREIGN: &str = "envoy-sidecar";

/// A file that is no recording this program reads.
#[derive(Debug, thiserror::Error)]
pub enum NotARecording {
    /// Not JSON, or other JSON.
    #[error("{file} is no recording of `culvert bench`: {cause}; is it the JSON of a run?")]
    Shape {
        /// As the user named it.
        file: String,
        /// Where it differs.
        cause: serde_json::Error,
    },
    /// From another version of the program.
    #[error("{file} has format {got}, this program reads {FORMAT}; use the version of culvert that wrote it")]
    Format {
        /// As the user named it.
        file: String,
        /// What it says.
        got: u32,
    },
}

/// Reads a recording from the text of `file`.
///
/// **Errors:** it is something else, or of another format.
pub fn parse(file: &str, json: &str) -> Result<Recording, NotARecording> {
    #[derive(serde::Deserialize)]
    struct Head {
        format: u32,
    }
    let shape = |cause| NotARecording::Shape { file: file.to_owned(), cause };
    // First the number alone: another format may have another shape.
    let Head { format: got } = serde_json::from_str(json).map_err(shape)?;
    if got != FORMAT {
        return Err(NotARecording::Format { file: file.to_owned(), got });
    }
    serde_json::from_str(json).map_err(shape)
}

/// Two runs side by side.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// What ran, where and when: the older run, by the order of the arguments.
    pub a: About,
    /// The newer one.
    pub b: About,
    /// Whether both ran on machines that look the same.
    pub same_machine: bool,
    /// What else differs: settings, programs, modes, works.
    pub differences: Vec<Difference>,
    /// Every figure that both have.
    pub rows: Vec<Row>,
    /// How many of the rows would look changed by chance alone, at most.
    pub by_chance: f64,
}

/// Something of the runs themselves that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Such as `kernel`.
    pub what: String,
    /// In the older run; empty where it has none.
    pub a: String,
    /// In the newer run.
    pub b: String,
}

/// One measure of one mode and work in both runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Name of the mode.
    pub mode: String,
    /// Name of the work.
    pub work: String,
    /// What was measured.
    pub measure: Measure,
    /// Its unit.
    pub unit: &'static str,
    /// The older run's.
    pub a: Spread,
    /// The newer run's.
    pub b: Spread,
    /// As measured.
    pub raw: Change,
    /// Divided by what the anchor did in the same round.
    pub anchored: Option<Anchored>,
    /// What to make of both.
    pub verdict: Verdict,
}

/// How far one side is from the other.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Change {
    /// The newer median divided by the older; `None` where that is 0.
    pub ratio: Option<f64>,
    /// How probable a difference like this is by chance alone.
    pub probability: f64,
    /// What that says.
    pub evidence: Evidence,
}

/// What the rounds say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// More than noise.
    Changed,
    /// All rounds of one lie beyond those of the other, but they are few.
    Perhaps,
    /// Not more than noise.
    Noise,
    /// Fewer than three rounds.
    TooFew,
}

/// A change of figures that are divided by the anchor's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Anchored {
    /// Mode of the anchor.
    pub by: String,
    /// Its measure: the CPU of proxies is held against what the whole machine spent on the direct way.
    pub measure: Measure,
    /// How far.
    pub change: Change,
}

/// What to make of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// For the better, and more than noise.
    Better,
    /// For the worse, and more than noise.
    Worse,
    /// It looks better, but there are few rounds.
    PerhapsBetter,
    /// It looks worse, but there are few rounds.
    PerhapsWorse,
    /// Not more than noise.
    Noise,
    /// It changed, and so did the anchor: the machine did.
    Machine,
    /// Too few rounds to say anything.
    TooFew,
    /// Other machines and no anchor, or only disturbed samples.
    NotComparable,
}

/// Compares `b` with `a`, the older one.
pub fn compare(a: &Recording, b: &Recording) -> Comparison {
    let sides = Sides { a, b, same_machine: a.about.machine == b.about.machine };
    let rows = sides.rows();
    let tested =
        rows.iter().filter(|r| !matches!(r.verdict, Verdict::TooFew | Verdict::NotComparable)).count();
    Comparison {
        a: a.about.clone(),
        b: b.about.clone(),
        same_machine: sides.same_machine,
        differences: differences(a, b),
        by_chance: tested as f64 * LEVEL,
        rows,
    }
}

impl Comparison {
    /// For people, at most 110 columns wide, with a line feed at its end.
    pub fn text(&self, style: Style) -> String {
        text::text(self, style)
    }
}

struct Sides<'a> {
    a: &'a Recording,
    b: &'a Recording,
    same_machine: bool,
}

impl Sides<'_> {
    fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for work in &self.a.works {
            for mode in &self.a.modes {
                for measure in Measure::ALL.into_iter().filter(|m| *m != Measure::AskedPerSecond) {
                    rows.extend(self.row(&mode.name, &work.name, measure));
                }
            }
        }
        rows
    }

    fn row(&self, mode: &str, work: &str, measure: Measure) -> Option<Row> {
        let (a, b) = (series(self.a, mode, work, measure), series(self.b, mode, work, measure));
        let (spread_a, spread_b) = (a.spread()?, b.spread()?);
        // Nothing failed on either side: not worth a line.
        if measure == Measure::Failed && spread_a.max == 0.0 && spread_b.max == 0.0 {
            return None;
        }
        let raw = change(&a, &b)?;
        let anchored = self.anchored((mode, work, measure), &a, &b);
        let is_weak = a.only_disturbed || b.only_disturbed;
        let verdict =
            if is_weak { Verdict::NotComparable } else { self.verdict(measure, &raw, anchored.as_ref()) };
        let (mode, work, unit) = (mode.to_owned(), work.to_owned(), measure.unit());
        Some(Row { mode, work, measure, unit, a: spread_a, b: spread_b, raw, anchored, verdict })
    }

    fn anchored(
        &self,
        (mode, work, measure): (&str, &str, Measure),
        a: &Series,
        b: &Series,
    ) -> Option<Anchored> {
        if !depends_on_machine(measure) {
            return None;
        }
        let of_proxies =
            matches!(measure, Measure::CpuUsPerRequest | Measure::CpuUsPerConnection | Measure::CpuSPerGib);
        let direct = (DIRECT, if of_proxies { Measure::MachineCpu } else { measure });
        let foreign =
            self.a.modes.iter().filter(|m| m.name.starts_with(FOREIGN)).map(|m| (m.name.as_str(), measure));
        // The anchor itself has none: it would be compared with itself or with a mode of less interest.
        if mode == DIRECT || mode.starts_with(FOREIGN) && self.has(direct, work).is_none() {
            return None;
        }
        std::iter::once(direct).chain(foreign).find_map(|anchor| {
            let (anchor_a, anchor_b) = self.has(anchor, work)?;
            let change = change(&a.per(&anchor_a), &b.per(&anchor_b))?;
            Some(Anchored { by: anchor.0.to_owned(), measure: anchor.1, change })
        })
    }

    /// A mode's figures in both runs, if they can be an anchor.
    fn has(&self, (mode, measure): (&str, Measure), work: &str) -> Option<(Series, Series)> {
        let both = (series(self.a, mode, work, measure), series(self.b, mode, work, measure));
        let fits = |s: &Series| !s.only_disturbed && s.by_round.values().any(|v| *v > 0.0);
        (fits(&both.0) && fits(&both.1)).then_some(both)
    }

    fn verdict(&self, measure: Measure, raw: &Change, anchored: Option<&Anchored>) -> Verdict {
        if self.same_machine || !depends_on_machine(measure) {
            let is_machines = anchored.is_some_and(|anchored| {
                let change = anchored.change;
                change.evidence == Evidence::Noise && change.size() < CHANGE_MIN || !change.agrees_with(raw)
            });
            return match (raw.evidence, anchored) {
                (Evidence::Changed | Evidence::Perhaps, _) if is_machines => Verdict::Machine,
                // Where rounds differ much but the anchor with them, only the anchored figures show a change.
                (Evidence::Noise, Some(anchored)) if anchored.change.agrees_with(raw) => {
                    anchored.change.verdict(measure)
                }
                _ => raw.verdict(measure),
            };
        }
        anchored.map_or(Verdict::NotComparable, |anchored| anchored.change.verdict(measure))
    }
}

/// Whether a faster machine alone changes it.
fn depends_on_machine(measure: Measure) -> bool {
    !matches!(
        measure,
        Measure::RssMib | Measure::PssMib | Measure::LargestRssMib | Measure::Failed | Measure::Switches
    )
}

impl Change {
    /// Distance from no change, the same for a half and a double.
    fn size(&self) -> f64 {
        self.ratio.map_or(f64::INFINITY, |ratio| if ratio > 0.0 { ratio.max(1.0 / ratio) - 1.0 } else { 1.0 })
    }

    fn grew(&self) -> bool {
        self.ratio.is_none_or(|ratio| ratio > 1.0)
    }

    fn agrees_with(&self, other: &Self) -> bool {
        self.grew() == other.grew()
    }

    fn verdict(&self, measure: Measure) -> Verdict {
        let is_better = self.grew() == measure.more_is_better();
        match (self.evidence, is_better) {
            (Evidence::Changed, true) => Verdict::Better,
            (Evidence::Changed, false) => Verdict::Worse,
            (Evidence::Perhaps, true) => Verdict::PerhapsBetter,
            (Evidence::Perhaps, false) => Verdict::PerhapsWorse,
            (Evidence::Noise, _) => Verdict::Noise,
            (Evidence::TooFew, _) => Verdict::TooFew,
        }
    }
}

/// Two sets of rounds; `None` if one is empty.
fn change(a: &Series, b: &Series) -> Option<Change> {
    let (spread_a, spread_b) = (a.spread()?, b.spread()?);
    let values = |series: &Series| series.by_round.values().copied().collect::<Vec<_>>();
    let probability = ranks::probability(&values(a), &values(b));
    let ratio = (spread_a.median != 0.0).then(|| spread_b.median / spread_a.median);
    let mut change = Change { ratio, probability, evidence: Evidence::Noise };
    let are_apart = spread_a.max < spread_b.min || spread_b.max < spread_a.min;
    let is_large = spread_a.median != spread_b.median && change.size() >= CHANGE_MIN;
    change.evidence = match spread_a.rounds.min(spread_b.rounds) {
        rounds if rounds < ROUNDS_MIN => Evidence::TooFew,
        _ if is_large && probability <= LEVEL => Evidence::Changed,
        _ if is_large && are_apart => Evidence::Perhaps,
        _ => Evidence::Noise,
    };
    Some(change)
}

/// What of the runs themselves differs.
fn differences(a: &Recording, b: &Recording) -> Vec<Difference> {
    let (facts_a, facts_b) = (facts(a), facts(b));
    let mut keys: Vec<&String> = facts_a.iter().map(|(k, _)| k).collect();
    keys.extend(facts_b.iter().map(|(k, _)| k).filter(|k| !facts_a.iter().any(|(other, _)| other == *k)));
    let of = |facts: &[(String, String)], key: &str| {
        facts.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone()).unwrap_or_default()
    };
    let each = keys.into_iter().map(|key| Difference {
        what: key.clone(),
        a: of(&facts_a, key),
        b: of(&facts_b, key),
    });
    each.filter(|d| d.a != d.b).collect()
}

/// What two runs should have in common, by name.
fn facts(recording: &Recording) -> Vec<(String, String)> {
    let Recording { about, modes, works, .. } = recording;
    let machine = &about.machine;
    let mut facts = vec![
        ("commit".to_owned(), about.commit.clone().unwrap_or_default()),
        ("version".to_owned(), about.version.clone()),
        ("command".to_owned(), about.command.clone()),
        ("complete".to_owned(), about.complete.to_string()),
        ("rounds".to_owned(), about.rounds.to_string()),
        ("seconds a sample".to_owned(), about.sample_seconds.to_string()),
        ("processors".to_owned(), machine.cpus.to_string()),
        ("processor model".to_owned(), machine.model.clone()),
        ("MiB of memory".to_owned(), machine.memory_mib.to_string()),
        ("kernel".to_owned(), machine.kernel.clone()),
        ("congestion control".to_owned(), machine.congestion_control.clone()),
    ];
    facts.extend(about.tools.iter().map(|(tool, version)| (format!("program {tool}"), version.clone())));
    for mode in modes {
        facts.push((format!("mode {}", mode.name), "there".to_owned()));
        // Only where the other run has the mode too: otherwise its absence says it all.
        facts.push((format!("deviations of {}", mode.name), mode.deviations.join("; ")));
    }
    facts.extend(works.iter().map(|work| (format!("work {}", work.name), work.title.clone())));
    let mut pairs: BTreeMap<(&str, &str), ()> = BTreeMap::new();
    for sample in recording.samples.iter().filter(|s| s.failed.is_none()) {
        pairs.insert((&sample.mode, &sample.work), ());
    }
    facts.extend(pairs.keys().map(|(mode, work)| (format!("{mode} with {work}"), "measured".to_owned())));
    facts
}

#[cfg(test)]
mod tests;
