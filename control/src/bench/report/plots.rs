//! Which plots a recording has, each with what it shows.

use std::collections::BTreeSet;

use super::charts::{Axes, Bar, Chart, Line, bars, lines};
use super::figures::{name, number, plain};
use super::svg::{Anchor, COLOURS, Canvas, Caption, EDGE, Font, WIDTH};
use super::view::{DIRECT, Kind, View, WorkView};
use crate::bench::record::{Measure, ModeRecord};
use crate::bench::statistics::{Series, Spread, samples, series_of};

/// Percentiles that are drawn: below half nobody waits, and above 99.9 a sample is too short.
const PERCENTILES: std::ops::RangeInclusive<f64> = 50.0..=99.9;
/// Height of the field in which lines are drawn.
const FIELD: f64 = 200.0;
/// Width of a plot in a file of its own.
const FILE_WIDTH: f64 = 860.0;

/// Plots of one topic.
pub(crate) struct Section {
    pub(crate) title: &'static str,
    /// What to look at.
    pub(crate) hint: &'static str,
    pub(crate) charts: Vec<Chart>,
}

/// Topics in the order in which people ask; those without figures are left out.
pub(crate) fn sections(view: &View<'_>) -> Vec<Section> {
    let plots = Plots { view };
    let all = [
        Section {
            title: "CPU per request",
            hint: "Run time of all proxy threads of the mode as the kernel accounts it, divided by the answered requests. \
                   Each process of a mode is a part of its bar. Shorter is cheaper.",
            charts: plots.each(is_requests, |work| plots.cost(work)),
        },
        Section {
            title: "Latency at a constant rate",
            hint: "Requests are sent at the asked rate whether or not answers come, and latency counts from when a request \
                   should have been sent, so that waiting is not hidden. Lower is better.",
            charts: plots.latency(),
        },
        Section {
            title: "Throughput",
            hint: "As many requests as are answered, with everything on one machine: who is cheaper leaves more to client \
                   and server. Longer is better.",
            charts: plots.each(|kind| kind == Kind::Closed, |work| plots.rate(work)),
        },
        Section {
            title: "New connections",
            hint: "Each connection carries one request.",
            charts: plots.both(Kind::Connections),
        },
        Section {
            title: "Bulk",
            hint: "CPU of the proxies for a GiB of payload, and how fast it goes.",
            charts: plots.both(Kind::Bulk),
        },
        Section {
            title: "Memory",
            hint: "Of all proxies of the mode together: freshly started, busy, and after.",
            charts: plots.memory(),
        },
        Section {
            title: "Start-up and size",
            hint: "From start to ready, and what is resident then.",
            charts: plots.both(Kind::Start),
        },
    ];
    all.into_iter().filter(|section| !section.charts.is_empty()).collect()
}

/// CPU per request by mode, for a file of its own: at a constant rate and as fast as it goes, side by side.
pub(crate) fn cpu_file(view: &View<'_>) -> Option<Chart> {
    const TOP: f64 = 44.0;
    let plots = Plots { view };
    let charts: Vec<Chart> = [constant_rate(view), busiest(view)]
        .into_iter()
        .flatten()
        .filter_map(|work| {
            let title = plain(&work.record.title);
            let sub = "CPU of all proxies of the mode, µs/request".to_owned();
            let caption = Caption { id: String::new(), title, sub, description: String::new() };
            plots.bar_chart(work, Measure::CpuUsPerRequest, caption)
        })
        .collect();
    let title = "CPU per request, by mode".to_owned();
    let told = charts.iter().map(|c| format!("{}: {}", c.caption.title, c.caption.description));
    let description = told.collect::<Vec<_>>().join(". ");
    let (mut canvas, mut x, mut height) = (Canvas::default(), 0.0, 0.0_f64);
    canvas.text((EDGE, EDGE + 16.0), Font::Head, Anchor::Start, &title);
    for chart in &charts {
        canvas.place((x, TOP), &chart.canvas);
        x += chart.size.0 + EDGE;
        height = height.max(chart.size.1);
    }
    let caption = Caption { id: "cpu-per-request".to_owned(), title, sub: String::new(), description };
    (!charts.is_empty()).then_some(Chart { caption, canvas, size: (x - EDGE, height + TOP) })
}

/// Latency percentiles at a constant rate, for a file of its own.
pub(crate) fn latency_file(view: &View<'_>) -> Option<Chart> {
    let work = constant_rate(view)?;
    let title = format!("Latency, {}", plain(&work.record.title));
    let sub = "µs by percentile, both scales logarithmic; medians and ranges of the rounds".to_owned();
    let caption = Caption { id: "latency".to_owned(), title, sub, description: String::new() };
    Plots { view }.percentiles(work, caption, FILE_WIDTH)
}

