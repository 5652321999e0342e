//! `trafficPolicy` of a DestinationRule: its blocks, field by field.
//!
//! What is not built yet is kept as the reason for which nothing may go to such a destination.

use std::sync::Arc;
use std::time::Duration;

use super::values::{
    decimal, duration_at, duration_or_zero, integer, limit_at, number_at, percent_at, warn_unused,
};
use crate::model::l7::{Balance, ConnectionPool, Keepalive, Outliers, RetryBudget, Upgrade};
use crate::source::kube::reader::Field;

/// Settings that have a block of their own, with what of it cannot be done.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Block<T> {
    pub(super) value: T,
    /// Object, field and reason.
    pub(super) refused: Option<Arc<str>>,
}

/// The blocks that a port replaces as a whole.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Blocks {
    pub(super) balance: Option<Block<Balance>>,
    pub(super) pool: Option<Block<ConnectionPool>>,
    pub(super) outliers: Option<Block<Outliers>>,
    pub(super) tls: Option<Block<()>>,
}

/// A traffic policy of a rule or a subset.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct TrafficPolicy {
    pub(super) blocks: Blocks,
    pub(super) ports: Vec<(u16, Blocks)>,
    pub(super) retry_budget: Option<Block<RetryBudget>>,
    /// `tunnel` and `proxyProtocol`.
    pub(super) tunnel: Option<Block<()>>,
}

const BLOCKS: [&str; 4] = ["loadBalancer", "connectionPool", "outlierDetection", "tls"];
const FIELDS: [&str; 8] = [
    "loadBalancer",
    "connectionPool",
    "outlierDetection",
    "tls",
    "portLevelSettings",
    "tunnel",
    "proxyProtocol",
    "retryBudget",
];

/// Reads `trafficPolicy` of `parent`.
pub(super) fn read(parent: &Field<'_>) -> Option<TrafficPolicy> {
    let field = parent.get("trafficPolicy")?;
    field.only(&FIELDS);
    if FIELDS.iter().all(|key| field.get(key).is_none()) {
        field.problem("an empty policy", "allowed: at least one field");
    }
    if let (Some(_), Some(proxy)) = (field.get("tunnel"), field.get("proxyProtocol")) {
        proxy.problem("proxyProtocol beside tunnel", "allowed: one of them");
    }
    let tunnel = ["tunnel", "proxyProtocol"].iter().find_map(|key| field.get(key));
    Some(TrafficPolicy {
        blocks: blocks(&field),
        ports: field.items("portLevelSettings").iter().filter_map(port).collect(),
        retry_budget: field.get("retryBudget").map(|budget| retry_budget(&budget)),
        tunnel: tunnel.map(|tunnel| Block { value: (), refused: Some(refuse(&tunnel)) }),
    })
}

fn port(item: &Field<'_>) -> Option<(u16, Blocks)> {
    item.only(&["port", "loadBalancer", "connectionPool", "outlierDetection", "tls"]);
    let number = item.get("port").and_then(|port| {
        port.only(&["number"]);
        port.get("number")
    });
    if number.is_none() {
        item.problem("no port", "allowed: port with a number");
    }
    if BLOCKS.iter().all(|key| item.get(key).is_none()) {
        item.problem("an empty policy", format!("allowed: {}", BLOCKS.join(", ")));
    }
    Some((number?.port()?, blocks(item)))
}

fn blocks(field: &Field<'_>) -> Blocks {
    Blocks {
        balance: field.get("loadBalancer").map(|balance| balancer(&balance)),
        pool: field.get("connectionPool").map(|pool| Block { value: connection_pool(&pool), refused: None }),
        outliers: field
            .get("outlierDetection")
            .map(|outliers| Block { value: read_outliers(&outliers), refused: None }),
        tls: field.get("tls").map(|settings| Block { value: (), refused: tls(&settings) }),
    }
}

/// Warns of what is not built and says it as the reason of a refusal.
fn refuse(field: &Field<'_>) -> Arc<str> {
    field.warning("not built yet", "nothing is sent to this destination, rather than sent otherwise");
    format!("{}: {} is not built yet", field.at().object, field.path()).into()
}

