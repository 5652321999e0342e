//! What a running agent has given up, as the kernel says; and what it can do without.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use culvert::lab::{http, wait_until};
use culvert_common::zds::Request;
use culvert_tests::binary;
use culvert_tests::mesh::{Mesh, SOON};
use culvert_tests::net::{Server, exchange};
use culvert_tests::zds_agent::{ZdsAgent, add};

/// CAP_NET_ADMIN, CAP_SYS_ADMIN.
const PROXY: &str = "0000000000201000";
/// And CAP_DAC_OVERRIDE, CAP_SYS_PTRACE.
const WHOLE: &str = "0000000000281002";
const NONE: &str = "0000000000000000";

/// The fields of each of a process's threads.
fn check(pid: u32, capabilities: &str, seccomp: &str) {
    let mut threads = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).expect("the agent runs").flatten() {
        let Ok(status) = fs::read_to_string(task.path().join("status")) else { continue };
        let field = |name: &str| {
            let line =
                status.lines().find_map(|line| line.strip_prefix(name)).expect("a field of the status");
            line.trim_start_matches(':').trim().to_owned()
        };
        for set in ["CapEff", "CapPrm", "CapBnd"] {
            assert_eq!(field(set), capabilities, "{set} of {}", field("Name"));
        }
        assert_eq!((field("CapInh").as_str(), field("CapAmb").as_str()), (NONE, NONE));
        assert_eq!(
            (field("NoNewPrivs").as_str(), field("Seccomp").as_str()),
            ("1", seccomp),
            "{}",
            field("Name")
        );
        threads += 1;
    }
    assert!(threads >= 3, "control, log, and a worker: {threads}");
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"]);
}

#[test]
fn an_agent_keeps_what_it_uses() {
    let mut mesh = Mesh::new();
    let (client, server) = (mesh.captured("a", "client"), mesh.captured("b", "server"));
    mesh.start(&[]);
    let _echo = Server::echo(&server, 8080);
    exchange(&client, (server.v4.into(), 8080), b"x").unwrap();
    check(mesh.agent("a").pid(), WHOLE, "2");
    assert!(mesh.agent_mut("b").terminate(SOON).unwrap().success());
    drop(mesh.forget("b"));
    mesh.start_node("b", &["--syscall-filter", "false"]);
    exchange(&client, (server.v6.into(), 8080), b"x").unwrap();
    check(mesh.agent("b").pid(), WHOLE, "0");
    let warned =
        mesh.agent("b").log().iter().any(|line| line.as_str().contains("the system call filter is off"));
    assert!(warned);
    mesh.finish();
}

/// The capabilities that the DaemonSet asks for, as setpriv takes them.
fn manifest_capabilities() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/kubernetes/ztunnel/daemonset.yaml");
    let manifest = fs::read_to_string(path).unwrap();
    for line in ["readOnlyRootFilesystem: true", "drop: [\"ALL\"]"] {
        assert!(manifest.contains(line), "{line}");
    }
    let added = manifest.lines().skip_while(|line| line.trim() != "add:").skip(1);
    let names = added.map_while(|line| line.trim().strip_prefix("- ")?.split_whitespace().next());
    names.map(|name| format!(",+{}", name.to_lowercase())).collect()
}

/// A proxy with the capabilities and the read-only root of the DaemonSet, that sees no host: no namespaces by path, no /sys, nothing of the host's /run, /var or /home but the ZDS folder
/// and its own; and in its own mount namespace at that.
#[test]
fn a_proxy_needs_no_mounts_of_the_host() {
    let mut mesh = Mesh::new();
    let (one, peer) = (mesh.captured("a", "one"), mesh.captured("b", "peer"));
    mesh.lab.publish().unwrap();
    mesh.start_node("b", &[]);
    let lab = mesh.lab.dir().to_owned();
    let socket = lab.join("zds").join("z.sock");
    let agent = ZdsAgent::new(&socket);
    let root = lab.join("root");
    fs::create_dir_all(&root).unwrap();
    // A root with the program and its libraries, a fresh /proc, and the lab's own folders: nothing else.
    let script = "set -e; mount -t tmpfs none $ROOT; cd $ROOT; \
        for d in lib lib64 usr; do if [ -e /$d ]; then mkdir -p $d; mount --rbind -o ro /$d $d; fi; done; \
        mkdir -p proc dev bin ./$LAB; mount -t proc none proc; mount --bind $LAB ./$LAB; \
        touch bin/ztunnel dev/null; mount --bind $ZTUNNEL bin/ztunnel; mount --bind /dev/null dev/null; \
        mount -o remount,ro,bind .; if touch ./x 2>/dev/null; then exit 1; fi; \
        exec chroot . /usr/bin/setpriv --inh-caps=-all --bounding-set=-all$CAPS /bin/ztunnel \"$@\"";
    let place = mesh.lab.host(mesh.node("a")).unwrap();
    let mut proxy = place
        .command("unshare")
        .args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script, "ztunnel", "proxy"])
        .args(["--node", "a", "--config"])
        .arg(mesh.lab.config_dir())
        .arg("--ca-dir")
        .arg(mesh.lab.ca_dir())
        .arg("--zds-socket")
        .arg(&socket)
        // Without rules in the pod, answers to a client's own address would not come back.
        .args(["--original-source", "false"])
        .env("ROOT", &root)
        .env("CAPS", manifest_capabilities())
        .env("LAB", &lab)
        .env("ZTUNNEL", binary::ztunnel())
        .spawn()
        .expect("start a proxy");
    let link = agent.accept();
    link.done(&add("u1", &one));
    link.done(&Request::SnapshotSent);
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, 15021));
    let ready = || {
        let answer = place.run(|| http::get(to, "/healthz/ready", Duration::from_secs(2))).unwrap();
        answer.is_ok_and(|answer| answer.status == 200).then_some(())
    };
    wait_until("the proxy ready", SOON, ready, || format!("{}{}", proxy.stdout(), proxy.stderr())).unwrap();
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", proxy.pid())).unwrap();
    let pid = children.trim().parse().expect("the proxy's process");
    check(pid, PROXY, "2");
    let seen = fs::read_dir(format!("/proc/{pid}/root/")).unwrap().flatten();
    let seen: Vec<_> = seen.map(|entry| entry.file_name().into_string().unwrap()).collect();
    assert!(!seen.contains(&"sys".to_owned()) && !seen.contains(&"run".to_owned()), "{seen:?}");
    let _echo = Server::echo(&one, 8080);
    for ip in one.addresses() {
        exchange(&peer, (ip, 8080), b"x").unwrap_or_else(|e| panic!("{ip}: {e}"));
    }
    drop(link);
    proxy.kill();
    mesh.finish();
}
