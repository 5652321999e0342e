//! What a decision lacks and the source of the state may have: it is asked for, then decided again.
//!
//! Only where the agent knows no more than its pods use. Each question waits as long as a held connection, and an answer
//! that does not come is not read as a no.

use std::net::IpAddr;

use culvert_common::decide::{NextHop, OutboundRefusal, PassthroughReason, unanswered};
use culvert_common::model::{GatewayDestination, Workload};
use culvert_common::types::ServiceKey;
use culvert_common::xds::on_demand::{Lookup, OnDemand};

use super::reach::Call;

/// Questions for one connection: its destination, and the waypoint of that.
const QUESTIONS: usize = 3;

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Lacking<'a> {
    Address(&'a str, IpAddr),
    Service(&'a ServiceKey),
}

/// What was asked for one connection.
#[derive(Default)]
pub(super) struct Questions(usize);

impl Questions {
    /// Whether the decision is worth a question: one comparison where nothing is lacking.
    pub(super) fn has(&self, call: &Call<'_>, decided: &Result<NextHop, OutboundRefusal>) -> bool {
        let asks = call.worker.shared.on_demand.is_some() && self.0 < QUESTIONS;
        asks && lacking("", decided).is_some()
    }

    /// Asks, and says whether to decide again; if not, the decision stays.
    ///
    /// **Errors**: nobody has answered, and the destination is the mesh's. **Cancel safety**: a dropped call waits no more.
    pub(super) async fn ask(
        &mut self,
        call: &Call<'_>,
        source: &Workload,
        decided: &Result<NextHop, OutboundRefusal>,
    ) -> Result<bool, OutboundRefusal> {
        let shared = &call.worker.shared;
        let (Some(on_demand), Some(lacking)) = (&shared.on_demand, lacking(&source.network, decided)) else {
            return Ok(false);
        };
        self.0 += 1;
        match look_up(on_demand, &lacking, shared.hold).await {
            Lookup::Known => Ok(true),
            Lookup::Missing => Ok(false),
            Lookup::TimedOut => match (&lacking, unanswered(&shared.state.snapshot(), call.dst)) {
                (Lacking::Address(..), Some(downgrade)) => {
                    Err(OutboundRefusal::Downgrade(Box::new(downgrade)))
                }
                (Lacking::Address(..) | Lacking::Service(_), _) => Ok(false),
            },
        }
    }
}

async fn look_up(on_demand: &OnDemand, lacking: &Lacking<'_>, limit: std::time::Duration) -> Lookup {
    match lacking {
        Lacking::Address(network, ip) => on_demand.address(network, *ip, limit).await,
        Lacking::Service(key) => on_demand.service(key, limit).await,
    }
}

fn lacking<'a>(network: &'a str, decided: &'a Result<NextHop, OutboundRefusal>) -> Option<Lacking<'a>> {
    match decided {
        Ok(NextHop::Passthrough { to, why: PassthroughReason::UnknownDestination }) => {
            let ip = to.ip();
            let is_nobodys = ip.is_loopback() || ip.is_unspecified() || ip.is_multicast();
            (!is_nobodys).then_some(Lacking::Address(network, ip))
        }
        Err(OutboundRefusal::UnknownWaypoint { waypoint, .. }) => Some(match waypoint {
            GatewayDestination::Address { network, ip } => Lacking::Address(network, *ip),
            GatewayDestination::Hostname(key) => Lacking::Service(key),
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_unknown_is_asked_for() {
        let unknown = |to: &str| {
            let why = PassthroughReason::UnknownDestination;
            Ok(NextHop::Passthrough { to: to.parse().unwrap(), why })
        };
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(lacking("n", &unknown("10.0.0.1:80")), Some(Lacking::Address("n", ip("10.0.0.1"))));
        assert_eq!(lacking("n", &unknown("[fd00::1]:80")), Some(Lacking::Address("n", ip("fd00::1"))));
        for nobodys in ["127.0.0.1:80", "[::1]:80", "0.0.0.0:80", "[ff02::1]:80"] {
            assert_eq!(lacking("n", &unknown(nobodys)), None, "{nobodys}");
        }
        let key = ServiceKey { namespace: "shop".into(), hostname: "wp.shop".into() };
        let refused = |waypoint| {
            let destination = "10.0.0.1:80".parse().unwrap();
            Err(OutboundRefusal::UnknownWaypoint { destination, waypoint })
        };
        let by_name = refused(GatewayDestination::Hostname(key.clone()));
        assert_eq!(lacking("n", &by_name), Some(Lacking::Service(&key)));
        let by_address = refused(GatewayDestination::Address { network: "m".into(), ip: ip("10.96.0.9") });
        assert_eq!(lacking("n", &by_address), Some(Lacking::Address("m", ip("10.96.0.9"))));
        let own = Err(OutboundRefusal::SelfCall { destination: "127.0.0.1:15001".parse().unwrap() });
        assert_eq!(lacking("n", &own), None);
    }
}
