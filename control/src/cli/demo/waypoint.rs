//! `culvert demo --waypoint`: what a waypoint does with requests, between real agents.
//!
//! Each step puts files of `manifests/examples/demo-waypoint` beside the mesh, waits until they are in force, asks, paints
//! where the requests went and checks it from outside: by what clients got and what servers were asked.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use culvert::lab::{Agent, AgentOptions, Lab, LabOptions, Pod, PodSpec, Process, http, wait_until};

use super::picture::Picture;
use super::shop::{self, Answer, PORT, Server};
use super::story::Story;

const CART: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10));
const UP_MAX: Duration = Duration::from_secs(15);
/// Longest that copies of a few requests are waited for.
const COPIES_MAX: Duration = Duration::from_secs(1);
/// Requests of a step.
const MANY: usize = 100;
/// After so long no further step is begun.
pub(super) const LONGEST: Duration = Duration::from_secs(180);

const MESH: &str = include_str!("../../../../manifests/examples/demo-waypoint/mesh.yaml");
const SUBSETS: &str = include_str!("../../../../manifests/examples/demo-waypoint/subsets.yaml");
const CIRCUIT: &str = include_str!("../../../../manifests/examples/demo-waypoint/circuit.yaml");
const CANARY: &str = include_str!("../../../../manifests/examples/demo-waypoint/canary.yaml");
const REWRITE: &str = include_str!("../../../../manifests/examples/demo-waypoint/rewrite.yaml");
const MIRROR: &str = include_str!("../../../../manifests/examples/demo-waypoint/mirror.yaml");
const RETRIES: &str = include_str!("../../../../manifests/examples/demo-waypoint/retries.yaml");
const NO_RETRIES: &str = include_str!("../../../../manifests/examples/demo-waypoint/no-retries.yaml");
const FAULT: &str = include_str!("../../../../manifests/examples/demo-waypoint/fault.yaml");
const TIMEOUT: &str = include_str!("../../../../manifests/examples/demo-waypoint/timeout.yaml");
const POLICY: &str = include_str!("../../../../manifests/examples/demo-waypoint/policy.yaml");

/// Everything that runs.
pub(super) struct Stage {
    web: Pod,
    instance: Pod,
    servers: [Server; 2],
    waypoint: Process,
    _agents: [Agent; 2],
    /// Last: it is dropped after everything that runs in it.
    lab: Lab,
}

/// The waypoint's binary, beside the agent's.
pub(super) fn binary(ztunnel: &Path) -> PathBuf {
    ztunnel.with_file_name("waypoint")
}

