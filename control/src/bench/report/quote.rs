//! What a platform team would quote: sentences with their conditions, made of a recording and of nothing else.

use std::fmt;

use super::figures::{duration, many, number, plain, ratio, when};
use super::plots::{busiest, constant_rate};
use super::view::{DIRECT, Kind, View, WorkView, share_of_added};
use super::waypoints;
use crate::bench::record::{Measure, ModeRecord};
use crate::bench::statistics::Spread;

/// Sidecars: of those that see requests the cheapest is quoted, so that nobody can say the comparison was chosen, and
/// beside it the one that sees bytes only.
const FAMILY: &str = "envoy-sidecar";
const BYTES_ONLY: &str = "tcp";
/// Names of modes with a waypoint end so. They do more than those without, and are compared with each other and with
/// sidecars.
const WAYPOINT: &str = "waypoint";
/// Rivals in one sentence.
const RIVALS_MAX: usize = 4;
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
    let waypoint = waypoints::modes(view).first().copied().filter(|mode| mode.name != reference.name);
    let (mut told, mut widest) = (Vec::new(), 0.0_f64);
    for reference in [reference].into_iter().chain(waypoint) {
        let quoted = Quoted { view, reference };
        let requests = [constant_rate(view), busiest(view)].into_iter().flatten();
        let works = requests.map(|work| (work, Measure::CpuUsPerRequest)).chain(quoted.others());
        for (quote, shares) in works.filter_map(|(work, measure)| quoted.sentence(work, measure)) {
            told.push(quote);
            widest = shares.iter().map(|(_, share)| share.relative()).fold(widest, f64::max);
        }
    }
    if !told.is_empty() {
        told.push(conditions(view, widest));
    }
    told
}

/// Names of rivals, and what the reference's figure is of theirs.
type Shares<'a> = Vec<(&'a str, Spread)>;

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
        let has_waypoint = own.ends_with(WAYPOINT);
        // What sees bytes only, and one of ours that does less, is no rival of a waypoint's.
        let is_rival = |m: &&ModeRecord| match has_waypoint {
            true => {
                let sees_requests = m.name.starts_with(FAMILY) && !m.name.ends_with(BYTES_ONLY);
                m.name != own && (sees_requests || m.name.ends_with(WAYPOINT))
            }
            false => m.name != DIRECT && !m.name.starts_with(own) && !m.name.ends_with(WAYPOINT),
        };
        let others = self.view.recording.modes.iter().filter(is_rival);
        let (family, alone): (Vec<_>, Vec<_>) = others.partition(|m| m.name.starts_with(FAMILY));
        let cheapest = |sees_bytes_only: bool| {
            let those = family.iter().filter(|m| m.name.ends_with(BYTES_ONLY) == sees_bytes_only);
            let known = those.filter_map(|m| Some((*m, cost(m)?)));
            known.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(mode, _)| mode)
        };
        [cheapest(false), cheapest(true)].into_iter().flatten().chain(alone).take(RIVALS_MAX).collect()
    }

    /// What the work costs with the reference, and what that is of the rivals' cost; `None` without a rival.
    fn sentence(&self, work: &WorkView<'_>, measure: Measure) -> Option<(Quote, Shares<'a>)> {
        let rivals = self.rivals(work, measure);
        let (cost, mut shares) = self.shares(work, measure, &rivals)?;
        let own = plain(&self.reference.name);
        let unit = match measure {
            Measure::CpuUsPerRequest => "µs of proxy CPU a request",
            Measure::CpuUsPerConnection => "µs of proxy CPU a connection",
            Measure::CpuSPerGib => "s of proxy CPU a GiB",
            _ => "MiB of memory (RSS of all its proxies)",
        };
        let mut claim = format!("{own} takes {} {unit}, {}", number(cost.median), listed(&shares));
        let gain = match work.kind {
            Kind::Open(_) => self.added(work, &rivals),
            Kind::Closed => self
                .shares(work, Measure::RequestsPerSecond, &rivals)
                .map(|(rate, shares)| (format!("answers {} requests a second", number(rate.median)), shares)),
            _ => None,
        };
        if let Some((gain, more)) = gain {
            claim.push_str(&format!("; it {gain}"));
            claim.push_str(&if more.is_empty() { String::new() } else { format!(", {}", listed(&more)) });
            shares.extend(more);
        }
        let few = shares.iter().map(|s| s.1.rounds).min().filter(|rounds| *rounds < ROUNDS_MIN);
        if let Some(rounds) = few {
            claim.push_str(&format!(" ({} only: an indication)", many(rounds, "round")));
        }
        claim.push('.');
        Some((Quote { subject: plain(&work.record.title), claim }, shares))
    }

    /// The reference's figure, and what it is of each rival's. Nothing where only disturbed samples could tell.
    fn shares(
        &self,
        work: &WorkView<'_>,
        measure: Measure,
        rivals: &[&'a ModeRecord],
    ) -> Option<(Spread, Shares<'a>)> {
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
    fn added(&self, work: &WorkView<'_>, rivals: &[&'a ModeRecord]) -> Option<(String, Shares<'a>)> {
        let added = |mode: &ModeRecord| self.view.added(&mode.name, &work.record.name);
        let own = added(self.reference);
        let share = |rival: &&'a ModeRecord| {
            let theirs = added(rival);
            let is_weak = own.only_disturbed || theirs.only_disturbed;
            Some((rival.name.as_str(), share_of_added(&own, &theirs).filter(|_| !is_weak)?))
        };
        let shares: Vec<_> = rivals.iter().filter_map(share).collect();
        if own.only_disturbed || own.by_round.values().any(|v| *v <= 0.0) {
            return None;
        }
        Some((format!("adds {} µs to the median latency", number(own.spread()?.median)), shares))
    }
}

/// `0.25x of one, 0.5x of another`.
fn listed(shares: &[(&str, Spread)]) -> String {
    let each = shares.iter().map(|(name, share)| format!("{} of {}", ratio(share.median), plain(name)));
    each.collect::<Vec<_>>().join(", ")
}

fn conditions(view: &View<'_>, widest: f64) -> Quote {
    let about = &view.recording.about;
    let commit = about.commit.as_ref().map_or(String::new(), |c| format!(", commit {}", plain(c)));
    let sidecars = view.recording.modes.iter().filter(|m| m.name.starts_with(FAMILY)).count();
    let variants = match sidecars {
        0 | 1 => "",
        _ => "; of the sidecar variants the cheapest that sees requests, and the one that sees bytes only",
    };
    let spread = if widest > 0.0 {
        format!(", none of which spreads by more than ±{:.0} % over the rounds", (widest * 100.0).ceil())
    } else {
        String::new()
    };
    let claim = format!(
        "client, proxies and server on one machine with {} ({}), Linux {}, network namespaces and veth, {} \
         congestion control; medians of {} of {}, ratios inside a round{spread}{variants}; culvert {}{commit}, {}.",
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
