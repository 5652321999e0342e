//! Routes as JSON for people and their tools; what a route does not say is left out.

use std::time::Duration;

use culvert_common::model::l7::{
    Abort, BackOff, Backend, Cors, Fault, Fraction, HeaderEdits, HeaderMatch, Mirror, PathRewrite, PathTest,
    Redirect, RedirectPath, RedirectPort, RequestMatch, Retries, RetryOn, Rewrite, Route, RouteAction,
    TcpMatch, TcpRoute, TextMatch, UnmatchedPreflight, Weighted,
};
use http::HeaderValue;
use serde_json::{Map, Value, json};

use super::dump::Names;

/// The fields of an object that say something.
pub(super) fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let says = |value: &Value| match value {
        Value::Null => false,
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
    };
    let said = fields.into_iter().filter(|(_, value)| says(value));
    Value::Object(said.map(|(key, value)| (key.to_owned(), value)).collect::<Map<_, _>>())
}

/// `1.5s`, as Go and people write it.
pub(super) fn time(time: Duration) -> Value {
    Value::String(format!("{time:?}"))
}

pub(super) fn list<T>(all: &[T], one: impl Fn(&T) -> Value) -> Value {
    Value::Array(all.iter().map(one).collect())
}

pub(super) fn route(route: &Route, names: &Names<'_>) -> Value {
    // Written out, so that a new field has to be shown.
    let Route {
        name,
        origin,
        matches,
        action,
        request_headers,
        response_headers,
        rewrite,
        timeout,
        retries,
        fault,
        mirrors,
        cors,
    } = route;
    let mut shown = object([
        ("name", json!(&**name)),
        ("from", json!(origin.to_string())),
        ("matches", list(matches, request_match)),
        ("requestHeaders", edits(request_headers)),
        ("responseHeaders", edits(response_headers)),
        ("rewrite", self::rewrite(rewrite)),
        ("timeout", timeout.map_or(Value::Null, time)),
        ("retries", self::retries(retries)),
        ("fault", self::fault(fault)),
        ("mirrors", list(mirrors, |one| mirror(one, names))),
        ("cors", cors.as_ref().map_or(Value::Null, self::cors)),
    ]);
    let (key, does) = match action {
        RouteAction::Forward(backends) => ("forward", list(backends, |one| weighted(one, names))),
        RouteAction::Redirect(to) => ("redirect", redirect(to)),
        RouteAction::Respond(direct) => {
            let body = String::from_utf8_lossy(&direct.body);
            ("respond", json!({ "status": direct.status.as_u16(), "body": body }))
        }
    };
    if let Value::Object(fields) = &mut shown {
        fields.insert(key.to_owned(), does);
    }
    shown
}

pub(super) fn tcp_route(route: &TcpRoute, names: &Names<'_>) -> Value {
    let TcpRoute { name, origin, matches, backends } = route;
    let to = |(to, weight): &(Backend, u32)| json!({ "to": backend(to, names, "tcp"), "weight": weight });
    object([
        ("name", json!(&**name)),
        ("from", json!(origin.to_string())),
        ("matches", list(matches, tcp_match)),
        ("forward", list(backends, to)),
    ])
}

fn tcp_match(one: &TcpMatch) -> Value {
    let TcpMatch { destinations, port, server_names } = one;
    object([
        ("destinations", list(destinations, |net| json!(net.to_string()))),
        ("port", json!(port)),
        ("serverNames", list(server_names, |name| json!(&**name))),
    ])
}

fn request_match(one: &RequestMatch) -> Value {
    let RequestMatch { path, method, scheme, authority, headers, without_headers, query, port } = one;
    let some = |text: &Option<TextMatch>| text.as_ref().map_or(Value::Null, self::text);
    object([
        ("path", path.as_ref().map_or(Value::Null, self::path)),
        ("method", some(method)),
        ("scheme", some(scheme)),
        ("authority", some(authority)),
        ("headers", list(headers, header)),
        ("withoutHeaders", list(without_headers, header)),
        ("query", list(query, |one| json!({ "name": &*one.name, "value": text(&one.value) }))),
        ("port", json!(port)),
    ])
}

