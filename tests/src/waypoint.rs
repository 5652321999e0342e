//! A waypoint in a pod of its own, and servers that say who they are.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use culvert::lab::{Place, Pod, PodSpec, Process, http, wait_until};

use crate::binary;
use crate::documents::Service;
use crate::mesh::{Mesh, SOON};
use crate::net::{Server, connect};

/// One port of HTTP, for [`bound`].
pub const HTTP: &[(&str, u16, &str)] = &[("http", 80, "8080")];

/// Name of the Gateway, its pods' service account, and of the pod.
pub const NAME: &str = "waypoint";

/// A running waypoint. Dropping it kills it.
#[derive(Debug)]
pub struct Waypoint {
    /// Its pod.
    pub pod: Pod,
    /// Its process.
    pub process: Process,
}

/// Adds the pod of a waypoint to a mesh.
pub fn pod(mesh: &mut Mesh, node: &str) -> Pod {
    let spec = PodSpec::new(NAME).captured(false).label("gateway.networking.k8s.io/gateway-name", NAME);
    mesh.pod(node, spec)
}

/// The Gateway whose instance this pod is.
pub fn gateway(pod: &Pod, serves: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata:\n  name: {NAME}\n  namespace: default\n  \
         labels: {{istio.io/waypoint-for: {serves}}}\nspec:\n  gatewayClassName: culvert-waypoint\n  listeners:\n  \
         - {{name: mesh, port: 15008, protocol: HBONE}}\nstatus:\n  addresses:\n  - {{type: IPAddress, value: {}}}\n",
        pod.v4
    )
}

/// A service behind the waypoint, whose endpoints have the label; of each port its name, number and target.
pub fn bound(name: &str, vip: &str, (key, value): (&str, &str), ports: &[(&str, u16, &str)]) -> String {
    let service = Service::new(name, &[vip]).label("istio.io/use-waypoint", NAME).selects(key, value);
    ports.iter().fold(service, |service, (name, port, target)| service.named_port(name, *port, target)).yaml()
}

impl Waypoint {
    /// Starts it and waits until it is ready.
    pub fn start(mesh: &Mesh, pod: Pod, args: &[&str]) -> Self {
        let command = pod.command(&binary::waypoint().to_string_lossy());
        let command =
            command.arg("--config").arg(mesh.lab.config_dir()).arg("--ca-dir").arg(mesh.lab.ca_dir());
        let command = command.args(args.iter());
        let process = command.spawn().expect("start the waypoint");
        let waypoint = Self { pod, process };
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, 15021));
        let ready = || {
            let answer =
                waypoint.pod.run(|| http::get(to, "/healthz/ready", Duration::from_secs(2))).ok()?.ok()?;
            (answer.status == 200).then_some(())
        };
        wait_until("the waypoint to be ready", SOON, ready, || waypoint.log()).unwrap();
        waypoint
    }

    /// What it has said.
    pub fn log(&self) -> String {
        format!("{}{}", self.process.stdout(), self.process.stderr())
    }

    /// The same, and the ends of both agents' logs.
    pub fn logs(&self, mesh: &Mesh) -> String {
        format!("{}\n{}", self.log(), mesh.logs())
    }
}

/// A server of HTTP/1.1 that answers each request with its own name, the request line and headers.
pub fn server(place: &Place, port: u16, name: &str) -> Server {
    let name = name.to_owned();
    answering(place, port, move |head| {
        let body = format!("{name}\n{head}");
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nx-server: {name}\r\n\r\n{body}", body.len())
    })
}

/// A server of HTTP/1.1 that gives what `answer` makes of a request's head.
pub fn answering(
    place: &Place,
    port: u16,
    answer: impl Fn(&str) -> String + Send + Sync + 'static,
) -> Server {
    Server::start(place, port, move |mut stream, seen| {
        let mut held = Vec::new();
        while let Some(head) = read_head(&mut stream, &mut held) {
            seen.add(head.len());
            if stream.write_all(answer(&head).as_bytes()).is_err() {
                return;
            }
        }
    })
}

fn read_head(stream: &mut TcpStream, held: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(end) = held.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = held.drain(..end + 4).collect::<Vec<u8>>();
            return Some(String::from_utf8_lossy(&head).into_owned());
        }
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return None,
            Ok(count) => held.extend_from_slice(buffer.get(..count)?),
        }
    }
}

/// Sends these bytes and reads until the other end closes.
pub fn ask(from: &Place, to: (IpAddr, u16), request: &str) -> std::io::Result<String> {
    let mut stream = connect(from, to)?;
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// A request of HTTP/1.1 that is the last of its connection.
pub fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n{headers}\r\n")
}
