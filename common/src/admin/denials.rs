//! The memory of recent refusals as JSON.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::telemetry::{Denial, Denials, Party, Reporter};

/// What an agent remembers, newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusalPage {
    /// How many refusals the agent remembers now, of all kinds.
    pub kept: usize,
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
        oldest: all.last().map(|denial| rfc3339(denial)),
        refusals: found.iter().map(|denial| view(denial)).collect(),
    }
}

fn view(denial: &Denial) -> RefusalView {
    let address = |party: &Party| party.addr.map(|addr| addr.to_string());
    let identity = |party: &Party| party.identity.as_ref().map(ToString::to_string);
    RefusalView {
        at: rfc3339(denial),
        id: denial.id.clone(),
        class: denial.class.to_owned(),
        flag: denial.flag.as_str().to_owned(),
        reporter: match denial.reporter {
            Reporter::Source => "source",
            Reporter::Destination => "destination",
        }
        .to_owned(),
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
