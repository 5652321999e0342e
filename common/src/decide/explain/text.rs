//! The answer for people: the verdict, the way as a small drawing, then endpoints, policies and advice.

use std::fmt::Write as _;

use super::answer::{
    EndpointView, Enforced, Explanation, Inbound, OtherPolicy, Outcome, Party, Route, RouteKind,
};
use crate::authz::{FieldTrace, MatchTrace, RuleTrace};

/// What a piece of the text means; a terminal may colour it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// Goes through.
    Good,
    /// Does not.
    Bad,
    /// A heading or a name.
    Strong,
    /// Less important.
    Faint,
}

/// Characters of a line of advice.
const WIDTH: usize = 110;
/// Values of a list that are shown.
const LISTED: usize = 4;
/// Endpoints and further routes that are shown.
const LINES: usize = 12;

/// A list of a policy: `[a, b, and 3 more]`.
pub(super) fn listed(field: &FieldTrace) -> String {
    if field.listed.is_empty() {
        return "(unreadable)".to_owned();
    }
    let shown: Vec<&str> = field.listed.iter().take(LISTED).map(String::as_str).collect();
    let more = field.listed.len() - shown.len() + field.more;
    let more = if more == 0 { String::new() } else { format!(", and {more} more") };
    format!("[{}{more}]", shown.join(", "))
}

impl Explanation {
    /// The whole answer as lines, with `paint` around what has a tone.
    pub fn render(&self, paint: impl Fn(Tone, &str) -> String) -> String {
        let mut text = Text { out: String::new(), paint: &paint };
        text.verdict(self);
        if let Some(route) = self.deciding() {
            text.drawing(self, route);
        }
        text.other_routes(self);
        text.endpoints(self);
        if let Some((route, inbound)) = self.deciding().and_then(|r| Some((r, r.inbound.as_ref()?))) {
            text.policies(route, inbound);
        }
        text.not_applying(&self.other_policies);
        let heading = match self.verdict {
            Outcome::Allowed => "Worth knowing",
            Outcome::Refused | Outcome::Mixed => "What would let it through",
        };
        text.list(heading, &self.advice);
        text.list("Doubtful in the configuration", &self.remarks);
        text.list("Failed lately, as the agent remembers it", &self.recent);
        text.out
    }

    /// The route whose story is told: the first that is refused, if one is.
    fn deciding(&self) -> Option<&Route> {
        let refused = self.routes.iter().find(|route| route.outcome == Outcome::Refused);
        refused.or(self.routes.first())
    }
}

/// The answer without colours.
impl std::fmt::Display for Explanation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.render(|_, text| text.to_owned()))
    }
}

struct Text<'a> {
    out: String,
    paint: &'a dyn Fn(Tone, &str) -> String,
}

