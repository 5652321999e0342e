use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::bench::compare::parse;
use crate::bench::record::{About, Sample, WorkRecord};

const EXAMPLE: &str = include_str!("../../../tests/data/bench/example.json");

fn example() -> Recording {
    parse("example.json", EXAMPLE).unwrap()
}

fn only(keep: impl Fn(&Sample) -> bool) -> Recording {
    let mut recording = example();
    recording.samples.retain(keep);
    recording
}

/// Every state that a recording can be in.
fn states() -> Vec<(&'static str, Recording)> {
    let every = |change: fn(&mut Sample)| {
        let mut recording = example();
        recording.samples.iter_mut().for_each(change);
        recording
    };
    let mut one_round = only(|s| s.round == 1);
    one_round.about.rounds = 1;
    let mut interrupted = only(|s| s.at < 200.0);
    interrupted.about.complete = false;
    let mut one_mode = only(|s| s.mode == "culvert");
    one_mode.modes.retain(|m| m.name == "culvert");
    let mut direct = only(|s| s.mode == "direct");
    direct.modes.retain(|m| m.name == "direct");
    let mut without_direct = only(|s| s.mode != "direct");
    without_direct.modes.retain(|m| m.name != "direct");
    let mut without_us = only(|s| !s.mode.starts_with("culvert"));
    without_us.modes.retain(|m| !m.name.starts_with("culvert"));
    let mut failed_mode = example();
    for sample in failed_mode.samples.iter_mut().filter(|s| s.mode == "envoy-sidecar") {
        *sample =
            Sample { failed: Some("not ready after 30 s".into()), values: BTreeMap::new(), ..sample.clone() };
        sample.latency.clear();
        sample.by_process.clear();
    }
    let mut bare = example();
    bare.about = About::default();
    bare.samples.clear();
    let empty = Recording { modes: Vec::new(), works: Vec::new(), ..bare.clone() };
    vec![
        ("complete", example()),
        ("interrupted", interrupted),
        ("a mode failed", failed_mode),
        ("one round", one_round),
        ("one mode", one_mode),
        ("direct only", direct),
        ("without direct", without_direct),
        ("without culvert", without_us),
        (
            "all failed",
            every(|s| *s = Sample { failed: Some("no route".into()), values: BTreeMap::new(), ..s.clone() }),
        ),
        ("all disturbed", every(|s| s.disturbed = Some("a compiler".into()))),
        ("zeros", every(|s| s.values.values_mut().for_each(|v| *v = 0.0))),
        ("no numbers", every(|s| s.values.values_mut().for_each(|v| *v = f64::NAN))),
        ("negative", every(|s| s.values.values_mut().for_each(|v| *v = -*v))),
        ("huge", every(|s| s.values.values_mut().for_each(|v| *v *= 1e300))),
        ("no samples", bare),
        ("nothing", empty),
        ("many modes", many_modes()),
    ]
}

fn many_modes() -> Recording {
    let mut recording = example();
    for nth in 0..24 {
        let name = format!("another-proxy-with-a-long-name-{nth}");
        let copies: Vec<Sample> = recording.samples.iter().filter(|s| s.mode == "culvert").cloned().collect();
        recording.samples.extend(copies.into_iter().map(|s| Sample { mode: name.clone(), ..s }));
        let title = "described by a file".to_owned();
        recording.modes.push(ModeRecord { name, title, deviations: Vec::new() });
    }
    recording
}

