//! Records what a discovery server says, for the tests that replay it (`src/xds/client/*.txt`).
//!
//! `cargo run -p culvert-common --example record_discovery -- http://127.0.0.1:15010 60 > dialogue.txt` asks as the agent
//! does and writes each message as a line, `>` for ours and `<` for the server's, in base64, and at the end `=` for each name that was there. Change
//! the cluster meanwhile. Names after the seconds are asked for on demand instead of everything.

use std::io::Write as _;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use culvert_common::grpc::{Limits, Roots, Target, connect};
use culvert_common::xds::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Struct};
use culvert_common::xds::session::{Scope, Session};
use culvert_common::xds::store::Store;
use culvert_common::xds::wire::Response;
use prost::Message as _;
use tokio::time::{Instant, timeout_at};

const METHOD: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

fn line(who: char, bytes: &[u8]) -> std::io::Result<()> {
    writeln!(std::io::stdout(), "{who} {}", STANDARD.encode(bytes))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(address), Some(seconds)) = (args.next(), args.next()) else {
        return Err("name the server's address and how many seconds to record".into());
    };
    let target = Target {
        address: address.parse()?,
        roots: Roots::System,
        alternative_host: None,
        token: None,
        headers: Vec::new(),
    };
    let metadata = serde_json::json!({"NAMESPACE": "istio-system", "NODE_NAME": "node-1"});
    let node = Node {
        id: "ztunnel~10.0.0.1~ztunnel.istio-system~istio-system.svc.cluster.local".into(),
        cluster: String::new(),
        metadata: metadata.as_object().cloned().map(Struct::from),
    };
    let channel = connect(&target, Limits { message_max: 64 << 20, ..Limits::default() }).await?;
    let (requests, mut responses) =
        channel.stream::<DeltaDiscoveryRequest, DeltaDiscoveryResponse>(METHOD)?;
    let mut store = Store::default();
    let wanted: Vec<String> = args.collect();
    let scope = if wanted.is_empty() { Scope::Everything } else { Scope::OnDemand };
    let (mut session, first) = Session::open(node, &store, scope, wanted);
    for request in first {
        line('>', &request.encode_to_vec())?;
        requests.send(&request).await?;
    }
    let end = Instant::now() + Duration::from_secs(seconds.parse()?);
    while let Ok(message) = timeout_at(end, responses.bytes()).await {
        let Some(bytes) = message? else { break };
        line('<', &bytes)?;
        let received = session.receive(&Response::read(bytes)?, &mut store, &mut ());
        if let Some(reply) = received.and_then(|received| received.reply) {
            line('>', &reply.encode_to_vec())?;
            requests.send(&reply).await?;
        }
    }
    let parts = store.parts();
    let mut names: Vec<String> = parts.workloads.iter().map(|workload| workload.uid.to_string()).collect();
    names.extend(parts.services.iter().map(|service| format!("{} {}", service.key, service.endpoints.len())));
    names.extend(parts.policies.iter().map(|policy| policy.key.to_string()));
    names.sort();
    names.iter().try_for_each(|name| writeln!(std::io::stdout(), "= {name}"))?;
    Ok(())
}