impl Text<'_> {
    fn line(&mut self, text: std::fmt::Arguments<'_>) {
        let _infallible = self.out.write_fmt(text);
        let end = self.out.trim_end_matches(' ').len();
        self.out.truncate(end);
        self.out.push('\n');
    }

    fn paint(&self, tone: Tone, text: &str) -> String {
        (self.paint)(tone, text)
    }

    fn heading(&mut self, text: &str) {
        let text = self.paint(Tone::Strong, text);
        self.line(format_args!("\n{text}"));
    }

    fn verdict(&mut self, answer: &Explanation) {
        let verdict = match answer.verdict {
            Outcome::Allowed => self.paint(Tone::Good, "ALLOWED"),
            Outcome::Refused => self.paint(Tone::Bad, "REFUSED"),
            Outcome::Mixed => self.paint(Tone::Bad, "DEPENDS"),
        };
        let to = with_port(&answer.destination);
        self.line(format_args!("{verdict}  {} -> {to}: {}", answer.source.name, answer.summary));
    }

    fn drawing(&mut self, answer: &Explanation, route: &Route) {
        let source = &answer.source;
        let identity = source.identity.as_ref().map(|id| format!(", proves {id}")).unwrap_or_default();
        self.line(format_args!(""));
        let name = self.paint(Tone::Strong, &source.name);
        let addresses = if source.kind == "address" { String::new() } else { source.addresses.join(", ") };
        let addresses = if addresses.is_empty() { addresses } else { format!("{addresses}  ") };
        self.line(format_args!("  {name}  {addresses}{}{identity}", source.enrolment));
        if answer.destination.kind == "service" {
            let to = answer.destination.addresses.first().cloned().unwrap_or_default();
            let (ready, all) = (answer.endpoints.iter().filter(|e| e.is_in).count(), answer.endpoints.len());
            self.line(format_args!(
                "   |  asks for service {} at {to}: {ready} of {all} endpoints can take it",
                answer.destination.name
            ));
        }
        let (sign, what) = match route.kind {
            RouteKind::Hbone if !route.waypoint.is_empty() => {
                ("|", format!("HBONE tunnel, mutual TLS, to waypoint {}", route.waypoint))
            }
            RouteKind::Hbone => ("|", "HBONE tunnel, mutual TLS".to_owned()),
            RouteKind::Plaintext => ("|", "plain TCP: the destination is outside the mesh".to_owned()),
            RouteKind::Passthrough => ("|", "plain TCP, sent on as it is".to_owned()),
            RouteKind::Direct => ("|", "plain TCP: the source is outside the mesh".to_owned()),
            RouteKind::Refused => (
                "x",
                self.paint(Tone::Bad, &format!("refused here, in the words of the log: {}", route.decision)),
            ),
            RouteKind::Held => (
                "x",
                self.paint(Tone::Bad, &format!("held here for a moment, then refused: {}", route.decision)),
            ),
        };
        self.line(format_args!("   {sign}  {what}"));
        if matches!(route.kind, RouteKind::Refused | RouteKind::Held) {
            return;
        }
        self.line(format_args!("   v"));
        let end = if route.workload.is_empty() { &route.target } else { &route.workload };
        let name = self.paint(Tone::Strong, end);
        let target = if route.workload.is_empty() { "" } else { &route.target };
        let expects = match &route.expects[..] {
            [] => String::new(),
            ids => format!("  must prove {}", ids.join(" or ")),
        };
        self.line(format_args!("  {name}  {target}{expects}"));
        let Some(inbound) = &route.inbound else {
            if !route.waypoint.is_empty() {
                self.line(format_args!(
                    "   |  the waypoint decides by its own rules, chooses an endpoint and sends it on"
                ));
            }
            return;
        };
        let verdict = inbound.refusal.as_ref().unwrap_or(&inbound.verdict);
        match route.outcome {
            Outcome::Allowed => self.line(format_args!("   |  {verdict}\n   v  app")),
            Outcome::Refused | Outcome::Mixed => {
                let verdict = self.paint(Tone::Bad, verdict);
                self.line(format_args!("   x  {verdict}"));
            }
        }
    }

    fn other_routes(&mut self, answer: &Explanation) {
        if answer.routes.len() < 2 {
            return;
        }
        self.heading("Endpoints that may be chosen, one by one");
        for route in answer.routes.iter().take(LINES) {
            let sign = match route.outcome {
                Outcome::Allowed => self.paint(Tone::Good, "ok"),
                Outcome::Refused | Outcome::Mixed => self.paint(Tone::Bad, "no"),
            };
            let verdict =
                route.inbound.as_ref().map_or(&route.decision, |i| i.refusal.as_ref().unwrap_or(&i.verdict));
            self.line(format_args!("  {sign}  {}  {}  {verdict}", route.workload, route.target));
        }
        let more = answer.routes.len().saturating_sub(LINES) + answer.more_routes;
        if more != 0 {
            self.line(format_args!("  and {more} more"));
        }
    }

    fn endpoints(&mut self, answer: &Explanation) {
        if answer.destination.kind != "service" || answer.endpoints.is_empty() {
            return;
        }
        self.heading(&format!("Endpoints of {}", answer.destination.name));
        let width = answer.endpoints.iter().map(|e| e.workload.len()).max().unwrap_or(0);
        // Those that are out are asked for; those that are in are alike.
        let mut sorted: Vec<&EndpointView> = answer.endpoints.iter().collect();
        sorted.sort_by_key(|e| e.is_in);
        for endpoint in sorted.iter().take(LINES) {
            let sign = match endpoint.is_in {
                true => self.paint(Tone::Good, "in "),
                false => self.paint(Tone::Bad, "out"),
            };
            let target =
                if endpoint.target.is_empty() { String::new() } else { format!("{}  ", endpoint.target) };
            self.line(format_args!("  {sign}  {:width$}  {target}{}", endpoint.workload, endpoint.reason));
        }
        if sorted.len() > LINES {
            self.line(format_args!("  and {} more", sorted.len() - LINES));
        }
    }

    fn policies(&mut self, route: &Route, inbound: &Inbound) {
        self.heading(&format!("Policies of {}, as its agent asks them", route.workload));
        let peer = match &inbound.seen_identity {
            Some(identity) => format!("as {identity}"),
            None => "without identity".to_owned(),
        };
        self.line(format_args!("  peer authentication: {}", inbound.peer_authentication));
        self.line(format_args!(
            "  the connection: from {} {peer}, to {}, {}",
            inbound.seen_address,
            if inbound.target.is_empty() { &route.target } else { &inbound.target },
            inbound.via
        ));
        if inbound.policies.is_empty() {
            self.line(format_args!("  none applies: whatever arrives is let through"));
        }
        let name = |p: &Enforced| if p.origin.is_empty() { p.trace.policy.clone() } else { p.origin.clone() };
        let width = inbound.policies.iter().map(|p| name(p).len()).max().unwrap_or(0);
        for policy in &inbound.policies {
            let trace = &policy.trace;
            let deciding = trace.matched && !trace.dry_run;
            let verdict = match (policy.asked, trace.matched) {
                (false, _) => self.paint(Tone::Faint, "not asked: the answer was clear before"),
                (true, true) if trace.action == "DENY" && deciding => {
                    self.paint(Tone::Bad, "matches: denied")
                }
                (true, true) if deciding => self.paint(Tone::Good, "matches: allowed"),
                (true, true) => "would match".to_owned(),
                (true, false) => "does not match".to_owned(),
            };
            let tried = if trace.dry_run { " (dry run)" } else { "" };
            self.line(format_args!("  {:5}  {:width$}  {verdict}{tried}", trace.action, name(policy)));
            match (policy.asked, policy.origin.is_empty()) {
                (true, true) => self.rules(policy),
                (true, false) => {
                    self.line(format_args!("           refuses plaintext, which proves no identity"))
                }
                (false, _) => {}
            }
        }
        for missing in &inbound.missing {
            let missing = self.paint(Tone::Bad, missing);
            self.line(format_args!("  {missing}  named by the workload, but it does not exist: refused"));
        }
    }

    fn rules(&mut self, policy: &Enforced) {
        let trace = &policy.trace;
        if trace.rules.is_empty() {
            let what = if trace.action == "DENY" { "denies" } else { "allows" };
            let why = match policy.rules_left_out {
                0 => "it has no rules",
                _ => "all its rules ask for HTTP fields, which the node agent cannot see",
            };
            return self.line(format_args!("           {why}: it {what} nobody"));
        }
        for (number, rule) in policy.rules() {
            let told = match rule.matched {
                true if trace.matched => {
                    let held: Vec<String> = fields(rule).filter(|f| f.held).map(compared).collect();
                    let all = if held.is_empty() { "matches everything".to_owned() } else { held.join("; ") };
                    format!("matches: {all}")
                }
                true => "matches".to_owned(),
                false => failed(rule),
            };
            self.line(format_args!("           rule {number}: {told}"));
        }
    }

    fn not_applying(&mut self, others: &[OtherPolicy]) {
        if others.is_empty() {
            return;
        }
        self.heading("Policies that do not apply here");
        for other in others {
            let selector = if other.selector.is_empty() { "other pods" } else { &other.selector };
            let selects = match &other.selects[..] {
                [] => "which no pod has".to_owned(),
                some => format!("which {} has", some.join(", ")),
            };
            self.line(format_args!("  {:5}  {}  selects {selector}, {selects}", other.action, other.policy));
        }
    }

    fn list(&mut self, heading: &str, lines: &[String]) {
        if !lines.is_empty() {
            self.heading(heading);
        }
        for line in lines {
            let line = wrapped(line);
            self.line(format_args!("  - {line}"));
        }
    }
}

