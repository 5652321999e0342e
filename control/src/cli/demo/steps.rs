//! The steps of the demo, in order. Each shows one thing and checks it from outside: by what programs answered, what the
//! agents logged, and what crossed the wire.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use culvert::lab::{LogLine, Pod, pause, wait_until};

use super::client::Client;
use super::figures;
use super::stage::{CART_PORT, HBONE_PORT, REDIS_PORT, Stage, access_log, curl, field, url};
use super::story::Story;

/// One thing to show.
pub(super) struct Step {
    /// What is shown.
    pub(super) title: &'static str,
    /// Shows and checks it.
    pub(super) run: fn(&mut Stage, &mut Story) -> anyhow::Result<()>,
}

/// All steps, in order.
pub(super) const STEPS: [Step; 6] = [
    Step { title: "Before enrolment: plaintext between the nodes", run: before },
    Step { title: "The namespace gets a label: the same request over mutual TLS", run: after },
    Step { title: "Policy: an allowed and a denied caller, and why", run: policy },
    Step { title: "A policy edited on disk, under a running client", run: edit },
    Step { title: "A server goes unready, under a running client", run: readiness },
    Step { title: "What it costs: through the mesh against direct", run: figures::measure },
];

/// Stands in requests, answers and redis values: whoever reads it on the wire reads plaintext.
const MARKER: &str = "card-4929-1234";
const CART_VIPS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0x10))];
const REDIS_VIPS: [&str; 2] = ["10.96.0.20", "fd00:96::20"];
const RELOAD_MAX: Duration = Duration::from_secs(8);

fn before(stage: &mut Stage, story: &mut Story) -> anyhow::Result<()> {
    story.say("The agents run, but no namespace is enrolled: they touch nothing.")?;
    let tap = stage.lab.tap(&[MARKER.as_bytes()])?;
    for address in stage.cart2.addresses() {
        ask(stage, story, address, CART_PORT)?;
    }
    let seen = tap.seen()?;
    let port = seen.port(CART_PORT);
    story.check(
        seen.marked() > 0 && seen.port(HBONE_PORT).frames == 0,
        &format!(
            "the wire shows it: {} of {} frames to port {CART_PORT} contain \"{MARKER}\" in clear text",
            seen.marked(),
            port.frames
        ),
    )?;
    Ok(())
}

fn after(stage: &mut Stage, story: &mut Story) -> anyhow::Result<()> {
    story
        .say("namespaces.yaml:  istio.io/dataplane-mode: none -> ambient   (no pod and no agent restarts)")?;
    let (start, mark) = (Instant::now(), stage.mark());
    stage.edit("namespaces.yaml", "istio.io/dataplane-mode: none", "istio.io/dataplane-mode: ambient")?;
    wait_captured(stage, mark)?;
    story.check(
        true,
        &format!("five pods captured {} ms after the file changed", start.elapsed().as_millis()),
    )?;
    let tap = stage.lab.tap(&[MARKER.as_bytes()])?;
    for address in stage.cart2.addresses() {
        let mark = stage.mark();
        ask(stage, story, address, CART_PORT)?;
        identities(stage, story, mark, SocketAddr::new(address, CART_PORT))?;
    }
    for address in CART_VIPS {
        ask(stage, story, address, 80)?;
    }
    for vip in REDIS_VIPS {
        redis(stage, story, vip)?;
    }
    let seen = tap.seen()?;
    let (tunnel, http, redis) = (seen.port(HBONE_PORT), seen.port(CART_PORT), seen.port(REDIS_PORT));
    story.check(
        seen.missed == 0 && seen.marked() == 0 && http.frames == 0 && redis.frames == 0 && tunnel.bytes > 0,
        &format!(
            "no plaintext crossed: of {} frames {} to port {HBONE_PORT} ({} bytes), {} to {CART_PORT}, {} to {REDIS_PORT}; \
             \"{MARKER}\" in {}; not looked at {}",
            seen.frames, tunnel.frames, tunnel.bytes, http.frames, redis.frames, seen.marked(), seen.missed
        ),
    )?;
    story.figure("plaintext_frames", seen.marked() + http.frames + redis.frames);
    Ok(())
}

