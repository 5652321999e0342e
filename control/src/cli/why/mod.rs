//! `culvert why`: why one pod can or cannot talk to another, from a configuration directory or from running agents.
//!
//! `config` asks a directory, `agent` asks agents, `denial` looks up a refusal that has happened. What is explained, and
//! its text, come from `culvert_common::decide::explain`, which an agent uses as well. `request` follows an HTTP request
//! through the waypoints of the destination, by `culvert_common::l7::explain`, and `request_text` says it to people.

mod agent;
mod config;
mod denial;
mod request;
mod request_text;

use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::builder::FalseyValueParser;
use clap::{Args, ValueEnum};
use culvert_common::decide::explain::{Explanation, Outcome, Tone};

use super::paint::Paint;

/// Exit status when the question cannot be answered.
const NO_ANSWER: u8 = 2;

/// Explain why one pod can or cannot talk to another, or why a connection was refused
///
/// Shows the way a connection takes, the endpoints of the service, both identities, each policy that is asked with its
/// verdict and the rule that decides, and what would change the answer. SOURCE is a pod (namespace/name, or a name), a
/// service or an address; DESTINATION the same with a port, which may be left out where there is only one. With --method,
/// --path or -H it follows that request through the destination's waypoint: route, rewrite, filters, policies, destination
/// rule, subset and endpoints. It sees the configuration, not the network: whether the app listens, or a NetworkPolicy drops
/// packets, it cannot know.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    culvert why shop/web-0 cart.shop:80\n      \
        from the directory that the agent reads\n  \
    culvert why web-0 cart:80 --config ./mesh\n      \
        from the files in ./mesh, before they are applied\n  \
    culvert why web-0 cart:80 --method POST --path /pay -H 'x-user: ann'\n      \
        what its waypoint does with this request\n  \
    culvert why shop/web-0 10.96.1.1:80 --agent 127.0.0.1:15000\n      \
        as a running agent sees it\n  \
    culvert why shop/web-0 cart.shop:80 --path /pay --waypoint 127.0.0.1:15000\n      \
        as a running waypoint does it\n  \
    culvert why 192.0.2.7 shop/cart-0:8080 -o json\n      \
        from outside the mesh, for scripts\n  \
    culvert why --denial 0ba7c9d2e5f841bb96a1d0c3e2f4a587\n      \
        the id of a refusal, from an agent's log\n\n\
    Exit status: 0 if the connection, and the request, is let through or answered as configured, 1 if it is refused, 2 if the \
    question cannot be answered (unknown name, wrong configuration, no agent).")]
