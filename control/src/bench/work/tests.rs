//! Every work once, between two pods, with the real programs and nothing between.

use std::fs;

use super::*;
use crate::bench::mode::{BULK_PORT, HTTP_PORT};
use crate::lab::{Lab, LabOptions, PodSpec, Process};

const SOON: Duration = Duration::from_secs(10);

/// Two pods; nginx and iperf3 run in the second.
struct Scene {
    client: Pod,
    server: Pod,
    _servers: Vec<Process>,
    _lab: Lab,
}

fn scene(locations: &str) -> Scene {
    let mut lab = Lab::new(LabOptions::default()).unwrap();
    let node = lab.node("a").unwrap();
    let client = lab.pod(node, PodSpec::new("client")).unwrap();
    let server = lab.pod(node, PodSpec::new("server")).unwrap();
    let dir = server.dir().unwrap();
    let text = format!(
        "daemon off;\nuser root;\npid {dir}/pid;\nerror_log {dir}/err;\nevents {{ worker_connections 2048; }}\nhttp {{ \
         access_log {dir}/access; client_body_temp_path {dir}/t1; proxy_temp_path {dir}/t2; fastcgi_temp_path {dir}/t3; \
         uwsgi_temp_path {dir}/t4; scgi_temp_path {dir}/t5; keepalive_requests 1000000000; server {{ \
         listen {HTTP_PORT} backlog=4096; listen [::]:{HTTP_PORT} backlog=4096; root {dir}; {locations} }} }}\n",
        dir = dir.display()
    );
    fs::write(dir.join("100"), [b'x'; 100]).unwrap();
    fs::write(dir.join("16k"), [b'x'; 16 << 10]).unwrap();
    fs::write(dir.join("nginx.conf"), text).unwrap();
    let nginx = server.command("nginx").arg("-e").arg(dir.join("err")).arg("-c").arg(dir.join("nginx.conf"));
    let iperf3 = server.command("iperf3").args(["-s", "-p", &BULK_PORT.to_string()]);
    let servers = vec![nginx.spawn().unwrap(), iperf3.spawn().unwrap()];
    for port in [HTTP_PORT, BULK_PORT] {
        server.wait_for(port, SOON).unwrap();
    }
    Scene { client, server, _servers: servers, _lab: lab }
}

fn done(scene: &Scene, address: IpAddr, name: &str) -> anyhow::Result<Outcome> {
    let work = all().into_iter().find(|work| work.name == name).expect("a work of this name");
    perform(&work, &Run { client: &scene.client, server: address, duration: Duration::from_secs(1) })
}

/// Connections that a pod has made, as its kernel counts.
fn connections_made(pod: &Pod) -> u64 {
    let text = pod.run(|| fs::read_to_string("/proc/thread-self/net/snmp")).unwrap().unwrap();
    let mut rows = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let names: Vec<&str> = rows.next().unwrap().split(' ').collect();
    let values: Vec<&str> = rows.next().unwrap().split(' ').collect();
    values[names.iter().position(|name| *name == "ActiveOpens").unwrap()].parse().unwrap()
}

#[test]
fn every_work_is_done_with_the_real_programs_over_both_families() {
    let scene = scene("");
    for address in scene.server.addresses() {
        for name in ["c1", "c16-16k", "open-1000", "new", "bulk1", "bulk4-down"] {
            let before = connections_made(&scene.client);
            let outcome =
                done(&scene, address, name).unwrap_or_else(|e| panic!("{name} to {address}: {e:#}"));
            let made = connections_made(&scene.client) - before;
            let value = |measure: Measure| outcome.values.get(&measure).copied();
            assert!(outcome.units > 0.0, "{name}: {outcome:?}");
            assert_eq!(value(Measure::Failed), Some(0.0), "{name}: {outcome:?}");
            assert!(
                outcome.latency.is_sorted_by(|one, next| one.0 < next.0 && one.1 <= next.1),
                "{name}: {outcome:?}"
            );
            if name.starts_with("bulk") {
                assert!(
                    value(Measure::GbitPerSecond).is_some_and(|gbit| gbit > 0.0)
                        && outcome.latency.is_empty()
                );
                continue;
            }
            let ends = [outcome.latency.first(), outcome.latency.last()].map(|point| point.unwrap().0);
            assert_eq!((ends, outcome.latency.len()), ([0.0, 100.0], 16), "{name}");
            assert!(value(Measure::P50Us) <= value(Measure::P99Us), "{name}: {outcome:?}");
            match name {
                // One of wrk's own is to find out whether there is a server.
                "c1" => assert_eq!(made, 2),
                "open-1000" => {
                    assert_eq!(made, 32);
                    assert_eq!(value(Measure::AskedPerSecond), Some(1_000.0));
                    assert_eq!(outcome.units, 1_000.0);
                }
                "new" => {
                    assert!(value(Measure::ConnectionsPerSecond).is_some_and(|rate| rate > 0.0));
                    // Those under way at the end are answered, too.
                    assert_eq!(made as f64, outcome.units, "a connection for each request");
                }
                _ => {}
            }
        }
    }
}

#[test]
fn bad_answers_are_no_figure() {
    let scene = scene("location = /100 { return 503; }");
    for name in ["c16", "open-1000", "new"] {
        let error = format!("{:#}", done(&scene, scene.server.v4.into(), name).unwrap_err());
        assert!(error.contains("answered well"), "{name}: {error}");
    }
    let run = Run { client: &scene.client, server: scene.server.v6.into(), duration: SOON };
    let error = format!("{:#}", hold_idle(10, &run).unwrap_err());
    assert!(error.contains("bad status"), "{error}");
}

#[test]
fn nobody_listening_is_told() {
    let mut scene = scene("");
    scene._servers.clear();
    for name in ["c16", "open-1000", "new", "bulk1"] {
        let error = format!("{:#}", done(&scene, scene.server.v4.into(), name).unwrap_err());
        assert!(error.to_lowercase().contains("refused"), "{name}: {error}");
    }
    assert!(done(&scene, scene.server.v4.into(), "memory").is_err());
}

#[test]
fn a_thousand_idle_connections_are_held() {
    let scene = scene("");
    for address in scene.server.addresses() {
        let run = Run { client: &scene.client, server: address, duration: SOON };
        let held = hold_idle(1_000, &run).unwrap();
        assert_eq!((held.opened(), held.still_open()), (1_000, 1_000));
    }
}
