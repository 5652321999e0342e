//! The two forms of plots: bars, one a mode, and lines over percentiles or phases.

use super::figures::{number, range, short, short_name, with_range};
use super::svg::{Anchor, COLOURS, Canvas, Caption, EDGE, Font, Frame};
use crate::bench::statistics::Spread;

const BAR: f64 = 11.0;
/// Room for names beside lines, and the distance of two of them.
const NAMES_MAX: f64 = 260.0;
const APART: f64 = 17.0;
/// Of bars that differ by less nobody would see the end.
const TINY: f64 = 1.0;

/// A plot before it is put somewhere.
#[derive(Debug)]
pub(crate) struct Chart {
    pub(crate) caption: Caption,
    pub(crate) canvas: Canvas,
    pub(crate) size: (f64, f64),
}

impl Chart {
    pub(crate) fn draw(self, frame: Frame) -> String {
        self.canvas.finish(&self.caption, self.size, frame)
    }
}

/// One mode's bar.
#[derive(Clone, Debug)]
pub(crate) struct Bar {
    pub(crate) name: String,
    /// Colour.
    pub(crate) nth: usize,
    /// `None` where there is no figure; then `note` says why.
    pub(crate) spread: Option<Spread>,
    /// Parts of it by process.
    pub(crate) parts: Vec<(String, f64)>,
    /// Set below the bar.
    pub(crate) note: String,
    /// Set before the figure, where only disturbed samples have it.
    pub(crate) mark: &'static str,
}

impl Bar {
    fn figure(&self) -> String {
        self.spread.map_or("no figure".to_owned(), |s| format!("{}{}", self.mark, with_range(&s)))
    }
}

/// Horizontal bars from zero, the range over the rounds on each.
pub(crate) fn bars(mut caption: Caption, bars: &[Bar], most: Option<f64>, width: f64) -> Chart {
    let mut canvas = Canvas::default();
    let inner = width - 2.0 * EDGE;
    let mut y = heading(&mut canvas, &caption, inner);
    let largest = bars.iter().filter_map(|b| b.spread).map(|s| s.max).fold(0.0, f64::max);
    let most = most.unwrap_or(largest).max(f64::MIN_POSITIVE);
    let x = |value: f64| EDGE + (value / most).clamp(0.0, 1.0) * inner;
    for bar in bars {
        let figure = bar.figure();
        let room = inner - Font::Value.room(&figure) - 10.0;
        canvas.text((EDGE, y), Font::Label, Anchor::Start, &short_name(&bar.name, Font::Label.letters(room)));
        let font = if bar.spread.is_some() { Font::Value } else { Font::Small };
        canvas.text((width - EDGE, y), font, Anchor::End, &figure);
        y += 7.0;
        canvas.line((EDGE, y + BAR), (width - EDGE, y + BAR), "g");
        if let Some(spread) = bar.spread {
            draw_bar(&mut canvas, bar, &spread, (y, &x));
        }
        y += BAR;
        if !bar.note.is_empty() {
            y += 15.0;
            canvas.text((EDGE, y), Font::Small, Anchor::Start, &short(&bar.note, Font::Small.letters(inner)));
        }
        y += 24.0;
    }
    let told: Vec<String> = bars.iter().map(|b| format!("{}: {} {}", b.name, b.figure(), b.note)).collect();
    caption.description = format!("{}. {}", caption.sub, told.join("; "));
    Chart { caption, canvas, size: (width, y - 8.0) }
}

