//! One HTTP request through the waypoints of its destination.

use std::net::{IpAddr, SocketAddr};

use anyhow::Context as _;
use clap::Args;
use culvert_common::decide::explain::{Explanation, Outcome, RouteKind};
use culvert_common::l7::explain::{self, HttpExplanation, Question, Verdict};
use culvert_common::model::l7::{GatewayKey, Waypoint};
use culvert_common::model::{Condition, Status};
use http::header::HOST;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde::{Deserialize, Serialize};

use super::agent;
use super::config::Mesh;

const BOUND: &str = "istio.io/WaypointBound";
/// Conditions that do not hold and are told.
const CONDITIONS_MAX: usize = 8;

/// The request to follow.
#[derive(Args, Debug)]
pub(super) struct RequestArgs {
    /// Method [default: GET, if --path or --header is there]
    #[arg(long, value_name = "METHOD", value_parser = method, help_heading = REQUEST, conflicts_with_all = ["agent", "denial"])]
    method: Option<Method>,
    /// Path, with a query if it has one [default: /]
    #[arg(long, value_name = "PATH", value_parser = path, help_heading = REQUEST, conflicts_with_all = ["agent", "denial"])]
    path: Option<String>,
    /// Header, `name: value`; may be repeated. Host is DESTINATION unless it is named here
    #[arg(short = 'H', long = "header", value_name = "HEADER", value_parser = header, help_heading = REQUEST, conflicts_with_all = ["agent", "denial"])]
    headers: Vec<(HeaderName, HeaderValue)>,
}

const REQUEST: &str =
    "A request, followed through the destination's waypoint (with a directory, or --waypoint)";

fn method(text: &str) -> Result<Method, String> {
    text.parse().map_err(|_| "write a method such as GET".to_owned())
}

fn path(text: &str) -> Result<String, String> {
    let is_plain = text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    is_plain
        .then(|| text.to_owned())
        .ok_or_else(|| "write a path such as /a?b=c, with spaces and others as %20".to_owned())
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let wrong = || "write a header as 'name: value'".to_owned();
    let (name, value) = text.split_once(':').ok_or_else(wrong)?;
    Ok((name.trim().parse().map_err(|_| wrong())?, value.trim().parse().map_err(|_| wrong())?))
}

/// What waypoints have to do with a connection.
#[derive(Debug, Default, Serialize)]
pub(super) struct Requests {
    /// What the labels of the destination come to.
    pub(super) binding: Vec<Binding>,
    /// What each waypoint on the way does with the request.
    pub(super) http: Vec<HttpExplanation>,
    /// What each of them has, where nobody asks about a request.
    pub(super) waypoints: Vec<Has>,
    /// Conditions of routes and policies there that do not hold.
    pub(super) conditions: Vec<Unmet>,
    /// What to do, if the request meets no waypoint. The connection has advice of its own beside it.
    #[serde(rename = "request_advice")]
    pub(super) advice: Vec<String>,
}

/// The condition `istio.io/WaypointBound` of an object.
#[derive(Debug, Serialize)]
pub(super) struct Binding {
    pub(super) object: String,
    pub(super) is_bound: bool,
    pub(super) reason: String,
    pub(super) message: String,
}

/// What a waypoint has for a destination.
#[derive(Debug, Serialize)]
pub(super) struct Has {
    pub(super) waypoint: String,
    pub(super) routes: Vec<String>,
    pub(super) policies: Vec<String>,
}

/// A condition that does not hold.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Unmet {
    pub(super) object: String,
    pub(super) condition: String,
    pub(super) reason: String,
    pub(super) message: String,
}

/// All that `-o json` prints.
#[derive(Serialize)]
pub(super) struct Whole<'a> {
    #[serde(flatten)]
    pub(super) connection: &'a Explanation,
    #[serde(flatten)]
    pub(super) requests: &'a Requests,
}

impl Requests {
    /// Of each waypoint.
    pub(super) fn verdicts(&self) -> impl Iterator<Item = Outcome> {
        self.http.iter().map(|http| match http.verdict {
            Verdict::Forwarded | Verdict::Answered => Outcome::Allowed,
            Verdict::Refused => Outcome::Refused,
            Verdict::Depends => Outcome::Mixed,
        })
    }
}

/// Follows the request from where the connection meets waypoints.
///
/// **Errors:** a waypoint would not use the directory.
pub(super) fn explain(args: &RequestArgs, mesh: &Mesh, connection: &Explanation) -> anyhow::Result<Requests> {
    let mut all = Requests { binding: binding(mesh, connection), ..Requests::default() };
    let is_asked = args.method.is_some() || args.path.is_some() || !args.headers.is_empty();
    let meets_one = connection.routes.iter().any(|route| !route.waypoint.is_empty());
    if !meets_one {
        if is_asked {
            all.advice.push(no_waypoint(mesh, connection));
        }
        return Ok(all);
    }
    let asked = question(args, connection)?;
    for key in &mesh.waypoints {
        let (waypoint, statuses) = mesh.waypoint(key)?;
        let Some(http) = explain::explain(&mesh.snapshot, &waypoint, &asked) else { continue };
        all.conditions.extend(unmet(&statuses));
        if is_asked {
            all.http.push(http);
        } else {
            all.waypoints.push(has(key, &waypoint, mesh, asked.destination, &asked.namespace));
        }
    }
    all.conditions.truncate(CONDITIONS_MAX);
    Ok(all)
}

