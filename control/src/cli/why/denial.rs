//! Looks a refusal up in the agents' memory, and explains its pair as it would be decided now.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;

use culvert_common::admin::RefusalView;
use culvert_common::decide::explain::Outcome;
use culvert_common::telemetry::Denials;

use super::{Output, Printer, agent, code};

/// The admin port of an agent on this machine.
const OWN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15000);

/// Tells who was refused, by what and when, and whether it would be so now.
///
/// **Errors:** no agent remembers it; says which were asked and how far back each remembers.
pub(super) fn explain(id: &str, agents: &[SocketAddr], printer: &Printer) -> anyhow::Result<ExitCode> {
    let agents = if agents.is_empty() { vec![OWN] } else { agents.to_vec() };
    let mut asked = String::new();
    let mut found: Vec<(SocketAddr, RefusalView)> = Vec::new();
    for agent in agents {
        let _infallible = match agent::refusals(agent, id) {
            Ok(page) if page.refusals.is_empty() => {
                let since = page.oldest.map_or_else(String::new, |oldest| format!(" since {oldest}"));
                write!(asked, "\n  {agent}: it remembers {} refusals{since}, and not this one", page.kept)
            }
            Ok(page) => {
                found.extend(page.refusals.into_iter().map(|refusal| (agent, refusal)));
                Ok(())
            }
            Err(error) => write!(asked, "\n  {agent}: {error:#}"),
        };
    }
    // The destination's agent knows the policy; the source's only the class.
    found.sort_by_key(|(_, refusal)| refusal.policy.is_none());
    let Some((agent, refusal)) = found.first() else {
        anyhow::bail!(
            "no agent that was asked remembers the refusal {id}:{asked}\nAn agent keeps the newest {} until it is \
             restarted. Ask the agents of both pods' nodes with --agent.",
            Denials::CAPACITY
        );
    };
    let now = pair(refusal).map(|(source, destination)| agent::explain(*agent, &source, &destination));
    if printer.output == Output::Json {
        let explanation = now.and_then(Result::ok);
        let verdict = explanation.as_ref().map(|e| e.verdict);
        let refusals: Vec<_> = found
            .iter()
            .map(|(agent, refusal)| serde_json::json!({"agent": agent.to_string(), "refusal": refusal}))
            .collect();
        let all = serde_json::json!({"refusals": refusals, "now": explanation});
        printer.text(&format!("{}\n", serde_json::to_string_pretty(&all)?))?;
        return Ok(code(verdict));
    }
    for (agent, refusal) in &found {
        printer.text(&told(*agent, refusal))?;
    }
    match now {
        Some(Ok(explanation)) => {
            let change = match explanation.verdict {
                Outcome::Refused => "The same pair now: still refused",
                Outcome::Mixed => "The same pair now: it depends on the endpoint",
                Outcome::Allowed => "The same pair now: let through, so something has changed since",
            };
            printer.text(&format!("\n{}\n\n", printer.paint.bold(change)))?;
            printer.explanation(None, &explanation)?;
            Ok(code([explanation.verdict]))
        }
        Some(Err(error)) => {
            printer.text(&format!("\nWhat would be decided now is not known: {error:#}\n"))?;
            Ok(code([Outcome::Refused]))
        }
        None => {
            printer.text(
                "\nWhat would be decided now is not known: the agent did not learn the destination.\n",
            )?;
            Ok(code([Outcome::Refused]))
        }
    }
}

/// Source and destination of a refusal as they are asked for.
fn pair(refusal: &RefusalView) -> Option<(String, String)> {
    let address = |text: &Option<String>| text.as_ref()?.parse::<SocketAddr>().ok();
    let source =
        refusal.source.clone().or_else(|| Some(address(&refusal.source_address)?.ip().to_string()))?;
    let to = address(&refusal.destination_address)?;
    let destination = match &refusal.destination {
        Some(name) => format!("{name}:{}", to.port()),
        None => to.to_string(),
    };
    Some((source, destination))
}

fn told(agent: SocketAddr, refusal: &RefusalView) -> String {
    let side = |name: &Option<String>, address: &Option<String>, identity: &Option<String>| {
        let mut parts: Vec<&str> = [name, address].into_iter().flatten().map(String::as_str).collect();
        if parts.is_empty() {
            parts.push("unknown");
        }
        let identity = identity.as_ref().map(|id| format!("  {id}")).unwrap_or_default();
        format!("{}{identity}", parts.join("  "))
    };
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        let _infallible = writeln!(out, "  {name:11} {value}");
    };
    line("when", &refusal.at);
    line("from", &side(&refusal.source, &refusal.source_address, &refusal.source_identity));
    line("to", &side(&refusal.destination, &refusal.destination_address, &refusal.destination_identity));
    if let Some(service) = &refusal.service {
        line("service", service);
    }
    line("class", &format!("{} (flag {})", refusal.class, refusal.flag));
    if let Some(policy) = &refusal.policy {
        line("policy", policy);
    }
    line("reason", &refusal.error);
    let id = refusal.id.as_deref().unwrap_or("");
    format!("Refusal {id}, from the agent of the {} at {agent}\n{out}", refusal.reporter)
}
