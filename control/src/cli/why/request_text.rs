//! What waypoints do with a request, for people.

use std::fmt::Write as _;

use culvert_common::decide::explain::Tone;
use culvert_common::l7::explain::{BackendView, HttpExplanation, PolicyView, Verdict};

use super::request::Requests;

/// Routes and endpoints that are listed.
const LINES: usize = 12;

/// How each request ends, a line each; empty if nobody asks about one.
pub(super) fn verdicts(requests: &Requests, paint: impl Fn(Tone, &str) -> String) -> String {
    let mut text = Text { out: String::new(), paint: &paint };
    for http in &requests.http {
        let verdict = text.verdict(http);
        text.line(format_args!(
            "{verdict}  {} at waypoint {}: {}\n",
            http.request, http.waypoint, http.summary
        ));
    }
    text.out
}

/// All of it as lines, with `paint` around what has a tone; empty if no waypoint has to do with it.
pub(super) fn render(requests: &Requests, paint: impl Fn(Tone, &str) -> String) -> String {
    let mut text = Text { out: String::new(), paint: &paint };
    text.binding(requests);
    for http in &requests.http {
        text.http(http);
    }
    text.conditions(requests);
    text.out
}

struct Text<'a> {
    out: String,
    paint: &'a dyn Fn(Tone, &str) -> String,
}

