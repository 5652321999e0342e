use std::sync::mpsc;

use super::super::fixtures::Sink;
use super::*;

const LIMIT: Duration = Duration::from_secs(10);

fn events(format: LogFormat, filter: &str, emit: impl FnOnce()) -> Vec<String> {
    let sink = Sink::default();
    let filter = Filter::parse(filter).unwrap();
    let targets = filter.targets();
    let logger = Logger::start(format, filter, Box::new(sink.clone())).unwrap();
    let subscriber = Registry::default().with(targets).with(Events::new(logger.clone()));
    tracing::subscriber::with_default(subscriber, emit);
    sink.lines(&logger)
}

#[test]
fn events_look_like_access_lines() {
    let emit = || {
        let addr: std::net::SocketAddr = "10.0.0.1:80".parse().unwrap();
        tracing::info!(target: "ztunnel::outbound", pods = 3_u64, ok = true, %addr, name = "a b", "started");
        tracing::warn!(target: "culvert_common::source::file", error = ?Some("x\ny"), "bad\nline");
        tracing::debug!(target: "h2::codec", "unseen");
    };
    assert_eq!(
        events(LogFormat::Plain, "info", emit),
        [
            "info\toutbound\tstarted\tpods=3 ok=true addr=10.0.0.1:80 name=\"a b\"",
            "warn\tsource::file\tbad\\nline\terror=\"Some(\\\"x\\\\ny\\\")\"",
        ]
    );
    assert_eq!(
        events(LogFormat::Json, "info", emit),
        [
            "{\"level\":\"info\",\"time\":\"*\",\"scope\":\"outbound\",\"message\":\"started\",\"pods\":3,\
             \"ok\":true,\"addr\":\"10.0.0.1:80\",\"name\":\"a b\"}",
            "{\"level\":\"warn\",\"time\":\"*\",\"scope\":\"source::file\",\"message\":\"bad\\nline\",\
             \"error\":\"Some(\\\"x\\\\ny\\\")\"}",
        ]
    );
}

#[test]
fn the_filter_takes_scopes_as_they_are_printed() {
    for (filter, expected) in [
        ("", 1),
        ("info", 1),
        ("warn", 0),
        ("debug", 3),
        ("outbound=debug", 2),
        ("ztunnel::outbound=debug", 2),
        ("outbound=off", 0),
        ("h2=debug,outbound=off", 1),
        ("off", 0),
        ("access=off", 1),
    ] {
        let lines = events(LogFormat::Plain, filter, || {
            tracing::info!(target: "ztunnel::outbound", "a");
            tracing::debug!(target: "ztunnel::outbound", "b");
            tracing::debug!(target: "h2::codec", "c");
        });
        assert_eq!(lines.len(), expected, "{filter:?}: {lines:?}");
    }
    let refused = Logger::to_sink(LogFormat::Plain, "info,access=loud", Box::new(Sink::default())).err();
    assert!(refused.is_some_and(|e| e.to_string().contains("loud")));
}

#[test]
fn the_filter_changes_while_it_runs() {
    let sink = Sink::default();
    let mut filter = Filter::parse("info").unwrap();
    let (targets, handle) = reload::Layer::new(filter.targets());
    filter.on_change(Box::new(move |targets| handle.reload(targets).unwrap()));
    let logger = Logger::start(LogFormat::Plain, filter, Box::new(sink.clone())).unwrap();
    let subscriber = Registry::default().with(targets).with(Events::new(logger.clone()));
    tracing::subscriber::with_default(subscriber, || {
        for (levels, shown) in
            [("", false), ("outbound=debug", true), ("outbound=off", false), ("debug", false)]
        {
            logger.change_filter(false, levels).unwrap();
            let before = sink.lines(&logger).len();
            tracing::debug!(target: "ztunnel::outbound", "seen?");
            assert_eq!(sink.lines(&logger).len() > before, shown, "{levels}");
        }
        assert!(logger.logs_access(Level::DEBUG));
        logger.change_filter(true, "access=warn").unwrap();
        assert!(logger.logs_access(Level::WARN) && !logger.logs_access(Level::INFO));
        assert!(logger.change_filter(false, "access=loud").is_err() && !logger.logs_access(Level::INFO));
        logger.change_filter(false, "access=off").unwrap();
        assert!(!logger.logs_access(Level::ERROR));
        assert_eq!(logger.filter(), "access=off,info");
    });
}