/// Follows the request through a running waypoint.
///
/// **Errors:** no waypoint answers there, or what is dialled is not bound to it.
pub(super) fn ask(
    args: &RequestArgs,
    waypoint: SocketAddr,
    connection: &Explanation,
) -> anyhow::Result<Requests> {
    let asked = question(args, connection)?;
    let (source, destination) = (asked.source.to_string(), asked.destination.to_string());
    let peer = asked.peer.as_ref().map(ToString::to_string).unwrap_or_default();
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers: Vec<String> =
        asked.headers.iter().map(|(name, value)| format!("{name}: {}", text(value))).collect();
    let query = [
        ("source", source.as_str()),
        ("destination", &destination),
        ("peer", &peer),
        ("namespace", &asked.namespace),
        ("method", asked.method.as_str()),
        ("authority", &asked.authority),
        ("path", &asked.target),
        ("headers", &headers.join("\n")),
    ];
    let agent::Request { http, mut conditions } = agent::request(waypoint, &query)?;
    conditions.truncate(CONDITIONS_MAX);
    let http = http.with_context(|| {
        format!("{destination} is not bound to the waypoint at {waypoint}; ask the one that its label names")
    })?;
    Ok(Requests { http: vec![http], conditions, ..Requests::default() })
}

/// The request, whole.
fn question(args: &RequestArgs, connection: &Explanation) -> anyhow::Result<Question> {
    let destination = connection.destination.addresses.first().context("the destination has an address")?;
    let destination: SocketAddr = destination.parse().context("the destination's address")?;
    let own = connection.source.addresses.iter().filter_map(|text| text.parse::<IpAddr>().ok());
    let own: Vec<IpAddr> = own.collect();
    let own = own.iter().find(|ip| ip.is_ipv4() == destination.is_ipv4()).or(own.first());
    let mut headers: HeaderMap = HeaderMap::new();
    for (name, value) in &args.headers {
        headers.append(name, value.clone());
    }
    // As clients write it: the scheme's own port is left out.
    let asked = connection.destination.asked.strip_suffix(":80").unwrap_or(&connection.destination.asked);
    let host = headers.remove(HOST).and_then(|host| Some(host.to_str().ok()?.to_owned()));
    Ok(Question {
        peer: connection.source.identity.as_ref().and_then(|id| id.parse().ok()),
        namespace: connection.source.name.split('/').next().unwrap_or_default().to_owned(),
        source: SocketAddr::new(own.copied().context("the source has an address")?, 0),
        destination,
        method: args.method.clone().unwrap_or(Method::GET),
        authority: host.unwrap_or_else(|| asked.to_owned()),
        target: args.path.clone().unwrap_or_else(|| "/".to_owned()),
        headers,
    })
}

/// The condition of what the destination is.
fn binding(mesh: &Mesh, connection: &Explanation) -> Vec<Binding> {
    let of = |status: &&Status| status.part.is_none() && is_destination(status, connection);
    let told = |status: &Status| {
        let bound = status.conditions.iter().filter(|condition| condition.kind == BOUND);
        let one = |condition: &Condition| Binding {
            object: format!("{} {}/{}", status.kind, status.namespace, status.name),
            is_bound: condition.holds,
            reason: condition.reason.to_owned(),
            message: condition.message.to_string(),
        };
        bound.map(one).collect::<Vec<_>>()
    };
    mesh.statuses.iter().filter(of).flat_map(told).collect()
}

fn is_destination(status: &Status, connection: &Explanation) -> bool {
    let to = &connection.destination;
    match to.kind.as_str() {
        "service" => {
            matches!(status.kind, "Service" | "ServiceEntry")
                && to.name == format!("{}.{}", status.name, status.namespace)
        }
        _ => {
            matches!(status.kind, "Pod" | "WorkloadEntry")
                && to.name == format!("{}/{}", status.namespace, status.name)
        }
    }
}

fn no_waypoint(mesh: &Mesh, connection: &Explanation) -> String {
    if connection.routes.iter().all(|route| route.kind == RouteKind::Direct) {
        return "this request meets no waypoint: only the agent of a pod in the mesh sends what it calls through one".to_owned();
    }
    let names: Vec<String> = mesh.waypoints.iter().map(ToString::to_string).collect();
    let there = match &names[..] {
        [] => "a Gateway of class culvert-waypoint has to be there and ready".to_owned(),
        some => format!("ready waypoints are {}", some.join(", ")),
    };
    format!(
        "this request meets no waypoint, so nothing looks at its HTTP: label the service istio.io/use-waypoint=<name>; {there}"
    )
}

/// What the waypoint has for the destination.
fn has(key: &GatewayKey, waypoint: &Waypoint, mesh: &Mesh, to: SocketAddr, namespace: &str) -> Has {
    let service = mesh.snapshot.service_by_vip(to.ip(), namespace);
    let bound = service.and_then(|service| waypoint.services.get(&service.key));
    let policies = bound.map_or(&waypoint.policies, |bound| &bound.policies);
    let all = policies.deny.iter().chain(&policies.allow).chain(&policies.audit);
    let port = bound.and_then(|bound| bound.ports.get(&to.port()));
    Has {
        waypoint: key.to_string(),
        routes: port
            .map(|port| port.http.iter().map(|route| route.origin.to_string()).collect())
            .unwrap_or_default(),
        policies: all.map(|policy| policy.key.to_string()).collect(),
    }
}

fn unmet(statuses: &[Status]) -> Vec<Unmet> {
    let one = |status: &Status| {
        let part = status.part.as_ref().map(|part| format!(" ({part})")).unwrap_or_default();
        let object = format!("{} {}/{}{part}", status.kind, status.namespace, status.name);
        let failing =
            status.conditions.iter().filter(|condition| !condition.holds && condition.kind != BOUND);
        let told = failing.map(|condition| Unmet {
            object: object.clone(),
            condition: condition.kind.to_owned(),
            reason: condition.reason.to_owned(),
            message: condition.message.to_string(),
        });
        told.collect::<Vec<_>>()
    };
    statuses.iter().flat_map(one).collect()
}
