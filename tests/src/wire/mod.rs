//! A client, an application and a waypoint between them: what goes over the wire on one side, and what comes out on the other.
//!
//! [`http1`] is an application of HTTP/1.1 that does what the path of a request says, and the client's end of its
//! connections; [`http2`] the same of HTTP/2 and gRPC. [`World`] has both behind services with routes of each kind.

pub mod http1;
pub mod http2;

use std::fmt::Write as _;
use std::net::IpAddr;

use culvert::lab::{Pod, PodSpec, wait_until};

use crate::mesh::{Mesh, SOON};
use crate::net::Server;
use crate::waypoint::{Waypoint, ask, gateway, get, pod};

/// Ports of the services and of the application. The services' ports say what they speak, but for the sniffed ones.
pub mod port {
    /// HTTP/1.1; `http` of the services.
    pub const HTTP: u16 = 80;
    /// HTTP/2; `grpc`.
    pub const GRPC: u16 = 81;
    /// Bytes; `tcp`. The application sends back what it gets.
    pub const TCP: u16 = 82;
    /// Bytes; `tcp`. The application speaks first.
    pub const GREETING: u16 = 83;
    /// Bytes; `tls`. The application sends back what it gets.
    pub const TLS: u16 = 84;
    /// The application of HTTP/1.1 at a port that says nothing.
    pub const SNIFFED: u16 = 85;
    /// As [`GREETING`], at a port that says nothing.
    pub const SNIFFED_GREETING: u16 = 86;
}

/// What the application says where it speaks first.
pub const GREETING: &str = "220 shop ready\r\n";

/// The services: what routes they have, and the end of their addresses.
const SERVICES: [(&str, u8); 3] = [("plain", 20), ("virtual", 21), ("gateway", 22)];

/// Two agents, a waypoint for services and workloads, a client on one node and the application on the other.
pub struct World {
    /// The cluster.
    pub mesh: Mesh,
    /// Captured, on node `a`.
    pub client: Pod,
    /// Captured, on node `b`; bound to the waypoint itself and through the services.
    pub shop: Pod,
    /// On node `b`.
    pub waypoint: Waypoint,
    /// What the application of HTTP/1.1 has heard.
    pub heard: http1::Heard,
    /// What the application of HTTP/2 has seen.
    pub seen: http2::Seen,
    servers: Vec<Server>,
}

impl World {
    /// Starts everything with these documents beside the services and their routes.
    pub fn start(documents: &str) -> Self {
        Self::start_with(documents, &[])
    }

    /// As [`World::start`], with documents that deny what would tell whether these services are up: any answer does.
    pub fn start_with(documents: &str, denied: &[&str]) -> Self {
        let mut mesh = Mesh::new();
        let client = mesh.captured("a", "client");
        let bound = PodSpec::new("shop").captured(true).label("istio.io/use-waypoint", "waypoint");
        let shop = mesh.pod("b", bound);
        let place = pod(&mut mesh, "b");
        let (heard, seen) = (http1::Heard::default(), http2::Seen::default());
        let mut servers = vec![
            heard.serve(&shop, port::HTTP),
            heard.serve(&shop, port::SNIFFED),
            seen.serve(&shop, port::GRPC),
        ];
        servers.extend([port::TCP, port::TLS].map(|port| Server::echo(&shop, port)));
        servers.extend(
            [port::GREETING, port::SNIFFED_GREETING].map(|port| Server::greeting(&shop, port, GREETING)),
        );
        mesh.put("services.yaml", &SERVICES.map(|(name, end)| service(name, end)).concat());
        let routes = [("gateway", port::HTTP), ("sniffed", port::SNIFFED), ("grpc", port::GRPC)];
        let routes = routes.map(|(name, port)| http_route(name, port)).concat();
        mesh.put("routes.yaml", &format!("{VIRTUAL}{routes}"));
        mesh.put("more.yaml", documents);
        mesh.put("gateway.yaml", &gateway(&place, "all"));
        mesh.start(&[]);
        let waypoint = Waypoint::start(&mesh, place, &[]);
        let world = Self { mesh, client, shop, waypoint, heard, seen, servers };
        let is_up = |name: &str, to: IpAddr| {
            let answer = ask(&world.client, (to, port::HTTP), &get("/up", "")).ok()?;
            let is_denied = denied.iter().any(|service| name.starts_with(service)) && answer.contains("RBAC");
            (is_denied || answer.contains("x-envoy-upstream-service-time")).then_some(())
        };
        for (name, to) in world.targets() {
            wait_until(&name, SOON, || is_up(&name, to), || world.logs()).unwrap();
        }
        world.heard.take();
        world
    }

