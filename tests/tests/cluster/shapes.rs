//! Authorization and peer authentication of many shapes, written with kubectl and translated by istiod: who gets through
//! to which port. What is expected is what Istio's documentation and its node proxy's rules say.

use crate::kube::{SOON, agent_page, apply, try_kubectl, until};
use crate::policy::principal;
use crate::space::Space;

const ROOT: &str = "istio-system";

/// Four callers and one app: two of its namespace, one of another, one outside of the mesh.
struct Stage {
    space: Space,
    friends: Space,
    plain: Space,
}

/// Whether it is answered on the app's HTTP port and on its TCP port, for each caller: `11 11 11 00`.
type Seen = String;

impl Stage {
    fn new(name: &str) -> Self {
        let space = Space::ambient(name);
        let friends = Space::ambient(&format!("{name}-b"));
        let plain = Space::plain(&format!("{name}-plain"));
        space.apps(&[("web", 1, 1), ("other", 1, 1), ("cart", 2, 1)]);
        friends.app("web", 1);
        plain.app("stranger", 1);
        space.captured(true);
        friends.captured(true);
        let stage = Self { space, friends, plain };
        until("all are answered", SOON, || stage.is("11 11 11 11"));
        stage
    }

    fn seen(&self) -> Seen {
        let callers =
            [(&self.space, "web"), (&self.space, "other"), (&self.friends, "web"), (&self.plain, "stranger")];
        std::thread::scope(|scope| {
            let asked = callers.map(|(space, app)| {
                let urls = [("http", ""), ("tcp", ":9090")]
                    .map(|(scheme, port)| format!("{scheme}://cart.{}{port}", self.space.name));
                scope.spawn(move || answers(space, app, &urls))
            });
            asked.map(|thread| thread.join().unwrap()).join(" ")
        })
    }

    fn is(&self, wanted: &str) -> Result<(), String> {
        let seen = self.seen();
        if seen == wanted { Ok(()) } else { Err(format!("{seen}, wanted {wanted}")) }
    }

    /// Seen twice in a row, as the answers before may have been the same by chance.
    #[track_caller]
    fn holds(&self, name: &str, wanted: &str) {
        until(&format!("{name} lets through {wanted}"), SOON, || {
            self.is(wanted).and_then(|()| self.is(wanted))
        });
    }

