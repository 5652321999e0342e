//! What a person sees while it runs: on a terminal one line that is rewritten, else a line now and then.

use std::io::{self, Write};
use std::time::Duration;

use super::plan;

/// Tells how far the run is.
pub struct Progress {
    out: Box<dyn Write + Send>,
    is_terminal: bool,
    /// Columns of the terminal.
    width: usize,
    /// What the last plain line told of: the next one is for something else.
    last: String,
    line_is_open: bool,
}

/// Where the run is.
#[derive(Clone, Copy, Debug)]
pub struct Position<'a> {
    /// Such as `round 2/5, c64`.
    pub part: &'a str,
    /// Name of the mode.
    pub mode: &'a str,
    /// Samples taken.
    pub done: usize,
    /// Samples in all.
    pub total: usize,
    /// Time left.
    pub left: Duration,
}

impl Progress {
    /// Tells `out`.
    pub fn new(out: Box<dyn Write + Send>, is_terminal: bool, width: usize) -> Self {
        Self { out, is_terminal, width, last: String::new(), line_is_open: false }
    }

    /// Something that stays on the screen.
    pub fn say(&mut self, text: &str) {
        self.put(|this| {
            this.clear()?;
            writeln!(this.out, "{text}")
        });
    }

    /// Something that goes on for a while.
    pub fn doing(&mut self, text: &str) {
        self.put(|this| if this.is_terminal { this.rewrite(text) } else { writeln!(this.out, "{text}") });
    }

    /// What is measured now.
    pub fn at(&mut self, position: Position<'_>) {
        let Position { part, mode, done, total, left } = position;
        let left = plan::about(left);
        if self.is_terminal {
            let text = format!("[{done}/{total}] {part}: {mode} ({left} left)");
            self.put(|this| this.rewrite(&text));
        } else if self.last != part {
            part.clone_into(&mut self.last);
            self.put(|this| writeln!(this.out, "[{done}/{total}] {part} ({left} left)"));
        }
    }

    /// Takes the line that is rewritten away.
    pub fn end(&mut self) {
        self.put(Self::clear);
    }

    fn rewrite(&mut self, text: &str) -> io::Result<()> {
        // A line that wraps could not be taken back.
        let text: String = text.chars().take(self.width.saturating_sub(1)).collect();
        self.line_is_open = true;
        write!(self.out, "\r\x1b[K{text}")
    }

    fn clear(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.line_is_open) { write!(self.out, "\r\x1b[K") } else { Ok(()) }
    }

    fn put(&mut self, write: impl FnOnce(&mut Self) -> io::Result<()>) {
        // A closed terminal must not end a run.
        let _nobody_reads = write(self).and_then(|()| self.out.flush());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Screen(Arc<Mutex<Vec<u8>>>);

    impl Write for Screen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn shown(is_terminal: bool) -> String {
        let screen = Screen::default();
        let mut progress = Progress::new(Box::new(screen.clone()), is_terminal, 40);
        progress.doing("building");
        for mode in ["direct", "culvert"] {
            let left = Duration::from_secs(50);
            progress.at(Position { part: "round 1/2, c64", mode, done: 3, total: 9, left });
        }
        progress.say("a note");
        progress.end();
        let bytes = screen.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn without_a_terminal_a_line_for_each_part_and_no_escape_codes() {
        assert_eq!(shown(false), "building\n[3/9] round 1/2, c64 (50 s left)\na note\n");
    }

    #[test]
    fn on_a_terminal_one_line_is_rewritten_and_cut_at_its_width() {
        let shown = shown(true);
        let parts: Vec<&str> = shown.split("\r\x1b[K").collect();
        assert_eq!(
            parts,
            [
                "",
                "building",
                "[3/9] round 1/2, c64: direct (50 s left",
                "[3/9] round 1/2, c64: culvert (50 s lef",
                "a note\n"
            ]
        );
    }
}