impl Text<'_> {
    fn line(&mut self, text: std::fmt::Arguments<'_>) {
        let _infallible = writeln!(self.out, "{text}");
    }

    fn heading(&mut self, text: &str) {
        let text = (self.paint)(Tone::Strong, text);
        self.line(format_args!("\n{text}"));
    }

    fn paint(&self, tone: Tone, text: &str) -> String {
        (self.paint)(tone, text)
    }

    fn binding(&mut self, requests: &Requests) {
        let Requests { binding, waypoints, advice, .. } = requests;
        if binding.is_empty() && waypoints.is_empty() && advice.is_empty() {
            return;
        }
        self.heading("Waypoint");
        for one in binding {
            let sign = match one.is_bound {
                true => self.paint(Tone::Good, "bound"),
                false => self.paint(Tone::Bad, "not bound"),
            };
            self.line(format_args!("  {sign}  {}: {}: {}", one.object, one.reason, one.message));
        }
        for has in waypoints {
            let list = |of: &[String]| if of.is_empty() { "none".to_owned() } else { of.join(", ") };
            self.line(format_args!("  {} routes: {}", has.waypoint, list(&has.routes)));
            self.line(format_args!("  {} policies: {}", has.waypoint, list(&has.policies)));
            self.line(format_args!(
                "  for what it does with a request, add --method GET --path / -H 'name: value'"
            ));
        }
        for advice in advice {
            self.line(format_args!("  {advice}"));
        }
    }

    fn verdict(&self, http: &HttpExplanation) -> String {
        let status = http.status.map(|status| format!(" {status}")).unwrap_or_default();
        match http.verdict {
            Verdict::Forwarded => self.paint(Tone::Good, "FORWARDED"),
            Verdict::Answered => self.paint(Tone::Good, &format!("ANSWERED{status}")),
            Verdict::Refused => self.paint(Tone::Bad, &format!("REFUSED{status}")),
            Verdict::Depends => self.paint(Tone::Bad, &format!("DEPENDS{status}")),
        }
    }

    fn http(&mut self, http: &HttpExplanation) {
        self.heading(&format!("{} at waypoint {}", http.request, http.waypoint));
        let verdict = self.verdict(http);
        self.line(format_args!("  {verdict}  {}", http.summary));
        if !http.details.is_empty() {
            let flag = if http.flag.is_empty() { "-" } else { &http.flag };
            self.line(format_args!("  in its log: flag {flag}, details {}", http.details));
        }
        if let Some(path) = &http.plain_path {
            self.line(format_args!("  made plain, the path is {path}"));
        }
        self.line(format_args!("  the port speaks {}", http.protocol));
        self.route(http);
        self.policies(&http.policies);
        for backend in &http.backends {
            self.backend(backend);
        }
        for advice in &http.advice {
            self.line(format_args!("  - {advice}"));
        }
    }

    fn route(&mut self, http: &HttpExplanation) {
        if http.routes == 0 {
            return;
        }
        self.line(format_args!("  routes, in the order in which they are tried"));
        for passed in http.passed_over.iter().take(LINES) {
            let sign = self.paint(Tone::Faint, "no");
            self.line(format_args!("    {sign}   {}", passed.origin));
            for why in &passed.why {
                self.line(format_args!("           {why}"));
            }
        }
        let more = http.passed_over.len().saturating_sub(LINES);
        if more != 0 {
            self.line(format_args!("    and {more} more that do not match"));
        }
        let Some(route) = &http.route else { return };
        let sign = self.paint(Tone::Good, "yes");
        self.line(format_args!("    {sign}  {}: {}", route.origin, route.matched));
        for action in &route.actions {
            self.line(format_args!("           {action}"));
        }
    }

    fn policies(&mut self, policies: &[PolicyView]) {
        if policies.is_empty() {
            return self.line(format_args!("  policies: none is bound to it, every request is let through"));
        }
        self.line(format_args!("  policies, in the order in which they are asked"));
        for policy in policies {
            let verdict = match (policy.matched, policy.action.as_str(), policy.decided) {
                (false, ..) => "does not match".to_owned(),
                (true, "ALLOW", true) => self.paint(Tone::Good, "matches: allowed"),
                (true, _, true) => self.paint(Tone::Bad, "matches: denied"),
                (true, _, false) => "matches".to_owned(),
            };
            let tried = if policy.dry_run { " (dry run)" } else { "" };
            self.line(format_args!("    {:5}  {}  {verdict}{tried}", policy.action, policy.policy));
            for rule in &policy.rules {
                self.line(format_args!("           {rule}"));
            }
        }
    }

    fn backend(&mut self, backend: &BackendView) {
        let name = if backend.cluster.is_empty() { "no destination" } else { &backend.cluster };
        let name = self.paint(Tone::Strong, name);
        self.line(format_args!("  {} %  {name}", backend.percent));
        if !backend.problem.is_empty() {
            let status = backend.failure.map(|status| format!("{status}: ")).unwrap_or_default();
            let problem = self.paint(Tone::Bad, &format!("{status}{}", backend.problem));
            self.line(format_args!("         {problem}"));
        }
        if let Some(rule) = &backend.rule {
            self.line(format_args!("         DestinationRule {rule}"));
        }
        if !backend.balance.is_empty() {
            self.line(format_args!("         chosen is {}", backend.balance));
        }
        for edit in &backend.edits {
            self.line(format_args!("         it sees {edit}"));
        }
        for endpoint in backend.endpoints.iter().take(LINES) {
            let sign = match endpoint.is_in && endpoint.refused.is_empty() {
                true => self.paint(Tone::Good, "in "),
                false => self.paint(Tone::Bad, "out"),
            };
            let target =
                if endpoint.target.is_empty() { String::new() } else { format!("  {}", endpoint.target) };
            let refused = match endpoint.refused.as_str() {
                "" => String::new(),
                why => format!(", but its agent refuses the waypoint: {why}"),
            };
            self.line(format_args!(
                "         {sign}  {}{target}  {}{refused}",
                endpoint.workload, endpoint.reason
            ));
        }
        if backend.endpoints.len() > LINES {
            self.line(format_args!("         and {} more", backend.endpoints.len() - LINES));
        }
    }

    fn conditions(&mut self, requests: &Requests) {
        if requests.conditions.is_empty() {
            return;
        }
        self.heading("Conditions that do not hold");
        for one in &requests.conditions {
            self.line(format_args!("  {}: {}: {}: {}", one.object, one.condition, one.reason, one.message));
        }
    }
}
