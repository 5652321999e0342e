//! `culvert load` as its users run it: the built binary, what it prints, its exit status, signals.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use culvert::lab::wait_until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(10);

/// A server that gives every request the same answer, and counts them.
fn server(at: &str, answer: &'static str) -> (SocketAddr, Arc<AtomicU64>) {
    let listener = TcpListener::bind(at).unwrap();
    let (to, asked) = (listener.local_addr().unwrap(), Arc::new(AtomicU64::new(0)));
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, count) = (stream.unwrap(), Arc::clone(&count));
            std::thread::spawn(move || serve(stream, answer, &count));
        }
    });
    (to, asked)
}

fn serve(stream: TcpStream, answer: &str, asked: &AtomicU64) {
    let mut lines = BufReader::new(&stream).lines();
    while let Some(Ok(line)) = lines.next() {
        if line.is_empty() {
            asked.fetch_add(1, Ordering::SeqCst);
            if (&stream).write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn load(args: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_culvert"))
        .arg("load")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary that cargo has just built")
}

fn finish(args: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = load(args).wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

#[test]
fn a_load_that_is_answered_ends_well_in_text_and_json() {
    for at in ["127.0.0.1:0", "[::1]:0"] {
        let (to, asked) = server(at, OK);
        let url = format!("http://{to}/a");
        let (status, out, err) = finish(&["--rate", "200", "--duration", "500ms", &url, "-o", "json"]);
        assert_eq!((status, err.as_str()), (Some(0), ""), "{out}");
        let report: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(
            (&report["due"], &report["answered"], &report["failed"]),
            (&100.into(), &100.into(), &0.into())
        );
        assert_eq!((&report["complete"], &report["target"]), (&true.into(), &url.into()));
        assert_eq!(report["failures"]["refused"], 0, "{out}");
        assert!(report["latency_us"]["p99.9"].as_f64() >= report["latency_us"]["p50"].as_f64(), "{out}");
        assert_eq!(asked.load(Ordering::SeqCst), 100);
        let (status, out, _) = finish(&["--rate", "200", "--duration", "500ms", &to.to_string()]);
        assert_eq!(status, Some(0));
        assert!(out.contains("200 requests/s asked") && out.contains("100 answered, 0 failed"), "{out}");
        assert!(out.contains("latency, from when it was due, in µs:\n    p50 "), "{out}");
    }
}

#[test]
fn what_fails_and_what_cannot_be_have_a_status_of_their_own() {
    let (to, _) = server("127.0.0.1:0", "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n");
    let (status, out, _) = finish(&["--rate", "100", "--duration", "100ms", &to.to_string()]);
    assert_eq!(status, Some(1));
    assert!(out.contains("10 failed: 10 bad status"), "{out}");
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for args in [&["--rate", "100"][..], &["--idle", "5"]] {
        let (status, out, err) = finish(&[args, &[&free.to_string()]].concat());
        assert_eq!((status, out.as_str()), (Some(2), ""));
        assert_eq!(
            err,
            format!("culvert: no connection to {free}: refused; does the server listen there?\n")
        );
    }
    for args in [
        &["https://127.0.0.1/"][..],
        &["--rate", "0", "127.0.0.1"],
        &["--idle", "5", "--rate", "1", "127.0.0.1"],
    ] {
        let (status, _, err) = finish(args);
        assert_eq!(status, Some(2), "{err}");
        assert!(err.contains("error:"), "{err}");
    }
}

#[test]
fn a_signal_ends_it_with_what_there_is() {
    for ending in [Signal::SIGINT, Signal::SIGTERM] {
        let (to, asked) = server("127.0.0.1:0", OK);
        let child = load(&["--rate", "200", "--duration", "1h", &to.to_string(), "-o", "json"]);
        let seen = || (asked.load(Ordering::SeqCst) >= 20).then_some(());
        wait_until("20 requests", SOON, seen, || format!("{}", asked.load(Ordering::SeqCst))).unwrap();
        signal(&child, ending);
        let done = child.wait_with_output().unwrap();
        let report: Value = serde_json::from_slice(&done.stdout).unwrap();
        assert_eq!(report["complete"], false);
        assert!(report["answered"].as_u64() >= Some(20), "{report}");
    }
}

#[test]
fn idle_connections_are_held_until_they_are_to_end() {
    for by_signal in [true, false] {
        let (to, asked) = server("[::1]:0", OK);
        let mut child = load(&["--idle", "100", &to.to_string(), "-o", "json"]);
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        let first: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&first["open"], &first["failed"]), (&100.into(), &0.into()), "{line}");
        assert_eq!(asked.load(Ordering::SeqCst), 100);
        assert!(child.try_wait().unwrap().is_none(), "it holds them");
        if by_signal {
            signal(&child, Signal::SIGTERM);
        } else {
            drop(child.stdin.take());
        }
        let mut rest = String::new();
        out.read_to_string(&mut rest).unwrap();
        let last: Value = serde_json::from_str(&rest).unwrap();
        assert_eq!(last["open"], 100, "{rest}");
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}
