//! A mesh in one file (`LOCAL_XDS_PATH`): host-name workloads, and the file changed under the running agent.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use culvert::lab::{Agent, Pod, http, wait_until};
use culvert_tests::dns::serve_names;
use culvert_tests::enrolment::{Enrolment, socket};
use culvert_tests::mesh::{Mesh, SOON, log_of, options};
use culvert_tests::net::{End, Server, exchange, try_out};

const PORT: u16 = 8080;

/// The client's own workload, and behind a service the workload that is called `hostname`.
fn told(client: &Pod, hostname: &str) -> String {
    format!(
        "workloads:\n- uid: Kubernetes//Pod/default/client\n  name: client\n  namespace: default\n  serviceAccount: client\n  \
         workloadIps: [\"{}\", \"{}\"]\n  protocol: HBONE\n  node: a\n  services: {{}}\n\
         - uid: Kubernetes/networking.istio.io/ServiceEntry/default/api/{hostname}\n  name: api\n  namespace: default\n  \
         hostname: {hostname}\n  workloadIps: []\n  protocol: TCP\n  services: {{\"default/api.example.org\": {{80: {PORT}}}}}\n\
         services:\n- name: api\n  namespace: default\n  hostname: api.example.org\n  vips: [\"/10.96.0.20\", \"/fd00:96::20\"]\n  \
         ports: {{80: {PORT}}}\npolicies: []\n",
        client.v4, client.v6
    )
}

/// An agent whose resolv.conf names this server.
fn start(mesh: &Mesh, server: IpAddr, file: &std::path::Path) -> Agent {
    let (resolv, script) = (mesh.lab.dir().join("resolv.conf"), mesh.lab.dir().join("agent.sh"));
    fs::write(&resolv, format!("nameserver {server}\n")).unwrap();
    let socket = socket(mesh, "a").display().to_string();
    let mut options = options(&["--zds-socket", &socket]);
    let binary = options.binary.take().expect("the agent's program");
    let mount =
        format!("mount --bind {} /etc/resolv.conf && exec {} \"$@\"", resolv.display(), binary.display());
    fs::write(&script, format!("#!/bin/sh\nexec unshare -m sh -c '{mount}' sh \"$@\"\n")).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    (options.binary, options.part) = (Some(script), Some("proxy".to_owned()));
    options.env.push(("LOCAL_XDS_PATH".to_owned(), file.display().to_string()));
    let agent = mesh.lab.start_agent(mesh.node("a"), &options).expect("start an agent");
    agent.wait_ready().unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn a_host_name_workload_is_resolved_and_a_changed_file_is_read_again() {
    let mut mesh = Mesh::new();
    let client = mesh.captured("a", "client");
    let pods = ["first", "second"].map(|name| mesh.outside("b", name));
    let _servers = [("first", &pods[0]), ("second", &pods[1])].map(|(n, pod)| Server::greeting(pod, PORT, n));
    mesh.lab.publish().unwrap();
    let host = mesh.lab.host(mesh.node("a")).unwrap().clone();
    let names = [
        ("first.example.org", pods[0].v4.into()),
        ("first.example.org", pods[0].v6.into()),
        ("second.example.org", pods[1].v4.into()),
    ];
    serve_names(&host, &names);
    let file = mesh.lab.dir().join("mesh.yaml");
    let put = |text: String| fs::write(&file, text).unwrap();
    put(told(&client, "first.example.org"));
    let enrolment = Enrolment::start(&mesh, "a", &[]);
    let mut agent = start(&mesh, mesh.lab.host_addresses(mesh.node("a"))[0], &file);
    enrolment.wait_captured(1);
    let vips: [IpAddr; 2] = ["10.96.0.20", "fd00:96::20"].map(|ip| ip.parse().unwrap());
    let says =
        |to: IpAddr| exchange(&client, (to, 80), b"?").map(|(_, said)| String::from_utf8(said).unwrap());
    let wait_says = |wanted: &str| {
        let is_it = || vips.iter().all(|vip| says(*vip).is_ok_and(|said| said == wanted)).then_some(());
        let seen = || format!("{:?}\n{}", vips.map(says), log_of(&agent));
        wait_until(&format!("{wanted} by both addresses"), SOON, is_it, seen)
            .unwrap_or_else(|e| panic!("{e}"));
    };
    wait_says("first");
    put(told(&client, "second.example.org"));
    wait_says("second");
    let asked = agent.metric("istio_on_demand_dns_total", &["hostname=\"second.example.org\""]).unwrap();
    assert!(asked > 1.5, "{asked}");
    // A file that is wrong changes nothing, and is told of.
    put(told(&client, "first.example.org") + "hosts: []\n");
    let refused = || agent.log().iter().any(|line| line.as_str().contains("hosts")).then_some(());
    wait_until("the problem in the log", SOON, refused, || log_of(&agent)).unwrap();
    wait_says("second");
    let dump = host.run(|| {
        http::get(SocketAddr::from((Ipv4Addr::LOCALHOST, 15000)), "/config_dump", Duration::from_secs(5))
    });
    let dump: serde_json::Value = serde_json::from_str(&dump.unwrap().unwrap().body).unwrap();
    let of_file = &dump["staticConfig"]["workloads"];
    assert!(
        of_file.as_array().is_some_and(|all| all.iter().any(|w| w["hostname"] == "second.example.org")),
        "{dump}"
    );
    // A name that nobody has is refused with that reason.
    put(told(&client, "nobody.example.org"));
    let reason = "no ip addresses were resolved for nobody.example.org";
    let is_refused = || {
        let (_, said, end) = try_out(&client, (vips[0], 80));
        let told = || agent.log().iter().any(|line| line.as_str().contains(reason));
        (said.is_empty() && end == End::Reset && told()).then_some(())
    };
    wait_until(reason, SOON, is_refused, || log_of(&agent)).unwrap();
    assert!(agent.terminate(SOON).unwrap().success());
    enrolment.terminate();
    mesh.finish();
}
