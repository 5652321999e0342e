//! Columns of text that fit the terminal: ranges go first, then long names, and what is still too wide goes below.

use std::fmt::Write as _;

use super::Style;
use super::figures::{short, short_name};

/// Columns that everything fits in.
pub(crate) const WIDTH: usize = 110;
/// The first column is not cut below this.
const NAME_MIN: usize = 20;
const INDENT: usize = 2;
const GAP: usize = 2;

/// How a cell stands out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tone {
    /// Not at all.
    #[default]
    Plain,
    /// Headings, and what the others are compared with.
    Strong,
    /// What is secondary.
    Dim,
    /// For the better.
    Good,
    /// For the worse.
    Bad,
}

impl Tone {
    /// `text` so that a terminal shows it in this tone.
    pub(crate) fn paint(self, style: Style, text: &str) -> String {
        let code = match (style, self) {
            (Style::Plain, _) | (_, Self::Plain) => return text.to_owned(),
            (Style::Colour, Self::Strong) => "1",
            (Style::Colour, Self::Dim) => "2",
            (Style::Colour, Self::Good) => "32",
            (Style::Colour, Self::Bad) => "31",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// One cell, with a shorter form for where there is little room.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cell {
    pub(crate) long: String,
    pub(crate) short: String,
    pub(crate) tone: Tone,
}

impl Cell {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        let text = text.into();
        Self { short: text.clone(), long: text, tone: Tone::Plain }
    }

    pub(crate) fn or(self, short: impl Into<String>) -> Self {
        Self { short: short.into(), ..self }
    }

    pub(crate) fn tone(self, tone: Tone) -> Self {
        Self { tone, ..self }
    }

    fn text(&self, is_long: bool) -> &str {
        if is_long { &self.long } else { &self.short }
    }
}

/// Rows of cells below a head. The first column is to the left, the others to the right.
#[derive(Debug, Default)]
pub(crate) struct Grid {
    pub(crate) head: Vec<String>,
    pub(crate) rows: Vec<Vec<Cell>>,
}

impl Grid {
    pub(crate) fn new<T: Into<String>>(head: impl IntoIterator<Item = T>) -> Self {
        Self { head: head.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// Appends all lines to `out`.
    pub(crate) fn write(&self, out: &mut String, style: Style) {
        let mut is_long = vec![true; self.head.len()];
        for column in (1..self.head.len()).rev() {
            if self.total(&is_long) <= WIDTH {
                break;
            }
            if let Some(long) = is_long.get_mut(column) {
                *long = false;
            }
        }
        let mut widths: Vec<usize> = (0..self.head.len()).map(|c| self.width(c, &is_long)).collect();
        let excess = self.total(&is_long).saturating_sub(WIDTH);
        if let Some(name) = widths.first_mut() {
            *name = (*name).min(name.saturating_sub(excess).max(NAME_MIN)).min(WIDTH / 2);
        }
        for columns in blocks(&widths) {
            self.write_block(out, style, &Block { columns: &columns, widths: &widths, is_long: &is_long });
        }
    }

    fn total(&self, is_long: &[bool]) -> usize {
        let columns = 0..self.head.len();
        INDENT + columns.map(|c| self.width(c, is_long) + GAP).sum::<usize>().saturating_sub(GAP)
    }

    fn width(&self, column: usize, is_long: &[bool]) -> usize {
        let is_long = is_long.get(column).copied().unwrap_or(true);
        let cells = self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.text(is_long));
        let texts = cells.chain(self.head.get(column).map(String::as_str));
        texts.map(|text| text.chars().count()).max().unwrap_or(0)
    }

    fn write_block(&self, out: &mut String, style: Style, block: &Block<'_>) {
        let head: Vec<Cell> = self.head.iter().map(|h| Cell::new(h.as_str()).tone(Tone::Dim)).collect();
        for row in std::iter::once(&head).chain(&self.rows) {
            let mut line = " ".repeat(INDENT);
            for (nth, column) in block.columns.iter().enumerate() {
                let empty = Cell::default();
                let cell = row.get(*column).unwrap_or(&empty);
                let width = block.widths.get(*column).copied().unwrap_or(0);
                let text = cell.text(block.is_long.get(*column).copied().unwrap_or(true));
                let text = if *column == 0 { short_name(text, width) } else { short(text, width) };
                let room = " ".repeat(width.saturating_sub(text.chars().count()));
                let painted = if text.is_empty() { text } else { cell.tone.paint(style, &text) };
                let gap = " ".repeat(if nth == 0 { 0 } else { GAP });
                let _infallible = match column {
                    0 => write!(line, "{gap}{painted}{room}"),
                    _ => write!(line, "{gap}{room}{painted}"),
                };
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
    }
}

/// What is written below one head.
struct Block<'a> {
    columns: &'a [usize],
    widths: &'a [usize],
    is_long: &'a [bool],
}

/// Columns that fit beside each other; each block begins with the first column.
fn blocks(widths: &[usize]) -> Vec<Vec<usize>> {
    let name = widths.first().copied().unwrap_or(0);
    let mut blocks = vec![vec![0]];
    let mut used = INDENT + name;
    for (column, width) in widths.iter().enumerate().skip(1) {
        if used + GAP + width > WIDTH && blocks.last().is_some_and(|b| b.len() > 1) {
            blocks.push(vec![0]);
            used = INDENT + name;
        }
        used += GAP + width;
        if let Some(block) = blocks.last_mut() {
            block.push(column);
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(names: usize, columns: usize) -> String {
        let mut grid = Grid::new((0..=columns).map(|c| format!("head {c}")));
        let cell = || Cell::new("25.3k (24.1–26.0k)").or("25.3k");
        grid.row(std::iter::once(Cell::new("n".repeat(names))).chain((0..columns).map(|_| cell())).collect());
        let mut out = String::new();
        grid.write(&mut out, Style::Plain);
        out
    }

    #[test]
    fn what_is_too_wide_loses_ranges_first_then_name_then_goes_below() {
        assert!(grid(10, 4).contains("(24.1–26.0k)  25.3k (24.1–26.0k)"));
        let tight = grid(20, 6);
        assert!(tight.contains("25.3k (24.1–26.0k)  ") && tight.trim_end().ends_with("   25.3k"), "{tight}");
        assert!(grid(80, 6).contains("nnn…nnn"), "a long name is cut");
        assert_eq!(grid(20, 30).lines().count(), 8, "four blocks of a head and a row");
        for (names, columns) in [(1, 1), (10, 4), (20, 6), (80, 6), (300, 40)] {
            let text = grid(names, columns);
            assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        }
    }

    #[test]
    fn colours_are_outside_of_the_columns() {
        let mut grid = Grid::new(["mode", "ratio"]);
        grid.row(vec![Cell::new("a"), Cell::new("0.25x").tone(Tone::Good)]);
        let (mut plain, mut coloured) = (String::new(), String::new());
        grid.write(&mut plain, Style::Plain);
        grid.write(&mut coloured, Style::Colour);
        assert_eq!(plain, "  mode  ratio\n  a     0.25x\n");
        let mut rest = coloured.replace("\x1b[0m", "");
        for code in ["\x1b[2m", "\x1b[32m"] {
            rest = rest.replace(code, "");
        }
        assert_eq!(rest, plain);
    }
}
