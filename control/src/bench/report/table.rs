//! The table for the terminal: a block for each work, a line for each mode, the ratio to the reference beside it.

use super::figures::{
    NONE, duration, many, name, number, plain, ratio, ratio_with_range, when, with_range, wrap,
};
use super::grid::{Cell, Grid, Tone, WIDTH};
use super::plots::phase;
use super::view::{DIRECT, Kind, View, WorkView, share_of_added};
use super::{Style, quote, verdict, waypoints};
use crate::bench::record::{Measure, ModeRecord, Recording};
use crate::bench::statistics::{Series, Spread};

/// Failures that are told.
const LEFT_OUT_MAX: usize = 12;

/// All of it.
pub(super) fn table(recording: &Recording, style: Style) -> String {
    let view = View::of(recording);
    let mut out = Out { view: &view, style, text: String::new() };
    out.about();
    for work in view.of_kind(|kind| !matches!(kind, Kind::Memory | Kind::Nothing)) {
        out.work(work);
    }
    out.memory();
    out.waypoints();
    out.left_out();
    out.modes();
    out.list("Notes", recording.about.notes.iter().map(String::as_str));
    let quotes: Vec<String> = quote::quotes(&view).iter().map(ToString::to_string).collect();
    out.list("In short", quotes.iter().map(String::as_str));
    out.text
}

struct Out<'a> {
    view: &'a View<'a>,
    style: Style,
    text: String,
}