/// A long line over several, each under the other.
fn wrapped(line: &str) -> String {
    let mut out = String::with_capacity(line.len() + 16);
    let mut width = 0;
    for word in line.split(' ') {
        let long = word.chars().count();
        if width != 0 && width + 1 + long > WIDTH {
            out.push_str("\n    ");
            width = 0;
        } else if width != 0 {
            out.push(' ');
            width += 1;
        }
        out.push_str(word);
        width += long;
    }
    out
}

fn with_port(party: &Party) -> String {
    let address = party.addresses.first().map_or("", String::as_str);
    match address.rsplit_once(':') {
        Some((_, port)) if party.kind != "address" => format!("{}:{port}", party.name),
        _ => party.name.clone(),
    }
}

fn fields(rule: &RuleTrace) -> impl Iterator<Item = &FieldTrace> {
    rule.clauses.iter().flat_map(|clause| &clause.matches).flat_map(|one| &one.fields)
}

/// Why a rule does not match: of each clause that fails, what was found and what was wanted.
pub(super) fn failed(rule: &RuleTrace) -> String {
    let clauses = rule.clauses.iter().filter(|clause| !clause.held);
    let told: Vec<String> = clauses
        .map(|clause| match &clause.matches[..] {
            [] => "only conditions that the node agent cannot see, such as HTTP ones".to_owned(),
            matches => matches.iter().map(failed_match).collect::<Vec<_>>().join(", and "),
        })
        .collect();
    told.join("; and ")
}

fn failed_match(one: &MatchTrace) -> String {
    let fields: Vec<String> = one.fields.iter().filter(|f| !f.held).map(compared).collect();
    fields.join(" and ")
}

/// `principals: found "x", listed [y]`
pub(super) fn compared(field: &FieldTrace) -> String {
    let found = if field.found.is_empty() { "none".to_owned() } else { format!("{:?}", field.found) };
    format!("{} {}, found {found}", field.field, listed(field))
}