impl Stage {
    /// Builds it all; returns when servers listen and agents and waypoint are ready.
    pub(super) fn build(ztunnel: PathBuf) -> anyhow::Result<Self> {
        let program = binary(&ztunnel);
        let mut lab = Lab::new(LabOptions { prefix: "culvert-demo".to_owned() })?;
        let [a, b] = [lab.node("node-a")?, lab.node("node-b")?];
        let spec = |name: &str, account: &str| PodSpec::new(name).namespace("shop").service_account(account);
        let web = lab.pod(a, spec("web", "web"))?;
        let cart =
            |name: &str, version: &str| spec(name, "cart").label("app", "cart").label("version", version);
        let v1 = lab.pod(a, cart("cart-v1", "v1"))?;
        let v2 = lab.pod(b, cart("cart-v2", "v2"))?;
        let instance = spec("waypoint", "waypoint").captured(false);
        let instance = instance.label("gateway.networking.k8s.io/gateway-name", "waypoint");
        let instance = lab.pod(b, PodSpec { host: Some(20), ..instance })?;
        lab.publish()?;
        lab.put("mesh.yaml", MESH)?;
        let servers = [Server::start(&v1, "cart-v1"), Server::start(&v2, "cart-v2")];
        let options = AgentOptions { binary: Some(ztunnel), ..AgentOptions::default() };
        let agents = [lab.start_agent(a, &options)?, lab.start_agent(b, &options)?];
        let command = instance.command(&program.to_string_lossy()).arg("--config").arg(lab.config_dir());
        let command = command.arg("--ca-dir").arg(lab.ca_dir()).args(["--gateway", "shop/waypoint"]);
        let waypoint = command.spawn()?;
        let [a, b] = agents;
        let agents = [a.wait_ready()?, b.wait_ready()?];
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, 15021));
        let ready = || {
            let answer =
                instance.run(|| http::get(to, "/healthz/ready", Duration::from_secs(2))).ok()?.ok()?;
            (answer.status == 200).then_some(())
        };
        wait_until("the waypoint to be ready", UP_MAX, ready, || log(&waypoint))?;
        for pod in [&v1, &v2] {
            pod.wait_for(PORT, UP_MAX)?;
        }
        let stage = Self { web, instance, servers, waypoint, _agents: agents, lab };
        stage.until("a first answer", "/", |answer| answer.status == 200)?;
        Ok(stage)
    }

    /// Puts these files in place of those of the step before.
    fn put(&self, routes: &str, destinations: &str) -> anyhow::Result<()> {
        Ok(self.lab.put("step.yaml", &format!("{destinations}\n---\n{routes}"))?)
    }

    /// Asks until an answer is as wanted: then the step's files are in force.
    fn until(&self, what: &str, path: &str, wanted: impl Fn(&Answer) -> bool) -> anyhow::Result<Answer> {
        self.until_with(what, (path, ""), wanted)
    }

    fn until_with(
        &self,
        what: &str,
        asked: (&str, &str),
        wanted: impl Fn(&Answer) -> bool,
    ) -> anyhow::Result<Answer> {
        let one = || shop::ask(&self.web, CART, asked, 1).ok()?.pop().filter(|answer| wanted(answer));
        Ok(wait_until(what, UP_MAX, one, || log(&self.waypoint))?)
    }

    /// Asks so often, paints where it went, and returns the answers.
    fn ask(&self, story: &Story, asked: (&str, &str), times: usize) -> anyhow::Result<Vec<Answer>> {
        self.servers.iter().for_each(Server::forget_asked);
        story.quote("web $", &format!("{times} x GET http://cart{} {}", asked.0, asked.1.trim_end()))?;
        let (mut picture, mut canvas) = (Picture::new(story.paint(), times), story.canvas());
        let counts = || self.servers.each_ref().map(|server| (server.name.as_str(), server.asked()));
        let answers = shop::ask_each(&self.web, CART, (asked, times), |answer| {
            picture.add(answer);
            // What cannot be painted now is painted at the end, or fails there.
            let _later = canvas.paint(|| picture.lines(&counts()));
        })?;
        canvas.end(picture.lines(&counts()))?;
        Ok(answers)
    }

    /// The end of the waypoint's log.
    pub(super) fn end_of_log(&self) -> String {
        log(&self.waypoint)
    }
}

fn log(process: &Process) -> String {
    let text = format!("{}{}", process.stdout(), process.stderr());
    let lines: Vec<&str> = text.lines().collect();
    lines.iter().skip(lines.len().saturating_sub(8)).map(|line| format!("{line}\n")).collect()
}

fn count(answers: &[Answer], wanted: impl Fn(&Answer) -> bool) -> usize {
    answers.iter().filter(|answer| wanted(answer)).count()
}

/// One thing to show.
pub(super) struct Step {
    /// What is shown.
    pub(super) title: &'static str,
    /// Shows and checks it.
    pub(super) run: fn(&Stage, &mut Story) -> anyhow::Result<()>,
}

/// All steps, in order.
pub(super) const STEPS: [Step; 9] = [
    Step { title: "A canary: one request of ten to v2", run: canary },
    Step { title: "By header: testers go to v2", run: header },
    Step { title: "A rewrite: the application knows nothing of /shop", run: rewrite },
    Step { title: "A mirror: v2 gets copies, clients hear nothing of it", run: mirror },
    Step { title: "Retries hide an endpoint that fails", run: retries },
    Step { title: "A circuit opens, and closes again", run: circuit },
    Step { title: "Faults made on purpose", run: fault },
    Step { title: "Timeouts", run: timeout },
    Step { title: "A policy on paths: 403, and why", run: policy },
];

