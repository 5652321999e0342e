//! The settings in force, as the dump shows them: the reference node proxy's names where it has the setting. None is secret.

use serde_json::{Value, json};

use crate::settings::{Mode, OriginalSource, Settings};

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

/// The settings in force.
pub(crate) fn config(settings: &Settings) -> Value {
    let Settings { source, capture, identity, tunnel, process } = settings;
    let addrs = |all: &[std::net::SocketAddr]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
    let text = |duration: std::time::Duration| format!("{duration:?}");
    let http2 = settings.http2();
    json!({
        "adminAddr": addrs(&process.admin_addr),
        "statsAddr": process.stats_addr.to_string(),
        "readinessAddr": process.ready_addr.to_string(),
        "numWorkerThreads": settings.workers(),
        "selfTerminationDeadline": text(settings.deadline()),
        "logFilter": process.log,
        "authzPolicyInfoLogging": process.policy_info_logging,
        "configDir": source.config.display().to_string(),
        "localNode": source.node,
        "network": source.network,
        "clusterId": settings.cluster_id(),
        "clusterDomain": source.cluster_domain,
        "rootNamespace": source.root_namespace,
        "policyStrict": source.policy_strict,
        "excludedNamespaces": source.exclude_namespaces,
        "proxyMode": match capture.mode {
            Mode::Shared => "Shared",
            Mode::Dedicated => "Dedicated",
        },
        "packetMark": capture.packet_mark,
        "requireOriginalSource": match capture.original_source {
            OriginalSource::Auto => None,
            OriginalSource::True => Some(true),
            OriginalSource::False => Some(false),
        },
        "ipv6Enabled": capture.ipv6,
        "trustDomain": identity.trust_domain,
        "secretTtl": text(identity.secret_ttl),
        "poolMaxStreamsPerConn": tunnel.pool_max_streams,
        "poolUnusedReleaseTimeout": text(tunnel.pool_unused_release),
        "windowSize": http2.stream_window,
        "connectionWindowSize": http2.connection_window,
        "frameSize": http2.frame_size,
        "memoryBudget": tunnel.memory_budget,
        "connectTimeout": text(tunnel.connect_timeout),
        "tlsTimeout": text(tunnel.tls_timeout),
        "prefaceTimeout": text(tunnel.preface_timeout),
        "answerTimeout": text(tunnel.answer_timeout),
        "enableResponseBaggage": tunnel.response_baggage,
        "keepalive": tunnel.keepalive.then(|| json!({
            "time": text(tunnel.keepalive_time),
            "interval": text(tunnel.keepalive_interval),
            "retries": tunnel.keepalive_retries,
            "userTimeout": tunnel.user_timeout,
        })),
    })
}
