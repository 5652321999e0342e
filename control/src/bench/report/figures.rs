//! How figures, ranges and foreign text are written, the same in the terminal and on the page.

use crate::bench::record::Measure;
use crate::bench::statistics::Spread;

/// What stands where there is no figure.
pub(crate) const NONE: &str = "–";

/// Three significant digits, thousands as `k` from 10,000 on.
pub(crate) fn number(value: f64) -> String {
    scaled(value, scale(value))
}

/// How one figure is written, so that others may be written likewise.
#[derive(Clone, Copy)]
struct Scale {
    divisor: f64,
    digits: usize,
    unit: &'static str,
}

fn scale(value: f64) -> Scale {
    let size = value.abs();
    let (divisor, unit) = match size {
        size if size >= 999_500.0 => (1e6, "M"),
        size if size >= 9_995.0 => (1e3, "k"),
        _ => (1.0, ""),
    };
    let digits = match size / divisor {
        0.0 => 0,
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        size if size >= 0.0995 => 2,
        size if size >= 0.00995 => 3,
        _ => 4,
    };
    Scale { divisor, digits, unit }
}

fn scaled(value: f64, Scale { divisor, digits, unit }: Scale) -> String {
    if !value.is_finite() {
        return NONE.to_owned();
    }
    if value.abs() >= 1e9 {
        return format!("{value:.2e}");
    }
    let text = format!("{:.digits$}", value / divisor);
    // Below 10,000 there is no unit: four digits get their comma.
    let grouped = match text.split_at_checked(text.len().saturating_sub(3)) {
        Some((thousands, rest)) if digits == 0 && text.trim_start_matches('-').len() > 3 => {
            format!("{thousands},{rest}")
        }
        _ => text,
    };
    // A change that rounds to nothing has no sign.
    let unsigned = grouped.strip_prefix('-').filter(|rest| rest.chars().all(|c| "0.".contains(c)));
    format!("{}{unit}", unsigned.unwrap_or(&grouped))
}

/// From the smallest to the largest round, written as precisely as the median.
pub(crate) fn range(spread: &Spread) -> String {
    let scale = scale(spread.median);
    format!("{}–{}", scaled(spread.min, Scale { unit: "", ..scale }), scaled(spread.max, scale))
}

/// Median, and the range where there is one: from two rounds on.
pub(crate) fn with_range(spread: &Spread) -> String {
    match spread.rounds {
        0 | 1 => number(spread.median),
        _ => format!("{} ({})", number(spread.median), range(spread)),
    }
}

/// A ratio, `0.25x`.
pub(crate) fn ratio(value: f64) -> String {
    format!("{}x", number(value))
}

/// A ratio with the range of its rounds.
pub(crate) fn ratio_with_range(spread: &Spread) -> String {
    match spread.rounds {
        0 | 1 => ratio(spread.median),
        _ => format!("{} ({})", ratio(spread.median), range(spread)),
    }
}

/// A length of time, in seconds.
pub(crate) fn duration(seconds: f64) -> String {
    if seconds > 0.0 && seconds < 9.95 && seconds.fract() != 0.0 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.max(0.0).round() as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

/// `2026-11-21 19:02 UTC` of RFC 3339 in UTC; other text as it is.
pub(crate) fn when(text: &str) -> String {
    match (text.get(..10), text.get(10..11), text.get(11..16), text.ends_with('Z')) {
        (Some(day), Some("T"), Some(time), true) => plain(&format!("{day} {time} UTC")),
        _ => plain(text),
    }
}

/// `3 samples`, `1 sample`.
pub(crate) fn many(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// What a measure is called.
pub(crate) fn name(measure: Measure) -> &'static str {
    match measure {
        Measure::CpuUsPerRequest | Measure::CpuUsPerConnection | Measure::CpuSPerGib => "CPU",
        Measure::RequestsPerSecond => "answered",
        Measure::AskedPerSecond => "asked",
        Measure::ConnectionsPerSecond => "connections",
        Measure::GbitPerSecond => "throughput",
        Measure::P50Us => "p50",
        Measure::P99Us => "p99",
        Measure::P999Us => "p99.9",
        Measure::Failed => "failed",
        Measure::RssMib => "RSS",
        Measure::PssMib => "PSS",
        Measure::LargestRssMib => "largest RSS",
        Measure::StartMs => "start",
        Measure::Switches => "switches",
        Measure::MachineCpu => "machine's CPU",
    }
}

/// Foreign text on one line, without what would steer a terminal.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || is_bidi(c) { ' ' } else { c }).collect()
}