impl Out<'_> {
    fn line(&mut self, tone: Tone, text: &str) {
        let painted = if text.is_empty() { String::new() } else { tone.paint(self.style, text) };
        self.text.push_str(&painted);
        self.text.push('\n');
    }

    fn about(&mut self) {
        for line in about(self.view.recording) {
            for line in wrap(&line, WIDTH) {
                self.line(Tone::Plain, &line);
            }
        }
        if let Some(reference) = self.view.reference
            && self.view.recording.modes.len() > 1
        {
            let name = plain(&reference.name);
            let how = format!(
                "Median of the rounds (smallest–largest). \"{name} is 0.25x\": a quarter of that line's figure, taken inside each round."
            );
            for line in wrap(&how, WIDTH) {
                self.line(Tone::Dim, &line);
            }
        }
    }

    fn heading(&mut self, work: &WorkView<'_>) {
        let text = format!("{}: {}", plain(&work.record.name), plain(&work.record.title));
        self.line(Tone::Plain, "");
        for line in wrap(&text, WIDTH) {
            self.line(Tone::Strong, &line);
        }
    }

    fn work(&mut self, work: &WorkView<'_>) {
        let (Some(cost), Some(rate)) = (work.kind.cost(), work.kind.rate()) else { return };
        self.heading(work);
        let is = self.is();
        let open = matches!(work.kind, Kind::Open(_));
        let with_unit = |m: Measure| format!("{} {}", name(m), m.unit());
        let mut head = vec!["mode".to_owned(), with_unit(cost), is.clone()];
        if open {
            let is = is.as_str();
            // This table has the most columns.
            head = ["mode", "CPU µs/req", is, "p50 µs", "added p50", is, "p99 / p99.9", "answered"]
                .map(str::to_owned)
                .into();
        } else {
            head.extend([
                if work.kind == Kind::Start { with_unit(rate) } else { rate.unit().to_owned() },
                is,
            ]);
        }
        head.push("rounds".to_owned());
        let mut grid = Grid::new(head);
        for mode in self.view.modes_of(&work.record.name) {
            let mut cells = vec![self.mode(mode)];
            cells.extend(self.pair(mode, work, cost));
            if open {
                cells.extend(self.latency(mode, work));
            } else {
                cells.extend(self.pair(mode, work, rate));
            }
            cells.push(self.rounds(mode, work));
            grid.row(cells);
        }
        grid.write(&mut self.text, self.style);
    }

    /// What the column of ratios is called.
    fn is(&self) -> String {
        let name = self.view.reference.map_or(String::new(), |r| plain(&r.name));
        let short: String = name.chars().take(16).collect();
        format!("{short} is")
    }

    fn mode(&self, mode: &ModeRecord) -> Cell {
        let tone = if self.view.is_reference(mode) { Tone::Strong } else { Tone::Plain };
        Cell::new(plain(&mode.name)).tone(tone)
    }

    /// A figure and what the reference is of it.
    fn pair(&self, mode: &ModeRecord, work: &WorkView<'_>, measure: Measure) -> [Cell; 2] {
        let own = self.view.series(&mode.name, &work.record.name, measure);
        [figure(&own), self.against(&own, mode, work, measure)]
    }

    fn against(&self, own: &Series, mode: &ModeRecord, work: &WorkView<'_>, measure: Measure) -> Cell {
        let Some(reference) = self.view.reference.filter(|_| !self.view.is_reference(mode)) else {
            return Cell::new("");
        };
        let theirs = self.view.series(&reference.name, &work.record.name, measure);
        share_cell(theirs.ratio(own), (own, &theirs), measure, mode)
    }

    fn latency(&self, mode: &ModeRecord, work: &WorkView<'_>) -> Vec<Cell> {
        let series = |mode: &str, measure| self.view.series(mode, &work.record.name, measure);
        let median = |measure| {
            let own = series(&mode.name, measure);
            own.spread().map_or(NONE.to_owned(), |s| marked(number(s.median), &own))
        };
        let tail = format!("{} / {}", median(Measure::P99Us), median(Measure::P999Us));
        let p50 = series(&mode.name, Measure::P50Us);
        let added = self.view.added(&mode.name, &work.record.name);
        let reference = self.view.reference.filter(|r| r.name != mode.name && mode.name != DIRECT);
        let share = reference.map(|reference| {
            let theirs = self.view.added(&reference.name, &work.record.name);
            share_cell(share_of_added(&theirs, &added), (&added, &theirs), Measure::P50Us, mode)
        });
        let answered = series(&mode.name, Measure::RequestsPerSecond)
            .ratio(&series(&mode.name, Measure::AskedPerSecond))
            .map_or_else(none, |s| Cell::new(format!("{:.1} %", s.median * 100.0)));
        vec![figure(&p50), figure(&added), share.unwrap_or_default(), Cell::new(tail), answered]
    }

    fn rounds(&self, mode: &ModeRecord, work: &WorkView<'_>) -> Cell {
        let counts = self.view.counts(&mode.name, &work.record.name);
        let errors = self.view.series(&mode.name, &work.record.name, Measure::Failed);
        let errors: f64 = errors.by_round.values().sum();
        match (counts.clean, counts.failed) {
            (0, 0) => Cell::new("disturbed"),
            (0, _) if counts.disturbed == 0 => Cell::new("failed"),
            // A figure beside failures is no figure.
            (clean, _) if errors > 0.0 => {
                Cell::new(format!("{clean}, {} failed", number(errors))).tone(Tone::Bad)
            }
            (clean, _) => Cell::new(clean.to_string()),
        }
    }

    /// Phases of memory, one column each.
    fn memory(&mut self) {
        let phases = self.view.of_kind(|kind| kind == Kind::Memory);
        if phases.is_empty() {
            return;
        }
        self.line(Tone::Plain, "");
        self.line(
            Tone::Strong,
            &format!("memory: RSS in MiB of all proxies of the mode, and what {} of it", self.is()),
        );
        let took_part = |m: &&ModeRecord| {
            phases.iter().any(|w| !self.view.modes_of(&w.record.name).is_empty() && self.has(m, w))
        };
        let modes: Vec<&ModeRecord> = self.view.recording.modes.iter().filter(took_part).collect();
        let mut grid = Grid::new(std::iter::once("mode".to_owned()).chain(phases.iter().map(|w| phase(w))));
        for mode in modes {
            let mut cells = vec![self.mode(mode)];
            for work in &phases {
                let [figure, against] = self.pair(mode, work, Measure::RssMib);
                let ratio = if against.short.is_empty() { "     ".to_owned() } else { against.short };
                cells.push(Cell::new(format!("{} {ratio:>6}", figure.short)).tone(against.tone));
            }
            grid.row(cells);
        }
        grid.write(&mut self.text, self.style);
    }

    /// What waypoints take alone, then their modes as a whole.
    fn waypoints(&mut self) {
        let modes = waypoints::modes(self.view);
        let Some(first) = modes.first().map(|mode| plain(&mode.name)) else { return };
        let parts = [
            ("waypoints: the waypoint's process alone", waypoints::alone(self.view)),
            ("waypoints: all proxies of the mode", waypoints::together(self.view)),
        ];
        for (title, lines) in parts {
            self.line(Tone::Plain, "");
            self.line(Tone::Strong, title);
            let others = modes.iter().skip(1).flat_map(|mode| [plain(&mode.name), format!("{first} is")]);
            let mut grid = Grid::new(["work".to_owned(), first.clone()].into_iter().chain(others));
            for line in &lines {
                let mut cells = vec![Cell::new(line.label.clone())];
                for (nth, (series, mode)) in line.figures.iter().zip(&modes).enumerate() {
                    cells.push(figure(series));
                    let theirs = line.figures.first().filter(|_| nth > 0);
                    cells.extend(
                        theirs
                            .map(|theirs| share_cell(line.share(nth), (series, theirs), line.measure, mode)),
                    );
                }
                grid.row(cells);
            }
            grid.write(&mut self.text, self.style);
        }
    }

    fn has(&self, mode: &ModeRecord, work: &WorkView<'_>) -> bool {
        self.view.series(&mode.name, &work.record.name, Measure::RssMib).spread().is_some()
    }

    fn left_out(&mut self) {
        let Some(title) = left_out_title(self.view) else { return };
        let all = self.view.left_out_in_short();
        let more = all.len().saturating_sub(LEFT_OUT_MAX);
        let more = (more > 0).then(|| format!("and {more} more, all in the JSON"));
        let lines: Vec<String> = all.into_iter().take(LEFT_OUT_MAX).chain(more).collect();
        self.list(&title, lines.iter().map(String::as_str));
    }

    fn modes(&mut self) {
        let lines: Vec<String> = self
            .view
            .recording
            .modes
            .iter()
            .flat_map(|m| {
                let differs = m.deviations.iter().map(move |d| format!("{}, not by default: {d}", m.name));
                std::iter::once(format!("{}: {}", m.name, m.title)).chain(differs)
            })
            .collect();
        self.list("Modes, and how they differ from their defaults", lines.iter().map(String::as_str));
    }

    fn list<'b>(&mut self, title: &str, items: impl Iterator<Item = &'b str>) {
        let mut items = items.peekable();
        if items.peek().is_none() {
            return;
        }
        self.line(Tone::Plain, "");
        for line in wrap(title, WIDTH) {
            self.line(Tone::Strong, &line);
        }
        for item in items {
            for (nth, line) in wrap(item, WIDTH - 4).into_iter().enumerate() {
                self.line(Tone::Plain, &format!("{}{line}", if nth == 0 { "  - " } else { "    " }));
            }
        }
    }
}

