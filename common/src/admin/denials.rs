//! The memory of recent refusals as JSON.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::decide::explain::Explanation;
use crate::telemetry::{Denial, Denials, Party};

/// Failures of a pair that an explanation tells.
const PAIR_MAX: usize = 5;

/// What an agent remembers, newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusalPage {
    /// How many refusals the agent remembers now, of all kinds.
    pub kept: usize,
    /// How many it can remember; then it forgets the oldest.
    pub capacity: usize,
    /// Time of the oldest of them; none while there are none.
    pub oldest: Option<String>,
    /// Those that were asked for.
    pub refusals: Vec<RefusalView>,
}

/// One refusal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusalView {
    /// When, in UTC.
    pub at: String,
    /// The id that is in both agents' logs; none where nobody said no but something did not work.
    pub id: Option<String>,
    /// Class, for example `policy`.
    pub class: String,
    /// Flag of the access log.
    pub flag: String,
    /// Which side of the connection the agent was on: `source` or `destination`.
    pub reporter: String,
    /// Who connected: `<namespace>/<name>` if it is known.
    pub source: Option<String>,
    /// Its address.
    pub source_address: Option<String>,
    /// Its identity.
    pub source_identity: Option<String>,
    /// To whom.
    pub destination: Option<String>,
    /// Address and port for the app.
    pub destination_address: Option<String>,
    /// Its identity.
    pub destination_identity: Option<String>,
    /// Host name of the service that was meant.
    pub service: Option<String>,
    /// Policies that refused; known at the destination only.
    pub policy: Option<String>,
    /// The reason in the words of the log.
    pub error: String,
}

/// The refusals with this id, or the newest `count`.
pub fn refusals(memory: &Denials, id: Option<&str>, count: usize) -> RefusalPage {
    let found = match id {
        Some(id) => memory.find(id),
        None => memory.recent(count),
    };
    let all = memory.recent(usize::MAX);
    RefusalPage {
        kept: all.len(),
        capacity: Denials::CAPACITY,
        oldest: all.last().map(|denial| rfc3339(denial)),
        refusals: found.iter().map(|denial| view(denial)).collect(),
    }
}

/// The newest failures of the pair that is explained, a line each.
pub fn recent_of(memory: &Denials, explanation: &Explanation) -> Vec<String> {
    let targets = explanation.routes.iter().map(|route| &route.target);
    let addresses: Vec<SocketAddr> = explanation
        .destination
        .addresses
        .iter()
        .chain(targets)
        .filter_map(|addr| addr.parse().ok())
        .collect();
    let from_it = |denial: &Denial| {
        let ip = denial.source.addr.map(|addr| addr.ip().to_canonical().to_string());
        denial.source.workload.as_ref() == Some(&explanation.source.name)
            || ip.is_some_and(|ip| explanation.source.addresses.contains(&ip))
    };
    let to_it = |denial: &Denial| {
        let asked = denial.authority.as_ref().and_then(|authority| authority.parse().ok());
        asked.or(denial.destination.addr).is_some_and(|to| addresses.contains(&to))
    };
    let line = |denial: &Denial| {
        let id = denial.id.as_ref().map(|id| format!(" (denial {id})")).unwrap_or_default();
        format!("{} {}: {}{id}", rfc3339(denial), denial.flag.as_str(), denial.error)
    };
    let all = memory.recent(usize::MAX);
    let pair = all.iter().filter(|denial| from_it(denial) && to_it(denial));
    pair.take(PAIR_MAX).map(|denial| line(denial)).collect()
}

fn view(denial: &Denial) -> RefusalView {
    let address = |party: &Party| party.addr.map(|addr| addr.to_string());
    let identity = |party: &Party| party.identity.as_ref().map(ToString::to_string);
    RefusalView {
        at: rfc3339(denial),
        id: denial.id.clone(),
        class: denial.class.to_owned(),
        flag: denial.flag.as_str().to_owned(),
        reporter: denial.reporter.as_str().to_owned(),
        source: denial.source.workload.clone(),
        source_address: address(&denial.source),
        source_identity: identity(&denial.source),
        destination: denial.destination.workload.clone(),
        // In a tunnel the address is the tunnel's; what was asked for in it is the app's.
        destination_address: denial.authority.clone().or_else(|| address(&denial.destination)),
        destination_identity: identity(&denial.destination),
        service: denial.service.clone(),
        policy: denial.policy.clone(),
        error: denial.error.clone(),
    }
}

fn rfc3339(denial: &Denial) -> String {
    let at = OffsetDateTime::from(denial.at);
    let at = at.replace_millisecond(at.millisecond()).unwrap_or(at);
    at.format(&Rfc3339).unwrap_or_default()
}