/// 1,000 requests a second if that was asked for, or else the lowest rate: where services are most of their time.
pub(crate) fn constant_rate<'a>(view: &'a View<'_>) -> Option<&'a WorkView<'a>> {
    let rate = |work: &WorkView<'_>| match work.kind {
        Kind::Open(1_000.0) => 0.0,
        Kind::Open(asked) => asked,
        _ => f64::MAX,
    };
    let open = view.works.iter().filter(|w| matches!(w.kind, Kind::Open(_)));
    open.min_by(|a, b| rate(a).total_cmp(&rate(b)))
}

/// The closed loop that the reference answers most requests of.
pub(crate) fn busiest<'a>(view: &'a View<'_>) -> Option<&'a WorkView<'a>> {
    let rate = |work: &WorkView<'_>| {
        let own = view.reference.map(|r| view.series(&r.name, &work.record.name, Measure::RequestsPerSecond));
        own.and_then(|s| s.spread()).map_or(0.0, |s| s.median)
    };
    let closed = view.works.iter().filter(|w| w.kind == Kind::Closed);
    closed.max_by(|a, b| rate(a).total_cmp(&rate(b)))
}

/// Colour, dashes and mark of a mode: the first are the reference's, the last the direct way's, the last but one those
/// of the reference's variants.
pub(crate) fn look(view: &View<'_>, mode: &ModeRecord) -> usize {
    const OTHERS: usize = COLOURS - 3;
    let is_variant =
        |m: &ModeRecord| view.reference.is_some_and(|r| m.name.starts_with(&format!("{}-", r.name)));
    let modes = || view.recording.modes.iter().filter(|m| !view.is_reference(m) && m.name != DIRECT);
    // Those of one colour differ by dashes and mark.
    let place = |among: &[&ModeRecord]| among.iter().position(|m| m.name == mode.name).unwrap_or(0);
    if view.is_reference(mode) {
        0
    } else if mode.name == DIRECT {
        COLOURS - 1
    } else if is_variant(mode) {
        place(&modes().filter(|m| is_variant(m)).collect::<Vec<_>>()) * COLOURS + COLOURS - 2
    } else {
        let nth = place(&modes().filter(|m| !is_variant(m)).collect::<Vec<_>>());
        nth / OTHERS * COLOURS + nth % OTHERS + 1
    }
}

fn is_requests(kind: Kind) -> bool {
    matches!(kind, Kind::Closed | Kind::Open(_))
}

struct Plots<'a> {
    view: &'a View<'a>,
}