fn draw_bar(canvas: &mut Canvas, bar: &Bar, spread: &Spread, (y, x): (f64, &dyn Fn(f64) -> f64)) {
    let class = format!("f{}", bar.nth % COLOURS);
    let total: f64 = bar.parts.iter().map(|p| p.1).sum();
    let mut from = 0.0;
    // Parts are scaled to the median: theirs are medians of their own, which need not add up.
    for (nth, part) in
        bar.parts.iter().map(|p| p.1 / total * spread.median).enumerate().filter(|(_, p)| *p > 0.0)
    {
        let class = if nth % 2 == 0 { class.clone() } else { format!("{class} part") };
        canvas.bar((x(from), y), (x(from + part) - x(from), BAR), &class);
        from += part;
        if nth + 1 < bar.parts.len() {
            canvas.bar((x(from) - 0.7, y), (1.4, BAR), "gap");
        }
    }
    if bar.parts.is_empty() {
        canvas.bar((x(0.0), y), (x(spread.median) - x(0.0), BAR), &class);
    }
    if spread.rounds > 1 && x(spread.max) - x(spread.min) > TINY {
        let middle = y + BAR / 2.0;
        canvas.line((x(spread.min), middle), (x(spread.max), middle), "w");
        for end in [spread.min, spread.max] {
            canvas.line((x(end), middle - 3.5), (x(end), middle + 3.5), "w");
        }
    }
}

/// Title and sub-title; returns where the plot begins.
fn heading(canvas: &mut Canvas, caption: &Caption, inner: f64) -> f64 {
    let y = canvas.paragraph((EDGE, EDGE + 12.0), Font::Title, &caption.title, inner);
    canvas.paragraph((EDGE, y), Font::Small, &caption.sub, inner) + 14.0
}

/// One mode's line.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) name: String,
    /// Colour, dashes and mark.
    pub(crate) nth: usize,
    /// At which of the places, and what.
    pub(crate) points: Vec<(usize, Spread)>,
}

/// What the axes of lines are.
#[derive(Debug)]
pub(crate) struct Axes {
    /// Where each place stands, 0 to 1, and what it is called.
    pub(crate) places: Vec<(f64, String)>,
    /// Whether equal distances are equal factors.
    pub(crate) is_log: bool,
    pub(crate) width: f64,
    pub(crate) height: f64,
}

/// Lines with marks, and the range over the rounds at each.
pub(crate) fn lines(mut caption: Caption, lines: &[Line], axes: &Axes) -> Chart {
    let mut canvas = Canvas::default();
    let inner = axes.width - 2.0 * EDGE;
    let top = heading(&mut canvas, &caption, inner);
    let scale = Scale::of(lines, axes.is_log);
    // Names stand beside the ends of their lines where there is room.
    let names = axes.width >= 600.0 && lines.len() as f64 * APART <= axes.height;
    let longest = lines.iter().map(|l| Font::Label.room(&l.name)).fold(0.0, f64::max);
    let right = if names { (longest + 40.0).min(NAMES_MAX) } else { EDGE + 14.0 };
    let plot = Plot { left: EDGE + 44.0, right: axes.width - right, top, bottom: top + axes.height, scale };
    plot.grid(&mut canvas);
    let below = plot.places(&mut canvas, &axes.places);
    for line in lines {
        plot.line(&mut canvas, line, &axes.places);
    }
    let end = if names {
        plot.names(&mut canvas, lines, &axes.places);
        below
    } else {
        legend(&mut canvas, lines, below + 10.0, inner)
    };
    let told: Vec<String> = lines.iter().map(|line| told(line, &axes.places)).collect();
    caption.description = format!("{}. {}", caption.sub, told.join("; "));
    Chart { caption, canvas, size: (axes.width, end + 8.0) }
}

fn told(line: &Line, places: &[(f64, String)]) -> String {
    let points = line.points.iter().filter_map(|(at, spread)| {
        let range = if spread.rounds > 1 { format!(" ({})", range(spread)) } else { String::new() };
        Some(format!("{} {}{range}", places.get(*at)?.1, number(spread.median)))
    });
    format!("{}: {}", line.name, points.collect::<Vec<_>>().join(", "))
}

/// Values to heights.
struct Scale {
    is_log: bool,
    low: f64,
    high: f64,
    ticks: Vec<f64>,
}