/// A sink that takes nothing until it is told to.
struct Gate {
    opened: mpsc::Receiver<()>,
    sink: Sink,
}

impl Write for Gate {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let _open_for_good = self.opened.recv();
        self.sink.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_queue_drops_counts_and_says_so_once() {
    let (open, opened) = mpsc::channel();
    let sink = Sink::default();
    let gate = Gate { opened, sink: sink.clone() };
    let logger = Logger::to_sink(LogFormat::Plain, "info", Box::new(gate)).unwrap();
    logger.push("first\n");
    while !logger.owner.0.lock().writing {
        std::thread::yield_now();
    }
    let extra = 250;
    for n in 0..MAX_LINES + extra {
        logger.push(&format!("line {n}\n"));
    }
    assert_eq!(logger.dropped(), extra as u64);
    assert!(!logger.flush(Duration::from_millis(20)), "the sink stalls");
    drop(open);
    assert!(logger.flush(LIMIT));
    logger.push("last\n");
    assert!(logger.flush(LIMIT));

    let text = sink.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 1 + MAX_LINES + 1 + 1);
    assert_eq!((lines[0], lines[1]), ("first", "line 0"));
    assert_eq!(lines[MAX_LINES], format!("line {}", MAX_LINES - 1));
    let notice = "\twarn\tlogging\tlog lines were dropped because the output did not keep up\tlines=250";
    assert!(lines[MAX_LINES + 1].ends_with(notice), "{}", lines[MAX_LINES + 1]);
    assert_eq!(lines[MAX_LINES + 2], "last");
    assert_eq!(logger.dropped(), extra as u64);
}

#[test]
fn the_queue_is_bounded_in_bytes_too() {
    let (open, opened) = mpsc::channel();
    let logger =
        Logger::to_sink(LogFormat::Json, "info", Box::new(Gate { opened, sink: Sink::default() })).unwrap();
    let long = format!("{}\n", "x".repeat(64 << 10));
    for _ in 0..200 {
        logger.push(&long);
    }
    assert!(logger.owner.0.lock().bytes.len() <= MAX_BYTES);
    assert!(logger.dropped() >= 200 - 2 * (MAX_BYTES / long.len()) as u64 - 1);
    drop(open);
    assert!(logger.flush(LIMIT));
}

#[test]
fn lines_of_many_threads_stay_whole_and_in_order() {
    let sink = Sink::default();
    let logger = Logger::to_sink(LogFormat::Plain, "info", Box::new(sink.clone())).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let logger = &logger;
            scope.spawn(move || (0..1000).for_each(|n| logger.push(&format!("{thread} {n}\n"))));
        }
    });
    assert!(logger.flush(LIMIT));
    let text = sink.text();
    for thread in 0..4 {
        let start = format!("{thread} ");
        let seen = text.lines().filter_map(|l| l.strip_prefix(&start)).map(|n| n.parse::<u32>().unwrap());
        assert!(seen.eq(0..1000));
    }
    assert_eq!(logger.dropped(), 0);
}

