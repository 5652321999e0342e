//! A directory with one object that cannot be read: what a waypoint says of it, and what stays in force.

use culvert::lab::wait_until;
use culvert_tests::binary;
use culvert_tests::mesh::{SOON, log_of};
use culvert_tests::stand::{Stand, routes};
use culvert_tests::waypoint::server;

use crate::waypoint_told::page;

/// A mistyped match, which would otherwise take requests that it should not.
const BAD: &str = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: bad, namespace: default}\n\
    spec:\n  hosts: [other]\n  http:\n  - match: [{url: {exact: /x}}]\n    route: [{destination: {host: shop}}]\n";

/// What is said of it: file and line, object, field, what is wrong, what is allowed.
const SAID: &[&str] =
    &["bad.yaml:8: VirtualService default/bad: spec.http[0].match[0].url: no such field; allowed: ", "uri"];

/// A value of the waypoint's metrics.
fn value(stand: &Stand, name: &str) -> f64 {
    let metrics = page(&stand.waypoint, 15020, "/metrics");
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or(-1.0)
}

#[test]
fn one_bad_object_keeps_the_last_good_configuration_in_force() {
    let answer = |status: u16| {
        format!("  - match: [{{uri: {{exact: /which}}}}]\n    directResponse: {{status: {status}}}\n")
    };
    let stand = Stand::new(false, "http", &answer(203), &[]);
    let _server = server(&stand.shop, 8080, "shop");
    let is_answered = |status: u16| stand.ask("/which").unwrap().starts_with(&format!("HTTP/1.1 {status} "));
    let is_good = || value(&stand, "culvert_config_last_reload_successful");
    assert!(is_answered(203), "{}", stand.logs());
    assert_eq!(is_good(), 1.0, "{}", page(&stand.waypoint, 15020, "/metrics"));
    let before = value(&stand, "culvert_config_revision");

    // A good change beside the bad object has to wait.
    stand.mesh.put("bad.yaml", BAD);
    stand.mesh.put("routes.yaml", &routes(&answer(202)));
    let all = || (is_good() == 0.0 && value(&stand, "culvert_config_problems") == 1.0).then_some(());
    wait_until("a refused reload", SOON, all, || stand.logs()).unwrap();
    let is_all = |line: &str| SAID.iter().all(|part| line.contains(part));
    let said = || stand.waypoint.log().lines().any(is_all).then_some(());
    wait_until("what is wrong in the log", SOON, said, || stand.logs()).unwrap();
    wait_until(
        "time",
        SOON,
        || (value(&stand, "culvert_config_stale_seconds") > 0.0).then_some(()),
        || stand.logs(),
    )
    .unwrap();
    for _ in 0..5 {
        assert!(is_answered(203), "{}", stand.logs());
    }
    assert!(stand.ask("/other").unwrap().contains("200 OK"));
    assert_eq!(value(&stand, "culvert_config_revision"), before);
    let dump = page(&stand.waypoint, 15000, "/config_dump");
    assert!(
        dump.contains("\"configuration\":\"stale\"") || dump.contains("\"configuration\": \"stale\""),
        "{dump}"
    );
    let (from, to) = (stand.client.v4, "10.96.0.20:80");
    let why = page(&stand.waypoint, 15000, &format!("/culvert/why?source={from}&destination={to}"));
    assert!(why.contains("has changed and cannot be used, so this is of the last good one"), "{why}");
    // Node agents do not read routes: to them nothing is wrong.
    for node in ["a", "b"] {
        let agent = stand.mesh.agent(node);
        let is_good = agent.metric("culvert_config_last_reload_successful", &[]).unwrap();
        assert_eq!(is_good, 1.0, "{}", log_of(agent));
    }

    // Whoever starts now has no last good one.
    let command = stand.waypoint.pod.command(&binary::waypoint().to_string_lossy());
    let command = command.arg("--config").arg(stand.mesh.lab.config_dir());
    let command = command.arg("--ca-dir").arg(stand.mesh.lab.ca_dir());
    let mut second = command.spawn().unwrap();
    let status = second.wait(SOON).unwrap_or_else(|e| panic!("{e}: {}", second.stderr()));
    let said = format!("{}{}", second.stdout(), second.stderr());
    assert_eq!(status.code(), Some(64), "{said}");
    assert!(SAID.iter().all(|part| said.contains(part)), "{said}");

    stand.mesh.lab.take_away("bad.yaml").unwrap();
    wait_until("the change", SOON, || is_answered(202).then_some(()), || stand.logs()).unwrap();
    assert_eq!((is_good(), value(&stand, "culvert_config_problems")), (1.0, 0.0));
    assert_eq!(value(&stand, "culvert_config_stale_seconds"), 0.0);
    assert!(!page(&stand.waypoint, 15000, "/config_dump").contains("stale"));
    stand.finish();
}
