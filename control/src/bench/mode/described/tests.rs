use std::path::PathBuf;

use super::*;
use crate::bench::mode::HTTP_PORT;
use crate::lab::{Lab, LabOptions, PodSpec};

/// Two nodes with the two pods; nginx answers in the server's.
fn stage() -> (Stage, Process) {
    let mut lab = Lab::new(LabOptions { prefix: "culvert-described".to_owned() }).unwrap();
    let nodes = vec![lab.node("a").unwrap(), lab.node("b").unwrap()];
    let client = lab.pod(nodes[0], PodSpec::new("client").captured(true)).unwrap();
    let server = lab.pod(nodes[1], PodSpec::new("server").captured(true)).unwrap();
    lab.publish().unwrap();
    let scratch = lab.dir().join("scratch");
    fs::create_dir(&scratch).unwrap();
    let config = scratch.join("server.conf");
    let text = format!(
        "daemon off; pid {0}/nginx.pid; error_log {0}/nginx.err; events {{}} http {{ access_log off; \
         server {{ listen {HTTP_PORT}; listen [::]:{HTTP_PORT}; location / {{ return 200 hello; }} }} }}",
        scratch.display()
    );
    fs::write(&config, text).unwrap();
    let nginx = server.command("nginx").arg("-c").arg(&config).arg("-e").arg(scratch.join("nginx.err"));
    let nginx = nginx.spawn().unwrap();
    server.wait_for(HTTP_PORT, Duration::from_secs(10)).unwrap();
    let stage =
        Stage { client, server, beside: None, nodes, ztunnel: PathBuf::from("/bin/false"), scratch, lab };
    (stage, nginx)
}

fn described(text: &str) -> Described {
    Described::new(parse("test.yaml", text).unwrap())
}

/// A mode that carries nothing: what is tested is how it is started and ended.
fn idle(more: &str) -> Described {
    described(&format!("name: idle\ntitle: idle\nencrypted: false\n{more}\n"))
}

fn example(name: &str) -> Described {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/examples/bench").join(name);
    described(&fs::read_to_string(path).unwrap())
}

#[test]
fn the_examples_are_good_descriptions() {
    for name in ["culvert-proxy.yaml", "nginx-relays.yaml", "reference-ztunnel.yaml"] {
        let mode = example(name);
        assert_eq!(format!("{}.yaml", mode.name()), name);
    }
}

#[test]
fn each_command_is_told_where_it_is() {
    let (stage, _nginx) = stage();
    let script = "env >env.txt; exec sleep 1000";
    let text = format!(
        "environment: {{OWN: 'a b'}}\nnode:\n  start: {script}\n  ready: {{command: test -s env.txt}}\n\
         pod:\n  start: {script}\n  ready: {{command: test -s env.txt}}"
    );
    let mut mode = idle(&text);
    mode.start(&stage, &World { workloads: 3 }).unwrap();
    assert_eq!(mode.proxies().len(), 4);
    let env = |name: &str| fs::read_to_string(stage.scratch.join(name).join("env.txt")).unwrap();
    let has = |env: &str, line: &str| assert!(env.lines().any(|l| l == line), "{line} in {env}");
    let (node, pod) = (env("b"), env("server"));
    has(&node, "BENCH_NODE=b");
    has(&node, &format!("BENCH_NODE_IP={}", stage.lab.host_addresses(stage.nodes[1])[0]));
    has(&node, "BENCH_CLIENT_NODE=a");
    has(&pod, "BENCH_ROLE=server");
    has(&pod, "BENCH_SELF=server");
    has(&pod, "BENCH_POD_UID=uid-server");
    has(&pod, "BENCH_POD_IDENTITY=spiffe://cluster.local/ns/default/sa/server");
    has(&pod, &format!("BENCH_POD_NETNS={}", stage.server.netns_path().display()));
    has(&pod, "BENCH_SERVER_WORKLOAD_UID=Kubernetes//Pod/default/server");
    has(&pod, "BENCH_HTTP_PORT=8080");
    has(&pod, "BENCH_WORKLOADS=3");
    has(&pod, "OWN=a b");
    assert!(!node.contains("BENCH_POD="), "a node's command is no pod's");
    for key in ["BENCH_POD_CERT", "BENCH_POD_KEY", "BENCH_ROOT_CERT", "BENCH_LOCAL_XDS"] {
        let path = pod.lines().find_map(|l| l.strip_prefix(&format!("{key}="))).unwrap();
        assert!(Path::new(path).is_file(), "{key} {path}");
    }
    let xds = fs::read_to_string(stage.scratch.join(LOCAL_XDS)).unwrap();
    assert_eq!(xds.matches("workloadIps").count(), 5);
    assert!(culvert_common::source::kube::tree::read("x", &xds).is_ok());
    mode.stop(&stage).unwrap();
}

