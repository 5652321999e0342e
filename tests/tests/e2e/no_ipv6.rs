//! Pods whose network namespace has no IPv6, on any interface or on loopback alone, under an agent that does not mind.

use culvert::lab::AgentOptions;
use culvert_common::net::rules::{self, CaptureSpec};
use culvert_common::zds::Request;
use culvert_tests::dns::{A, AAAA, NameServer, Way, addresses, ask, odd_reply, query};
use culvert_tests::documents::Service;
use culvert_tests::mesh::{Mesh, SOON, one_access, options};
use culvert_tests::net::{Server, exchange};
use culvert_tests::zds_agent::{ZdsAgent, add};

const OFF: [&[(&str, &str)]; 2] = [
    &[("net/ipv6/conf/all/disable_ipv6", "1"), ("net/ipv6/conf/default/disable_ipv6", "1")],
    &[("net/ipv6/conf/lo/disable_ipv6", "1")],
];

#[test]
fn pods_without_ipv6_are_served_by_ipv4() {
    for off in OFF {
        let mut mesh = Mesh::new();
        let (one, peer) = (mesh.captured("a", "one"), mesh.captured("b", "peer"));
        let (plain, names) = (mesh.outside("b", "plain"), mesh.outside("b", "names"));
        mesh.put("services.yaml", &Service::new("web", &["10.96.0.10", "fd00:96::10"]).port(80, "80").yaml());
        mesh.lab.publish().unwrap();
        mesh.start_node("b", &[]);
        one.sysctl(off).unwrap();
        let socket = mesh.lab.dir().join("zds").join("z.sock");
        let mut proxy = AgentOptions { part: Some("proxy".to_owned()), ..options(&[]) };
        proxy.args.extend(["--zds-socket".to_owned(), socket.display().to_string()]);
        let mut proxy = mesh.lab.start_agent(mesh.node("a"), &proxy).unwrap();
        let agent = ZdsAgent::new(&socket);
        let link = agent.accept();
        link.done(&add("u1", &one));
        let spec = CaptureSpec { dns_port: Some(15053), ..CaptureSpec::default() };
        one.run(|| rules::install(&spec).map(drop)).unwrap().unwrap();
        link.done(&Request::SnapshotSent);

        let (_echo, _other) = (Server::echo(&one, 8080), Server::echo(&peer, 8081));
        for (from, to, port) in [(&peer, &one, 8080), (&plain, &one, 8080), (&one, &peer, 8081)] {
            let (_, back) = exchange(from, (to.v4.into(), port), b"by IPv4").unwrap();
            assert_eq!(back, b"by IPv4", "{off:?}");
        }
        for (from, to) in [(&peer, &proxy), (&one, mesh.agent("b"))] {
            let by_tunnel = [("src.identity", &*from.identity()), ("direction", "inbound")];
            one_access(to, &by_tunnel).unwrap_or_else(|e| panic!("{off:?}: {e}"));
        }
        let _server = NameServer::start(&names, "names");
        for way in [Way::Udp, Way::Tcp] {
            let asked = |name: &str, kind| {
                ask(&one, names.v4.into(), way, &query(5, name, kind, false), SOON)
                    .unwrap_or_else(|e| panic!("{off:?}: {name} by {way:?}: {e}"))
            };
            assert_eq!(addresses(&asked("web", A)), ["10.96.0.10"], "{off:?} {way:?}");
            assert_eq!(addresses(&asked("web", AAAA)), ["fd00:96::10"], "{off:?} {way:?}");
            let other = odd_reply(&query(5, "x.example.org", A, false), "names");
            assert_eq!(asked("x.example.org", A), other, "{off:?} {way:?}");
        }
        drop(link);
        assert!(proxy.terminate(SOON).unwrap().success());
        mesh.finish();
    }
}
