//! The headers of an HBONE CONNECT: `baggage`, `forwarded`, `traceparent`, and the answer's `culvert-denial`. Pure.

use std::fmt;
use std::net::SocketAddr;

use http::{HeaderName, HeaderValue};

use crate::model::Workload;
use crate::types::{push_addr, push_hex};

/// Header that describes a workload.
pub const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
/// Header that carries the trace context.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Header that carries a refusal's random id.
pub const DENIAL: &str = "culvert-denial";
/// Header that carries a refusal's class.
pub const DENIAL_CLASS: &str = "culvert-denial-class";

/// Why a CONNECT is refused, as the peer is told: by policy; because the agent drains or a budget is used up; because the
/// app does not take the connection; because the destination is no destination here; because it is no HBONE CONNECT.
pub const CLASSES: [&str; 7] = ["policy", "draining", "budget", "limit", "connect", "destination", "request"];

/// The class that a peer named, if it is one of [`CLASSES`].
pub fn known_class(name: &str) -> &'static str {
    CLASSES.into_iter().find(|class| *class == name).unwrap_or("unknown")
}

/// A peer's header is not looked at beyond this length.
const MAX_BAGGAGE: usize = 4096;
/// A value out of a peer's baggage is not kept beyond this length.
const MAX_VALUE: usize = 253;

/// What a peer says about itself. A hint for telemetry, never for a decision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the baggage keys")]
pub struct Baggage {
    pub cluster: Option<String>,
    pub namespace: Option<String>,
    pub workload_type: Option<&'static str>,
    pub workload_name: Option<String>,
    pub service_name: Option<String>,
    pub service_version: Option<String>,
    pub region: Option<String>,
    pub zone: Option<String>,
}

/// The `baggage` of a workload: `key=value` joined by commas, empty values left out.
pub fn baggage_of(workload: &Workload) -> String {
    let name_key = match workload.workload_type.as_str() {
        "deployment" => "k8s.deployment.name",
        "cronjob" => "k8s.cronjob.name",
        "job" => "k8s.job.name",
        _ => "k8s.pod.name",
    };
    let pairs = [
        ("k8s.cluster.name", &workload.cluster),
        ("k8s.namespace.name", &workload.namespace),
        (name_key, &workload.workload_name),
        ("service.name", &workload.canonical_name),
        ("service.version", &workload.canonical_revision),
        ("cloud.region", &workload.locality.region),
        ("cloud.availability_zone", &workload.locality.zone),
    ];
    let mut text = String::with_capacity(192);
    for (key, value) in pairs.iter().filter(|(_, value)| !value.is_empty()) {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(key);
        text.push('=');
        text.push_str(value);
    }
    text
}

impl Baggage {
    /// Reads header lines in their order; the last value of a key wins, unknown keys are ignored.
    pub fn parse<'a>(lines: impl IntoIterator<Item = &'a str>) -> Self {
        let mut baggage = Self::default();
        for line in lines {
            let end =
                (0..=line.len().min(MAX_BAGGAGE)).rev().find(|i| line.is_char_boundary(*i)).unwrap_or(0);
            for pair in line.get(..end).unwrap_or("").split(',') {
                let mut parts = pair.split('=');
                if let (Some(key), Some(value)) = (parts.next(), parts.next()) {
                    baggage.set(key.trim(), value.trim());
                }
            }
        }
        baggage
    }

    fn set(&mut self, key: &str, value: &str) {
        if value.is_empty() || value.len() > MAX_VALUE || value.chars().any(char::is_control) {
            return;
        }
        let value = Some(value.to_owned());
        match key {
            "k8s.cluster.name" => self.cluster = value,
            "k8s.namespace.name" => self.namespace = value,
            "k8s.deployment.name" => (self.workload_type, self.workload_name) = (Some("deployment"), value),
            "k8s.cronjob.name" => (self.workload_type, self.workload_name) = (Some("cronjob"), value),
            "k8s.pod.name" => (self.workload_type, self.workload_name) = (Some("pod"), value),
            "k8s.job.name" => (self.workload_type, self.workload_name) = (Some("job"), value),
            "service.name" => self.service_name = value,
            "service.version" => self.service_version = value,
            "cloud.region" => self.region = value,
            "cloud.availability_zone" => self.zone = value,
            _ => {}
        }
    }
}

/// The `forwarded` header: `for="<source>"` and, where a service was chosen, `;host=<its host name>`.
///
/// Source: RFC 7239 §4.
pub fn forwarded(source: SocketAddr, host: Option<&str>) -> String {
    let mut text = String::with_capacity(64 + host.map_or(0, str::len));
    text.push_str("for=\"");
    push_addr(&mut text, source);
    text.push('"');
    if let Some(host) = host {
        text.push_str(";host=");
        text.push_str(host);
    }
    text
}

