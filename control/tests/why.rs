//! `culvert why` finds each prepared mistake of `manifests/examples/why`, in words that a newcomer can act on.
//!
//! The whole output is compared with `tests/why/<case>.txt`. After a change of wording write it anew with
//! `culvert why SOURCE cart.shop:80 --config manifests/examples/why/CASE > control/tests/why/CASE.txt`, and read it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Directory, who asks, exit status, and words that must be in the answer: the cause and the fix.
const CASES: [(&str, &str, i32, &[&str]); 13] = [
    (
        "manifests/examples/why/wrong-trust-domain",
        "shop/web-0",
        1,
        &["shop/only-web", "trust domain \"mesh.example\"", "write \"cluster.local/ns/shop/sa/web\""],
    ),
    (
        "manifests/examples/why/wrong-namespace",
        "front/web-0",
        1,
        &["found \"front\"", "add \"front\" to namespaces"],
    ),
    (
        "manifests/examples/why/policy-selector",
        "shop/web-0",
        1,
        &["shop/web-to-cart would allow it", "app=crat selects no pod"],
    ),
    ("manifests/examples/why/deny-http-only", "shop/web-0", 0, &["shop/no-deletes", "HTTP", "no effect"]),
    (
        "manifests/examples/why/strict-from-outside",
        "legacy/report-0",
        1,
        &["takes mutual TLS only", "kubectl label namespace legacy istio.io/dataplane-mode=ambient"],
    ),
    ("manifests/examples/why/service-selector", "shop/web-0", 1, &["app=basket", "selector"]),
    ("manifests/examples/why/pod-not-ready", "shop/web-0", 1, &["not ready", "make shop/cart-0 ready"]),
    ("manifests/examples/why/pod-terminating", "shop/web-0", 1, &["terminating", "being deleted"]),
    ("manifests/examples/why/named-port", "shop/web-0", 1, &["port named \"web\"", "targetPort"]),
    (
        "manifests/examples/why/service-port-in-policy",
        "shop/web-0",
        1,
        &["write \"8080\" in place of \"80\"", "80 is the port of Service cart"],
    ),
    (
        "manifests/examples/why/namespace-not-labelled",
        "front/web-0",
        1,
        &["takes no plaintext", "kubectl label namespace shop istio.io/dataplane-mode=ambient"],
    ),
    ("manifests/examples/why/ip-blocks", "shop/web-0", 1, &["found \"10.20.1.4\"", "the pod's own"]),
    (
        "manifests/examples/why/no-policy-for-caller",
        "shop/web-0",
        1,
        &["shop/allow-nothing", "add one for principal \"cluster.local/ns/shop/sa/web\""],
    ),
];