fn canary(stage: &Stage, story: &mut Story) -> anyhow::Result<()> {
    stage.put(CANARY, SUBSETS)?;
    stage.until_with("the canary's routes", ("/", "x-tester: yes\r\n"), |a| a.server() == "cart-v2")?;
    let in_a_row = || {
        let ten = shop::ask(&stage.web, CART, ("/", "x-tester: yes\r\n"), 10).ok()?;
        (count(&ten, |a| a.server() == "cart-v2") == 10).then_some(())
    };
    wait_until("the canary's routes", UP_MAX, in_a_row, || stage.end_of_log())?;
    let answers = stage.ask(story, ("/", ""), 2 * MANY)?;
    let v2 = count(&answers, |a| a.server() == "cart-v2");
    // Of 200 with a part of 10 %: outside of this once in a million runs.
    story.check(
        answers.len() == 2 * MANY && (2..=45).contains(&v2),
        &format!("{v2} of {} requests went to v2, the others to v1", answers.len()),
    )?;
    story.figure("canary_v2", v2);
    Ok(())
}

fn header(stage: &Stage, story: &mut Story) -> anyhow::Result<()> {
    let answers = stage.ask(story, ("/", "x-tester: yes\r\n"), MANY)?;
    let v2 = count(&answers, |a| a.server() == "cart-v2");
    Ok(story.check(v2 == MANY, &format!("{v2} of {MANY} requests with x-tester: yes went to v2"))?)
}

fn rewrite(stage: &Stage, story: &mut Story) -> anyhow::Result<()> {
    stage.put(REWRITE, "")?;
    let answer = stage.until("the rewrite", "/shop/tea?cups=2", |a| a.body.ends_with(" /tea?cups=2"))?;
    story.quote("web $", "GET http://cart/shop/tea?cups=2")?;
    story.quote("", &answer.body)?;
    let asked = shop::ask(&stage.web, CART, ("/other", ""), 1)?;
    let holds = asked.first().is_some_and(|answer| answer.body.ends_with(" /other"));
    story.check(holds, "/shop/tea?cups=2 reached the server as /tea?cups=2, and /other as it is")?;
    Ok(())
}

fn mirror(stage: &Stage, story: &mut Story) -> anyhow::Result<()> {
    let [_, v2] = &stage.servers;
    stage.put(MIRROR, SUBSETS)?;
    let in_force = || {
        stage.servers.iter().for_each(Server::forget_asked);
        let four = shop::ask(&stage.web, CART, ("/", ""), 4).ok()?;
        let copies = || (v2.asked() == 4).then_some(());
        let all_of_v1 = count(&four, |a| a.server() == "cart-v1") == 4;
        (all_of_v1 && wait_until("the copies", COPIES_MAX, copies, String::new).is_ok()).then_some(())
    };
    wait_until("the mirror", UP_MAX, in_force, || stage.end_of_log())?;
    let answers = stage.ask(story, ("/", ""), MANY)?;
    let v1 = count(&answers, |a| a.server() == "cart-v1" && a.status == 200);
    story.check(v1 == MANY, &format!("{v1} of {MANY} requests were answered by cart-v1"))?;
    let copied = || (v2.asked() == MANY).then_some(());
    let copied = wait_until("the last copies", UP_MAX, copied, || stage.end_of_log());
    story.figure("mirrored", v2.asked());
    Ok(story.check(
        copied.is_ok(),
        &format!("cart-v2 was sent {} copies, and its answers were dropped", v2.asked()),
    )?)
}

fn retries(stage: &Stage, story: &mut Story) -> anyhow::Result<()> {
    let [_, v2] = &stage.servers;
    v2.fail(true);
    stage.put(NO_RETRIES, "")?;
    stage.until("a failure", "/", |a| a.status == 503)?;
    let answers = stage.ask(story, ("/", ""), MANY)?;
    let failed = count(&answers, |a| a.status == 503);
    story.check(
        failed > 0,
        &format!("cart-v2 answers 503: without retries {failed} of {MANY} requests fail"),
    )?;
    stage.put(RETRIES, "")?;
    let whole = || {
        let some = shop::ask(&stage.web, CART, ("/", ""), 20).ok()?;
        (count(&some, |a| a.status == 200) == 20).then_some(())
    };
    wait_until("retries", UP_MAX, whole, || stage.end_of_log())?;
    let answers = stage.ask(story, ("/", ""), MANY)?;
    let good = count(&answers, |a| a.status == 200);
    v2.fail(false);
    story.check(good == MANY, &format!("with retries {good} of {MANY} are answered, by cart-v1"))?;
    story.figure("retries_failed", MANY - good);
    Ok(())
}