/// How many samples do not count, and why that is so; `None` where all do.
pub(super) fn left_out_title(view: &View<'_>) -> Option<String> {
    let (disturbed, failed): (Vec<_>, Vec<_>) = view.left_out().partition(|out| out.what == "disturbed");
    let parts: Vec<String> =
        [(disturbed.len(), "disturbed by foreign load"), (failed.len(), "without a figure")]
            .into_iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{} {what}", many(count, "sample")))
            .collect();
    let mark = match view.recording.samples.iter().any(|s| s.disturbed.is_some()) {
        true => "; ~ marks what only disturbed samples have",
        false => "",
    };
    (!parts.is_empty()).then(|| format!("Left out: {}{mark}", parts.join(", ")))
}

/// What ran, in two lines.
pub(super) fn about(recording: &Recording) -> Vec<String> {
    let about = &recording.about;
    let commit = about.commit.as_ref().map_or(String::new(), |c| format!(", commit {c}"));
    let rounds = many(recording.about.rounds as usize, "round");
    let end = if about.complete { "" } else { "; INTERRUPTED: not all rounds are there" };
    let machine = &about.machine;
    vec![
        format!(
            "culvert bench {}{commit}, {}: {rounds}, {} a sample, {}{end}",
            about.version,
            when(&about.started),
            duration(about.sample_seconds),
            duration(about.seconds)
        ),
        format!(
            "{}, {}, {} MiB, Linux {}, {}",
            machine.model,
            many(machine.cpus as usize, "CPU"),
            machine.memory_mib,
            machine.kernel,
            machine.congestion_control
        ),
    ]
}

/// What the reference is of a mode's figure.
fn share_cell(
    share: Option<Spread>,
    (own, theirs): (&Series, &Series),
    measure: Measure,
    mode: &ModeRecord,
) -> Cell {
    let Some(spread) = share else { return none() };
    let is_weak = own.only_disturbed || theirs.only_disturbed;
    let mark = |text: String| if is_weak { format!("~{text}") } else { text };
    let tone = if is_weak { Tone::Plain } else { verdict(&spread, measure, mode).tone() };
    Cell::new(mark(ratio_with_range(&spread))).or(mark(ratio(spread.median))).tone(tone)
}

fn none() -> Cell {
    Cell::new(NONE).tone(Tone::Dim)
}

fn figure(series: &Series) -> Cell {
    series.spread().map_or_else(none, |spread| {
        let cell = ranged(&spread);
        Cell { long: marked(cell.long, series), short: marked(cell.short, series), ..cell }
    })
}

fn ranged(spread: &Spread) -> Cell {
    Cell::new(with_range(spread)).or(number(spread.median))
}

/// Marks what only disturbed samples have.
pub(super) fn marked(text: String, series: &Series) -> String {
    if series.only_disturbed { format!("~{text}") } else { text }
}
