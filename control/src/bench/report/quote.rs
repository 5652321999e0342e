//! What a platform team would quote: sentences with their conditions, made of a recording and of nothing else.

use std::fmt;

use super::figures::{duration, many, number, plain, ratio_with_range, when};
use super::plots::{busiest, constant_rate};
use super::view::{DIRECT, Kind, View, WorkView};
use crate::bench::record::{Measure, ModeRecord};
use crate::bench::statistics::Spread;

/// Sidecars: of those that see requests the cheapest is quoted, so that nobody can say the comparison was chosen, and
/// beside it the one that sees bytes only.
const FAMILY: &str = "envoy-sidecar";
const BYTES_ONLY: &str = "tcp";
/// With fewer rounds a sentence says that it is an indication.
const ROUNDS_MIN: usize = 3;

/// One sentence.
pub(super) struct Quote {
    /// What was done.
    pub(super) subject: String,
    /// What it costs, and what that is of others' cost.
    pub(super) claim: String,
}

impl fmt::Display for Quote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.claim)
    }
}

/// Sentences, then their conditions; empty where the recording does not support any.
pub(super) fn quotes(view: &View<'_>) -> Vec<Quote> {
    let Some(reference) = view.reference.filter(|r| r.name != DIRECT) else { return Vec::new() };
    let quoted = Quoted { view, reference };
    let requests = [constant_rate(view), busiest(view)].into_iter().flatten();
    let works = requests.map(|work| (work, Measure::CpuUsPerRequest)).chain(quoted.others());
    let mut told: Vec<Quote> = works.filter_map(|(work, measure)| quoted.sentence(work, measure)).collect();
    if !told.is_empty() {
        told.push(conditions(view));
    }
    told
}

struct Quoted<'a> {
    view: &'a View<'a>,
    reference: &'a ModeRecord,
}

impl<'a> Quoted<'a> {
    /// One of connections, bulk and memory.
    fn others(&self) -> Vec<(&'a WorkView<'a>, Measure)> {
        let first = |wanted: Kind| self.view.works.iter().find(|w| w.kind == wanted);
        // Freshly started is the first phase; the second has idle connections, which is more of a service's day.
        let memory = self.view.works.iter().filter(|w| w.kind == Kind::Memory).take(2).last();
        let all = [
            (first(Kind::Connections), Measure::CpuUsPerConnection),
            (first(Kind::Bulk), Measure::CpuSPerGib),
            (memory, Measure::RssMib),
        ];
        all.into_iter().filter_map(|(work, measure)| Some((work?, measure))).collect()
    }

    /// Whom to compare with: the cheapest sidecar of those that see requests and of those that do not, and every mode
    /// that is neither a sidecar nor a variant of the reference.
    fn rivals(&self, work: &WorkView<'_>, measure: Measure) -> Vec<&'a ModeRecord> {
        let cost = |mode: &ModeRecord| {
            let series = self.view.series(&mode.name, &work.record.name, measure);
            series.spread().filter(|_| !series.only_disturbed).map(|s| s.median)
        };
        let own = self.reference.name.as_str();
        let others =
            self.view.recording.modes.iter().filter(|m| m.name != DIRECT && !m.name.starts_with(own));
        let (family, alone): (Vec<_>, Vec<_>) = others.partition(|m| m.name.starts_with(FAMILY));
        let cheapest = |sees_bytes_only: bool| {
            let those = family.iter().filter(|m| m.name.ends_with(BYTES_ONLY) == sees_bytes_only);
            let known = those.filter_map(|m| Some((*m, cost(m)?)));
            known.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(mode, _)| mode)
        };
        [cheapest(false), cheapest(true)].into_iter().flatten().chain(alone).collect()
    }