/// Names and reasons that would do harm if they were not escaped.
fn hostile() -> Recording {
    const BAD: &str =
        "</title></style><script>alert(1)</script>\"'&amp;]]>\u{1b}[31m\u{0}\r\n\u{202e}\u{ffff}";
    let mut recording = example();
    let renamed = |name: &str| format!("{name}{BAD}");
    for mode in &mut recording.modes {
        mode.name = renamed(&mode.name);
        mode.title = BAD.to_owned();
        mode.deviations = vec![BAD.to_owned()];
    }
    recording
        .works
        .iter_mut()
        .for_each(|w| *w = WorkRecord { name: renamed(&w.name), title: BAD.to_owned() });
    for sample in &mut recording.samples {
        (sample.mode, sample.work) = (renamed(&sample.mode), renamed(&sample.work));
        sample.by_process = sample.by_process.iter().map(|(k, v)| (renamed(k), *v)).collect();
        sample.disturbed = sample.disturbed.as_ref().map(|_| BAD.to_owned());
        sample.failed = sample.failed.as_ref().map(|_| BAD.to_owned());
    }
    let bad = || BAD.to_owned();
    let about = &mut recording.about;
    (about.command, about.version, about.started) = (bad(), bad(), bad());
    about.commit = Some(bad());
    about.tools = BTreeMap::from([(bad(), bad())]);
    about.notes = vec![bad()];
    (about.machine.model, about.machine.kernel, about.machine.congestion_control) = (bad(), bad(), bad());
    recording
}

/// Strictly: what is no well-formed XML is refused.
#[track_caller]
fn elements(state: &str, text: &str) -> Vec<String> {
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
    let document = roxmltree::Document::parse_with_options(text, options).unwrap_or_else(|e| {
        panic!("{state}: {e}\n{}", text.lines().nth(e.pos().row as usize - 1).unwrap_or(""))
    });
    let ids: Vec<&str> = document.descendants().filter_map(|n| n.attribute("id")).collect();
    let unique: BTreeSet<&str> = ids.iter().copied().collect();
    assert_eq!(unique.len(), ids.len(), "{state}: ids are unique: {ids:?}");
    for node in document.descendants() {
        for named in node.attribute("aria-labelledby").into_iter().flat_map(str::split_whitespace) {
            assert!(unique.contains(named), "{state}: {named} names nothing");
        }
        for attribute in ["x", "y", "x1", "x2", "y1", "y2", "width", "height", "cx", "cy", "points"] {
            let value = node.attribute(attribute).unwrap_or("");
            assert!(!value.contains("NaN") && !value.contains("inf"), "{state}: {attribute}={value}");
        }
    }
    document.descendants().filter(|n| n.is_element()).map(|n| n.tag_name().name().to_owned()).collect()
}

#[test]
fn every_state_has_a_page_that_is_well_formed() {
    for (state, recording) in states() {
        let page = html(&recording);
        let elements = elements(state, &page);
        assert!(
            !elements.iter().any(|e| ["script", "link", "img", "iframe"].contains(&e.as_str())),
            "{state}"
        );
        for from_elsewhere in ["http://", "https://", "url(", "@import"] {
            let own = page.replace("http://www.w3.org/2000/svg", "");
            assert!(!own.contains(from_elsewhere), "{state}: {from_elsewhere}");
        }
    }
}

#[test]
fn every_state_has_plots_that_are_well_formed_or_none() {
    for (state, recording) in states() {
        for (name, svg) in plots(&recording) {
            let elements = elements(state, &svg);
            assert!(elements.starts_with(&["svg".into(), "title".into(), "desc".into()]), "{state}, {name}");
        }
    }
    let names: Vec<&str> = plots(&example()).iter().map(|p| p.0).collect();
    assert_eq!(names, ["cpu-per-request.svg", "latency.svg"]);
}

#[test]
fn every_state_has_a_table_that_fits() {
    for (state, recording) in states() {
        let text = table(&recording, Style::Plain);
        for line in text.lines() {
            assert!(line.chars().count() <= 110, "{state}: {line}");
        }
        assert!(text.ends_with('\n') && !text.contains('\x1b'), "{state}");
        assert!(!text.contains("NaN") && !text.contains("inf)"), "{state}: {text}");
    }
}

#[test]
fn foreign_text_stays_text() {
    let recording = hostile();
    let page = html(&recording);
    let elements = elements("hostile", &page);
    assert!(!elements.iter().any(|e| e == "script"), "nothing became an element");
    for (_, svg) in plots(&recording) {
        self::elements("hostile", &svg);
    }
    let text = table(&recording, Style::Plain);
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "nothing steers the terminal");
    assert!(!text.contains('\u{202e}'));
}

