//! Ways around a policy: what a DENY is for does not reach the application, and what an ALLOW does not name does not either.

use std::net::IpAddr;

use culvert_tests::documents::policy;
use culvert_tests::net::{End, exchange};
use culvert_tests::wire::http1::Wire;
use culvert_tests::wire::http2::{Client, request, run};
use culvert_tests::wire::{World, client_hello, port};
use http::{HeaderValue, Method};

/// Service `plain` denies these; service `virtual` allows only those.
fn policies() -> String {
    let deny = r#"targetRefs: [{kind: Service, group: "", name: plain}]
action: DENY
rules:
- to: [{operation: {paths: ["/admin", "/admin/*"]}}]
- to: [{operation: {hosts: ["bad.host"]}}]
- to: [{operation: {methods: ["DELETE"]}}]
- when: [{key: "request.headers[x-role]", values: ["root"]}]
- when: [{key: "request.headers[x-list]", values: ["a,b"]}]
- to: [{operation: {paths: ["/level"]}}]
  when: [{key: "request.headers[x-level]", notValues: ["low"]}]
- to: [{operation: {paths: ["/files/{*}/secret"]}}]
"#;
    let allow = r#"targetRefs: [{kind: Service, group: "", name: virtual}]
rules:
- to: [{operation: {paths: ["/public/*"], methods: ["GET"], hosts: ["good.host"], notPaths: ["/public/no"]}}]
  when: [{key: "request.headers[x-user]", values: ["alice"]}, {key: "request.headers[x-ban]", notValues: ["yes"]}]
"#;
    let names = r#"targetRefs: [{kind: Service, group: "", name: gateway}]
action: DENY
rules:
- when: [{key: connection.sni, values: ["bad.example", "*.evil.example"]}]
"#;
    let of = |name, spec| policy("AuthorizationPolicy", "default", name, spec);
    [of("deny", deny), of("allow", allow), of("names", names)].concat()
}

/// Request line, headers, and whether the application may hear of it; what it may not is 403, or 400 for what is no request.
type Row = (&'static str, &'static str, u16);

const DENIED: &[Row] = &[
    ("GET /admin", "Host: a", 403),
    ("GET /admin?x", "Host: a", 403),
    ("GET /admin#x", "Host: a", 403),
    ("GET /admin/", "Host: a", 403),
    ("GET /admin/x", "Host: a", 403),
    ("GET //admin", "Host: a", 403),
    ("GET ///admin//x", "Host: a", 403),
    ("GET /./admin", "Host: a", 403),
    ("GET /x/../admin", "Host: a", 403),
    ("GET /x/..//admin", "Host: a", 403),
    ("GET /../admin", "Host: a", 403),
    ("GET /%2e/admin", "Host: a", 403),
    ("GET /x/%2e%2e/admin", "Host: a", 403),
    ("GET /x/.%2E/admin", "Host: a", 403),
    ("GET /%61dmin", "Host: a", 403),
    ("GET /%61%64%6d%69%6e", "Host: a", 403),
    ("GET /%2561dmin", "Host: a", 403),
    ("GET /%252561dmin", "Host: a", 403),
    ("GET /%2fadmin", "Host: a", 403),
    ("GET /x%2f..%2fadmin", "Host: a", 403),
    ("GET /admin%2fx", "Host: a", 403),
    ("GET /admin%5cx", "Host: a", 403),
    ("GET \\admin", "Host: a", 400),
    ("GET /\\admin", "Host: a", 403),
    ("GET /x\\..\\admin", "Host: a", 403),
    ("GET /admin;x", "Host: a", 403),
    ("GET /admin;x=y/z", "Host: a", 403),
    ("GET /;x/admin", "Host: a", 403),
    ("GET /x;/../admin", "Host: a", 403),
    ("GET /admin%3bx", "Host: a", 403),
    ("GET /admin%00", "Host: a", 400),
    ("GET http://a/admin", "Host: a", 403),
    ("GET http://a/%61dmin", "Host: a", 403),
    ("POST /admin", "Host: a\r\nX-HTTP-Method-Override: GET", 403),
    ("GET /x", "Host: a\r\nX-Original-URL: /admin\r\nX-Rewrite-URL: /admin", 200),
    ("GET /files/a/secret", "Host: a", 403),
    ("GET /files/a/secret;x", "Host: a", 403),
    ("GET /files//a/secret", "Host: a", 403),
    ("GET /", "Host: bad.host", 403),
    ("GET /", "Host: BAD.host", 403),
    ("GET /", "Host: bad.host:80", 403),
    ("GET /", "Host: bad.host.", 403),
    ("GET /", "Host: bad.host.:80", 403),
    ("GET /", "Host: u@bad.host", 400),
    ("GET /", "Host: bad.host, a", 400),
    ("GET /", "Host: a\r\nHost: bad.host", 400),
    ("GET http://bad.host/", "Host: a", 400),
    ("GET http://bad.host/", "Host: bad.host", 403),
    ("GET http://BAD.HOST/", "Host: bad.host", 403),
    ("GET /", "Host: a\r\nX-Forwarded-Host: bad.host", 200),
    ("DELETE /", "Host: a", 403),
    ("delete /", "Host: a", 403),
    ("Delete /", "Host: a", 403),
    ("GET /", "Host: a\r\nX-Role: root", 403),
    ("GET /", "Host: a\r\nx-ROLE:root", 403),
    ("GET /", "Host: a\r\nX-Role: \t root \t", 403),
    ("GET /", "Host: a\r\nX-Role: user\r\nX-Role: root", 403),
    ("GET /", "Host: a\r\nX-Role: root\r\nX-Role: user", 403),
    ("GET /", "Host: a\r\nX-Role: root\r\nConnection: x-role", 200),
    ("GET /", "Host: a\r\nX-Role : root", 400),
    ("GET /", "Host: a\r\nX-List: a\r\nX-List: b", 403),
    ("GET /level", "Host: a\r\nX-Level: low", 200),
    ("GET /level", "Host: a\r\nX-Level: high", 403),
    ("GET /level", "Host: a\r\nX-Level: low\r\nX-Level: high", 403),
    ("GET /level", "Host: a\r\nX-Level: \u{e9}", 403),
    // These are other things.
    ("GET /administrator", "Host: a", 200),
    ("GET /ADMIN", "Host: a", 200),
    ("GET /x", "Host: bad.hostess", 200),
    ("GET /x?p=/admin", "Host: a", 200),
    ("GET /files/a/b/secret", "Host: a", 200),
];

