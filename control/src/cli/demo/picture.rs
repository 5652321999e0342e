//! Where the requests of a step go, painted while they are on their way: a bar for each server, what clients got, and the
//! newest requests one after the other.

use std::collections::BTreeMap;

use super::super::paint::Paint;
use super::shop::Answer;

/// Width of a bar.
const BAR: usize = 40;
/// Requests of the last line.
const STRIP: usize = 50;

/// The picture of one step.
pub(super) struct Picture {
    paint: Paint,
    wanted: usize,
    statuses: BTreeMap<u16, usize>,
    /// A sign for each request, in their order: the last character of the server's name, `x` for a failure, `-` for what the
    /// waypoint answered itself.
    strip: String,
}

impl Picture {
    pub(super) fn new(paint: Paint, wanted: usize) -> Self {
        Self { paint, wanted, statuses: BTreeMap::new(), strip: String::new() }
    }

    /// Adds an answer.
    pub(super) fn add(&mut self, answer: &Answer) {
        *self.statuses.entry(answer.status).or_default() += 1;
        let of_server =
            answer.server().starts_with("cart-").then(|| answer.server().chars().last()).flatten();
        self.strip.push(match (answer.status, of_server) {
            (500.., _) => 'x',
            (_, Some(sign)) => sign,
            (_, None) => '-',
        });
    }

    /// Its lines; `asked` is how often each server was.
    pub(super) fn lines(&self, asked: &[(&str, usize)]) -> Vec<String> {
        let p = self.paint;
        let server = |(name, count): &(&str, usize)| {
            let full = (count * BAR).div_ceil(self.wanted.max(1)).min(BAR);
            let (full, rest) = ("█".repeat(full), "·".repeat(BAR - full));
            format!("     {} {}{} {count}", p.cyan(format!("{name:<9}")), p.green(full), p.dim(rest))
        };
        let own = self.strip.matches('-').count();
        let own = [("waypoint", own)];
        let statuses = self.statuses.iter().map(|(status, count)| {
            let text = format!("{count} x {status}");
            if *status >= 500 { p.red(text).to_string() } else { text }
        });
        let statuses: Vec<String> = statuses.collect();
        let newest = self.strip.char_indices().rev().nth(STRIP - 1).map_or(0, |(at, _)| at);
        let newest = self.strip.get(newest..).unwrap_or_default();
        // What it answered itself.
        let own = own.iter().filter(|(_, count)| *count > 0);
        let mut lines: Vec<String> = asked.iter().chain(own).map(server).collect();
        lines.push(format!("     {} {}", p.cyan("web got  "), statuses.join(", ")));
        lines.push(format!("     {} {}", p.cyan("in order "), p.dim(newest)));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_says_who_was_asked_and_what_came_of_it() {
        let mut picture = Picture::new(Paint::Plain, 4);
        for (status, body) in
            [(200, "cart-v1 /"), (200, "cart-v2 /"), (503, "cart-v2 /"), (403, "RBAC: access denied")]
        {
            picture.add(&Answer { status, body: body.to_owned() });
        }
        let lines = picture.lines(&[("cart-v1", 1), ("cart-v2", 2)]);
        assert_eq!(lines[0], format!("     cart-v1   {}{} 1", "█".repeat(10), "·".repeat(30)));
        assert_eq!(lines[1], format!("     cart-v2   {}{} 2", "█".repeat(20), "·".repeat(20)));
        assert_eq!(lines[2], format!("     waypoint  {}{} 1", "█".repeat(10), "·".repeat(30)));
        assert_eq!(lines[3], "     web got   2 x 200, 1 x 403, 1 x 503");
        assert_eq!(lines[4], "     in order  12x-");
        (0..100).for_each(|_| picture.add(&Answer { status: 200, body: "cart-v1 /".to_owned() }));
        assert_eq!(picture.lines(&[])[2], format!("     in order  {}", "1".repeat(STRIP)), "the newest");
    }
}