#[test]
fn the_table_says_what_matters() {
    let text = table(&example(), Style::Plain);
    for wanted in [
        "commit b245978, 2026-11-21 19:02 UTC: 3 rounds, 3 s a sample",
        "culvert is 0.25x",
        "c64: HTTP/1.1 keep-alive, 64 connections",
        "CPU µs/request",
        "added p50",
        "Left out: 1 sample disturbed by foreign load, 1 sample without a figure",
        "new failed with envoy-sidecar-tcp: wrk: unable to connect",
        "disturbed: c64 1; the first: other programs",
        "  - culvert: two nodes, an agent on each",
        "  - envoy-sidecar, not by default: concurrency 2",
        "right after load",
    ] {
        assert!(text.contains(wanted), "{wanted} is missing in\n{text}");
    }
    let colours = table(&example(), Style::Colour);
    assert!(colours.contains("\x1b[32m") && colours.contains("\x1b[1m"));
}

#[test]
fn an_interrupted_run_says_so_everywhere() {
    let mut recording = only(|s| s.round == 1);
    recording.about.complete = false;
    assert!(table(&recording, Style::Plain).contains("INTERRUPTED"));
    assert!(html(&recording).contains("This run was interrupted"));
}

#[test]
fn figures_of_disturbed_samples_alone_are_marked_and_not_quoted() {
    let mut recording = example();
    recording.samples.iter_mut().for_each(|s| s.disturbed = Some("a compiler".into()));
    assert!(table(&recording, Style::Plain).contains("  ~"));
    assert!(html(&recording).contains("<td>~"));
    assert!(quotes(&recording).is_empty(), "{:?}", quotes(&recording));
}

#[test]
fn quotes_come_with_figures_rivals_and_conditions() {
    let quotes = quotes(&example());
    let [open, closed, .., conditions] = &quotes[..] else { panic!("{quotes:?}") };
    assert!(open.starts_with("1,000 requests/s asked") && open.contains("of envoy-sidecar, "), "{open}");
    assert!(open.contains("to the median latency"), "{open}");
    assert!(closed.contains("64 connections") && closed.contains("requests a second"), "{closed}");
    assert!(quotes.iter().all(|q| !q.contains("of culvert-one-node")), "a variant of ours is no rival");
    for wanted in ["2 CPUs (AMD EPYC", "Linux 6.18", "cubic", "3 rounds of 3 s", "commit b245978"] {
        assert!(conditions.contains(wanted), "{conditions}");
    }
}

#[test]
fn few_rounds_are_an_indication() {
    let mut recording = only(|s| s.round <= 2);
    recording.about.rounds = 2;
    let quotes = quotes(&recording);
    let (_, sentences) = quotes.split_last().unwrap();
    assert!(sentences.iter().all(|q| q.contains("only: an indication")), "{sentences:?}");
    assert!(
        !table(&recording, Style::Colour).contains("\x1b[32m"),
        "nothing is called better after two rounds"
    );
    assert!(html(&recording).contains("2 rounds only: a first impression"));
}

#[test]
fn nothing_is_quoted_without_a_rival() {
    for name in ["culvert", "direct"] {
        let mut recording = only(|s| s.mode == name);
        recording.modes.retain(|m| m.name == name);
        assert!(quotes(&recording).is_empty());
    }
}

#[test]
fn plots_are_told_in_words_too() {
    let plots = plots(&example());
    let (_, svg) = plots.first().unwrap();
    let document = roxmltree::Document::parse(svg).unwrap();
    let description = document.descendants().find(|n| n.has_tag_name("desc")).and_then(|n| n.text()).unwrap();
    assert!(description.contains("culvert: 14.0 (") && description.contains("node-a"), "{description}");
    assert!(svg.contains("prefers-color-scheme:dark"), "and in the dark");
}

#[test]
fn modes_keep_their_colour_and_differ() {
    let recording = many_modes();
    let view = View::of(&recording);
    let looks: BTreeMap<usize, &str> =
        recording.modes.iter().map(|m| (plots::look(&view, m), m.name.as_str())).collect();
    assert_eq!(looks.len(), recording.modes.len(), "{looks:?}");
    assert_eq!((looks.get(&0), looks.get(&7)), (Some(&"culvert"), Some(&"direct")));
}