impl Scale {
    fn of(lines: &[Line], is_log: bool) -> Self {
        let spreads = || lines.iter().flat_map(|l| l.points.iter().map(|p| p.1));
        let high = spreads().map(|s| s.max).fold(0.0, f64::max);
        if !is_log || high <= 0.0 {
            let step = step(high);
            let count = (high / step).ceil().max(1.0) as u32;
            let ticks: Vec<f64> = (0..=count).map(|n| f64::from(n) * step).collect();
            return Self { is_log: false, low: 0.0, high: f64::from(count) * step, ticks };
        }
        let low = spreads().map(|s| s.min).filter(|v| *v > 0.0).fold(high, f64::min);
        let (from, to) = (low.log10().floor() as i32, high.log10().ceil() as i32);
        let all = (from..=to).flat_map(|e| [1.0, 2.0, 5.0].map(|m| m * 10_f64.powi(e)));
        let below = all.clone().filter(|t| *t <= low).fold(low.min(10_f64.powi(from)), f64::max);
        let above = all.clone().filter(|t| *t >= high).fold(f64::MAX, f64::min);
        let fits = |t: &f64| *t >= below && *t <= above;
        // Over many decades only the powers of ten are named.
        let is_wide = to - from > 3;
        let powers = all.filter(|t| fits(t) && (!is_wide || (t.log10() - t.log10().round()).abs() < 1e-9));
        Self { is_log, low: below, high: above, ticks: powers.collect() }
    }

    /// 0 at the lower end, 1 at the upper.
    fn share(&self, value: f64) -> f64 {
        let share = if self.is_log {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 }
    }
}

/// A step of 1, 2 or 5 times a power of ten that needs at most five to reach `high`.
fn step(high: f64) -> f64 {
    if high <= 0.0 || !high.is_finite() {
        return 1.0;
    }
    let power = 10_f64.powf((high / 5.0).log10().floor());
    [1.0, 2.0, 5.0].map(|m| m * power).into_iter().find(|s| high / s <= 5.0).unwrap_or(10.0 * power)
}

struct Plot {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    scale: Scale,
}

impl Plot {
    fn y(&self, value: f64) -> f64 {
        self.bottom - self.scale.share(value) * (self.bottom - self.top)
    }

    fn x(&self, place: f64) -> f64 {
        self.left + place * (self.right - self.left)
    }

    fn grid(&self, canvas: &mut Canvas) {
        for tick in &self.scale.ticks {
            let y = self.y(*tick);
            canvas.line((self.left, y), (self.right, y), "g");
            let text = tick_text(*tick);
            canvas.text((self.left - 8.0, y + 4.0), Font::Small, Anchor::End, &text);
        }
    }

    /// Names of the places below the plot; returns where they end.
    fn places(&self, canvas: &mut Canvas, places: &[(f64, String)]) -> f64 {
        let room = (self.right - self.left) / places.len().max(2) as f64;
        let mut lowest = self.bottom;
        for (at, name) in places {
            let x = self.x(*at);
            canvas.line((x, self.bottom), (x, self.bottom + 4.0), "g");
            let mut y = self.bottom + 18.0;
            for line in wrap_for(name, room) {
                canvas.text((x, y), Font::Small, Anchor::Middle, &line);
                lowest = lowest.max(y);
                y += Font::Small.size() * 1.2;
            }
        }
        lowest + 10.0
    }

    fn line(&self, canvas: &mut Canvas, line: &Line, places: &[(f64, String)]) {
        let class = style(line.nth);
        let at = |place: &usize| places.get(*place).map(|(at, _)| self.x(*at));
        let points: Vec<(f64, f64, &Spread)> =
            line.points.iter().filter_map(|(p, s)| Some((at(p)?, self.y(s.median), s))).collect();
        canvas.polyline(&points.iter().map(|(x, y, _)| (*x, *y)).collect::<Vec<_>>(), &class);
        // A little apart, so that ranges of several modes at one place stay readable.
        let aside = (line.nth % 5) as f64 * 2.4 - 4.8;
        for (x, y, spread) in points {
            let (low, high) = (self.y(spread.min), self.y(spread.max));
            if spread.rounds > 1 && low - high > 6.0 {
                let class = format!("thin l{}", line.nth % COLOURS);
                canvas.line((x + aside, low), (x + aside, high), &class);
                for end in [low, high] {
                    canvas.line((x + aside - 3.0, end), (x + aside + 3.0, end), &class);
                }
            }
            canvas.mark((x, y), line.nth);
        }
    }

