use std::process::Command;

use super::*;

fn seen(name: &str, parent: u32, ticks: u64) -> Seen {
    Seen { name: name.to_owned(), parent, is_dead: false, is_kernel: false, ticks }
}

fn others(list: &[(u32, &str, u64)]) -> Others {
    Others::of(list.iter().map(|(pid, name, ticks)| (*pid, seen(name, 1, *ticks), false)).collect(), 99)
}

#[test]
fn a_name_with_spaces_and_parentheses_is_read_whole() {
    let text = "42 (a) b (c)) S 7 42 42 0 -1 4194304 1 2 3 4 10 20 30 40 20 0 1 0 12345 0 0";
    let got = Seen::parse(text).unwrap();
    assert_eq!(got, seen("a) b (c)", 7, 100));
    assert!(Seen::parse(&text.replace(" S ", " Z ")).unwrap().is_dead);
    assert!(Seen::parse(&text.replace("4194304", "2129984")).unwrap().is_kernel);
    for cut in ["", "42 (x", "42 (x) S 1", "42 (x) S a b c"] {
        assert_eq!(Seen::parse(cut), None, "{cut:?}");
    }
}

#[test]
fn what_the_run_started_is_no_foreign_load() {
    let all = vec![
        (10, seen("bench", 1, 5), false),
        (11, seen("wrk", 10, 5), false),
        (12, seen("child of wrk", 11, 5), false),
        (13, seen("daemon in a lab", 1, 5), true),
        (14, seen("cargo", 1, 5), false),
        // A circle cannot be, but must not hang.
        (15, seen("odd", 16, 5), false),
        (16, seen("odd", 15, 5), false),
    ];
    let got = Others::of(all, 10);
    assert_eq!(got.processes.keys().copied().collect::<Vec<_>>(), [14, 15, 16]);
    assert_eq!(got.visible, tick() * 35, "all are seen, whoever they belong to");
}

#[test]
fn a_process_that_ends_is_counted_once() {
    let before = others(&[(1, "init", 100), (5, "cargo", 50), (6, "rustc", 2_000)]);
    // rustc used 10 more and ended: cargo waited for it and has all of it.
    let after = others(&[(1, "init", 100), (5, "cargo", 2_061)]);
    let (used, names) = after.since(&before);
    assert_eq!(used, tick() * 11);
    assert_eq!(names, ["cargo"]);
    // One that nobody waited for takes what it had with it: less, never more.
    assert_eq!(others(&[(1, "init", 100)]).since(&before).0, Duration::ZERO);
}

#[test]
fn a_load_is_too_much_where_it_shows() {
    let taken = |seconds: f64, foreign: u32, stolen: u32| Taken {
        seconds,
        foreign: (tick() * foreign, vec!["rustc".to_owned(), "cc".to_owned()]),
        stolen: tick() * stolen,
        hidden: Duration::ZERO,
        processors: 2.0,
    };
    assert_eq!(taken(2.0, 20, 0).too_much(), None);
    assert_eq!(taken(2.0, 50, 0).too_much().unwrap(), "rustc, cc used 0.25 processors");
    assert_eq!(taken(2.0, 0, 50).too_much().unwrap(), "the hypervisor took 0.25 processors");
    assert_eq!(
        taken(2.0, 50, 50).too_much().unwrap(),
        "rustc, cc used 0.25 processors; the hypervisor took 0.25 processors"
    );
    assert_eq!(Taken { processors: 64.0, ..taken(2.0, 100, 0) }.too_much(), None, "there is room for it");
    let hidden = |ticks: u32| Taken { hidden: tick() * ticks, ..taken(1.0, 0, 0) };
    assert_eq!(hidden(50).too_much(), None);
    let told = hidden(80).too_much().unwrap();
    assert_eq!(told, "processes that cannot be seen from here used 0.80 processors");
    // Two ticks in a tenth of a second are how coarse ticks are.
    assert_eq!(taken(0.1, 2, 0).too_much(), None);
}

#[test]
fn the_machines_time_is_read_from_its_first_line() {
    let tick = Duration::from_millis(10);
    let busy = Busy::parse("cpu  100 10 50 9000 5 3 7 20 0 0\ncpu0 1 1 1 1 1\n", tick).unwrap();
    assert_eq!(busy, Busy { busy: tick * 170, of_processes: tick * 160, stolen: tick * 20 });
    assert_eq!(Busy::parse("cpu 1 2 3 4", tick).unwrap().stolen, Duration::ZERO);
    assert_eq!(Busy::parse("intr 1 2 3 4", tick), None);
}

#[test]
fn a_field_of_memory() {
    let text =
        "5581e7400000-7ffc1a9f9000 ---p 00000000 00:00 0    [rollup]\nRss:   2048 kB\nPss:   1024 kB\n";
    assert_eq!(kib(text, "Rss:"), Some(2048.0));
    assert_eq!(kib(text, "Pss:"), Some(1024.0));
    assert_eq!(kib(text, "Swap:"), None);
}

#[test]
fn time_of_threads_that_have_ended_is_not_lost() {
    let own = std::process::id();
    let before = cpu(own).unwrap();
    let spin = || {
        let begin = clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
        let used = || clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap() - begin;
        while Duration::from(used()) < Duration::from_millis(50) {
            std::hint::spin_loop();
        }
    };
    std::thread::spawn(spin).join().unwrap();
    assert!(cpu(own).unwrap() - before >= Duration::from_millis(50));
}

#[test]
fn a_process_that_ended_is_not_alive_even_if_nobody_waited() {
    let mut child = Command::new("true").spawn().unwrap();
    let pid = child.id();
    crate::lab::wait_until(
        "a zombie",
        Duration::from_secs(5),
        || (!is_alive(pid)).then_some(()),
        String::new,
    )
    .unwrap();
    assert!(cpu(pid).is_ok(), "its time can still be read");
    child.wait().unwrap();
    assert!(!is_alive(pid));
    assert!(is_alive(std::process::id()));
    assert!(memory(std::process::id()).is_ok_and(|(rss, pss)| rss >= pss && pss > 0.0));
}
