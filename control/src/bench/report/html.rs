//! The report as one HTML page: what to quote, plots, all figures, and what a reader needs to judge them. No script,
//! nothing from elsewhere, and every text of the recording escaped.

use std::fmt::Write as _;

use super::figures::{NONE, duration, many, name, number, range, ratio, when};
use super::plots::{Section, sections};
use super::svg::{Frame, escape, theme};
use super::table::{left_out_title, marked};
use super::view::{Kind, View, WorkView, share_of_added};
use super::{quote, verdict, waypoints};
use crate::bench::record::{Measure, ModeRecord};
use crate::bench::statistics::{Series, Spread};

const STYLE: &str = include_str!("page.css");

/// The whole page.
pub(super) fn page(view: &View<'_>) -> String {
    let sections = sections(view);
    let mut page = Page { view, text: String::new() };
    page.head(&sections);
    page.quotes();
    for (nth, section) in sections.into_iter().enumerate() {
        page.section(nth, section);
    }
    page.figures();
    page.left_out();
    page.modes();
    page.how_to_read();
    page.about();
    page.text.push_str("</main>\n</body>\n</html>\n");
    page.text
}

struct Page<'a> {
    view: &'a View<'a>,
    text: String,
}

impl Page<'_> {
    fn push(&mut self, text: std::fmt::Arguments<'_>) {
        let _infallible = self.text.write_fmt(text);
        self.text.push('\n');
    }

    fn heading(&mut self, id: &str, title: &str) {
        self.push(format_args!("<h2 id=\"{id}\">{}</h2>", escape(title)));
    }

    fn head(&mut self, sections: &[Section]) {
        let about = &self.view.recording.about;
        let modes = many(self.view.recording.modes.len(), "mode");
        let title = format!("Culvert benchmark, {}", escape(&when(&about.started)));
        self.push(format_args!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
             <title>{title}</title>\n<style>\n{STYLE}{}\n</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>",
            theme()
        ));
        let commit =
            about.commit.as_ref().map_or(String::new(), |c| format!(", commit <code>{}</code>", escape(c)));
        self.push(format_args!(
            "<p class=\"lead\">The same work through {modes}, interleaved in one run: {} of {} a sample, {} in all. \
             culvert {}{commit}; {} ({}), Linux {}.</p>",
            many(about.rounds as usize, "round"),
            duration(about.sample_seconds),
            duration(about.seconds),
            escape(&about.version),
            many(about.machine.cpus as usize, "CPU"),
            escape(&about.machine.model),
            escape(&about.machine.kernel)
        ));
        if !about.complete {
            self.push(format_args!("<p class=\"warn\">This run was interrupted: figures have fewer rounds than were asked for, and some works may be missing.</p>"));
        }
        if about.rounds < 3 {
            self.push(format_args!(
                "<p class=\"warn\">{} only: a first impression. Three rounds or more show how far figures are from noise.</p>",
                many(about.rounds as usize, "round")
            ));
        }
        let samples = &self.view.recording.samples;
        let disturbed = samples.iter().filter(|s| s.disturbed.is_some()).count();
        if disturbed * 2 > samples.len() {
            self.push(format_args!(
                "<p class=\"warn\">Other programs used the machine during {disturbed} of {}. Figures marked ~ have no other \
                 samples: take them for orientation.</p>",
                many(samples.len(), "sample")
            ));
        }
        let plots = sections.iter().enumerate().map(|(nth, s)| (format!("plots-{nth}"), s.title));
        let rest = [
            ("figures", "All figures"),
            ("modes", "Modes"),
            ("reading", "How to read it"),
            ("about", "About this run"),
        ];
        let links = plots.chain(rest.map(|(id, title)| (id.to_owned(), title)));
        let links: Vec<String> = links.map(|(id, title)| format!("<a href=\"#{id}\">{title}</a>")).collect();
        self.push(format_args!("<nav aria-label=\"Contents\">{}</nav>", links.join("")));
    }

    fn quotes(&mut self) {
        let quotes = quote::quotes(self.view);
        let Some(conditions) = quotes.last() else { return };
        let item = |q: &quote::Quote| format!("<li><b>{}</b>: {}</li>", escape(&q.subject), escape(&q.claim));
        let items: Vec<String> = quotes.iter().take(quotes.len() - 1).map(item).collect();
        self.push(format_args!(
            "<div class=\"quote\"><ul>{}</ul><p>{}</p></div>",
            items.join("\n"),
            escape(&conditions.to_string())
        ));
    }

    fn section(&mut self, nth: usize, section: Section) {
        self.heading(&format!("plots-{nth}"), section.title);
        self.push(format_args!("<p class=\"hint\">{}</p>\n<div class=\"plots\">", escape(section.hint)));
        for chart in section.charts {
            self.push(format_args!("<figure>{}</figure>", chart.draw(Frame::Page).trim_end()));
        }
        self.push(format_args!("</div>"));
    }

    fn figures(&mut self) {
        self.heading("figures", "All figures");
        let reference = self.view.reference.map_or(String::new(), |r| escape(&r.name));
        self.push(format_args!(
            "<p class=\"hint\">Medians of the rounds, the smallest and the largest round below. Ratios say what {reference} is \
             of the line's mode, taken inside each round.</p>"
        ));
        for work in &self.view.works {
            self.push(format_args!("<h3>{}: {}</h3>", escape(&work.record.name), escape(&work.record.title)));
            self.work(work);
        }
        self.waypoints();
    }

    /// What waypoints take alone, then their modes as a whole.
    fn waypoints(&mut self) {
        let modes = waypoints::modes(self.view);
        let Some(first) = modes.first().map(|mode| escape(&mode.name)) else { return };
        let parts = [
            ("Waypoints: the waypoint's process alone", waypoints::alone(self.view)),
            ("Waypoints: all proxies of the mode", waypoints::together(self.view)),
        ];
        for (title, lines) in parts {
            let others = modes.iter().skip(1).map(|mode| {
                format!("<th scope=\"col\">{}</th><th scope=\"col\">{first} is</th>", escape(&mode.name))
            });
            let head: String = others.collect();
            let rows: Vec<String> = lines.iter().map(|line| waypoints_row(line, &modes)).collect();
            self.push(format_args!(
                "<h3>{title}</h3>\n<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{title}\"><table>\n<thead><tr><th scope=\"col\">work</th><th scope=\"col\">{first}</th>{head}</tr></thead>\n<tbody>\n{}\n</tbody>\n</table></div>",
                rows.join("\n")
            ));
        }
    }

    fn work(&mut self, work: &WorkView<'_>) {
        let modes = self.view.modes_of(&work.record.name);
        let columns: Vec<Column> = columns(work.kind)
            .filter(|column| modes.iter().any(|mode| self.series(mode, work, *column).spread().is_some()))
            .collect();
        if columns.is_empty() {
            self.push(format_args!("<p class=\"quiet\">Nothing was measured.</p>"));
            return;
        }
        let is = self.view.reference.map_or(String::new(), |r| format!("{} is", escape(&r.name)));
        let mut head = String::from("<th scope=\"col\">mode</th>");
        for column in &columns {
            let (name, unit) = column.title(work.kind);
            let _infallible = write!(head, "<th scope=\"col\">{name}<br/>{unit}</th>");
            if column.has_ratio(work.kind) {
                let _infallible = write!(head, "<th scope=\"col\">{is}</th>");
            }
        }
        head.push_str("<th scope=\"col\">rounds</th>");
        let rows: Vec<String> = modes.iter().map(|mode| self.row(mode, work, &columns)).collect();
        self.push(format_args!(
            "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Figures of {}\"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{}\n</tbody>\n</table></div>",
            escape(&work.record.name),
            rows.join("\n")
        ));
    }

    fn row(&self, mode: &ModeRecord, work: &WorkView<'_>, columns: &[Column]) -> String {
        let mut row = format!("<th scope=\"row\">{}</th>", escape(&mode.name));
        for column in columns {
            let own = self.series(mode, work, *column);
            row.push_str(&cell(own.spread().map(|s| marked(with_small(&s, number), &own)), ""));
            if !column.has_ratio(work.kind) {
                continue;
            }
            let reference = self.view.reference.filter(|r| r.name != mode.name);
            let theirs = reference.map(|r| self.series(r, work, *column));
            let share = theirs.as_ref().and_then(|theirs| column.share(theirs, &own));
            let Some(share) = share else {
                row.push_str(&cell(self.view.is_reference(mode).then(String::new), ""));
                continue;
            };
            let is_weak = own.only_disturbed || theirs.is_some_and(|t| t.only_disturbed);
            let text = with_small(&share, ratio);
            row.push_str(&match is_weak {
                true => cell(Some(format!("~{text}")), ""),
                false => cell(Some(text), verdict(&share, column.measure(), mode).class()),
            });
        }
        let counts = self.view.counts(&mode.name, &work.record.name);
        let left_out = [(counts.disturbed, "disturbed"), (counts.failed, "failed")];
        let left_out: Vec<String> = left_out
            .iter()
            .filter(|(n, _)| *n > 0)
            .map(|(n, what)| format!("<small>{n} {what}</small>"))
            .collect();
        let class = if self.view.is_reference(mode) { " class=\"reference\"" } else { "" };
        format!("<tr{class}>{row}<td>{}{}</td></tr>", counts.clean, left_out.concat())
    }

    fn series(&self, mode: &ModeRecord, work: &WorkView<'_>, column: Column) -> Series {
        match column {
            Column::Measured(measure) => self.view.series(&mode.name, &work.record.name, measure),
            Column::Added => self.view.added(&mode.name, &work.record.name),
        }
    }

    fn left_out(&mut self) {
        let Some(title) = left_out_title(self.view) else { return };
        self.heading("left-out", "Left out");
        self.push(format_args!(
            "<p class=\"hint\">{}. They are in the JSON, and in no median above.</p>",
            escape(&title)
        ));
        let short = self.view.left_out_in_short();
        let short: Vec<String> = short.iter().map(|line| format!("<li>{}</li>", escape(line))).collect();
        let items: Vec<String> = self
            .view
            .left_out()
            .map(|out| {
                let sample = out.sample;
                format!(
                    "<li>Round {}, {}, {}: {}, {}</li>",
                    sample.round,
                    escape(&sample.mode),
                    escape(&sample.work),
                    out.what,
                    escape(out.why)
                )
            })
            .collect();
        self.push(format_args!(
            "<ul>\n{}\n</ul>\n<details><summary>Each of them</summary><ul>\n{}\n</ul></details>",
            short.join("\n"),
            items.join("\n")
        ));
    }

    fn modes(&mut self) {
        self.heading("modes", "Modes");
        for mode in &self.view.recording.modes {
            self.push(format_args!("<h3>{}: {}</h3>", escape(&mode.name), escape(&mode.title)));
            if mode.deviations.is_empty() {
                self.push(format_args!("<p class=\"quiet\">With its defaults.</p>"));
                continue;
            }
            let items: Vec<String> =
                mode.deviations.iter().map(|d| format!("<li>{}</li>", escape(d))).collect();
            self.push(format_args!(
                "<p class=\"quiet\">Differs from its defaults:</p>\n<ul>{}</ul>",
                items.join("\n")
            ));
        }
    }

    fn how_to_read(&mut self) {
        self.heading("reading", "How to read it");
        self.push(format_args!(
            "<ul>\n\
             <li><b>CPU per request, connection or GiB</b> is the steadiest figure: run time that the kernel accounts to the \
             proxies, divided by what was done. What the kernel does in interrupts for a proxy's packets is not in it.</li>\n\
             <li><b>Ratios</b> are taken inside each round, and their median is shown with the smallest and the largest. \
             Rounds run the modes forwards and backwards, so that a machine that slows down slows all of them. They are \
             coloured only where at least three rounds all say the same.</li>\n\
             <li><b>Whiskers and ranges</b> go from the smallest to the largest round. They are no confidence interval: \
             few rounds cannot give one.</li>\n\
             <li><b>Disturbed samples</b> had foreign load on the machine; they were repeated and are left out. ~ marks a \
             figure that only disturbed samples have: take it for orientation.</li>\n\
             <li><b>Rates and latencies</b> are of the whole chain on one machine: client, proxies and server share its \
             processors, over virtual Ethernet, without a network card. Percentiles above 99 show the scheduler as much as \
             the proxies.</li>\n\
             <li><b>RSS</b> counts pages shared between processes in each of them, <b>PSS</b> divides them.</li>\n</ul>"
        ));
    }

    fn about(&mut self) {
        self.heading("about", "About this run");
        let about = &self.view.recording.about;
        let machine = &about.machine;
        let tools: Vec<String> =
            about.tools.iter().map(|(tool, version)| format!("{tool} {version}")).collect();
        let commit = about.commit.as_deref().unwrap_or("outside a repository");
        let rounds =
            format!("{}, {} a sample", many(about.rounds as usize, "round"), duration(about.sample_seconds));
        let end = if about.complete { "complete" } else { "interrupted" };
        let rows = [
            ("Command", format!("<code>{}</code>", escape(&about.command))),
            ("Version", format!("{}, commit {}", escape(&about.version), escape(commit))),
            ("Started", escape(&when(&about.started))),
            ("Length", format!("{}, {end}", duration(about.seconds))),
            ("Rounds", rounds),
            ("Processors", format!("{} × {}", machine.cpus, escape(&machine.model))),
            ("Memory", format!("{} MiB", machine.memory_mib)),
            ("Kernel", format!("Linux {}", escape(&machine.kernel))),
            ("Congestion control", escape(&machine.congestion_control)),
            ("Programs", escape(&tools.join(", "))),
        ];
        let rows: Vec<String> = rows.iter().map(|(k, v)| format!("<dt>{k}</dt><dd>{v}</dd>")).collect();
        self.push(format_args!("<dl>\n{}\n</dl>", rows.join("\n")));
        if !about.notes.is_empty() {
            let notes: Vec<String> =
                about.notes.iter().map(|note| format!("<li>{}</li>", escape(note))).collect();
            self.push(format_args!("<h3>Notes</h3>\n<ul>\n{}\n</ul>", notes.join("\n")));
        }
    }
}