    /// Names at the right, moved apart.
    fn names(&self, canvas: &mut Canvas, lines: &[Line], places: &[(f64, String)]) {
        let mut ends: Vec<(f64, f64, &Line)> = lines
            .iter()
            .filter_map(|l| {
                let (place, spread) = l.points.last()?;
                Some((self.y(spread.median), self.x(places.get(*place)?.0), l))
            })
            .collect();
        ends.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut ys: Vec<f64> = ends.iter().map(|e| e.0 + 4.0).collect();
        for nth in 1..ys.len() {
            let above = ys.get(nth - 1).copied().unwrap_or_default();
            if let Some(y) = ys.get_mut(nth) {
                *y = y.max(above + APART);
            }
        }
        // What was pushed out below comes back up, and pushes what is above it.
        let mut limit = self.bottom + 4.0;
        for y in ys.iter_mut().rev() {
            *y = y.min(limit);
            limit = *y - APART;
        }
        for ((end_y, end_x, line), y) in ends.iter().zip(ys) {
            let x = self.right + 16.0;
            canvas.line((end_x + 6.0, *end_y), (x - 3.0, y - 4.0), &format!("thin l{}", line.nth % COLOURS));
            canvas.text(
                (x, y),
                Font::Label,
                Anchor::Start,
                &short_name(&line.name, Font::Label.letters(NAMES_MAX - 36.0)),
            );
        }
    }
}

/// Colour and dashes.
fn style(nth: usize) -> String {
    format!("l{} d{}", nth % COLOURS, nth % 4)
}

fn tick_text(tick: f64) -> String {
    let text = number(tick);
    // 0.20 and 1.00 are more than a scale needs.
    if text.contains('.') {
        let (digits, unit) = text.split_at(text.find(['k', 'M']).unwrap_or(text.len()));
        return format!("{}{unit}", digits.trim_end_matches('0').trim_end_matches('.'));
    }
    text
}

fn wrap_for(text: &str, room: f64) -> Vec<String> {
    super::figures::wrap(text, Font::Small.letters(room - 4.0).max(11))
}

/// Names with their line and mark below the plot; returns where it ends.
fn legend(canvas: &mut Canvas, lines: &[Line], top: f64, inner: f64) -> f64 {
    const KEY: f64 = 34.0;
    let (mut x, mut y) = (EDGE, top);
    for line in lines {
        let name = short_name(&line.name, Font::Small.letters(inner - KEY));
        let room = KEY + Font::Small.room(&name) + 14.0;
        if x > EDGE && x + room > EDGE + inner {
            (x, y) = (EDGE, y + 20.0);
        }
        canvas.polyline(&[(x, y - 4.0), (x + 26.0, y - 4.0)], &style(line.nth));
        canvas.mark((x + 13.0, y - 4.0), line.nth);
        canvas.text((x + KEY, y), Font::Small, Anchor::Start, &name);
        x += room;
    }
    y + 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_have_few_round_steps() {
        for (high, want) in [(0.0, 1.0), (1.0, 0.2), (4.9, 1.0), (5.1, 2.0), (183.0, 50.0), (1e6, 200_000.0)]
        {
            assert!((step(high) - want).abs() < want / 1e6, "{high}: {}", step(high));
        }
        assert_eq!([0.2, 1.0, 20.0, 500.0, 10_000.0].map(tick_text), ["0.2", "1", "20", "500", "10k"]);
    }

    #[test]
    fn a_logarithmic_scale_holds_all_figures() {
        let points = vec![(0, Spread::of([72.0, 66.0]).unwrap()), (1, Spread::of([264_000.0]).unwrap())];
        let line = Line { name: "a".into(), nth: 0, points };
        let scale = Scale::of(&[line], true);
        assert!(scale.low <= 66.0 && scale.high >= 264_000.0 && scale.ticks.len() < 8, "{:?}", scale.ticks);
        assert!(scale.share(66.0) < scale.share(72.0) && scale.share(264_000.0) <= 1.0);
    }
}