impl<'a> Plots<'a> {
    fn each(
        &self,
        wanted: impl Fn(Kind) -> bool,
        chart: impl Fn(&WorkView<'a>) -> Option<Chart>,
    ) -> Vec<Chart> {
        self.view.works.iter().filter(|w| wanted(w.kind)).filter_map(chart).collect()
    }

    /// Cost of all works of the kind, then what the user gets: of one scale each, so that works can be compared.
    fn both(&self, kind: Kind) -> Vec<Chart> {
        let costs = self.each(|k| k == kind, |work| self.cost(work));
        costs.into_iter().chain(self.each(|k| k == kind, |work| self.rate(work))).collect()
    }

    fn cost(&self, work: &WorkView<'_>) -> Option<Chart> {
        let measure = work.kind.cost()?;
        let what = match measure {
            Measure::CpuUsPerRequest => "CPU per request",
            Measure::CpuUsPerConnection => "CPU per connection",
            Measure::CpuSPerGib => "CPU per GiB",
            _ => "Start to ready",
        };
        self.bar_chart(work, measure, self.caption(work, what, measure.unit()))
    }

    fn rate(&self, work: &WorkView<'_>) -> Option<Chart> {
        let measure = work.kind.rate()?;
        let what = match measure {
            Measure::RssMib => "Resident memory",
            Measure::GbitPerSecond => "Throughput",
            Measure::ConnectionsPerSecond => "Connections a second",
            _ => "Requests a second",
        };
        self.bar_chart(work, measure, self.caption(work, what, measure.unit()))
    }

    fn bar_chart(&self, work: &WorkView<'_>, measure: Measure, caption: Caption) -> Option<Chart> {
        let modes = self.view.modes_of(&work.record.name);
        // Where a measure is of proxies, a mode without any has no bar.
        let has = |mode: &&ModeRecord| mode.name != DIRECT || self.spread(mode, work, measure).is_some();
        let all: Vec<Bar> = modes.into_iter().filter(has).map(|mode| self.bar(mode, work, measure)).collect();
        if all.iter().all(|bar| bar.spread.is_none()) {
            return None;
        }
        let most = self.common_scale(work.kind, measure);
        Some(bars(caption, &all, most, WIDTH))
    }

    /// The largest figure of all works of a kind whose works are compared with each other.
    fn common_scale(&self, kind: Kind, measure: Measure) -> Option<f64> {
        if !matches!(kind, Kind::Bulk | Kind::Start) {
            return None;
        }
        let works = self.view.works.iter().filter(|w| w.kind == kind);
        let spreads = works.flat_map(|work| {
            self.view.recording.modes.iter().filter_map(|mode| self.spread(mode, work, measure))
        });
        spreads.map(|s| s.max).reduce(f64::max)
    }

    fn spread(&self, mode: &ModeRecord, work: &WorkView<'_>, measure: Measure) -> Option<Spread> {
        self.view.series(&mode.name, &work.record.name, measure).spread()
    }

    fn bar(&self, mode: &ModeRecord, work: &WorkView<'_>, measure: Measure) -> Bar {
        let series = self.view.series(&mode.name, &work.record.name, measure);
        let parts = if work.kind.cost() == Some(measure) { self.parts(mode, work) } else { Vec::new() };
        let note = match (series.spread(), &parts[..]) {
            (None, _) => self.why_none(mode, work),
            (Some(_), [] | [_]) => String::new(),
            (Some(_), parts) => {
                let each = parts.iter().map(|(name, value)| format!("{} {}", plain(name), number(*value)));
                each.collect::<Vec<_>>().join(" + ")
            }
        };
        let mark = if series.only_disturbed { "~" } else { "" };
        let (name, nth) = (plain(&mode.name), look(self.view, mode));
        Bar { name, nth, spread: series.spread(), parts, note, mark }
    }

    fn parts(&self, mode: &ModeRecord, work: &WorkView<'_>) -> Vec<(String, f64)> {
        let names: BTreeSet<&String> = samples(self.view.recording, &mode.name, &work.record.name)
            .flat_map(|sample| sample.by_process.keys())
            .collect();
        let part = |process: &String| {
            let pair = (mode.name.as_str(), work.record.name.as_str());
            let of = series_of(self.view.recording, pair, |s| s.by_process.get(process).copied());
            Some((process.clone(), of.spread()?.median)).filter(|(_, value)| *value > 0.0)
        };
        names.into_iter().filter_map(part).collect()
    }

    fn why_none(&self, mode: &ModeRecord, work: &WorkView<'_>) -> String {
        let failed =
            samples(self.view.recording, &mode.name, &work.record.name).find_map(|s| s.failed.as_deref());
        failed.map_or(String::new(), |why| format!("failed: {}", plain(why)))
    }

    /// Percentiles of each rate, then what is added to the median.
    fn latency(&self) -> Vec<Chart> {
        let is_open = |kind| matches!(kind, Kind::Open(_));
        let percentiles = self.each(is_open, |work| {
            let caption = self.caption(work, "Latency by percentile", "µs, both scales logarithmic");
            self.percentiles(work, caption, WIDTH)
        });
        percentiles.into_iter().chain(self.each(is_open, |work| self.added(work))).collect()
    }

    fn percentiles(&self, work: &WorkView<'_>, caption: Caption, width: f64) -> Option<Chart> {
        let percentiles = self.percentiles_of(work);
        let (first, last) = (*percentiles.first()?, *percentiles.last()?);
        // Equal distances are equal factors of how rare a request is.
        let rare = |p: f64| -(1.0 - p / 100.0).log10();
        let span = (rare(last) - rare(first)).max(f64::MIN_POSITIVE);
        let places = percentiles.iter().map(|p| ((rare(*p) - rare(first)) / span, format!("p{p}")));
        let modes = self.view.modes_of(&work.record.name).into_iter();
        let all: Vec<Line> = modes
            .filter_map(|mode| {
                let point = |(nth, p): (usize, &f64)| Some((nth, self.latency_at(mode, work, *p).spread()?));
                let points: Vec<_> = percentiles.iter().enumerate().filter_map(point).collect();
                let (name, nth) = (plain(&mode.name), look(self.view, mode));
                (!points.is_empty()).then_some(Line { name, nth, points })
            })
            .collect();
        let axes = Axes {
            places: places.collect(),
            is_log: true,
            width,
            height: if width > WIDTH { FIELD * 1.5 } else { FIELD },
        };
        (!all.is_empty()).then(|| lines(caption, &all, &axes))
    }

    /// Percentiles that samples of the work have: of their distribution, or else the three that are measures.
    fn percentiles_of(&self, work: &WorkView<'_>) -> Vec<f64> {
        let samples = self.view.recording.samples.iter().filter(|s| s.work == work.record.name);
        let named = [(50.0, Measure::P50Us), (99.0, Measure::P99Us), (99.9, Measure::P999Us)];
        let mut all: Vec<f64> = samples
            .flat_map(|s| {
                let measured = named.iter().filter(|(_, m)| s.values.contains_key(m)).map(|(p, _)| *p);
                s.latency.iter().map(|pair| pair.0).chain(measured).collect::<Vec<_>>()
            })
            .filter(|p| [50.0, 90.0, 99.0, 99.9].contains(p) && PERCENTILES.contains(p))
            .collect();
        all.sort_by(f64::total_cmp);
        all.dedup();
        all
    }

    fn latency_at(&self, mode: &ModeRecord, work: &WorkView<'_>, percentile: f64) -> Series {
        let measure = [(50.0, Measure::P50Us), (99.0, Measure::P99Us), (99.9, Measure::P999Us)];
        let measure = measure.into_iter().find(|(p, _)| *p == percentile).map(|(_, m)| m);
        series_of(self.view.recording, (&mode.name, &work.record.name), |sample| {
            let exact = sample.latency.iter().find(|(p, _)| *p == percentile).map(|(_, us)| *us);
            exact.or_else(|| sample.values.get(&measure?).copied())
        })
    }

    fn added(&self, work: &WorkView<'_>) -> Option<Chart> {
        let direct =
            self.latency_at(self.view.recording.modes.iter().find(|m| m.name == DIRECT)?, work, 50.0);
        let modes = self.view.modes_of(&work.record.name).into_iter().filter(|m| m.name != DIRECT);
        let bar = |mode: &ModeRecord| {
            let added = self.latency_at(mode, work, 50.0).less(&direct);
            let mark = if added.only_disturbed { "~" } else { "" };
            let note = if added.by_round.is_empty() { self.why_none(mode, work) } else { String::new() };
            let (name, nth, spread) = (plain(&mode.name), look(self.view, mode), added.spread());
            Bar { name, nth, spread, parts: Vec::new(), note, mark }
        };
        let all: Vec<Bar> = modes.map(bar).collect();
        let caption = self.caption(work, "Added latency", "µs at p50 beyond the direct way's");
        all.iter().any(|b| b.spread.is_some()).then(|| bars(caption, &all, None, WIDTH))
    }

    /// All phases as one plot, for each measure of memory.
    fn memory(&self) -> Vec<Chart> {
        let phases = self.view.of_kind(|kind| kind == Kind::Memory);
        let places: Vec<(f64, String)> = phases
            .iter()
            .enumerate()
            .map(|(nth, work)| {
                let at = (nth as f64 + 0.5) / phases.len() as f64;
                (at, phase(work))
            })
            .collect();
        let chart = |(measure, title): (Measure, &str)| {
            let line = |mode: &ModeRecord| {
                let point =
                    |(nth, work): (usize, &&WorkView<'_>)| Some((nth, self.spread(mode, work, measure)?));
                let points: Vec<_> = phases.iter().enumerate().filter_map(point).collect();
                let (name, nth) = (plain(&mode.name), look(self.view, mode));
                (!points.is_empty()).then_some(Line { name, nth, points })
            };
            let all: Vec<Line> = self.view.recording.modes.iter().filter_map(line).collect();
            let id = format!("memory-{}", name(measure).replace(' ', "-"));
            let sub = format!(
                "MiB, {}",
                if measure == Measure::LargestRssMib {
                    "of one process"
                } else {
                    "of all proxies of the mode"
                }
            );
            let caption = Caption { id, title: title.to_owned(), sub, description: String::new() };
            let axes = Axes { places: places.clone(), is_log: false, width: WIDTH, height: FIELD };
            (!all.is_empty()).then(|| lines(caption, &all, &axes))
        };
        let measures = [
            (Measure::RssMib, "Resident memory (RSS)"),
            (Measure::PssMib, "Proportional share (PSS)"),
            (Measure::LargestRssMib, "RSS of the largest proxy"),
        ];
        measures.into_iter().filter_map(chart).collect()
    }

    fn caption(&self, work: &WorkView<'_>, what: &str, unit: &str) -> Caption {
        let nth = self.view.works.iter().position(|w| w.record.name == work.record.name).unwrap_or(0);
        let id = format!("w{nth}-{}", what.to_lowercase().replace(' ', "-"));
        let title = format!("{what}, {}", plain(&work.record.name));
        let sub = format!("{unit}; {}", plain(&work.record.title));
        Caption { id, title, sub, description: String::new() }
    }
}

/// What a phase of memory is called.
pub(crate) fn phase(work: &WorkView<'_>) -> String {
    let title = plain(&work.record.title);
    title.strip_prefix("memory, ").map(str::to_owned).unwrap_or(title)
}