/// A line of the tables of waypoints.
fn waypoints_row(line: &waypoints::Line, modes: &[&ModeRecord]) -> String {
    let mut row = format!("<th scope=\"row\">{}</th>", escape(&line.label));
    for (nth, (series, mode)) in line.figures.iter().zip(modes).enumerate() {
        row.push_str(&cell(series.spread().map(|s| marked(with_small(&s, number), series)), ""));
        let Some(theirs) = line.figures.first().filter(|_| nth > 0) else { continue };
        let is_weak = series.only_disturbed || theirs.only_disturbed;
        let share = line.share(nth);
        let class = share.map_or("", |share| verdict(&share, line.measure, mode).class());
        row.push_str(&cell(
            share.map(|share| {
                if is_weak { format!("~{}", with_small(&share, ratio)) } else { with_small(&share, ratio) }
            }),
            if is_weak { "" } else { class },
        ));
    }
    format!("<tr>{row}</tr>")
}

/// One column of the tables.
#[derive(Clone, Copy)]
enum Column {
    Measured(Measure),
    /// What is added to the direct way's median latency.
    Added,
}

/// All columns that a work of this kind may have.
fn columns(kind: Kind) -> impl Iterator<Item = Column> {
    Measure::ALL.into_iter().flat_map(move |measure| {
        let added = matches!((kind, measure), (Kind::Open(_), Measure::P50Us)).then_some(Column::Added);
        std::iter::once(Column::Measured(measure)).chain(added)
    })
}