fn policy(stage: &mut Stage, story: &mut Story) -> anyhow::Result<()> {
    story.say("policy.yaml lets only cluster.local/ns/shop/sa/web call the carts.")?;
    for address in stage.cart2.addresses() {
        let got = curl(&stage.web, &url(address, CART_PORT, "/allowed"))?;
        story.check(got.is_ok(), &format!("web is let in over {}", family(address)))?;
    }
    for address in stage.cart2.addresses() {
        denied_caller(stage, story, address)?;
    }
    for address in stage.cart2.addresses() {
        let mark = stage.mark();
        let got = curl(&stage.stranger, &url(address, CART_PORT, "/denied-stranger"))?;
        let from = stage.stranger.addresses().map(|a| a.to_string());
        let [_, b] = &stage.agents;
        let line = b.wait_log(mark[1], "the stranger's refusal", |l| {
            l.field("src.addr").is_some_and(|a| from.iter().any(|f| a.contains(f.as_str())))
                && l.field("error").is_some()
        })?;
        story.check(
            got.is_err(),
            &format!(
                "stranger (not in the mesh, no identity) is refused over {}: {}",
                family(address),
                got.err().unwrap_or_default()
            ),
        )?;
        story.quote(
            "node-b",
            &format!("policy {} error {}", field(&line, "denial.policy"), field(&line, "error")),
        )?;
    }
    let reached = access_log(&stage.cart2)?.contains("/denied-");
    story.check(!reached, "not one byte of a refused request reached nginx")?;
    Ok(())
}

/// `report` is captured and has an identity, but not the right one: both agents know why, the caller does not.
fn denied_caller(stage: &Stage, story: &mut Story, address: IpAddr) -> anyhow::Result<()> {
    let mark = stage.mark();
    let got = curl(&stage.report, &url(address, CART_PORT, "/denied-report"))?;
    let [a, b] = &stage.agents;
    let there = b.wait_log(mark[1], "a denial", |l| l.field("denial.id").is_some())?;
    let id = field(&there, "denial.id");
    let here = a.wait_log(mark[0], &format!("denial {id}"), |l| l.has(&[("denial.id", &id)]))?;
    let policy = field(&there, "denial.policy");
    let identities = [field(&there, "src.identity"), field(&there, "dst.identity")];
    let wanted = [stage.report.identity(), stage.cart2.identity()];
    story.check(
        got.is_err() && policy.contains("cart-callers") && identities == wanted,
        &format!("report is refused over {}: {}", family(address), got.err().unwrap_or_default()),
    )?;
    story.quote(
        "node-a",
        &format!("denial {} class {}", field(&here, "denial.id"), field(&here, "denial.class")),
    )?;
    story.quote("node-b", &format!("denial {id} policy {policy}"))?;
    let [source, destination] = identities;
    story.quote("", &format!("{source} -> {destination}")).context("quote the identities")
}

fn edit(stage: &mut Stage, story: &mut Story) -> anyhow::Result<()> {
    let (alone, both) = (
        r#"["cluster.local/ns/shop/sa/web"]"#,
        r#"["cluster.local/ns/shop/sa/web", "cluster.local/ns/shop/sa/report"]"#,
    );
    let to = stage.cart2.addresses().map(|a| SocketAddr::new(a, CART_PORT));
    let client = Client::start(&stage.report, &to, "/edited");
    story.say("report asks again and again, over IPv4 and IPv6 in turn; each time it is refused.")?;
    client.wait("a refused request of report", Instant::now(), |s| s.outcome.is_err())?;
    let refused = client.samples();
    story.check(refused.iter().all(|s| s.outcome.is_err()), "refused before the edit")?;

    let edited = Instant::now();
    stage.edit("policy.yaml", alone, both)?;
    let allowed = client.wait("an answer to report after the edit", edited, |s| s.outcome.is_ok())?;
    story.check(
        true,
        &format!("report added to policy.yaml: first answer {} ms later", allowed.as_millis()),
    )?;
    let settled = Instant::now();
    pause(Duration::from_millis(200));
    let steady = client.since(settled);
    story.check(
        !steady.is_empty() && steady.iter().all(|s| s.outcome.is_ok()),
        &format!("and every request after it ({} more)", steady.len()),
    )?;

    let edited = Instant::now();
    stage.edit("policy.yaml", both, alone)?;
    let denied = client.wait("a refusal of report after the edit", edited, |s| s.outcome.is_err())?;
    story.check(true, &format!("report taken out again: first refusal {} ms later", denied.as_millis()))?;
    story.figure("policy_allow_ms", millis(allowed));
    story.figure("policy_deny_ms", millis(denied));
    client.stop()?;
    Ok(())
}

