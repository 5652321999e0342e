//! The line of the access log: Envoy's default text, or the same as an object.
//!
//! It is made from the request as it went on, as Envoy's is, and only if somebody wants it. **Source**: Envoy, default
//! format of access logs; l7.md §8.3.

use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::time::SystemTime;

use culvert_common::model::l7::{ClusterKey, Waypoint};
use http::HeaderName;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{FORWARDED_FOR, REQUEST_ID};
use crate::message::{Request, Version};
use crate::request::Told;
use crate::serve::{Stage, Target};

const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
/// Where what is addressed to a workload goes on, as Istio names it.
const ENCAP: &str = "encap";

/// What the line is of.
#[derive(Clone, Copy)]
pub(super) enum Subject<'a> {
    /// A request, as it went on.
    Request(&'a Request),
    /// What was no request of this version.
    Malformed(Version),
    /// A TCP connection.
    Tcp,
}

/// What is over, with what became of it.
pub(super) struct Line<'a> {
    pub(super) stage: &'a Stage,
    pub(super) told: &'a Told,
    pub(super) subject: Subject<'a>,
}

impl Line<'_> {
    fn request(&self) -> Option<&Request> {
        match self.subject {
            Subject::Request(request) => Some(request),
            Subject::Malformed(_) | Subject::Tcp => None,
        }
    }

    fn header(&self, name: &HeaderName) -> Option<&[u8]> {
        self.request()?.headers.get(name).map(http::HeaderValue::as_bytes)
    }

    fn method(&self) -> Option<&str> {
        Some(self.request()?.method.as_str())
    }

    /// As the client asked for it; a CONNECT has none.
    pub(super) fn path(&self) -> Option<&[u8]> {
        let path = self.header(&ORIGINAL_PATH).or(self.request().map(|request| request.path.as_bytes()));
        path.filter(|path| !path.is_empty())
    }

    fn protocol(&self) -> Option<&'static str> {
        match self.subject {
            Subject::Request(request) => Some(request.version.as_str()),
            Subject::Malformed(version) => Some(version.as_str()),
            Subject::Tcp => None,
        }
    }

    fn authority(&self) -> Option<&[u8]> {
        self.request().map(|request| request.authority.as_bytes())
    }

    fn started(&self) -> Stamp {
        Stamp(self.told.started)
    }

    fn status(&self) -> u16 {
        self.told.status.map_or(0, |status| status.as_u16())
    }

    fn duration(&self) -> u64 {
        u64::try_from(self.told.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn service_time(&self) -> Option<u128> {
        self.told.upstream_time.map(|time| time.as_millis())
    }

    fn endpoint(&self) -> Option<SocketAddr> {
        self.told.endpoint.as_ref().map(|endpoint| endpoint.address)
    }

    pub(super) fn cluster(&self) -> Option<String> {
        let kind = if matches!(self.subject, Subject::Tcp) { "tcp" } else { "http" };
        match (&self.told.cluster, &self.stage.target) {
            (Some(key), _) => Some(cluster_name(&self.stage.worker.shared.current().waypoint, key, kind)),
            (None, Target::Workload(_)) => self.endpoint().map(|_| ENCAP.to_owned()),
            (None, Target::Service(..)) => None,
        }
    }

    fn route(&self) -> Option<&str> {
        self.told.route.as_deref().filter(|name| !name.is_empty())
    }

    /// Of a response and of a connection: what is told of one is not told of the other.
    fn details(&self) -> (Option<&str>, Option<&str>) {
        let details = filled(&self.told.details);
        if matches!(self.subject, Subject::Tcp) { (None, details) } else { (details, None) }
    }

    /// The same as an object; what there is nothing of is null.
    pub(super) fn json(&self) -> Value {
        let text = |text: Option<&[u8]>| text.map(plain);
        let (told, (details, termination)) = (self.told, self.details());
        json!({
            "start_time": self.started().to_string(),
            "route_name": self.route(),
            "method": self.method(),
            "path": text(self.path()),
            "protocol": self.protocol(),
            "response_code": self.status(),
            "response_flags": told.flags.to_string(),
            "response_code_details": details,
            "connection_termination_details": termination,
            "bytes_received": told.received,
            "bytes_sent": told.sent,
            "duration": self.duration(),
            "upstream_service_time": self.service_time().map(|time| time.to_string()),
            "x_forwarded_for": text(self.header(&FORWARDED_FOR)),
            "user_agent": text(self.header(&http::header::USER_AGENT)),
            "request_id": text(self.header(&REQUEST_ID)),
            "authority": text(self.authority()),
            "upstream_host": self.endpoint().map(|address| address.to_string()),
            "upstream_cluster": self.cluster(),
            "upstream_local_address": null,
            "downstream_local_address": self.stage.destination.to_string(),
            "downstream_remote_address": self.stage.client.address.to_string(),
            "requested_server_name": null,
            "upstream_transport_failure_reason": filled(&told.transport),
        })
    }
}

/// Envoy's default text.
impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told = self.told;
        let (method, path, protocol) = (OrDash(self.method()), Shown(self.path()), OrDash(self.protocol()));
        write!(f, "[{}] \"{method} {path} {protocol}\" {} {} ", self.started(), self.status(), told.flags)?;
        let (details, termination) = self.details();
        // Spaces would end the field.
        let (details, termination) = (Shown(details.map(str::as_bytes)), OrDash(termination));
        let reason = Shown(filled(&told.transport).map(str::as_bytes));
        write!(f, "{details} {termination} \"{reason}\" ")?;
        write!(f, "{} {} {} ", told.received, told.sent, self.duration())?;
        write!(f, "{} ", OrDash(self.service_time()))?;
        for name in [&FORWARDED_FOR, &http::header::USER_AGENT, &REQUEST_ID] {
            write!(f, "\"{}\" ", Shown(self.header(name)))?;
        }
        write!(f, "\"{}\" ", Shown(self.authority()))?;
        write!(f, "\"{}\" {} - ", OrDash(self.endpoint()), OrDash(self.cluster()))?;
        // Who writes a route's name is no stranger, but may be one to this log.
        let (stage, route) = (self.stage, Shown(self.route().map(str::as_bytes)));
        write!(f, "{} {} - {route}", stage.destination, stage.client.address)
    }
}