fn balancer(field: &Field<'_>) -> Block<Balance> {
    let not_built =
        ["consistentHash", "localityLbSetting", "zoneAwareLbSetting", "warmupDurationSecs", "warmup"];
    field.only(&[&["simple"][..], &not_built[..]].concat());
    let simple = [
        ("UNSPECIFIED", Balance::LeastRequest),
        ("LEAST_REQUEST", Balance::LeastRequest),
        ("LEAST_CONN", Balance::LeastRequest),
        ("ROUND_ROBIN", Balance::RoundRobin),
        ("RANDOM", Balance::Random),
        ("PASSTHROUGH", Balance::Passthrough),
    ];
    if let Some(hash) = field.get("consistentHash") {
        check_hash(&hash);
        if field.get("simple").is_some() {
            hash.problem("consistentHash beside simple", "allowed: one of them");
        }
    }
    // That localities do not count is what is built.
    let is_off = |f: &Field<'_>| f.maybe_flag_at("enabled") == Some(false) && f.entries().len() == 1;
    let asks = |key: &&str| field.get(key).filter(|f| !key.ends_with("LbSetting") || !is_off(f));
    let refused = not_built.iter().filter_map(asks).map(|f| refuse(&f)).reduce(|first, _| first);
    Block {
        value: field.get("simple").and_then(|simple_field| simple_field.one_of(&simple)).unwrap_or_default(),
        refused,
    }
}

fn check_hash(field: &Field<'_>) {
    let cookie = field.get("httpCookie");
    if let Some(cookie) = cookie.filter(|cookie| cookie.text_at("name").is_none()) {
        cookie.problem("no name", "allowed: the name of a cookie");
    }
    let is_prime = |n: i64| n > 1 && (2..).take_while(|d| d * d <= n).all(|d| n % d != 0);
    let Some(maglev) = field.get("maglev") else { return };
    match maglev.get("tableSize") {
        None => maglev.problem("no tableSize", "allowed: a prime number below 5000011"),
        Some(size) => {
            if integer(&size, 1, 5_000_010).is_some_and(|n| !is_prime(n)) {
                size.refuse("a prime number below 5000011");
            }
        }
    }
}

fn connection_pool(field: &Field<'_>) -> ConnectionPool {
    field.only(&["tcp", "http"]);
    if field.is_empty() {
        field.problem("an empty block", "allowed: tcp, http or both");
    }
    let mut pool = ConnectionPool::default();
    if let Some(tcp) = field.get("tcp") {
        let fields =
            ["maxConnections", "connectTimeout", "tcpKeepalive", "maxConnectionDuration", "idleTimeout"];
        tcp.only(&fields);
        pool.max_connections = limit_at(&tcp, "maxConnections").unwrap_or(u32::MAX);
        pool.connect_timeout = duration_at(&tcp, "connectTimeout").unwrap_or(pool.connect_timeout);
        pool.keepalive = tcp.get("tcpKeepalive").map(|keepalive| read_keepalive(&keepalive));
        pool.max_connection_duration = duration_at(&tcp, "maxConnectionDuration");
        if let Some(idle) = tcp.get("idleTimeout").and_then(|idle| duration_or_zero(&idle)) {
            let idle = Some(idle).filter(|idle| !idle.is_zero());
            (pool.tcp_idle, pool.http_idle) = (idle, idle);
        }
    }
    if let Some(http) = field.get("http") {
        http_pool(&http, &mut pool);
    }
    pool
}

fn read_keepalive(field: &Field<'_>) -> Keepalive {
    field.only(&["probes", "time", "interval"]);
    Keepalive {
        probes: number_at(field, "probes").filter(|n| *n > 0),
        time: duration_at(field, "time"),
        interval: duration_at(field, "interval"),
    }
}

fn http_pool(field: &Field<'_>, pool: &mut ConnectionPool) {
    field.only(&[
        "http1MaxPendingRequests",
        "http2MaxRequests",
        "maxRequestsPerConnection",
        "maxRetries",
        "idleTimeout",
        "h2UpgradePolicy",
        "useClientProtocol",
        "maxConcurrentStreams",
        "http2KeepAlive",
    ]);
    pool.max_pending = limit_at(field, "http1MaxPendingRequests").unwrap_or(u32::MAX);
    pool.max_requests = limit_at(field, "http2MaxRequests").unwrap_or(u32::MAX);
    pool.max_requests_per_connection = limit_at(field, "maxRequestsPerConnection").unwrap_or(0);
    pool.max_retries = limit_at(field, "maxRetries").unwrap_or(u32::MAX);
    pool.http_idle = duration_at(field, "idleTimeout").or(pool.http_idle);
    pool.max_streams = limit_at(field, "maxConcurrentStreams").unwrap_or(u32::MAX);
    let upgrades =
        [("DEFAULT", Upgrade::ByPort), ("DO_NOT_UPGRADE", Upgrade::ByPort), ("UPGRADE", Upgrade::Always)];
    pool.upgrade = field.get("h2UpgradePolicy").and_then(|how| how.one_of(&upgrades)).unwrap_or_default();
    if field.flag_at("useClientProtocol") {
        if pool.upgrade == Upgrade::Always {
            field.problem("useClientProtocol beside h2UpgradePolicy UPGRADE", "allowed: one of them");
        }
        pool.upgrade = Upgrade::AsClient;
    }
    if let Some(ping) = field.get("http2KeepAlive") {
        ping.only(&["interval", "timeout"]);
        pool.ping = duration_at(&ping, "interval").zip(duration_at(&ping, "timeout"));
        if pool.ping.is_none() {
            ping.warning("no interval or no timeout", "both are needed; it has no effect");
        }
    }
}