/// Characters that turn the direction of what follows: they could make one figure look like another.
fn is_bidi(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{61c}')
}

/// Foreign text of at most `max` characters.
pub(crate) fn short(text: &str, max: usize) -> String {
    let text = plain(text);
    if text.chars().count() <= max {
        return text;
    }
    text.chars().take(max.saturating_sub(1)).chain(['…']).collect()
}

/// A name of at most `max` characters, cut in its middle: variants of one name differ at the end.
pub(crate) fn short_name(name: &str, max: usize) -> String {
    let name = plain(name);
    let count = name.chars().count();
    if count <= max {
        return name;
    }
    let end = max.saturating_sub(1) / 2;
    let begin = max.saturating_sub(1) - end;
    name.chars().take(begin).chain(['…']).chain(name.chars().skip(count - end)).collect()
}

/// Lines of at most `width` characters, broken at blanks; a word that is longer is broken anywhere.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in plain(text).split_whitespace() {
        let mut word = word.chars().collect::<Vec<_>>();
        while let Some(line) = lines.last_mut() {
            let gap = usize::from(used > 0);
            if used + gap + word.len() <= width {
                line.extend([" "].iter().take(gap).copied());
                line.extend(word.iter());
                used += gap + word.len();
                break;
            }
            if used == 0 {
                let rest = word.split_off(width.min(word.len()));
                line.extend(word.iter());
                word = rest;
            }
            lines.push(String::new());
            used = 0;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits() {
        for (value, text) in [
            (0.0, "0"),
            (0.004, "0.0040"),
            (0.0237, "0.024"),
            (0.25, "0.25"),
            (0.999, "1.00"),
            (1.266, "1.27"),
            (26.13, "26.1"),
            (102.7, "103"),
            (4050.4, "4,050"),
            (9994.0, "9,994"),
            (9996.0, "10.0k"),
            (25_340.0, "25.3k"),
            (1_250_000.0, "1.25M"),
            (-0.26, "-0.26"),
            (-4050.0, "-4,050"),
            (1e300, "1.00e300"),
            (f64::NAN, "–"),
        ] {
            assert_eq!(number(value), text, "{value}");
        }
    }

    #[test]
    fn a_range_is_as_precise_as_its_median() {
        let spread = Spread::of([25_340.0, 9_900.0, 30_123.0]).unwrap();
        assert_eq!(with_range(&spread), "25.3k (9.9–30.1k)");
        assert_eq!(ratio_with_range(&Spread::of_ratios([0.246, 0.2, 0.3]).unwrap()), "0.25x (0.20–0.30)");
        assert_eq!(with_range(&Spread::of([3.0]).unwrap()), "3.00", "one round has no range");
    }

    #[test]
    fn durations_and_counts_read_well() {
        assert_eq!([duration(0.5), duration(492.0), duration(7300.0)], ["0.5 s", "8 min 12 s", "2 h 1 min"]);
        assert_eq!([many(1, "sample"), many(2, "sample")], ["1 sample", "2 samples"]);
    }

    #[test]
    fn times_are_told_to_the_minute() {
        assert_eq!(when("2026-11-21T19:02:11Z"), "2026-11-21 19:02 UTC");
        assert_eq!([when("yesterday"), when("")], ["yesterday", ""]);
    }

    #[test]
    fn foreign_text_steers_nothing() {
        assert_eq!(plain("a\x1b[31mb\r\nc\u{202e}d"), "a [31mb  c d");
        assert_eq!(short("a name that is long", 8), "a name …");
        assert_eq!(short_name("another-proxy-1", 8), "anot…y-1");
        assert_eq!([short_name("proxy", 5), short_name("proxy", 1)], ["proxy", "…"]);
    }

    #[test]
    fn text_is_wrapped_at_blanks() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("abcdefghij k", 4), ["abcd", "efgh", "ij k"]);
        assert_eq!(wrap("", 4), [""]);
    }
}
