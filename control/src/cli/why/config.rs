//! Answers from a directory of configuration, read as the agent reads it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use culvert_common::decide::explain::{self, Explanation};
use culvert_common::model::l7::{GatewayKey, Waypoint};
use culvert_common::model::{DowngradeMode, NoDowngrade, Status};
use culvert_common::source::file;
use culvert_common::source::kube::Settings;
use culvert_common::state::{Snapshot, State};

/// Where the agent reads its configuration when nobody says otherwise.
const AGENTS_OWN: &str = "/etc/culvert/mesh";

/// The directory, and the agent's settings that change what it means.
#[derive(Args, Debug)]
pub(super) struct MeshArgs {
    /// Directory of YAML to answer from [default: /etc/culvert/mesh, as the agent, or else the current directory]
    #[arg(long, env = "CULVERT_CONFIG", value_name = "DIR")]
    config: Option<PathBuf>,
    /// Trust domain of the mesh
    #[arg(long, env = "TRUST_DOMAIN", value_name = "DOMAIN", default_value = "cluster.local", help_heading = AS_AGENT)]
    trust_domain: String,
    /// Domain of service host names
    #[arg(long, env = "CLUSTER_DOMAIN", value_name = "DOMAIN", default_value = "cluster.local", help_heading = AS_AGENT)]
    cluster_domain: String,
    /// Namespace whose policies apply to the whole mesh
    #[arg(long, env = "CULVERT_ROOT_NAMESPACE", value_name = "NS", default_value = "istio-system", help_heading = AS_AGENT)]
    root_namespace: String,
    /// Namespaces that are never captured
    #[arg(long, env = "CULVERT_EXCLUDE_NAMESPACES", value_name = "NS", value_delimiter = ',', default_value = "kube-system", help_heading = AS_AGENT)]
    exclude_namespaces: Vec<String>,
    /// What becomes of plaintext to a pod that is labelled but not captured, or STRICT: enforce (hold, then refuse), count
    #[arg(long, env = "CULVERT_NO_DOWNGRADE", value_name = "WHAT", default_value = "enforce", help_heading = AS_AGENT)]
    no_downgrade: OnDowngrade,
    /// A DENY rule that has only HTTP fields denies at L4
    #[arg(long, env = "POLICY_STRICT", value_name = "BOOL", num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set, help_heading = AS_AGENT)]
    policy_strict: bool,
}

const AS_AGENT: &str = "Settings of the agent (with a directory)";

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum OnDowngrade {
    Enforce,
    Count,
}

/// A directory as node agents read it.
pub(super) struct Mesh {
    dir: PathBuf,
    settings: Settings,
    /// What their state would be.
    pub(super) snapshot: Arc<Snapshot>,
    /// What a controller would write back.
    pub(super) statuses: Vec<Status>,
    /// The waypoints that are ready.
    pub(super) waypoints: BTreeSet<GatewayKey>,
}

impl Mesh {
    /// Explains a connection.
    ///
    /// **Errors:** a name or port is unknown.
    pub(super) fn explain(&self, source: &str, destination: &str) -> anyhow::Result<Explanation> {
        Ok(explain::explain(&self.snapshot, source, destination)?)
    }

    /// What one of its waypoints does, with the conditions of routes and policies there.
    ///
    /// **Errors:** every problem that would keep the waypoint from using the directory.
    pub(super) fn waypoint(&self, key: &GatewayKey) -> anyhow::Result<(Arc<Waypoint>, Vec<Status>)> {
        let settings = Settings { waypoint: Some(key.clone()), ..self.settings.clone() };
        let read = file::load(&self.dir, &settings);
        let read =
            read.with_context(|| format!("the waypoint {key} would not use {}", self.dir.display()))?;
        Ok((read.model.waypoint.unwrap_or_default(), read.statuses))
    }
}

/// Reads the directory.
///
/// **Errors:** it cannot be used, with every problem in it.
pub(super) fn read(args: &MeshArgs) -> anyhow::Result<Mesh> {
    let dir = directory(args);
    let settings = Settings {
        trust_domain: args.trust_domain.as_str().into(),
        cluster_domain: args.cluster_domain.as_str().into(),
        root_namespace: args.root_namespace.as_str().into(),
        excluded_namespaces: args.exclude_namespaces.iter().map(|ns| ns.as_str().into()).collect(),
        policy_strict: args.policy_strict,
        // No node's pods are captured by this program, so that it asks for no network namespaces.
        node: Some("-".into()),
        ..Settings::default()
    };
    let loaded = file::load(&dir, &settings)?;
    let mode = match args.no_downgrade {
        OnDowngrade::Enforce => DowngradeMode::Enforce,
        OnDowngrade::Count => DowngradeMode::Count,
    };
    let state = State::with(NoDowngrade { mode, ..NoDowngrade::default() });
    state.publish(loaded.model);
    let snapshot = state.snapshot();
    if snapshot.workloads().next().is_none() && snapshot.services().next().is_none() {
        anyhow::bail!(
            "{} has no Pod with an address and no Service; name the directory of the mesh's YAML with --config, or ask a \
             running agent with --agent",
            dir.display()
        );
    }
    Ok(Mesh { dir, settings, snapshot, statuses: loaded.statuses, waypoints: loaded.bound })
}

fn directory(args: &MeshArgs) -> PathBuf {
    let own = Path::new(AGENTS_OWN);
    let default = || if own.is_dir() { own.to_owned() } else { PathBuf::from(".") };
    args.config.clone().unwrap_or_else(default)
}