fn readiness(stage: &mut Stage, story: &mut Story) -> anyhow::Result<()> {
    let client = Client::start(&stage.web, &CART_VIPS.map(|a| SocketAddr::new(a, 80)), "/ready");
    story.say("web asks Service cart without pause; both endpoints answer.")?;
    let start = Instant::now();
    let is = |name: &'static str| move |s: &super::client::Sample| s.outcome.as_deref() == Ok(name);
    client.wait("an answer of cart-1", start, is("cart-1"))?;
    client.wait("an answer of cart-2", start, is("cart-2"))?;

    let edited = Instant::now();
    stage.edit("endpoints.yaml", "{ready: true} # cart-1", "{ready: false} # cart-1")?;
    // Quiet for 300 ms with requests going on: nobody chooses it any more.
    let quiet = || {
        let since = client.since(edited);
        let last = since.iter().rev().find(|s| is("cart-1")(s)).map_or(edited, |s| s.at);
        (last.elapsed() > Duration::from_millis(300) && since.last().is_some_and(|s| s.at > last))
            .then_some(last)
    };
    let last = wait_until("cart-1 without requests", RELOAD_MAX, quiet, || "still answering".to_owned())?;
    let gone = last.duration_since(edited);
    story.check(
        true,
        &format!("cart-1 unready in endpoints.yaml: its last answer {} ms later", gone.as_millis()),
    )?;
    stage.cart1_server.kill();
    story.say("nginx of cart-1 is stopped; the client goes on.")?;
    pause(Duration::from_millis(500));
    stage.restart_cart1()?;
    let back = Instant::now();
    stage.edit("endpoints.yaml", "{ready: false} # cart-1", "{ready: true} # cart-1")?;
    let returned = client.wait("an answer of cart-1 after its return", back, is("cart-1"))?;
    story.check(
        true,
        &format!("started and ready again: its first answer {} ms later", returned.as_millis()),
    )?;

    let all = client.stop()?;
    let failed: Vec<_> = all.iter().filter_map(|s| s.outcome.as_ref().err()).collect();
    story.check(
        failed.is_empty(),
        &format!(
            "{} of {} requests failed{}",
            failed.len(),
            all.len(),
            failed.first().map(|e| format!(", first: {e}")).unwrap_or_default()
        ),
    )?;
    story.figure("readiness_requests", all.len());
    story.figure("readiness_failed", failed.len());
    Ok(())
}

/// web asks with curl; the answer must name the caller's own address.
fn ask(stage: &Stage, story: &mut Story, address: IpAddr, port: u16) -> anyhow::Result<()> {
    let to = url(address, port, &format!("/{MARKER}"));
    story.quote("web $", &format!("curl {to}"))?;
    let got = curl(&stage.web, &to)?;
    let own = if address.is_ipv4() { IpAddr::V4(stage.web.v4) } else { IpAddr::V6(stage.web.v6) };
    let (text, holds) = match &got {
        Ok(body) => (body.as_str(), body.split(' ').any(|word| word == own.to_string())),
        Err(e) => (e.as_str(), false),
    };
    story.quote("", text)?;
    story
        .check(holds, &format!("answered over {}, and the server sees web's own address", family(address)))?;
    Ok(())
}

/// Both agents must have logged both identities of the connection to `to`.
fn identities(stage: &Stage, story: &mut Story, mark: [usize; 2], to: SocketAddr) -> anyhow::Result<()> {
    let wanted = [stage.web.identity(), stage.cart2.identity()];
    let of = |line: &LogLine| [field(line, "src.identity"), field(line, "dst.identity")];
    for ((agent, node), from) in stage.agents.iter().zip(["node-a", "node-b"]).zip(mark) {
        let about = |l: &LogLine| {
            l.as_str().contains("connection complete") && l.as_str().contains(&to.ip().to_string())
        };
        let line = agent.wait_log(from, "the connection", about)?;
        let [source, destination] = of(&line);
        let direction = field(&line, "direction");
        story.quote(node, &format!("{direction} src.identity={source} dst.identity={destination}"))?;
        story.check(of(&line) == wanted, &format!("{node}'s agent logged both identities ({direction})"))?;
    }
    Ok(())
}

fn redis(stage: &Stage, story: &mut Story, vip: &str) -> anyhow::Result<()> {
    let call = |args: &[&str]| -> anyhow::Result<String> {
        let command = stage.web.command("redis-cli").args(["-h", vip]).args(args);
        let done = command.finish(Duration::from_secs(8)).context("redis-cli")?;
        Ok(format!("{}{}", done.stdout.trim(), done.stderr.trim()))
    };
    story.quote("web $", &format!("redis-cli -h {vip} SET order {MARKER}; GET order"))?;
    let (set, get) = (call(&["SET", "order", MARKER])?, call(&["GET", "order"])?);
    story.quote("", &format!("{set} {get}"))?;
    story.check(
        set == "OK" && get == MARKER,
        &format!("redis works unchanged over {}", family(vip.parse()?)),
    )?;
    Ok(())
}

/// Waits until both agents have said that the shop's pods are captured.
fn wait_captured(stage: &Stage, mark: [usize; 2]) -> anyhow::Result<()> {
    let pods: [(usize, &Pod); 5] =
        [(0, &stage.web), (0, &stage.cart1), (0, &stage.report), (1, &stage.cart2), (1, &stage.redis)];
    for (node, pod) in pods {
        let name = format!("shop/{}", pod.spec.name);
        let said = |l: &LogLine| l.as_str().contains("capture rules in force") && l.has(&[("pod", &name)]);
        if let (Some(agent), Some(from)) = (stage.agents.get(node), mark.get(node)) {
            agent.wait_log(*from, &format!("{name} captured"), said)?;
        }
    }
    Ok(())
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