#[test]
fn without_a_flush_lines_arrive_soon_and_the_last_logger_ends_the_writer() {
    let (done, ended) = mpsc::channel::<()>();
    struct Watched(Sink, #[allow(dead_code, reason = "its drop is what counts")] mpsc::Sender<()>);
    impl Write for Watched {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let sink = Sink::default();
    let logger = Logger::to_sink(LogFormat::Plain, "info", Box::new(Watched(sink.clone(), done))).unwrap();
    logger.push("a\n");
    let until = Instant::now() + LIMIT;
    while sink.text().is_empty() && Instant::now() < until {
        std::thread::yield_now();
    }
    assert_eq!(sink.text(), "a\n");
    logger.push("b\n");
    drop(logger);
    assert_eq!(ended.recv_timeout(LIMIT), Err(mpsc::RecvTimeoutError::Disconnected));
    assert_eq!(sink.text(), "a\nb\n");
}

/// A sink that answers as it is told, then takes everything.
struct Moody {
    answers: mpsc::Receiver<std::io::Result<usize>>,
    sink: Sink,
}

impl Write for Moody {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self.answers.try_recv() {
            Ok(Ok(count)) => self.sink.write(bytes.get(..count).unwrap_or(bytes)),
            Ok(Err(error)) => Err(error),
            Err(_) => self.sink.write(bytes),
        }
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn moody() -> (mpsc::Sender<std::io::Result<usize>>, Sink, Logger) {
    let (tell, answers) = mpsc::channel();
    let sink = Sink::default();
    let moody = Moody { answers, sink: sink.clone() };
    (tell, sink, Logger::to_sink(LogFormat::Plain, "info", Box::new(moody)).unwrap())
}

#[test]
fn a_sink_that_is_gone_costs_lines_and_nothing_else() {
    let (tell, sink, logger) = moody();
    for _ in 0..2 {
        tell.send(Err(ErrorKind::BrokenPipe.into())).unwrap();
        logger.push("a\n");
        logger.push("b\n");
        assert!(logger.flush(LIMIT));
    }
    assert_eq!((logger.dropped(), sink.text().as_str()), (4, ""));
    // It is asked again with the next line only, and told then what is missing.
    logger.push("c\n");
    assert!(logger.flush(LIMIT));
    let text = sink.text();
    assert!(text.starts_with("c\n") && text.ends_with("did not keep up\tlines=4\n"), "{text}");
    assert_eq!((logger.dropped(), text.lines().count()), (4, 2));
}

#[test]
fn a_full_disk_tears_one_line_and_the_next_begins_anew() {
    let (tell, sink, logger) = moody();
    tell.send(Ok(6)).unwrap();
    tell.send(Err(ErrorKind::StorageFull.into())).unwrap();
    logger.push("one\ntwo\nthree\n");
    assert!(logger.flush(LIMIT));
    assert_eq!((logger.dropped(), sink.text().as_str()), (2, "one\ntw"));
    // Still full.
    tell.send(Err(ErrorKind::StorageFull.into())).unwrap();
    logger.push("four\n");
    assert!(logger.flush(LIMIT));
    logger.push("five\n");
    assert!(logger.flush(LIMIT));
    let text = sink.text();
    assert!(text.starts_with("one\ntw\nfive\n") && text.ends_with("lines=4\n"), "{text}");
}

#[test]
fn a_sink_that_does_not_wait_gets_every_byte_in_order() {
    let (tell, sink, logger) = moody();
    for answer in
        [Err(ErrorKind::WouldBlock), Ok(1), Err(ErrorKind::Interrupted), Ok(2), Err(ErrorKind::WouldBlock)]
    {
        tell.send(answer.map_err(Into::into)).unwrap();
    }
    logger.push("abcdef\n");
    assert!(logger.flush(LIMIT));
    assert_eq!((logger.dropped(), sink.text().as_str()), (0, "abcdef\n"));
}

#[test]
fn a_non_blocking_pipe_that_nobody_reads_keeps_what_it_can() {
    use std::io::Read;
    let (mut reader, writer) = std::io::pipe().unwrap();
    let flags = nix::fcntl::OFlag::O_NONBLOCK;
    nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETFL(flags)).unwrap();
    let sink = File::from(std::os::fd::OwnedFd::from(writer));
    let logger = Logger::to_sink(LogFormat::Plain, "info", Box::new(sink)).unwrap();
    let line = format!("{}\n", "x".repeat(1023));
    for _ in 0..6000 {
        logger.push(&line);
    }
    assert!(!logger.flush(Duration::from_millis(50)), "nobody reads");
    let dropped = logger.dropped();
    assert!(dropped > 0);
    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    });
    assert!(logger.flush(LIMIT));
    drop(logger);
    let text = reading.join().unwrap();
    assert_eq!(text.lines().filter(|l| *l == line.trim_end()).count() as u64, 6000 - dropped);
    // Told in one line, or in several when some were dropped after it.
    let told = text.lines().filter_map(|line| line.rsplit_once("lines=")?.1.parse::<u64>().ok()).sum::<u64>();
    assert_eq!(told, dropped);
}