fn header(one: &HeaderMatch) -> Value {
    json!({ "name": &*one.name, "value": text(&one.value) })
}

fn path(test: &PathTest) -> Value {
    match test {
        PathTest::Segments(prefix) => json!({ "pathPrefix": &**prefix }),
        PathTest::Text { text, ignore_case } => {
            let mut shown = self::text(text);
            if let (true, Value::Object(fields)) = (*ignore_case, &mut shown) {
                fields.insert("ignoreCase".to_owned(), true.into());
            }
            shown
        }
    }
}

fn text(wanted: &TextMatch) -> Value {
    match wanted {
        TextMatch::Exact(text) => json!({ "exact": &**text }),
        TextMatch::Prefix(text) => json!({ "prefix": &**text }),
        TextMatch::Regex(pattern) => json!({ "regex": pattern.as_str() }),
        TextMatch::Present => json!({ "present": true }),
    }
}

fn weighted(one: &Weighted, names: &Names<'_>) -> Value {
    let Weighted { backend: to, weight, request_headers, response_headers, rewrite, mirrors } = one;
    object([
        ("to", backend(to, names, "http")),
        ("weight", json!(weight)),
        ("requestHeaders", edits(request_headers)),
        ("responseHeaders", edits(response_headers)),
        ("rewrite", self::rewrite(rewrite)),
        ("mirrors", list(mirrors, |one| mirror(one, names))),
    ])
}

fn backend(to: &Backend, names: &Names<'_>, kind: &str) -> Value {
    match to {
        Backend::Cluster(key) => json!({ "cluster": names.cluster(key, kind), "isKnown": names.has(key) }),
        Backend::Invalid { status, reason } => json!({ "status": status.as_u16(), "invalid": &**reason }),
    }
}

fn mirror(one: &Mirror, names: &Names<'_>) -> Value {
    json!({ "to": backend(&one.backend, names, "http"), "percent": percent(one.share) })
}

fn percent(share: Fraction) -> Value {
    json!(f64::from(share.0) / 10_000.0)
}

fn value(value: &HeaderValue) -> Value {
    json!(String::from_utf8_lossy(value.as_bytes()))
}

fn edits(edits: &HeaderEdits) -> Value {
    let HeaderEdits { set, add, remove, authority } = edits;
    let pair =
        |(name, to): &(http::HeaderName, HeaderValue)| json!({ "name": name.as_str(), "value": value(to) });
    object([
        ("set", list(set, pair)),
        ("add", list(add, pair)),
        ("remove", list(remove, |name| json!(name.as_str()))),
        ("authority", authority.as_ref().map_or(Value::Null, value)),
    ])
}

fn rewrite(rewrite: &Rewrite) -> Value {
    let path = rewrite.path.as_ref().map_or(Value::Null, |path| match path {
        PathRewrite::PrefixText(text) => json!({ "prefix": &**text }),
        PathRewrite::PrefixSegments(text) => json!({ "pathPrefix": &**text }),
        PathRewrite::Full(text) => json!({ "full": &**text }),
        PathRewrite::Regex { pattern, substitution } => {
            json!({ "regex": pattern.as_str(), "substitution": &**substitution })
        }
    });
    object([("path", path), ("authority", rewrite.authority.as_ref().map_or(Value::Null, value))])
}

fn redirect(to: &Redirect) -> Value {
    let Redirect { status, scheme, authority, port, path } = to;
    let port = match port {
        RedirectPort::Number(port) => json!(port),
        RedirectPort::OfScheme => json!("of the scheme"),
        RedirectPort::OfRequest => json!("of the request"),
    };
    let path = match path {
        RedirectPath::Same => Value::Null,
        RedirectPath::Full(text) => json!({ "full": &**text }),
        RedirectPath::PrefixText(text) => json!({ "prefix": &**text }),
        RedirectPath::PrefixSegments(text) => json!({ "pathPrefix": &**text }),
    };
    object([
        ("status", json!(status.as_u16())),
        ("scheme", json!(scheme.as_deref())),
        ("authority", json!(authority.as_deref())),
        ("port", port),
        ("path", path),
    ])
}