pub(crate) struct WhyArgs {
    /// Who connects
    #[arg(value_name = "SOURCE", required_unless_present = "denial")]
    source: Option<String>,
    /// Where to, with a port
    #[arg(value_name = "DESTINATION[:PORT]", required_unless_present = "denial")]
    destination: Option<String>,
    /// Explain the refusal with this id, from the agents' memory of recent ones
    #[arg(long, value_name = "ID", conflicts_with_all = ["source", "destination"])]
    denial: Option<String>,
    /// Admin address of a running agent, asked in place of the directory; may be repeated, for one answer of each [default
    /// with --denial: 127.0.0.1:15000]
    #[arg(long, value_name = "ADDR", value_parser = agent::address)]
    agent: Vec<SocketAddr>,
    /// Admin address of a running waypoint, asked in place of the directory: it also knows ejections and open circuits
    #[arg(long, value_name = "ADDR", value_parser = agent::address, conflicts_with_all = ["agent", "denial"])]
    waypoint: Option<SocketAddr>,
    #[command(flatten)]
    request: request::RequestArgs,
    #[command(flatten)]
    mesh: config::MeshArgs,
    /// text for people; json prints the whole explanation as one object
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Output,
    /// No colours
    #[arg(long, env = "NO_COLOR", value_parser = FalseyValueParser::new())]
    no_color: bool,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Output {
    Text,
    Json,
}

/// Answers the question; what keeps it from being answered goes to standard error.
pub(crate) fn run(args: &WhyArgs) -> ExitCode {
    match answer(args) {
        Ok(code) => code,
        Err(error) => {
            let _nobody_to_tell = writeln!(std::io::stderr(), "culvert: {error:#}");
            ExitCode::from(NO_ANSWER)
        }
    }
}

fn answer(args: &WhyArgs) -> anyhow::Result<ExitCode> {
    let printer = Printer::new(args);
    if let Some(id) = &args.denial {
        return denial::explain(id, &args.agent, &printer);
    }
    let (Some(source), Some(destination)) = (&args.source, &args.destination) else {
        anyhow::bail!("name a SOURCE and a DESTINATION; see culvert why --help");
    };
    if let Some(waypoint) = args.waypoint {
        let explanation = agent::explain(waypoint, source, destination)?;
        let requests = request::ask(&args.request, waypoint, &explanation)?;
        printer.whole(&explanation, &requests)?;
        return Ok(code(requests.verdicts().chain([explanation.verdict])));
    }
    if args.agent.is_empty() {
        let mesh = config::read(&args.mesh)?;
        let explanation = mesh.explain(source, destination)?;
        let requests = request::explain(&args.request, &mesh, &explanation)?;
        printer.whole(&explanation, &requests)?;
        return Ok(code(requests.verdicts().chain([explanation.verdict])));
    }
    let mut verdicts = Vec::new();
    for (number, agent) in args.agent.iter().enumerate() {
        let explanation = agent::explain(*agent, source, destination)?;
        if number > 0 {
            printer.gap()?;
        }
        printer.explanation((args.agent.len() > 1).then_some(*agent), &explanation)?;
        verdicts.push(explanation.verdict);
    }
    Ok(code(verdicts))
}

/// Success if every answer is yes.
fn code(verdicts: impl IntoIterator<Item = Outcome>) -> ExitCode {
    let refused = verdicts.into_iter().any(|verdict| verdict != Outcome::Allowed);
    ExitCode::from(u8::from(refused))
}

/// Prints in the form that was asked for.
struct Printer {
    output: Output,
    paint: Paint,
}

impl Printer {
    fn new(args: &WhyArgs) -> Self {
        let coloured = args.output == Output::Text && !args.no_color && std::io::stdout().is_terminal();
        Self { output: args.output, paint: if coloured { Paint::Colour } else { Paint::Plain } }
    }

    fn explanation(&self, of: Option<SocketAddr>, explanation: &Explanation) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        match self.output {
            Output::Json => {
                serde_json::to_writer_pretty(&mut out, explanation)?;
                writeln!(out)?;
            }
            Output::Text => {
                if let Some(agent) = of {
                    writeln!(out, "{}", self.paint.bold(format!("Agent {agent}")))?;
                }
                write!(out, "{}", explanation.render(|tone, text| self.tone(tone, text)))?;
            }
        }
        Ok(())
    }

    /// A connection, and what waypoints do with the request on it.
    fn whole(&self, explanation: &Explanation, requests: &request::Requests) -> anyhow::Result<()> {
        match self.output {
            Output::Json => {
                let whole = request::Whole { connection: explanation, requests };
                self.text(&format!("{}\n", serde_json::to_string_pretty(&whole)?))
            }
            Output::Text => {
                self.text(&request_text::verdicts(requests, |tone, text| self.tone(tone, text)))?;
                self.explanation(None, explanation)?;
                self.text(&request_text::render(requests, |tone, text| self.tone(tone, text)))
            }
        }
    }

    fn text(&self, text: &str) -> anyhow::Result<()> {
        write!(std::io::stdout().lock(), "{text}")?;
        Ok(())
    }

    fn gap(&self) -> anyhow::Result<()> {
        if self.output == Output::Text { self.text("\n") } else { Ok(()) }
    }

    fn tone(&self, tone: Tone, text: &str) -> String {
        match tone {
            Tone::Good => self.paint.green(text).to_string(),
            Tone::Bad => self.paint.red(text).to_string(),
            Tone::Strong => self.paint.bold(text).to_string(),
            Tone::Faint => self.paint.dim(text).to_string(),
        }
    }
}