/// A header's value that is another one in each CONNECT: the codecs of both ends do not put it into their tables, where
/// it would push out what all of them share.
///
/// **Errors**: the text has characters that a header may not have. **Source**: RFC 7541 §6.2.3.
pub fn once(text: &str) -> Result<HeaderValue, http::header::InvalidHeaderValue> {
    let mut value = HeaderValue::from_str(text)?;
    value.set_sensitive(true);
    Ok(value)
}

/// The `host=` of a `forwarded` header, without quotes. A hint for telemetry only.
pub fn forwarded_host(header: &str) -> Option<&str> {
    let first = header.split(',').next()?;
    let host = first.split(';').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        key.trim().eq_ignore_ascii_case("host").then(|| value.trim().trim_matches('"'))
    })?;
    (!host.is_empty() && host.len() <= 253).then_some(host)
}

/// W3C trace context of one connection; its trace id is also the log's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// Trace id, not all zero.
    pub trace: u128,
    /// Parent span id, not zero.
    pub parent: u64,
    /// Trace flags.
    pub flags: u8,
}

impl TraceParent {
    /// From random numbers; flags 00.
    pub fn new(trace: u128, parent: u64) -> Self {
        Self { trace: trace.max(1), parent: parent.max(1), flags: 0 }
    }

    /// **Errors**: `None` for anything but `00-<32 hex>-<16 hex>-<2 hex>`, 55 characters, lower case, ids not zero.
    ///
    /// Source: W3C Trace Context §3.2.
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("00-")?;
        let (trace, rest) = rest.split_at_checked(32)?;
        let (parent, rest) = rest.strip_prefix('-')?.split_at_checked(16)?;
        let flags = rest.strip_prefix('-').filter(|flags| flags.len() == 2)?;
        let parsed = Self {
            trace: hex(trace)?,
            parent: u64::try_from(hex(parent)?).ok()?,
            flags: u8::try_from(hex(flags)?).ok()?,
        };
        (parsed.trace != 0 && parsed.parent != 0).then_some(parsed)
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::with_capacity(55);
        text.push_str("00-");
        push_hex(&mut text, self.trace, 32);
        text.push('-');
        push_hex(&mut text, self.parent.into(), 16);
        text.push('-');
        push_hex(&mut text, self.flags.into(), 2);
        f.write_str(&text)
    }
}

/// A number of at most 32 lower-case hex digits.
fn hex(digits: &str) -> Option<u128> {
    digits.bytes().try_fold(0, |number, byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn forwarded_names_source_and_host() {
        let v4: SocketAddr = "10.0.0.1:4242".parse().unwrap();
        let v6: SocketAddr = "[fd00::1]:4242".parse().unwrap();
        assert_eq!(forwarded(v4, None), r#"for="10.0.0.1:4242""#);
        let both = forwarded(v6, Some("cart.shop.svc.cluster.local"));
        assert_eq!(both, r#"for="[fd00::1]:4242";host=cart.shop.svc.cluster.local"#);
        assert_eq!(forwarded_host(&both), Some("cart.shop.svc.cluster.local"));
        assert_eq!(forwarded_host(r#"for=x; Host="a.b""#), Some("a.b"));
        assert_eq!(forwarded_host(r#"for="10.0.0.1:1""#), None);
        assert_eq!(forwarded_host("host="), None);
    }

    #[test]
    fn traceparent_is_strict() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(TraceParent::parse(text).unwrap().to_string(), text);
        assert_eq!(TraceParent::new(0, 0).to_string().len(), 55);
        for bad in [
            "",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(TraceParent::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn baggage_takes_the_second_part_and_the_last_line() {
        let got = Baggage::parse([
            "k8s.namespace.name=a=b,x=y,k8s.job.name=j",
            "k8s.namespace.name=c,service.name=",
        ]);
        assert_eq!(got.namespace.as_deref(), Some("c"));
        assert_eq!((got.workload_type, got.workload_name.as_deref()), (Some("job"), Some("j")));
        assert_eq!(got.service_name, None);
    }

    proptest! {
        /// Header values are a peer's bytes: any text is read or ignored, never a panic, never kept without bound.
        #[test]
        fn any_header_is_read_or_ignored(text in ".{0,600}") {
            let got = Baggage::parse([text.as_str()]);
            prop_assert!(got.namespace.is_none_or(|n| n.len() <= MAX_VALUE));
            let _ = forwarded_host(&text);
            if let Some(trace) = TraceParent::parse(&text) {
                prop_assert_eq!(trace.to_string(), text);
            }
        }
    }
}
