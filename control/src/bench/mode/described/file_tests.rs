use super::*;

const LEAST: &str = "name: mine\ntitle: my proxy\nnode:\n  start: exec proxy\n  ready: {port: 15001}\n";

#[track_caller]
fn refused(text: &str, wanted: &[&str]) {
    let problems: Vec<String> =
        parse("mine.yaml", text).unwrap_err().iter().map(ToString::to_string).collect();
    assert_eq!(problems, wanted, "{text}");
}

#[test]
fn the_least_that_describes_a_mode() {
    let read = parse("mine.yaml", LEAST).unwrap();
    let node = Part {
        start: "exec proxy".into(),
        stop: None,
        ready: Ready::Port(15001),
        netns: Netns::Node,
        pid_file: None,
    };
    assert_eq!(read.node, Some(node));
    assert_eq!((read.start_max, read.stop_max), (Duration::from_secs(30), Duration::from_secs(10)));
    assert!(read.encrypted && !read.one_node && !read.capture && !read.enroll && !read.certificate_service);
}

#[test]
fn everything_that_can_be_said() {
    let text = "name: all\ntitle: all of it\nversion: proxy --version\ndeviations: [one, two]\nnodes: 1\ncapture: true\n\
        certificateService: true\nencrypted: false\ncannot: [bulk, open]\nenvironment: {WORKERS: 2, NAME: x}\n\
        pod:\n  start: |\n    proxy &\n    echo $! > p\n  stop: proxy stop\n  netns: node\n  pidFile: p\n  \
        ready: {http: \"127.0.0.1:15021/ready\"}\nstartLimit: 1m\nstopLimit: 5s\n";
    let read = parse("all.yaml", text).unwrap();
    let pod = read.pod.unwrap();
    assert_eq!(pod.start, "proxy &\necho $! > p");
    assert_eq!((pod.netns, pod.pid_file.as_deref()), (Netns::Node, Some("p")));
    let ready = Ready::Http { address: "127.0.0.1:15021".parse().unwrap(), path: "/ready".into() };
    assert_eq!(pod.ready, ready);
    assert_eq!(read.environment, [("WORKERS".into(), "2".into()), ("NAME".into(), "x".into())]);
    assert_eq!(read.cannot, BTreeSet::from(["bulk", "open"]));
    assert!(read.one_node && read.capture && read.certificate_service && !read.encrypted);
    assert_eq!((read.start_max, read.stop_max), (Duration::from_secs(60), Duration::from_secs(5)));
}

#[test]
fn what_is_wrong_is_told_with_line_field_and_allowed_values() {
    refused(
        "name: x\n",
        &[
            "mine.yaml:1: neither node nor pod; allowed: at least one of them, with a start command",
            "mine.yaml:1: title: missing; it has to be there",
        ],
    );
    let with = |more: &str| format!("{LEAST}{more}\n");
    let line = |more: &str, wanted: &str| refused(&with(more), &[&format!("mine.yaml:6: {wanted}")]);
    line("nodes: 3", "nodes: \"3\"; allowed: 1, 2");
    line("encrypted: maybe", "encrypted: \"maybe\"; allowed: true, false");
    line("cannot: [bulk, sleep]", &format!("cannot[1]: \"sleep\"; allowed: {}", WORKS.join(", ")));
    line("startLimit: 2h", "startLimit: \"2h\"; allowed: such as 30s or 2m, at most 10m");
    line("stopLimit: 0s", "stopLimit: \"0s\"; allowed: such as 30s or 2m, at most 10m");
    line("stop: x", &format!("stop: no such field; allowed: {}", FIELDS.join(", ")));
    line(
        "environment: {BENCH_X: 1}",
        "environment.BENCH_X: a name of the benchmark's own; allowed: names that do not begin with BENCH_",
    );
    line(
        "environment: {a-b: 1}",
        "environment.a-b: no name of a variable; allowed: letters, digits and _, no digit first",
    );
    line("deviations: one", "deviations: no list; allowed: a list");
    line("pod: {start: x, ready: {}}", "pod.ready: 0 of them; allowed: one of command, http, port");
    line("pod: {ready: {port: 70000}, start: x}", "pod.ready.port: no port; allowed: 1 to 65535");
    line("pod: {ready: {port: 1}}", "pod.start: missing; it has to be there");
    line(
        "pod: {start: x, ready: {http: localhost}}",
        "pod.ready.http: \"localhost\"; allowed: such as 127.0.0.1:15021/healthz/ready",
    );
    refused(
        &LEAST.replace("  start", "  netns: pod\n  start"),
        &["mine.yaml:4: node.netns: \"pod\"; allowed: node"],
    );
    refused(
        &LEAST.replace("mine", "Mine!"),
        &["mine.yaml:1: name: \"Mine!\"; allowed: 1 to 40 of a-z, 0-9 and -"],
    );
    let both = with("capture: true\nenroll: true");
    refused(
        &both,
        &["mine.yaml:1: capture and enroll; allowed: one of them; enroll writes the rules itself"],
    );
}
