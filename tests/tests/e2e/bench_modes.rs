//! Modes of the benchmark that a file describes, with the real agent: the examples do what they say.

use std::fs;
use std::path::Path;

use culvert::bench::mode::{HTTP_PORT, Mode, Stage, World, described};
use culvert::lab::{Lab, LabOptions, PodSpec, Process, find_ztunnel};
use culvert_common::net::rules::{self, CaptureSpec};
use culvert_tests::mesh::SOON;

/// Two nodes with the two pods; nginx answers in the server's.
fn stage() -> (Stage, Process) {
    let mut lab = Lab::new(LabOptions { prefix: "culvert-modes".to_owned() }).unwrap();
    let nodes = vec![lab.node("node-a").unwrap(), lab.node("node-b").unwrap()];
    let client = lab.pod(nodes[0], PodSpec::new("client").captured(true)).unwrap();
    let server = lab.pod(nodes[1], PodSpec::new("server").captured(true)).unwrap();
    lab.publish().unwrap();
    let scratch = lab.dir().join("scratch");
    fs::create_dir(&scratch).unwrap();
    let config = scratch.join("server.conf");
    let text = format!(
        "daemon off; pid {0}/nginx.pid; error_log {0}/nginx.err; events {{}} http {{ access_log off; \
         server {{ listen {HTTP_PORT}; location / {{ return 200 hello; }} }} }}",
        scratch.display()
    );
    fs::write(&config, text).unwrap();
    let nginx = server.command("nginx").arg("-c").arg(&config).arg("-e").arg(scratch.join("nginx.err"));
    let nginx = nginx.spawn().unwrap();
    server.wait_for(HTTP_PORT, SOON).unwrap();
    let stage = Stage { client, server, beside: None, nodes, ztunnel: find_ztunnel().unwrap(), scratch, lab };
    (stage, nginx)
}

fn example(name: &str) -> Box<dyn Mode> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/examples/bench");
    let mut mode = described::read(&folder.join(name)).unwrap();
    mode.prepare(&mut |_| {}).unwrap();
    mode
}

#[test]
fn ztunnel_proxy_takes_part_as_its_example_describes() {
    let (stage, _nginx) = stage();
    let mut mode = example("culvert-proxy.yaml");
    // Twice: a mode is stopped and started again within a run.
    for _ in 0..2 {
        // Only after a request came through that could not be read on the wire.
        mode.start(&stage, &World::default()).unwrap();
        let names: Vec<String> = mode.proxies().into_iter().map(|p| p.name).collect();
        // With the process that looks up where queries went; enroll is not accounted.
        let all = ["node-a ztunnel", "node-a ztunnel 2", "node-b ztunnel", "node-b ztunnel 2"];
        assert_eq!(names, all);
        let (name, version) = &mode.tools()[0];
        assert!(name == "culvert-proxy" && version.contains(env!("CARGO_PKG_VERSION")), "{version}");
        for pod in [&stage.client, &stage.server] {
            assert!(pod.run(|| rules::verify(&CaptureSpec::default()).is_ok()).unwrap(), "captured");
        }
        mode.stop(&stage).unwrap();
        assert!(mode.proxies().is_empty());
        for pod in [&stage.client, &stage.server] {
            assert!(pod.run(|| rules::verify(&CaptureSpec::default()).is_err()).unwrap(), "direct again");
        }
        for node in &stage.nodes {
            stage.lab.host(*node).unwrap().wait_empty(SOON).unwrap();
        }
    }
}

#[test]
fn the_relays_take_part_as_their_example_describes() {
    let (stage, _nginx) = stage();
    let mut mode = example("nginx-relays.yaml");
    for _ in 0..2 {
        mode.start(&stage, &World::default()).unwrap();
        let names: Vec<String> = mode.proxies().into_iter().map(|p| p.name).collect();
        assert_eq!(
            names,
            ["client nginx", "client nginx 2", "server nginx", "server nginx 2"],
            "master and worker"
        );
        mode.stop(&stage).unwrap();
        assert!(mode.proxies().is_empty());
        stage.client.wait_empty(SOON).unwrap();
    }
}