    /// What the work costs with the reference, and what that is of the rivals' cost; `None` without a rival.
    fn sentence(&self, work: &WorkView<'_>, measure: Measure) -> Option<Quote> {
        let rivals = self.rivals(work, measure);
        let (cost, shares) = self.shares(work, measure, &rivals)?;
        let gain = match work.kind {
            Kind::Open(_) => self.added(work, &rivals),
            Kind::Closed => self.shares(work, Measure::RequestsPerSecond, &rivals).map(|(rate, shares)| {
                format!("; it answers {} requests a second, {}", number(rate.median), listed(&shares))
            }),
            _ => None,
        };
        let what = match measure {
            Measure::RssMib => "MiB of memory (RSS of all its proxies)".to_owned(),
            measure => format!("{} of proxy CPU", measure.unit()),
        };
        let few = shares.iter().map(|s| s.1.rounds).min().filter(|rounds| *rounds < ROUNDS_MIN);
        let hint =
            few.map_or(String::new(), |rounds| format!(" ({} only: an indication)", many(rounds, "round")));
        let claim = format!(
            "{} takes {} {what}, {}{}{hint}.",
            plain(&self.reference.name),
            number(cost.median),
            listed(&shares),
            gain.unwrap_or_default()
        );
        Some(Quote { subject: plain(&work.record.title), claim })
    }

    /// The reference's figure, and what it is of each rival's. Nothing where only disturbed samples could tell.
    fn shares(
        &self,
        work: &WorkView<'_>,
        measure: Measure,
        rivals: &[&'a ModeRecord],
    ) -> Option<(Spread, Vec<(&'a str, Spread)>)> {
        let series = |mode: &str| self.view.series(mode, &work.record.name, measure);
        let own = series(&self.reference.name);
        let share = |rival: &&'a ModeRecord| {
            let theirs = series(&rival.name);
            let share = own.ratio(&theirs).filter(|_| !own.only_disturbed && !theirs.only_disturbed)?;
            Some((rival.name.as_str(), share))
        };
        let shares: Vec<_> = rivals.iter().filter_map(share).collect();
        (!shares.is_empty()).then_some((own.spread()?, shares))
    }

    /// What the reference adds to the median latency of the direct way, and what that is of the rivals'.
    fn added(&self, work: &WorkView<'_>, rivals: &[&'a ModeRecord]) -> Option<String> {
        let direct = self.view.series(DIRECT, &work.record.name, Measure::P50Us);
        let added = |mode: &ModeRecord| {
            let added = self.view.series(&mode.name, &work.record.name, Measure::P50Us).less(&direct);
            // What is lost in the noise has no ratio.
            let is_clear = !added.only_disturbed && added.by_round.values().all(|v| *v > 0.0);
            is_clear.then_some(added)
        };
        let own = added(self.reference)?;
        let shares: Vec<_> =
            rivals.iter().filter_map(|r| Some((r.name.as_str(), own.ratio(&added(r)?)?))).collect();
        let what_of = if shares.is_empty() { String::new() } else { format!(", {}", listed(&shares)) };
        Some(format!("; it adds {} µs to the median latency{what_of}", number(own.spread()?.median)))
    }
}

/// `0.25x (0.24–0.26) of one and 0.5x of another`.
fn listed(shares: &[(&str, Spread)]) -> String {
    let each = shares.iter().map(|(name, share)| format!("{} of {}", ratio_with_range(share), plain(name)));
    each.collect::<Vec<_>>().join(", ")
}

fn conditions(view: &View<'_>) -> Quote {
    let about = &view.recording.about;
    let commit = about.commit.as_ref().map_or(String::new(), |c| format!(", commit {}", plain(c)));
    let claim = format!(
        "client, proxies and server on one machine with {} ({}), Linux {}, network namespaces and veth, {} \
         congestion control; medians of {} of {}, ratios inside a round with their range; of several \
         sidecar variants the cheapest with HTTP, and TCP only; culvert {}{commit}, {}.",
        many(about.machine.cpus as usize, "CPU"),
        plain(&about.machine.model),
        plain(&about.machine.kernel),
        plain(&about.machine.congestion_control),
        many(about.rounds as usize, "round"),
        duration(about.sample_seconds),
        plain(&about.version),
        when(&about.started)
    );
    Quote { subject: "Conditions".to_owned(), claim }
}