    /// Every way to address the application: each service and the pod itself, in both families.
    pub fn targets(&self) -> Vec<(String, IpAddr)> {
        let services = SERVICES.iter().flat_map(|(name, end)| {
            let v6 = format!("fd00:96::{end}").parse().expect("an address");
            [(format!("{name} by IPv4"), IpAddr::from([10, 96, 0, *end])), (format!("{name} by IPv6"), v6)]
        });
        let pods = self.shop.addresses().map(|address| (format!("the pod by {address}"), address));
        services.chain(pods).collect()
    }

    /// One address of the service without routes.
    pub fn plain(&self) -> IpAddr {
        [10, 96, 0, 20].into()
    }

    /// What the waypoint and the agents have said.
    pub fn logs(&self) -> String {
        self.waypoint.logs(&self.mesh)
    }

    /// Ends everything; nothing may be left.
    pub fn finish(self) {
        drop(self.waypoint); // it keeps connections for the next request
        self.mesh.finish();
        drop(self.servers);
    }
}

/// A service of both families whose endpoint is the application's pod.
fn service(name: &str, end: u8) -> String {
    let mut text = format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default, labels: {{istio.io/use-waypoint: \
         waypoint}}}}\nspec:\n  clusterIP: 10.96.0.{end}\n  clusterIPs: [10.96.0.{end}, \"fd00:96::{end}\"]\n  selector: {{app: \
         shop}}\n  ports:\n"
    );
    for (name, port) in [
        ("http", port::HTTP),
        ("grpc", port::GRPC),
        ("tcp", port::TCP),
        ("tcp-greeting", port::GREETING),
        ("tls", port::TLS),
        ("sniffed", port::SNIFFED),
        ("greeting", port::SNIFFED_GREETING),
    ] {
        let _infallible = writeln!(text, "  - {{name: {name}, port: {port}, targetPort: {port}}}");
    }
    text
}

/// An HTTPRoute that leads where no route would lead too: one port of service `gateway` to itself.
fn http_route(name: &str, port: u16) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  \
         parentRefs: [{{group: \"\", kind: Service, name: gateway, port: {port}}}]\n  rules: [{{backendRefs: [{{name: gateway, port: \
         {port}}}]}}]\n"
    )
}

/// The same for service `virtual`.
const VIRTUAL: &str = r#"---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: virtual, namespace: default}
spec:
  hosts: [virtual.default.svc.cluster.local]
  http:
  - route: [{destination: {host: virtual}}]
  tcp:
  - match: [{port: 82}]
    route: [{destination: {host: virtual, port: {number: 82}}}]
  - match: [{port: 83}]
    route: [{destination: {host: virtual, port: {number: 83}}}]
  tls:
  - match: [{port: 84, sniHosts: [virtual.default.svc.cluster.local]}]
    route: [{destination: {host: virtual, port: {number: 84}}}]
"#;

/// The first message of a TLS client that asks for this name, in records of so many bytes.
pub fn client_hello(name: &str, piece: usize) -> Vec<u8> {
    let length = |value: usize| u16::try_from(value).expect("a short text").to_be_bytes();
    let entry = [&[0][..], &length(name.len()), name.as_bytes()].concat();
    let names = [&length(entry.len())[..], &entry].concat();
    let extension = [&[0, 0][..], &length(names.len()), &names].concat();
    let head = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 1], &[1, 0]].concat();
    let body = [&head[..], &length(extension.len()), &extension].concat();
    let message = [&[1, 0][..], &length(body.len()), &body].concat();
    message.chunks(piece).flat_map(|part| [&[22, 3, 1][..], &length(part.len()), part].concat()).collect()
}