#[test]
fn daemons_are_accounted_by_their_file_and_killed_whatever_they_do() {
    let (stage, _nginx) = stage();
    // It leaves its group and its session, and does not listen to anybody.
    let start = "setsid sh -c 'trap \"\" TERM HUP; echo $$ >p; while :; do sleep 1; done' >/dev/null 2>&1 &";
    let text =
        format!("stopLimit: 1s\npod:\n  start: {start:?}\n  pidFile: p\n  ready: {{command: test -s p}}");
    let mut mode = idle(&text);
    mode.start(&stage, &World::default()).unwrap();
    let proxies = mode.proxies();
    assert_eq!(proxies.len(), 2, "{proxies:?}");
    let refused = mode.stop(&stage).unwrap_err();
    assert!(refused.to_string().contains("end of server: not within 1s"), "told, and killed: {refused:#}");
    for proxy in proxies {
        let stat = fs::read_to_string(format!("/proc/{}/stat", proxy.pid)).unwrap_or_default();
        assert!(stat.is_empty() || stat.contains(") Z"), "{stat}");
    }
    stage.client.wait_empty(Duration::from_secs(5)).unwrap();
}

#[test]
fn what_goes_wrong_is_told_and_nothing_is_left() {
    let (stage, _nginx) = stage();
    let ready = "ready: {port: 15001}";
    for (text, wanted) in [
        (
            format!("node: {{start: 'echo broken >&2; exit 3', {ready}}}"),
            "a: the start command ended with exit status: 3: broken",
        ),
        (
            format!("startLimit: 1s\npod: {{start: exec sleep 1000, {ready}}}"),
            "client was not ready within 1s; last seen: nothing listens on port 15001",
        ),
        (
            "startLimit: 1s\nnode: {start: exec sleep 1000, ready: {http: \"127.0.0.1:1/\"}}".to_owned(),
            "a was not ready within 1s; last seen: ask 127.0.0.1:1/",
        ),
        (
            "version: echo absent >&2; exit 1\npod: {start: x, ready: {port: 1}}".to_owned(),
            "the version command: ended with exit status: 1: absent",
        ),
        (
            "encrypted: true\nnode: {start: exec sleep 1000, ready: {command: 'true'}}".to_owned(),
            "a request crossed the wire in plain text",
        ),
    ] {
        let text = text.strip_prefix("encrypted: true\n").map_or_else(
            || format!("name: idle\ntitle: idle\nencrypted: false\n{text}\n"),
            |rest| format!("name: idle\ntitle: idle\n{rest}\n"),
        );
        let mut mode = described(&text);
        let refused = format!("{:#}", mode.start(&stage, &World::default()).unwrap_err());
        assert!(refused.starts_with("idle: ") && refused.contains(wanted), "{refused}");
        assert!(mode.proxies().is_empty());
        stage.client.wait_empty(Duration::from_secs(5)).unwrap();
    }
}

#[test]
fn the_certificate_service_is_there_while_the_mode_runs() {
    let (stage, _nginx) = stage();
    let mut mode = idle(
        "certificateService: true\nversion: echo one; echo two\n\
         node:\n  start: exec sleep 1000\n  ready: {port: 15012}\npod:\n  start: exec sleep 1000\n  ready: {port: 15012}",
    );
    for _ in 0..2 {
        mode.start(&stage, &World::default()).unwrap();
        assert_eq!(mode.tools(), [("idle".to_owned(), "one".to_owned())]);
        mode.stop(&stage).unwrap();
        assert!(!stage.client.is_listening(15012));
    }
}

#[test]
fn a_file_that_cannot_be_read_is_an_error() {
    let absent = read(Path::new("/no/such/file.yaml")).err().unwrap();
    assert_eq!(absent.to_string(), "read /no/such/file.yaml");
}
