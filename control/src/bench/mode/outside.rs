//! Programs of a mode that run outside the lab, before there is one: each with a limit.

use std::io::{self, Read as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::lab::pause;

/// How often people are told that it goes on.
const TELL: Duration = Duration::from_secs(10);
/// More than any answer that is read.
const OUTPUT_MAX: u64 = 64 << 10;

/// What a short command prints.
///
/// **Errors:** it cannot be started, ended with an error, or was killed at `limit`.
pub(super) fn output(command: &mut Command, limit: Duration) -> anyhow::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {name}"))?;
    // Read while it runs: a full pipe would hold it up.
    let (out, err) = (reader(child.stdout.take()), reader(child.stderr.take()));
    let status = wait(&mut child, limit, &mut |_| {}).with_context(|| format!("wait for {name}"))?;
    let Some(status) = status else { bail!("{name} did not end within {limit:?}") };
    let text = |thread: thread::JoinHandle<String>| thread.join().unwrap_or_default();
    let (out, err) = (text(out), text(err));
    if !status.success() {
        bail!("ended with {status}: {}", if err.trim().is_empty() { out.trim() } else { err.trim() });
    }
    Ok(out)
}

fn reader(pipe: Option<impl io::Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(pipe) = pipe {
            let _what_came_counts = pipe.take(OUTPUT_MAX).read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Waits for the end, tells every ten seconds how many it took so far, and kills it at `limit`; `None` then.
pub(super) fn wait(
    child: &mut Child,
    limit: Duration,
    tell: &mut dyn FnMut(u64),
) -> io::Result<Option<ExitStatus>> {
    let start = Instant::now();
    let mut next = TELL;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        let elapsed = start.elapsed();
        if elapsed >= limit {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        if elapsed >= next {
            next += TELL;
            tell(elapsed.as_secs());
        }
        pause(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str, limit: Duration) -> anyhow::Result<String> {
        output(Command::new("sh").args(["-c", script]), limit)
    }

    #[test]
    fn what_it_prints_or_why_it_did_not() {
        let long = Duration::from_secs(10);
        assert_eq!(run("echo 1.2; echo x >&2", long).unwrap(), "1.2\n");
        assert_eq!(
            run("echo no >&2; exit 3", long).unwrap_err().to_string(),
            "ended with exit status: 3: no"
        );
        let late = run("exec sleep 1000", Duration::from_millis(50)).unwrap_err();
        assert_eq!(late.to_string(), "sh did not end within 50ms");
    }
}
