//! What the person sees, and the record of what held.

use std::io::{self, IsTerminal as _, Write};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::interrupt;
use super::super::paint::Paint;
use super::stage::{PODS, Stage};

/// Prints the demo and collects its checks.
pub(super) struct Story {
    told: bool,
    paint: Paint,
    steps: Vec<Step>,
    figures: Vec<(String, Value)>,
}

struct Step {
    title: &'static str,
    checks: Vec<(bool, String)>,
}

impl Story {
    /// `told`: print as it goes; otherwise only the result at the end, as JSON.
    pub(super) fn new(told: bool, paint: Paint) -> Self {
        Self { told, paint, steps: Vec::new(), figures: Vec::new() }
    }

    /// Says everything that is missing.
    pub(super) fn missing(&self, missing: &[String]) -> io::Result<()> {
        if !self.told {
            return print(&format!("{}\n", json!({"ok": false, "missing": missing})));
        }
        let list: String = missing.iter().map(|m| format!("  {} {m}\n", self.paint.red("✗"))).collect();
        print(&format!("The demo cannot run here yet:\n{list}"))
    }

    /// Says who is on the stage.
    pub(super) fn cast(&self, took: Duration) -> io::Result<()> {
        let p = self.paint;
        let mut text = format!(
            "{} two nodes, seven pods, real programs, in network namespaces of their own {}\n",
            p.bold("Culvert demo:"),
            p.dim(format!("(up in {:.1} s)", took.as_secs_f64()))
        );
        for (node, name) in ["node-a", "node-b"].into_iter().enumerate() {
            let n = node + 1;
            let addresses = format!("10.0.0.{n}, fd00::{n}; pods 10.244.{n}.0/24, fd00:244:{n}::/64");
            text.push_str(&format!("\n  {} {}\n", p.bold(name), p.dim(addresses)));
            for (pod, ns, _, _, what) in PODS.iter().filter(|pod| pod.2 == node) {
                text.push_str(&format!("    {} {ns:<6} {}\n", p.cyan(format!("{pod:<9}")), p.dim(what)));
            }
        }
        self.tell(&text)
    }

    /// Says in a line who is on the stage.
    pub(super) fn opening(&self, who: &str, took: Duration) -> io::Result<()> {
        let up = format!("(up in {:.1} s)", took.as_secs_f64());
        self.tell(&format!("{} {who} {}\n", self.paint.bold("Culvert demo:"), self.paint.dim(up)))
    }

    /// Begins a step.
    pub(super) fn begin(&mut self, title: &'static str) -> io::Result<()> {
        self.steps.push(Step { title, checks: Vec::new() });
        let number = self.steps.len();
        self.tell(&format!("\n{}\n", self.paint.bold(format!("{number}. {title}"))))
    }

    /// A sentence of explanation.
    pub(super) fn say(&self, text: &str) -> io::Result<()> {
        self.tell(&format!("   {text}\n"))
    }

    /// Something quoted: a command, an answer, a log line.
    pub(super) fn quote(&self, who: &str, text: &str) -> io::Result<()> {
        let lines = text.trim_end().lines();
        let lines: String = lines
            .map(|l| format!("     {} {}\n", self.paint.cyan(format!("{who:<9}")), self.paint.dim(l)))
            .collect();
        self.tell(&lines)
    }

    /// How things are painted.
    pub(super) fn paint(&self) -> Paint {
        self.paint
    }

    /// Where a picture is painted: again and again on a terminal, else once.
    pub(super) fn canvas(&self) -> Canvas {
        let is_live = self.told && io::stdout().is_terminal();
        Canvas { told: self.told, is_live, painted: None }
    }

    /// A claim, and whether it held.
    pub(super) fn check(&mut self, holds: bool, text: &str) -> io::Result<()> {
        if let Some(step) = self.steps.last_mut() {
            step.checks.push((holds, text.to_owned()));
        }
        let p = self.paint;
        match holds {
            true => self.tell(&format!("   {} {text}\n", p.green("✓"))),
            false => self.tell(&format!("   {} {text}\n", p.red("✗"))),
        }
    }

    /// A measured figure, for the JSON result.
    pub(super) fn figure(&mut self, name: &str, value: impl Into<Value>) {
        self.figures.push((name.to_owned(), value.into()));
    }

    /// Whether every check held and every step had one.
    pub(super) fn held(&self) -> bool {
        self.steps.iter().all(|s| !s.checks.is_empty() && s.checks.iter().all(|(holds, _)| *holds))
    }

    /// The end of both agents' logs, when something did not hold.
    pub(super) fn logs(&self, stage: &Stage) -> io::Result<()> {
        for (node, text) in stage.ends_of_logs() {
            self.tell(&format!("\n   The end of the log of {node}'s agent:\n"))?;
            self.quote(&node, &text)?;
        }
        Ok(())
    }