const ALLOWED: &[Row] = &[
    ("GET /public/x", "Host: good.host\r\nX-User: alice", 200),
    ("GET /public/x", "Host: GOOD.host\r\nX-User: alice", 200),
    ("GET /x/../public/y", "Host: good.host\r\nX-User: alice", 200),
    ("GET /public/x", "Host: good.host\r\nX-User: bob\r\nX-User: alice", 200),
    ("GET /public/x", "Host: good.host\r\nX-User: bob,alice", 403),
    ("GET /public/x", "Host: good.host\r\nX-User: Alice", 403),
    ("GET /public/x", "Host: good.host\r\nX-User: \u{e9}", 403),
    ("GET /public/x", "Host: good.host", 403),
    ("GET /public/x", "Host: good.host\r\nX-User: alice\r\nConnection: x-user", 403),
    ("GET /public/x", "Host: good.host\r\nX-User: alice\r\nX-Ban: yes", 403),
    ("GET /public/x", "Host: good.host\r\nX-User: alice\r\nX-Ban: no\r\nX-Ban: yes", 403),
    ("get /public/x", "Host: good.host\r\nX-User: alice", 403),
    ("HEAD /public/x", "Host: good.host\r\nX-User: alice", 403),
    ("POST /public/x", "Host: good.host\r\nX-User: alice\r\nX-HTTP-Method-Override: GET", 403),
    ("GET /public/x", "Host: good.host:80\r\nX-User: alice", 403),
    ("GET /public/x", "Host: good.host.\r\nX-User: alice", 403),
    ("GET /public/x", "Host: a.good.host\r\nX-User: alice", 403),
    ("GET /public/x", "Host: other\r\nX-Forwarded-Host: good.host\r\nX-User: alice", 403),
    ("GET http://good.host/public/x", "Host: other\r\nX-User: alice", 400),
    ("GET /public", "Host: good.host\r\nX-User: alice", 403),
    ("GET /public/../secret", "Host: good.host\r\nX-User: alice", 403),
    ("GET /public/%2e%2e/secret", "Host: good.host\r\nX-User: alice", 403),
    ("GET /public/..\\secret", "Host: good.host\r\nX-User: alice", 403),
    ("GET /public;/../secret", "Host: good.host\r\nX-User: alice", 403),
    ("GET //public/x", "Host: good.host\r\nX-User: alice", 403),
    ("GET /public%2fx", "Host: good.host\r\nX-User: alice", 403),
    ("GET /%2570ublic/x", "Host: good.host\r\nX-User: alice", 403),
    ("GET /secret#/public/x", "Host: good.host\r\nX-User: alice", 403),
    ("GET /secret?/public/x", "Host: good.host\r\nX-User: alice", 403),
    ("GET /public/no", "Host: good.host\r\nX-User: alice", 403),
    ("GET /public//no", "Host: good.host\r\nX-User: alice", 403),
    ("GET /public/n%256f", "Host: good.host\r\nX-User: alice", 403),
    ("GET /public/no;x", "Host: good.host\r\nX-User: alice", 403),
];