impl Column {
    fn measure(self) -> Measure {
        match self {
            Self::Measured(measure) => measure,
            Self::Added => Measure::P50Us,
        }
    }

    /// Name and unit.
    fn title(self, kind: Kind) -> (&'static str, &'static str) {
        match self {
            Self::Measured(Measure::Failed) => ("failed", ""),
            Self::Measured(Measure::Switches) => (
                name(Measure::Switches),
                match kind {
                    Kind::Bulk => "per GiB",
                    Kind::Connections => "per connection",
                    _ => "per request",
                },
            ),
            // In the unit of the proxies' own CPU.
            Self::Measured(Measure::MachineCpu) => {
                (name(Measure::MachineCpu), kind.cost().unwrap_or(Measure::MachineCpu).unit())
            }
            Self::Measured(measure) => (name(measure), measure.unit()),
            Self::Added => ("added p50", "µs"),
        }
    }

    /// Whether the reference's ratio stands beside it.
    fn has_ratio(self, kind: Kind) -> bool {
        match self {
            Self::Measured(measure) => {
                kind.cost() == Some(measure) || kind.rate() == Some(measure) && !matches!(kind, Kind::Open(_))
            }
            Self::Added => true,
        }
    }

    fn share(self, own: &Series, other: &Series) -> Option<Spread> {
        match self {
            Self::Measured(_) => own.ratio(other),
            Self::Added => share_of_added(own, other),
        }
    }
}

fn cell(text: Option<String>, class: &str) -> String {
    let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
    format!("<td{class}>{}</td>", text.unwrap_or_else(|| NONE.to_owned()))
}

/// The median, the range in small below.
fn with_small(spread: &Spread, write: fn(f64) -> String) -> String {
    match spread.rounds {
        0 | 1 => write(spread.median),
        _ if spread.min == spread.max => write(spread.median),
        _ => format!("{}<small>{}</small>", write(spread.median), range(spread)),
    }
}