/// A destination as Istio's waypoint names it: `inbound-vip|<port>|<http or tcp>[/<subset>]|<host>` if it is bound to this
/// waypoint, else `outbound|<port>|<subset>|<host>`.
pub(crate) fn cluster_name(waypoint: &Waypoint, key: &ClusterKey, kind: &str) -> String {
    if !waypoint.services.contains_key(&key.service) {
        return key.to_string();
    }
    let (slash, subset) = key.subset.as_deref().map_or(("", ""), |subset| ("/", subset));
    format!("inbound-vip|{}|{kind}{slash}{subset}|{}", key.port, key.service.hostname)
}

/// A time in UTC, to the millisecond.
struct Stamp(SystemTime);

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = OffsetDateTime::from(self.0);
        let (date, (hour, minute, second)) = (at.date(), at.to_hms());
        write!(f, "{date}T{hour:02}:{minute:02}:{second:02}.{:03}Z", at.millisecond())
    }
}

/// The text, unless it is empty.
fn filled(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

/// A text that a stranger chose, for JSON, which escapes it.
fn plain(text: &[u8]) -> String {
    String::from_utf8_lossy(text.get(..SHOWN).unwrap_or(text)).into_owned()
}

/// A value, or `-`.
pub(super) struct OrDash<T>(pub(super) Option<T>);

impl<T: fmt::Display> fmt::Display for OrDash<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(value) => value.fmt(f),
            None => f.write_char('-'),
        }
    }
}

/// A text that a stranger chose, without anything that ends a field or a line; `-` for none.
pub(super) struct Shown<'a>(pub(super) Option<&'a [u8]>);

/// Longest text that is shown.
const SHOWN: usize = 1024;

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(text) = self.0 else { return f.write_str("-") };
        for byte in text.iter().take(SHOWN) {
            match byte {
                b'"' | b'\\' => write!(f, "\\{}", char::from(*byte))?,
                0x20..=0x7e => f.write_char(char::from(*byte))?,
                _ => write!(f, "\\x{byte:02x}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use culvert_common::model::l7::Bound;
    use culvert_common::types::ServiceKey;

    use super::*;

    #[test]
    fn what_a_stranger_chose_stays_in_its_field() {
        assert_eq!(Shown(Some(b"a\"b\\c\n\xff")).to_string(), "a\\\"b\\\\c\\x0a\\xff");
        assert_eq!(Shown(None).to_string(), "-");
        assert_eq!(plain(&[b'a'; 2 * SHOWN]).len(), SHOWN);
    }

    #[test]
    fn times_have_milliseconds() {
        let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(1_700_000_000_007);
        assert_eq!(Stamp(at).to_string(), "2023-11-14T22:13:20.007Z");
    }

    #[test]
    fn what_is_not_known_is_a_dash() {
        assert_eq!(OrDash(None::<u8>).to_string(), "-");
        assert_eq!(OrDash(Some(7)).to_string(), "7");
        assert_eq!((filled(""), filled("a")), (None, Some("a")));
    }

    #[test]
    fn destinations_have_the_names_that_istio_gives_them() {
        let key = |host: &str| ServiceKey { namespace: "shop".into(), hostname: host.into() };
        let mut waypoint = Waypoint::default();
        let bound = Bound { ports: std::collections::BTreeMap::new(), policies: std::sync::Arc::default() };
        waypoint.services.insert(key("cart"), bound);
        let cluster = |host, subset: Option<&str>| ClusterKey {
            service: key(host),
            port: 80,
            subset: subset.map(Into::into),
        };
        for (host, subset, kind, name) in [
            ("cart", None, "http", "inbound-vip|80|http|cart"),
            ("cart", Some("v2"), "http", "inbound-vip|80|http/v2|cart"),
            ("cart", None, "tcp", "inbound-vip|80|tcp|cart"),
            ("cart", Some("v2"), "tcp", "inbound-vip|80|tcp/v2|cart"),
            ("other", None, "http", "outbound|80||other"),
            ("other", Some("v2"), "http", "outbound|80|v2|other"),
        ] {
            assert_eq!(cluster_name(&waypoint, &cluster(host, subset), kind), name);
        }
    }
}