    /// The result.
    pub(super) fn end(&self, took: Duration) -> io::Result<()> {
        if !self.told {
            return print(&format!("{}\n", self.result(took)));
        }
        let checks = self.steps.iter().flat_map(|s| &s.checks);
        let (all, held) = (checks.clone().count(), checks.filter(|(holds, _)| *holds).count());
        let took = format!("in {:.1} s", took.as_secs_f64());
        let p = self.paint;
        if self.held() {
            self.tell(&format!("\n{} all {all} checks held, {took}\n", p.green("✓")))
        } else {
            self.tell(&format!("\n{} {} of {all} checks did not hold, {took}\n", p.red("✗"), all - held))
        }
    }

    /// How to look around.
    pub(super) fn keep(&self, stage: &Stage) -> io::Result<()> {
        let mut text = String::from("\nStill running; Ctrl-C removes everything. A shell in a pod:\n");
        for (pod, netns) in stage.shells() {
            text.push_str(&format!(
                "  {} ip netns exec {netns} bash\n",
                self.paint.cyan(format!("{pod:<9}"))
            ));
        }
        text.push_str(&format!("Edit the mesh in  {}\n", stage.config_dir().display()));
        text.push_str(&format!("Agents' logs in   {}\n", stage.logs_dir().display()));
        text.push_str("Try, in web:      curl http://10.96.0.10/   curl 'http://[fd00:96::10]/'   redis-cli -h 10.96.0.20 ping\n");
        // With `-o json` standard output holds the result alone.
        if self.told { print(&text) } else { io::stderr().write_all(text.as_bytes()) }
    }

    fn result(&self, took: Duration) -> Value {
        let steps: Vec<Value> = self.steps.iter().map(Step::result).collect();
        let figures: serde_json::Map<String, Value> = self.figures.iter().cloned().collect();
        json!({"ok": self.held(), "seconds": took.as_secs_f64(), "steps": steps, "figures": figures})
    }

    fn tell(&self, text: &str) -> io::Result<()> {
        interrupt::hold_if_signalled();
        if self.told { print(text) } else { Ok(()) }
    }
}

/// Lines that change while they are looked at.
pub(super) struct Canvas {
    told: bool,
    is_live: bool,
    /// How many lines stand there, and since when.
    painted: Option<(usize, Instant)>,
}

/// A picture is not painted again before.
const FRAME: Duration = Duration::from_millis(40);

impl Canvas {
    /// Paints the picture as it is now, unless it was a moment ago.
    pub(super) fn paint(&mut self, lines: impl FnOnce() -> Vec<String>) -> io::Result<()> {
        let is_fresh = self.painted.is_some_and(|(_, at)| at.elapsed() < FRAME);
        if self.is_live && !is_fresh { self.put(&lines()) } else { Ok(()) }
    }

    /// Paints it for good.
    pub(super) fn end(mut self, lines: Vec<String>) -> io::Result<()> {
        if self.told { self.put(&lines) } else { Ok(()) }
    }

    fn put(&mut self, lines: &[String]) -> io::Result<()> {
        interrupt::hold_if_signalled();
        let up = self.painted.map(|(count, _)| format!("\x1b[{count}A")).unwrap_or_default();
        let clear = if self.is_live { "\x1b[2K" } else { "" };
        let text: String = lines.iter().map(|line| format!("{clear}{line}\n")).collect();
        self.painted = Some((lines.len(), Instant::now()));
        print(&format!("{up}{text}"))
    }
}

impl Step {
    fn result(&self) -> Value {
        let checks: Vec<Value> =
            self.checks.iter().map(|(holds, text)| json!({"ok": holds, "claim": text})).collect();
        json!({"title": self.title, "ok": self.checks.iter().all(|(holds, _)| *holds), "checks": checks})
    }
}

fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn story() -> Story {
        let mut story = Story::new(false, Paint::Plain);
        story.begin("one").unwrap();
        story
    }

    #[test]
    fn a_step_without_a_check_does_not_hold() {
        assert!(!story().held());
    }

    #[test]
    fn one_claim_that_fails_fails_the_demo_and_shows_in_the_result() {
        let mut story = story();
        story.check(true, "a").unwrap();
        assert!(story.held());
        story.check(false, "b").unwrap();
        story.figure("x", 1);
        assert!(!story.held());
        let result = story.result(Duration::from_secs(1));
        assert_eq!(result["ok"], false);
        assert_eq!(result["steps"][0]["checks"][1]["claim"], "b");
        assert_eq!(result["figures"]["x"], 1);
    }
}
