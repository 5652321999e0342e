//! The settings in force, as the dump shows them.

use serde_json::{Value, json};

use crate::settings::Settings;

/// What was built.
pub(crate) fn version() -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "gitRevision": "unknown",
        "rustVersion": env!("CARGO_PKG_RUST_VERSION"),
        "buildStatus": if cfg!(debug_assertions) { "debug" } else { "release" },
        "gitTag": "unknown",
    })
}

/// Every setting under its own name, none of which is secret, and beside them what follows from several together, under
/// the names that the reference node proxy has for it.
pub(crate) fn config(settings: &Settings) -> Value {
    let mut all = serde_json::to_value(settings).unwrap_or_else(|error| json!({"error": error.to_string()}));
    let (http2, pod) = (settings.http2(), settings.pod_limits());
    let derived = json!({
        "clusterId": settings.source.cluster_id(),
        "localNode": settings.source.node,
        "readinessAddr": settings.process.ready_addr,
        "numWorkerThreads": settings.workers(),
        "selfTerminationDeadline": settings.lifecycle.deadline(),
        "poolMaxStreamsPerConn": settings.tunnel.pool_max_streams,
        "windowSize": http2.stream_window,
        "connectionWindowSize": http2.connection_window,
        "memoryBudget": settings.memory_budget(),
        "podMemoryBudget": pod.memory,
        "podConnections": pod.connections,
    });
    if let (Value::Object(all), Value::Object(derived)) = (&mut all, derived) {
        all.extend(derived);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Cli;
    use clap::{CommandFactory, Parser};

    #[test]
    fn each_setting_is_shown() {
        let settings = Cli::try_parse_from(["ztunnel", "--grace-period", "30"]).unwrap().settings;
        let shown = config(&settings);
        let camel = |id: &str| {
            let mut parts = id.split('_');
            let first = parts.next().unwrap_or_default().to_owned();
            parts.fold(first, |name, part| {
                let (head, tail) = part.split_at(1);
                name + &head.to_uppercase() + tail
            })
        };
        for arg in Cli::command().get_arguments().map(|arg| arg.get_id().as_str()) {
            let known = ["help", "version"].contains(&arg) || shown.get(camel(arg)).is_some();
            assert!(known, "{arg} is not in {shown}");
        }
        assert_eq!(shown["adminAddr"], json!(["127.0.0.1:15000", "[::1]:15000"]));
        assert_eq!(shown["selfTerminationDeadline"]["secs"], 25);
        assert!(shown["numWorkerThreads"].as_u64() >= Some(1));
    }
}