/// The old name of `consecutive5xxErrors`, which Istio takes and does not act on.
const OLD: &str = "consecutiveErrors";

fn read_outliers(field: &Field<'_>) -> Outliers {
    field.only(&[
        OLD,
        "interval",
        "baseEjectionTime",
        "maxEjectionPercent",
        "minHealthPercent",
        "consecutiveGatewayErrors",
        "consecutive5xxErrors",
        "splitExternalLocalOriginErrors",
        "consecutiveLocalOriginFailures",
        "outlierDetectionHttpErrorCodes",
    ]);
    warn_unused(field, "outlierDetectionHttpErrorCodes", "it is not applied at a waypoint");
    let old = field.get(OLD).and_then(|old| {
        old.warning(
            "consecutiveErrors is deprecated",
            "it is read as consecutive5xxErrors, unless that is said; Istio does not act on it",
        );
        integer(&old, 0, i32::MAX.into()).and_then(|n| u32::try_from(n).ok())
    });
    let local = field.get("consecutiveLocalOriginFailures");
    let split = field.flag_at("splitExternalLocalOriginErrors");
    if let Some(local) = local.filter(|_| !split) {
        local.problem(
            "set although splitExternalLocalOriginErrors is not",
            "allowed: beside splitExternalLocalOriginErrors: true",
        );
    }
    Outliers {
        consecutive_5xx: number_at(field, "consecutive5xxErrors").or(old).unwrap_or(5),
        consecutive_gateway: number_at(field, "consecutiveGatewayErrors").unwrap_or(0),
        consecutive_local: split.then(|| number_at(field, "consecutiveLocalOriginFailures").unwrap_or(5)),
        interval: duration_at(field, "interval").unwrap_or(Duration::from_secs(10)),
        base_ejection: duration_at(field, "baseEjectionTime").unwrap_or(Duration::from_secs(30)),
        max_ejection_percent: percent_at(field, "maxEjectionPercent").filter(|percent| *percent > 0),
        min_health_percent: percent_at(field, "minHealthPercent").unwrap_or(0),
        failure_percent: None,
    }
}

fn retry_budget(field: &Field<'_>) -> Block<RetryBudget> {
    field.only(&["percent", "minRetryConcurrency", "budgetInterval"]);
    let percent = field.get("percent").and_then(|percent| decimal(&percent, 0.0, 100.0));
    let interval = field.get("budgetInterval");
    let asked = interval.filter(|interval| duration_or_zero(interval).is_some_and(|d| !d.is_zero()));
    Block {
        value: RetryBudget {
            percent: percent.unwrap_or(20.0),
            min_concurrency: number_at(field, "minRetryConcurrency").unwrap_or(3),
        },
        refused: asked.map(|interval| refuse(&interval)),
    }
}

/// TLS inside the tunnel is not built; that of the tunnel needs no setting.
fn tls(field: &Field<'_>) -> Option<Arc<str>> {
    let files = ["clientCertificate", "privateKey", "caCertificates", "caCrl", "credentialName"];
    let others = ["mode", "subjectAltNames", "sni", "insecureSkipVerify"];
    field.only(&[&files[..], &others[..]].concat());
    let modes = ["DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL"].map(|mode| (mode, mode));
    let mode = field.get("mode").map_or(Some("DISABLE"), |mode| mode.one_of(&modes))?;
    let said = |key: &str| field.get(key).filter(|f| f.text() != Some(""));
    match mode {
        "ISTIO_MUTUAL" => {
            for file in files.iter().filter_map(|key| said(key)) {
                file.problem("set although mode is ISTIO_MUTUAL", "allowed: with SIMPLE or MUTUAL");
            }
            None
        }
        "MUTUAL"
            if said("credentialName").is_none() && (said(files[0]).is_none() || said(files[1]).is_none()) =>
        {
            field.problem(
                "MUTUAL without a certificate",
                "allowed: clientCertificate and privateKey, or credentialName",
            );
            None
        }
        "SIMPLE" | "MUTUAL" => {
            field.warning("not built yet", "nothing is sent to this destination, rather than sent otherwise");
            Some(format!("{}: {} with mode {mode} is not built yet", field.at().object, field.path()).into())
        }
        _ => None,
    }
}