/// What is wrong with the answer.
fn wrong(world: &World, to: IpAddr, (line, headers, status): &Row) -> Option<String> {
    let mut wire = Wire::open(&world.client, (to, port::HTTP)).unwrap();
    let (method, _) = line.split_once(' ').unwrap();
    let closes = if headers.contains("Connection:") { "" } else { "Connection: close\r\n" };
    // Latin-1: a header may have bytes that are no UTF-8.
    let text = format!("{line} HTTP/1.1\r\n{headers}\r\n{closes}\r\n");
    wire.send(text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect::<Vec<u8>>()).unwrap();
    let answer = wire.answer(method);
    let got = answer.as_ref().map(|answer| answer.status());
    let body = answer.map(|answer| answer.text()).unwrap_or_default();
    let heard = world.heard.take().len();
    let is_good = got == Some(*status)
        && heard == usize::from(*status == 200)
        && (*status != 403 || method == "HEAD" || body == "RBAC: access denied");
    (!is_good).then(|| format!("{line} {headers:?}: {got:?} {body:?}, not {status}; {heard} heard"))
}

#[test]
fn policies_are_not_walked_around() {
    let world = World::start_with(&policies(), &["plain", "virtual"]);
    let mut problems = Vec::new();
    for to in ["10.96.0.20", "fd00:96::20"] {
        let to = to.parse().unwrap();
        problems.extend(DENIED.iter().filter_map(|row| wrong(&world, to, row)));
    }
    problems.extend(ALLOWED.iter().filter_map(|row| wrong(&world, [10, 96, 0, 21].into(), row)));
    run(by_http2(&world, &mut problems));
    by_name(&world, &mut problems);
    assert!(problems.is_empty(), "{}\n{}", problems.join("\n---\n"), world.logs());
    world.finish();
}

/// The same in HTTP/2, whose hosts, methods and paths need not be those of HTTP/1.1.
async fn by_http2(world: &World, problems: &mut Vec<String>) {
    let mut client = Client::open(&world.client, ([10, 96, 0, 20].into(), port::HTTP)).await;
    for (method, path, host, status) in [
        ("GET", "/x", "", Ok(200)),
        ("delete", "/x", "", Ok(403)),
        ("Delete", "/x", "", Ok(403)),
        ("DELETE", "/x", "", Ok(403)),
        ("GET", "/%61dmin", "", Ok(403)),
        ("GET", "/admin;x", "", Ok(403)),
        ("GET", "//admin", "", Ok(403)),
        // The host of HTTP/1.1 beside that of HTTP/2 is not heard, by nobody.
        ("GET", "/x", "bad.host", Ok(200)),
    ] {
        let mut asked = request(Method::from_bytes(method.as_bytes()).unwrap(), path);
        if !host.is_empty() {
            asked.headers_mut().insert("host", HeaderValue::from_static(host));
        }
        let got = client.begin(asked, true).await.status().await;
        let heard = world.heard.take();
        let is_hidden = heard.iter().all(|message| message.values("host") == ["shop"]);
        if got != status || heard.len() != usize::from(status == Ok(200)) || !is_hidden {
            problems.push(format!("HTTP/2 {method} {path} {host}: {got:?}, not {status:?}; heard {heard:?}"));
        }
    }
    for host in ["bad.host", "BAD.host:80", "bad.host."] {
        let uri = format!("http://{host}/x");
        let asked = http::Request::builder().uri(uri).body(()).unwrap();
        let got = client.begin(asked, true).await.status().await;
        if got != Ok(403) || !world.heard.take().is_empty() {
            problems.push(format!("HTTP/2 to {host}: {got:?}"));
        }
    }
}

/// The name that a TLS client asks for, however its first message is cut.
fn by_name(world: &World, problems: &mut Vec<String>) {
    let to = ([10, 96, 0, 22].into(), port::TLS);
    for (name, piece, passes) in [
        ("good.example", 1000, true),
        ("bad.example", 1000, false),
        ("BAD.example", 1000, false),
        ("bad.example", 1, false),
        ("bad.example.", 1000, false),
        ("a.evil.example", 7, false),
        ("good.example", 7, true),
    ] {
        let hello = client_hello(name, piece);
        let got = exchange(&world.client, to, &hello);
        let is_good = match &got {
            Ok((_, echo)) => (echo == &hello) == passes && (passes || echo.is_empty()),
            Err(error) => !passes && End::of(error) == End::Reset,
        };
        if !is_good {
            problems.push(format!("TLS to {name} in pieces of {piece}: {got:?}"));
        }
    }
    // Two names, and something that is no TLS at all, which has no name.
    let two = [client_hello("good.example", 3), client_hello("bad.example", 1000)].concat();
    for (bytes, passes) in [
        (b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00".to_vec(), false),
        (b"hello".to_vec(), true),
        (two, true),
    ] {
        let got = exchange(&world.client, to, &bytes);
        if got.as_ref().is_ok_and(|(_, echo)| *echo == bytes) != passes {
            problems.push(format!("{bytes:?}: {got:?}"));
        }
    }
}