/// Directory, what is asked of `cart.shop:80` beside it, exit status, and words that must be in the answer.
const REQUESTS: [(&str, &[&str], i32, &[&str]); 8] = [
    (
        "manifests/examples/why/waypoint-name",
        &["--path", "/"],
        0,
        &["there is no Gateway of this name", "ready waypoints are shop/waypoint"],
    ),
    (
        "manifests/examples/why/waypoint-no-route",
        &["--path", "/pay", "--method", "POST"],
        1,
        &["REFUSED 404", "prefix \"/cart\", found \"/pay\""],
    ),
    (
        "manifests/examples/why/waypoint-subset",
        &["--path", "/"],
        1,
        &["DEPENDS 503", "no DestinationRule defines subset v3", "10 % of it"],
    ),
    (
        "manifests/examples/why/waypoint-selector-policy",
        &["--path", "/"],
        1,
        &["REFUSED 503", "its agent refuses the waypoint", "targetRefs"],
    ),
    (
        "manifests/examples/why/waypoint-deny-path",
        &["--path", "/admin/../admin/users"],
        1,
        &["REFUSED 403", "shop/no-admin denies it", "paths [/admin*]"],
    ),
    (
        "manifests/examples/why/waypoint-no-backend",
        &["--path", "/"],
        1,
        &["REFUSED 500", "no Service shop/basket is known", "BackendNotFound"],
    ),
    (
        "manifests/examples/why/waypoint-canary",
        &["--path", "/cart/items?id=1"],
        0,
        &["FORWARDED", "http[1]", "path \"/items?id=1\"", "90 %"],
    ),
    (
        "manifests/examples/why/waypoint-canary",
        &["-H", "x-tester: yes"],
        0,
        &["FORWARDED", "http[0]", "outbound|80|v2|"],
    ),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn why(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_culvert"));
    command.arg("why").args(args).current_dir(root());
    command.env_remove("CULVERT_CONFIG").env_remove("TRUST_DOMAIN").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn each_prepared_mistake_is_found() {
    let mut wrong = Vec::new();
    for (dir, source, status, words) in CASES {
        let answer = why(&[source, "cart.shop:80", "--config", dir]);
        let got = text(&answer.stdout);
        let case = dir.rsplit('/').next().unwrap();
        let golden = root().join(format!("control/tests/why/{case}.txt"));
        let want = std::fs::read_to_string(&golden).unwrap_or_default();
        let flowing = got.replace("\n    ", " "); // a long line goes on in the next
        for word in words.iter().filter(|word| !flowing.contains(**word)) {
            wrong.push(format!("{case}: says nothing of {word:?}:\n{got}"));
        }
        if got != want {
            wrong.push(format!(
                "{case}: is not what {} has:\n{got}{}",
                golden.display(),
                text(&answer.stderr)
            ));
        }
        if answer.status.code() != Some(status) {
            wrong.push(format!("{case}: {}", answer.status));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The same for a request through a waypoint; the golden text of a directory is that of its first question.
#[test]
fn what_a_waypoint_does_with_a_request_is_told() {
    let mut wrong = Vec::new();
    for (at, (dir, request, status, words)) in REQUESTS.into_iter().enumerate() {
        let case = dir.rsplit('/').next().unwrap();
        let answer = why(&[&["shop/web-0", "cart.shop:80", "--config", dir], request].concat());
        let got = text(&answer.stdout);
        for word in words.iter().filter(|word| !got.contains(**word)) {
            wrong.push(format!("{case}: says nothing of {word:?}:\n{got}"));
        }
        let golden = std::fs::read_to_string(root().join(format!("control/tests/why/{case}.txt")));
        let is_first = REQUESTS.iter().position(|of| of.0 == dir) == Some(at);
        if is_first && golden.unwrap_or_default() != got {
            wrong.push(format!("{case}: is not what its golden text has:\n{got}{}", text(&answer.stderr)));
        }
        if answer.status.code() != Some(status) {
            wrong.push(format!("{case}: {}", answer.status));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let dir = "manifests/examples/why/waypoint-canary";
    let answer = why(&["shop/web-0", "cart.shop:80", "--config", dir, "--path", "/cart/", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_slice(&answer.stdout).unwrap();
    assert_eq!(json["verdict"], "allowed");
    assert_eq!(json["http"][0]["verdict"], "forwarded");
    assert_eq!(json["http"][0]["backends"][1]["percent"], 10);
    let bare = why(&["shop/web-0", "cart.shop:80", "--config", dir]);
    assert!(
        text(&bare.stdout).contains("for what it does with a request, add --method"),
        "{}",
        text(&bare.stdout)
    );
    let both = why(&["web-0", "cart", "--path", "/", "--agent", "127.0.0.1"]);
    assert_eq!(both.status.code(), Some(2), "an agent knows no routes");
}

#[test]
fn the_worked_examples_are_what_the_program_says() {
    let docs = std::fs::read_to_string(root().join("docs/why.md")).unwrap();
    for case in ["service-port-in-policy", "strict-from-outside"] {
        let golden = std::fs::read_to_string(root().join(format!("control/tests/why/{case}.txt"))).unwrap();
        assert!(docs.contains(golden.trim_end()), "docs/why.md has not the output of {case}");
    }
}

#[test]
fn names_are_understood_and_others_answered_with_what_there_is() {
    let dir = "manifests/examples/why/pod-not-ready";
    let ask = |source: &str, destination: &str| {
        let answer = why(&[source, destination, "--config", dir]);
        (answer.status.code().unwrap(), text(&answer.stdout) + &text(&answer.stderr))
    };
    for (source, destination) in [
        ("web-0", "cart"),
        ("10.20.1.4", "cart.shop"),
        ("shop/web-0", "cart.shop.svc"),
        ("Kubernetes//Pod/shop/web-0", "cart.shop.svc.cluster.local:80"),
        ("web-0", "shop/cart:80"),
        ("web-0", "10.96.1.1:80"),
    ] {
        let (status, answer) = ask(source, destination);
        assert_eq!(status, 1, "{source} {destination}: {answer}");
        assert!(answer.starts_with("REFUSED  shop/web-0 -> cart.shop:80: "), "{answer}");
    }
    for (source, destination, says) in [
        ("wbe-0", "cart", "did you mean shop/web-0?"),
        ("web-0", "carts", "did you mean cart.shop"),
        ("web-0", "nothing-like-it", "is no known pod, service or address"),
        ("web-0", "cart:http", "ends in no port"),
        ("web-0", "cart:0", "ends in no port"),
        ("web-0", "web-0", "needs a port"),
        ("web-0", "192.0.2.1", "needs a port"),
    ] {
        let (status, answer) = ask(source, destination);
        assert_eq!(status, 2, "{source} {destination}: {answer}");
        assert!(answer.contains(says), "{answer}");
    }
    assert_eq!(ask("web-0", "cart-0").0, 0, "the one port that a service leads to");
    assert_eq!(ask("192.0.2.1", "10.20.2.5:8080").0, 0, "from outside");
}

#[test]
fn json_has_the_same_answer() {
    let dir = "manifests/examples/why/wrong-trust-domain";
    let answer = why(&["web-0", "cart", "--config", dir, "-o", "json"]);
    assert_eq!(answer.status.code(), Some(1));
    let value: serde_json::Value = serde_json::from_slice(&answer.stdout).unwrap();
    assert_eq!(value["verdict"], "refused");
    let inbound = &value["routes"][0]["inbound"];
    assert_eq!(inbound["refused_by"], serde_json::json!(["shop/only-web"]));
    assert_eq!(inbound["policies"][0]["policy"], "shop/only-web");
    assert_eq!(inbound["seen_identity"], "spiffe://cluster.local/ns/shop/sa/web");
}

#[test]
fn a_directory_that_cannot_be_used_says_where() {
    let missing = why(&["a", "b", "--config", "no/such/directory"]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(text(&missing.stderr).contains("no/such/directory cannot be read"), "{}", text(&missing.stderr));

    let dir = std::env::temp_dir().join(format!("culvert-why-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\n\
                  spec: {rules: [{from: [{source: {principal: [x]}}]}]}\n";
    std::fs::write(dir.join("policy.yaml"), policy).unwrap();
    let wrong = why(&["a", "b", "--config", dir.to_str().unwrap()]);
    std::fs::remove_dir_all(&dir).unwrap();
    assert_eq!(wrong.status.code(), Some(2));
    let says = text(&wrong.stderr);
    for part in ["policy.yaml:4", "AuthorizationPolicy shop/p", "principal", "principals"] {
        assert!(says.contains(part), "{says}");
    }
}

#[test]
fn no_agent_and_no_question_are_told_from_a_refusal() {
    // Port 1 of loopback: nothing listens there.
    let nobody = why(&["a", "b", "--agent", "127.0.0.1:1"]);
    assert_eq!(nobody.status.code(), Some(2));
    assert!(text(&nobody.stderr).contains("no agent answers at 127.0.0.1:1"), "{}", text(&nobody.stderr));
    let unknown = why(&["--denial", "0011", "--agent", "127.0.0.1:1"]);
    assert_eq!(unknown.status.code(), Some(2));
    let says = text(&unknown.stderr);
    assert!(says.contains("0011") && says.contains("127.0.0.1:1") && says.contains("newest 4096"), "{says}");
    for args in [&["a"][..], &[], &["a", "b", "--denial", "x"], &["a", "b", "--agent", "here:x"]] {
        assert_eq!(why(args).status.code(), Some(2), "{args:?}");
    }
}