fn circuit(stage: &Stage, story: &mut Story) -> anyhow::Result<()> {
    let [_, v2] = &stage.servers;
    stage.put(NO_RETRIES, CIRCUIT)?;
    let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, 15000));
    let in_force = || {
        let page = stage.instance.run(|| http::get(admin, "/clusters", Duration::from_secs(2))).ok()?.ok()?;
        page.body.contains("consecutive5xxErrors").then_some(())
    };
    wait_until("the circuit's rule", UP_MAX, in_force, || stage.end_of_log())?;
    v2.fail(true);
    let answers = stage.ask(story, ("/", ""), 50)?;
    let failed = count(&answers, |a| a.status == 503);
    let ejected = || stage.waypoint.stdout().contains("endpoint ejected").then_some(());
    let is_open = wait_until("the circuit to open", UP_MAX, ejected, || stage.end_of_log()).is_ok();
    // More than two only where 50 requests take longer than the two seconds for which it is left alone.
    let claim = "cart-v2 fails twice in a row and is left alone";
    story
        .check(is_open && (2..=10).contains(&failed), &format!("{claim}: {failed} of 50 requests failed"))?;
    v2.fail(false);
    let start = Instant::now();
    let closed = stage.until("the circuit to close", "/", |a| a.server() == "cart-v2" && a.status == 200);
    story.check(
        closed.is_ok(),
        &format!(
            "repaired, it is asked again when its time is over, {} ms later",
            start.elapsed().as_millis()
        ),
    )?;
    let answers = stage.ask(story, ("/", ""), MANY)?;
    let good = count(&answers, |a| a.status == 200);
    Ok(story.check(good == MANY, &format!("both answer again: {good} of {MANY} requests"))?)
}

fn fault(stage: &Stage, story: &mut Story) -> anyhow::Result<()> {
    stage.put(FAULT, "")?;
    stage.until("the fault", "/tea", |a| a.status == 418)?;
    let answers = stage.ask(story, ("/tea", ""), MANY)?;
    let tea = count(&answers, |a| a.status == 418);
    story.check(
        (20..=80).contains(&tea),
        &format!("half of the requests for /tea get 418: {tea} of {MANY}"),
    )?;
    let start = Instant::now();
    let late = shop::ask(&stage.web, CART, ("/late", ""), 1)?;
    let took = start.elapsed();
    let holds = count(&late, |a| a.status == 200) == 1 && took >= Duration::from_millis(300);
    Ok(story.check(holds, &format!("/late is answered 300 ms late: after {} ms", took.as_millis()))?)
}

fn timeout(stage: &Stage, story: &mut Story) -> anyhow::Result<()> {
    stage.put(TIMEOUT, "")?;
    let answer = stage.until("the timeout", "/slow", |a| a.status == 504)?;
    story.quote("web $", "GET http://cart/slow")?;
    story.quote("", &format!("{} {}", answer.status, answer.body))?;
    let holds = answer.body == "upstream request timeout";
    story.check(holds, "a server that takes 1.5 s is given 300 ms: 504")?;
    let quick = stage.ask(story, ("/", ""), 10)?;
    Ok(story.check(count(&quick, |a| a.status == 200) == 10, "what is quick goes through")?)
}

fn policy(stage: &Stage, story: &mut Story) -> anyhow::Result<()> {
    stage.put(POLICY, "")?;
    let answer = stage.until("the policy", "/admin/users", |a| a.status == 403)?;
    story.quote("web $", "GET http://cart/admin/users")?;
    story.quote("", &format!("{} {}", answer.status, answer.body))?;
    story.check(answer.body == "RBAC: access denied", "the client is told that it may not, and no more")?;
    let reason = "rbac_access_denied_matched_policy[ns[shop]-policy[no-admin]-rule[0]]";
    let told = || stage.waypoint.stdout().contains(reason).then_some(());
    let told = wait_until("the reason in the waypoint's log", UP_MAX, told, || stage.end_of_log());
    story.quote("waypoint", reason)?;
    story.check(told.is_ok(), "the waypoint's log names the policy and the rule")?;
    for asked in ["//admin/users", "/x/../admin/users", "/%61dmin/users"] {
        let answers = shop::ask(&stage.web, CART, (asked, ""), 1)?;
        let passed = count(&answers, |a| a.status == 200 && a.body.contains("/admin"));
        story.check(passed == 0, &format!("{asked} does not get past it to /admin"))?;
    }
    let others = stage.ask(story, ("/basket", ""), 10)?;
    Ok(story.check(count(&others, |a| a.status == 200) == 10, "other paths are let through")?)
}