fn retries(retries: &Retries) -> Value {
    let Retries { attempts, on, per_try_timeout, back_off, ignore_previous_hosts, remote_localities } =
        retries;
    let (key, pause) = match back_off {
        BackOff::Jittered { base } => ("base", *base),
        BackOff::AtLeast(pause) => ("atLeast", *pause),
    };
    object([
        ("attempts", json!(attempts)),
        ("on", retry_on(on)),
        ("perTryTimeout", per_try_timeout.map_or(Value::Null, time)),
        ("backOff", json!({ key: time(pause) })),
        ("ignorePreviousHosts", json!(ignore_previous_hosts)),
        ("remoteLocalities", if *remote_localities { json!(true) } else { Value::Null }),
    ])
}

/// The tokens as a VirtualService writes them.
fn retry_on(on: &RetryOn) -> Value {
    let grpc = on.grpc_statuses.iter().map(|status| match status {
        1 => "cancelled".to_owned(),
        4 => "deadline-exceeded".to_owned(),
        8 => "resource-exhausted".to_owned(),
        13 => "internal".to_owned(),
        14 => "unavailable".to_owned(),
        other => format!("grpc {other}"),
    });
    json!(on.tokens().into_iter().chain(grpc).collect::<Vec<_>>())
}

fn fault(fault: &Fault) -> Value {
    let delay = fault
        .delay
        .map_or(Value::Null, |delay| json!({ "fixed": time(delay.fixed), "percent": percent(delay.share) }));
    let abort = fault.abort.map_or(Value::Null, |Abort { status, grpc_status, share }| {
        object([
            ("status", json!(status.as_u16())),
            ("grpcStatus", json!(grpc_status)),
            ("percent", percent(share)),
        ])
    });
    object([("delay", delay), ("abort", abort)])
}

fn cors(cors: &Cors) -> Value {
    let Cors { origins, methods, headers, expose, max_age, credentials, unmatched } = cors;
    let some = |header: &Option<HeaderValue>| header.as_ref().map_or(Value::Null, value);
    object([
        ("origins", list(origins, text)),
        ("methods", some(methods)),
        ("headers", some(headers)),
        ("expose", some(expose)),
        ("maxAge", max_age.map_or(Value::Null, time)),
        ("credentials", json!(credentials)),
        ("answersUnmatchedPreflights", json!(*unmatched == UnmatchedPreflight::Answer)),
    ])
}

#[cfg(test)]
mod tests {
    use culvert_common::model::l7::{Cluster, ClusterKey, Waypoint};
    use culvert_common::source::file;
    use culvert_common::source::kube::Settings;

    use super::super::dump;
    use super::*;

    /// What a directory makes of the waypoint `shop/waypoint`.
    fn waypoint(documents: &str) -> Waypoint {
        let dir =
            std::env::temp_dir().join(format!("waypoint-dump-{:032x}", culvert_common::crypto::random()));
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("mesh.yaml"), documents).unwrap();
        let gateway =
            culvert_common::model::l7::GatewayKey { namespace: "shop".into(), name: "waypoint".into() };
        let settings = Settings { waypoint: Some(gateway), ..Settings::default() };
        let read = file::load(&dir, &settings);
        std::fs::remove_dir_all(&dir).unwrap();
        std::sync::Arc::unwrap_or_clone(read.unwrap().model.waypoint.unwrap())
    }

    const DOCUMENTS: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop}
spec: {gatewayClassName: culvert-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec: {clusterIP: 10.96.0.1, selector: {app: cart}, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: cart, namespace: shop}
spec:
  hosts: [cart]
  http:
  - name: all
    match: [{uri: {prefix: /a}, ignoreUriCase: true, headers: {x: {exact: "1"}}, method: {exact: GET}}]
    headers: {request: {set: {a: b}, remove: [c]}}
    rewrite: {uri: /b}
    timeout: 1500ms
    retries: {attempts: 3, retryOn: "5xx,503,unavailable", perTryTimeout: 200ms}
    fault: {delay: {fixedDelay: 5s, percentage: {value: 0.5}}, abort: {httpStatus: 418, percentage: {value: 100}}}
    mirror: {host: cart}
    mirrorPercentage: {value: 10}
    corsPolicy: {allowOrigins: [{exact: "http://ok"}], maxAge: 7s}
    route: [{destination: {host: cart}, weight: 90}, {destination: {host: cart, subset: none}, weight: 10}]
  - redirect: {uri: /x, redirectCode: 302}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: cart, namespace: shop}