    fn clear(&self, kind: &str) {
        for namespace in [&self.space.name, ROOT] {
            try_kubectl(&["-n", namespace, "delete", kind, "--all"]);
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for kind in ["authorizationpolicy", "peerauthentication"] {
            self.clear(kind);
        }
    }
}

/// One digit for each URL: 1 if it was answered.
fn answers(space: &Space, from: &str, urls: &[String]) -> String {
    let ask = "for url in \"$@\"; do
        if timeout 6 client --timeout 3s --count 1 \"$url\" 2>&1 | grep -q 'StatusCode=200'; then printf 1; else printf 0; fi; done";
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    space.exec(&format!("deploy/{from}"), &[&["sh", "-c", ask, "sh"], &urls[..]].concat()).out
}

/// Waits until the destination's agent has the policy, or has none of the test's: the answers alone may not tell.
#[track_caller]
fn told(stage: &Stage, name: &str, namespace: &str, sent: bool) {
    until(&format!("{name} is known to the agent: {sent}"), SOON, || {
        let dump: serde_json::Value = serde_json::from_str(&agent_page(2, "15000/config_dump")).unwrap();
        let names: Vec<String> = dump["policies"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|policy| policy["namespace"] == namespace || policy["namespace"] == stage.space.name)
            .filter_map(|policy| policy["name"].as_str().map(str::to_owned))
            .filter(|name| name.starts_with("shape-"))
            .collect();
        let is = if sent { names == [name] } else { names.is_empty() };
        if is { Ok(()) } else { Err(format!("{names:?}")) }
    });
}

/// What a policy's row says: its spec, whether istiod tells node proxies of it, who gets through.
type Row<'a> = (&'a str, String, bool, &'a str);

fn allow(rules: &str) -> String {
    format!("{{action: ALLOW, rules: [{rules}]}}")
}
fn deny(rules: &str) -> String {
    format!("{{action: DENY, rules: [{rules}]}}")
}
fn from(source: &str) -> String {
    format!("{{from: [{{source: {{{source}}}}}]}}")
}
fn to(operation: &str) -> String {
    format!("{{to: [{{operation: {{{operation}}}}}]}}")
}
fn when(key: &str, values: &str) -> String {
    format!("{{when: [{{key: {key}, {values}}}]}}")
}

#[track_caller]
fn rows(stage: &Stage, namespace: &str, rows: &[Row<'_>]) {
    let mut wrong = Vec::new();
    for (number, (what, spec, sent, wanted)) in rows.iter().enumerate() {
        let name = format!("shape-{number}");
        let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            stage.clear("authorizationpolicy");
            apply(
                namespace,
                &format!(
                    "{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: {name}}}, spec: {spec}}}"
                ),
            );
            told(stage, &name, namespace, *sent);
            stage.holds(what, wanted);
        }));
        if tried.is_err() {
            wrong.push(format!("{what}: {spec}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}

/// Empty rules, and rules that hold for everyone.
#[test]
fn policies_without_conditions() {
    let stage = Stage::new("shape-empty");
    rows(
        &stage,
        &stage.space.name,
        &[
            ("nothing is allowed", "{}".into(), true, "00 00 00 00"),
            ("everything is allowed", allow("{}"), true, "11 11 11 11"),
            ("everything is denied", deny("{}"), true, "00 00 00 00"),
            ("nothing is denied", "{action: DENY}".into(), true, "11 11 11 11"),
            ("for nobody", "{selector: {matchLabels: {app: none}}}".into(), true, "11 11 11 11"),
            ("for the app", "{selector: {matchLabels: {app: cart}}}".into(), true, "00 00 00 00"),
            (
                "of a service: a waypoint's business",
                "{targetRefs: [{kind: Service, group: '', name: cart}]}".into(),
                false,
                "11 11 11 11",
            ),
            ("audits", "{action: AUDIT, rules: [{}]}".into(), false, "11 11 11 11"),
        ],
    );
}

/// Who the caller is: principals, namespaces and service accounts, by name, beginning and end, and who it is not.
#[test]
fn policies_by_caller() {
    let stage = Stage::new("shape-from");
    let (own, theirs) = (&stage.space.name, &stage.friends.name);
    let web = principal(&stage.space, "web");
    let row = |what, source: String, wanted| (what, allow(&from(&source)), true, wanted);
    let not = |what, source: String, wanted| (what, deny(&from(&source)), true, wanted);
    rows(
        &stage,
        own,
        &[
            row("a principal", format!("principals: ['{web}']"), "11 00 00 00"),
            row("anyone with a principal", "principals: ['*']".into(), "11 11 11 00"),
            row("principals by their end", "principals: ['*/sa/web']".into(), "11 00 11 00"),
            row(
                "principals by their beginning",
                format!("principals: ['cluster.local/ns/{theirs}/*']"),
                "00 00 11 00",
            ),
            row(
                "of another trust domain",
                format!("principals: ['elsewhere/ns/{own}/sa/web']"),
                "00 00 00 00",
            ),
            row("not a principal", format!("notPrincipals: ['{web}']"), "00 11 11 11"),
            not("whoever has no principal", "notPrincipals: ['*']".into(), "11 11 11 00"),
            row("a namespace", format!("namespaces: ['{theirs}']"), "00 00 11 00"),
            row("not a namespace", format!("notNamespaces: ['{own}']"), "00 00 11 11"),
            not("not a namespace", format!("notNamespaces: ['{own}']"), "11 11 00 00"),
            row("namespaces by their beginning", "namespaces: ['test-shape-from*']".into(), "11 11 11 00"),
            row("namespaces by their end", "namespaces: ['*-b']".into(), "00 00 11 00"),
            row("a service account of here", "serviceAccounts: ['web']".into(), "11 00 00 00"),
            row("a service account of there", format!("serviceAccounts: ['{theirs}/web']"), "00 00 11 00"),
            row("not a service account", "notServiceAccounts: ['web']".into(), "00 11 11 11"),
            row(
                "a principal of another namespace",
                format!("principals: ['{web}'], namespaces: ['{theirs}']"),
                "00 00 00 00",
            ),
            row("request principals", "requestPrincipals: ['*']".into(), "00 00 00 00"),
        ],
    );
}

/// Addresses and ports, each also turned round.
#[test]
fn policies_by_address_and_port() {
    let stage = Stage::new("shape-to");
    let web = stage.space.pod_ip("web");
    let cart = stage.space.pod_ip("cart");
    let principal = principal(&stage.space, "web");
    let row = |what, rule: String, wanted| (what, allow(&rule), true, wanted);
    let not = |what, rule: String, wanted| (what, deny(&rule), true, wanted);
    rows(
        &stage,
        &stage.space.name,
        &[
            row("an address", from(&format!("ipBlocks: ['{web}']")), "11 00 00 00"),
            row("a block", from("ipBlocks: ['10.244.1.0/24']"), "11 11 11 11"),
            row("not a block", from("notIpBlocks: ['10.244.1.0/24']"), "00 00 00 00"),
            not("not an address", from(&format!("notIpBlocks: ['{web}/32']")), "11 00 00 00"),
            row("addresses before proxies", from("remoteIpBlocks: ['10.0.0.0/8']"), "00 00 00 00"),
            row("a port", to("ports: ['8080']"), "10 10 10 10"),
            row("the service's port, which no pod has", to("ports: ['80']"), "00 00 00 00"),
            row("not a port", to("notPorts: ['8080']"), "01 01 01 01"),
            not("a port", to("ports: ['9090']"), "10 10 10 10"),
            row("when a port", when("destination.port", "values: ['9090']"), "01 01 01 01"),
            row("when not a port", when("destination.port", "notValues: ['9090']"), "10 10 10 10"),
            row("when an address asks", when("source.ip", &format!("values: ['{web}']")), "11 00 00 00"),
            row(
                "when an address is asked",
                when("destination.ip", &format!("values: ['{cart}']")),
                "11 11 11 11",
            ),
            row(
                "when another address is asked",
                when("destination.ip", &format!("notValues: ['{cart}']")),
                "00 00 00 00",
            ),
            row(
                "when a namespace",
                when("source.namespace", &format!("values: ['{}']", stage.friends.name)),
                "00 00 11 00",
            ),
            row(
                "when not a namespace",
                when("source.namespace", &format!("notValues: ['{}']", stage.friends.name)),
                "11 11 00 11",
            ),
            row(
                "when a principal",
                when("source.principal", &format!("values: ['{principal}']")),
                "11 00 00 00",
            ),
            row("when a name in TLS", when("connection.sni", "values: ['cart']"), "00 00 00 00"),
            not("when a header", when("'request.headers[x]'", "values: ['y']"), "11 11 11 11"),
        ],
    );
}

/// Several rules, and rules with HTTP in them, of which node proxies get what is left.
#[test]
fn policies_with_several_rules_and_http() {
    let stage = Stage::new("shape-http");
    let (web, other) = (principal(&stage.space, "web"), principal(&stage.space, "other"));
    let both = |who: &str, what: &str| {
        format!("{{from: [{{source: {{principals: ['{who}']}}}}], to: [{{operation: {{{what}}}}}]}}")
    };
    let two = format!("{}, {}", both(&web, "ports: ['8080']"), both(&other, "ports: ['9090']"));
    let either = format!(
        "{{from: [{{source: {{principals: ['{web}']}}}}, {{source: {{namespaces: ['{}']}}}}]}}",
        stage.friends.name
    );
    let and = format!(
        "{{from: [{{source: {{principals: ['{web}', '{other}']}}}}], when: [{{key: destination.port, values: ['8080']}}, {{key: source.principal, notValues: ['{other}']}}]}}"
    );
    rows(
        &stage,
        &stage.space.name,
        &[
            ("one of two rules", allow(&two), true, "10 01 00 00"),
            ("one of two sources", allow(&either), true, "11 00 11 00"),
            ("all of three conditions", allow(&and), true, "10 00 00 00"),
            ("a rule with a method allows nothing", allow(&to("methods: ['GET']")), true, "00 00 00 00"),
            (
                "a rule with a method beside one without",
                allow(&format!("{}, {}", to("methods: ['GET']"), from(&format!("principals: ['{web}']")))),
                true,
                "11 00 00 00",
            ),
            ("only a method is denied: nobody", deny(&to("methods: ['GET']")), true, "11 11 11 11"),
            (
                "a method of a port is denied: the port",
                deny(&to("ports: ['8080'], methods: ['GET']")),
                true,
                "01 01 01 01",
            ),
            ("paths of a caller are denied: nobody", deny(&both(&web, "paths: ['/x']")), true, "11 11 11 11"),
        ],
    );
}

/// Policies of the root namespace: for the whole mesh, or for whom they select in any namespace.
#[test]
fn policies_of_the_root_namespace() {
    let stage = Stage::new("shape-root");
    let web = principal(&stage.space, "web");
    let rule = from(&format!("principals: ['{web}']"));
    rows(
        &stage,
        ROOT,
        &[
            ("a caller is denied everywhere", deny(&rule), true, "00 11 11 11"),
            (
                "selected in any namespace",
                format!("{{action: ALLOW, selector: {{matchLabels: {{app: cart}}}}, rules: [{rule}]}}"),
                true,
                "11 00 00 00",
            ),
            (
                "nobody is selected",
                format!("{{action: ALLOW, selector: {{matchLabels: {{app: none}}}}, rules: [{rule}]}}"),
                true,
                "11 11 11 11",
            ),
        ],
    );
}

/// Modes of the mesh, a namespace, a workload and a port, and what the narrower one inherits.
#[test]
fn peer_authentication_of_every_level() {
    const KIND: &str = "PeerAuthentication";
    let stage = Stage::new("shape-mtls");
    let own = stage.space.name.clone();
    let cart = |rest: &str| format!("{{selector: {{matchLabels: {{app: cart}}}}, {rest}}}");
    let mode = |mode: &str| format!("{{mtls: {{mode: {mode}}}}}");
    // The spec of the root namespace, the namespace's, the workload's; empty is none.
    let table = [
        ("namespace STRICT", "", mode("STRICT"), String::new(), "11 11 11 00"),
        (
            "workload PERMISSIVE under STRICT",
            "",
            mode("STRICT"),
            cart("mtls: {mode: PERMISSIVE}"),
            "11 11 11 11",
        ),
        ("workload UNSET under STRICT", "", mode("STRICT"), cart("mtls: {mode: UNSET}"), "11 11 11 00"),
        ("workload DISABLE under STRICT", "", mode("STRICT"), cart("mtls: {mode: DISABLE}"), "11 11 11 11"),
        (
            "port PERMISSIVE under STRICT",
            "",
            mode("STRICT"),
            cart("portLevelMtls: {8080: {mode: PERMISSIVE}}"),
            "11 11 11 10",
        ),
        (
            "port STRICT under PERMISSIVE",
            "",
            mode("PERMISSIVE"),
            cart("portLevelMtls: {8080: {mode: STRICT}}"),
            "11 11 11 01",
        ),
        (
            "port DISABLE under STRICT",
            "",
            String::new(),
            cart("mtls: {mode: STRICT}, portLevelMtls: {9090: {mode: DISABLE}}"),
            "11 11 11 01",
        ),
        (
            "port UNSET under STRICT",
            "",
            String::new(),
            cart("mtls: {mode: STRICT}, portLevelMtls: {9090: {mode: UNSET}}"),
            "11 11 11 00",
        ),
        ("namespace PERMISSIVE in a STRICT mesh", "STRICT", mode("PERMISSIVE"), String::new(), "11 11 11 11"),
        ("namespace UNSET in a STRICT mesh", "STRICT", mode("UNSET"), String::new(), "11 11 11 00"),
        (
            "workload UNSET, namespace DISABLE, mesh STRICT",
            "STRICT",
            mode("DISABLE"),
            cart("mtls: {mode: UNSET}"),
            "11 11 11 11",
        ),
        ("mesh STRICT", "STRICT", String::new(), String::new(), "11 11 11 00"),
    ];
    let mut wrong = Vec::new();
    for (what, root, namespace, workload, wanted) in &table {
        let root = if root.is_empty() { String::new() } else { mode(root) };
        let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            stage.clear(KIND);
            for (at, name, spec) in
                [(ROOT, "mesh", &root), (&own[..], "all", namespace), (&own[..], "one", workload)]
            {
                if !spec.is_empty() {
                    apply(
                        at,
                        &format!(
                            "{{apiVersion: security.istio.io/v1, kind: {KIND}, metadata: {{name: {name}}}, spec: {spec}}}"
                        ),
                    );
                }
            }
            stage.holds(what, wanted);
        }));
        if tried.is_err() {
            wrong.push(*what);
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
    // STRICT of the mesh is about who is in it: others are called in plaintext as before.
    stage.space.answered("web", &format!("http://stranger.{}/", stage.plain.name));
}
