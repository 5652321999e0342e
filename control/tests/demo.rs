//! The demo as its users run it: the built binary, its exit status, what it leaves behind.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use culvert::lab::wait_until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn demo(args: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_culvert"))
        .arg("demo")
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary that cargo has just built")
}

/// Namespaces and directories of the run with this process id.
fn left_by(pid: u32) -> Vec<String> {
    let start = format!("culvert-demo-{pid}-");
    let names = |dir: &str| -> Vec<String> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .filter(|n| n.starts_with(&start))
            .collect()
    };
    [names("/var/run/netns"), names(&std::env::temp_dir().to_string_lossy())].concat()
}

/// The result of a run in which every check holds, and which leaves nothing behind.
fn good(args: &[&str], steps: usize) -> serde_json::Value {
    let child = demo(args);
    let pid = child.id();
    let done = child.wait_with_output().expect("the demo ends");
    let text = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{text}{}", String::from_utf8_lossy(&done.stderr));
    let result: serde_json::Value = serde_json::from_str(&text).expect("a result");
    assert_eq!(result["ok"], true);
    assert_eq!(result["steps"].as_array().map(Vec::len), Some(steps));
    assert_eq!(left_by(pid), Vec::<String>::new());
    result
}

#[test]
fn every_check_holds_and_nothing_stays() {
    let result = good(&["-o", "json"], 6);
    assert_eq!(result["figures"]["plaintext_frames"], 0);
    assert_eq!(result["figures"]["readiness_failed"], 0);
}

/// Needs the waypoint's binary beside the agent's.
#[test]
fn every_check_of_the_waypoint_holds() {
    let result = good(&["--waypoint", "-o", "json"], 9);
    assert_eq!(result["figures"]["mirrored"], 100);
    assert_eq!(result["figures"]["retries_failed"], 0);
}

#[test]
fn a_signal_at_any_moment_leaves_nothing() {
    // With the first trace of it on disk, and with all ten namespaces: while it builds, and while it runs.
    for (signal, traces) in [(Signal::SIGINT, 1), (Signal::SIGTERM, 11)] {
        let child = demo(&[]);
        let pid = child.id();
        let there = || (left_by(pid).len() >= traces).then_some(());
        wait_until("the lab", Duration::from_secs(10), there, || format!("{:?}", left_by(pid))).unwrap();
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
        let done = child.wait_with_output().unwrap();
        assert_eq!(
            done.status.code(),
            Some(128 + signal as i32),
            "{}",
            String::from_utf8_lossy(&done.stdout)
        );
        assert_eq!(left_by(pid), Vec::<String>::new());
    }
}

#[test]
fn what_is_missing_is_said_and_nothing_is_built() {
    let child = demo(&["--ztunnel", "/nonexistent/ztunnel", "-o", "json"]);
    let pid = child.id();
    let done = child.wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(2));
    let result: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert!(result["missing"][0].as_str().unwrap().contains("/nonexistent/ztunnel"), "{result}");
    assert_eq!(left_by(pid), Vec::<String>::new());
}