spec: {host: cart, trafficPolicy: {connectionPool: {http: {http2MaxRequests: 7}}, outlierDetection: {interval: 3s}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-admin, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: "", name: cart}]
  action: DENY
  rules: [{from: [{source: {notNamespaces: [shop]}}], to: [{operation: {paths: ["/admin*"], ports: ["80"]}}], when: [{key: "request.headers[x]", values: ["a*"]}]}]
"#;

    #[test]
    fn what_is_in_force_is_shown_as_json() {
        let waypoint = waypoint(DOCUMENTS);
        let shown = dump::services(&waypoint);
        let port = &shown[0]["ports"][0];
        assert_eq!(
            (&shown[0]["service"], &port["port"]),
            (&json!("shop/cart.shop.svc.cluster.local"), &json!(80))
        );
        let known = |subset: &str, is_known| {
            let cluster = format!("inbound-vip|80|http{subset}|cart.shop.svc.cluster.local");
            json!({ "cluster": cluster, "isKnown": is_known })
        };
        let want = json!({
            "name": "all",
            "from": "VirtualService shop/cart rule 0",
            "matches": [{
                "path": { "prefix": "/a", "ignoreCase": true },
                "method": { "exact": "GET" },
                "headers": [{ "name": "x", "value": { "exact": "1" } }],
            }],
            "requestHeaders": { "set": [{ "name": "a", "value": "b" }], "remove": ["c"] },
            "rewrite": { "path": { "prefix": "/b" } },
            "timeout": "1.5s",
            "retries": {
                "attempts": 3,
                "on": ["5xx", "503", "unavailable"],
                "perTryTimeout": "200ms",
                "backOff": { "base": "25ms" },
            },
            "fault": {
                "delay": { "fixed": "5s", "percent": 0.5 },
                "abort": { "status": 418, "percent": 100.0 },
            },
            "mirrors": [{ "to": known("", true), "percent": 10.0 }],
            "cors": {
                "origins": [{ "exact": "http://ok" }],
                "maxAge": "7s",
                "credentials": false,
                "answersUnmatchedPreflights": false,
            },
            "forward": [
                { "to": known("", true), "weight": 90 },
                { "to": known("/none", false), "weight": 10 },
            ],
        });
        assert_eq!(port["routes"][0], want, "{:#}", port["routes"][0]);
        assert_eq!(port["routes"][1]["redirect"]["status"], 302);
        let policy = &shown[0]["policies"]["deny"][0];
        let want = json!({
            "policy": "shop/no-admin",
            "rules": [{
                "from": [{ "notNamespaces": ["shop"] }],
                "to": [{ "paths": ["/admin*"], "ports": ["80"] }],
                "when": [{ "key": "request.headers[x]", "values": ["a*"] }],
            }],
        });
        assert_eq!(policy, &want, "{policy:#}");
    }

    #[test]
    fn a_destination_is_shown_with_its_settings() {
        let waypoint = waypoint(DOCUMENTS);
        let find = |key: &ClusterKey| key.subset.is_none();
        let (_, cluster): (_, &std::sync::Arc<Cluster>) =
            waypoint.clusters.iter().find(|(key, _)| find(key)).unwrap();
        let shown = dump::settings(cluster);
        assert_eq!(shown["connectionPool"]["http"]["maxRequests"], 7, "{shown:#}");
        assert_eq!(
            shown["connectionPool"]["http"].get("maxRetries"),
            None,
            "what has no limit is left out: {shown:#}"
        );
        assert_eq!(shown["outlierDetection"]["interval"], "3s", "{shown:#}");
        assert_eq!(shown["loadBalancer"], "LEAST_REQUEST");
    }
}
