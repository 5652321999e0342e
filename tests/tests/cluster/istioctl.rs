//! What people read with `istioctl`: it knows our agents as it knows Istio's own.

use serde_json::Value;

use crate::flows::Open;
use crate::kube::{SOON, Said, agent_on, folder, inside, until};
use crate::policy::{policy, principal};

/// Runs istioctl with an administrator's rights.
fn istioctl(args: &[&str]) -> Said {
    let (program, config) = (folder().join("bin/istioctl"), folder().join("run/admin.conf"));
    inside(1).arg(program).args(args).arg("--kubeconfig").arg(config).output().unwrap().into()
}

/// `ztunnel-config` of the agent on a node, as JSON.
#[track_caller]
fn config(node: u32, what: &str) -> Value {
    let said = istioctl(&["ztunnel-config", what, &format!("{}.istio-system", agent_on(node)), "-o", "json"]);
    assert!(said.ok, "{what}: {said:?}");
    serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{what}: {error}: {}", said.out))
}

/// The lines of the table of an agent's `ztunnel-config` that have all these words.
#[track_caller]
fn table(node: u32, args: &[&str], words: &[&str]) -> Vec<String> {
    let said =
        istioctl(&[&["ztunnel-config"], args, &[&format!("{}.istio-system", agent_on(node))]].concat());
    assert!(said.ok, "{args:?}: {said:?}");
    let lines = said.out.lines().filter(|line| words.iter().all(|word| line.contains(word)));
    lines.map(str::to_owned).collect()
}

/// Tables and JSON of workloads, services, policies, certificates and connections, the log's level, and that istiod knows
/// the agents as its clients.
#[test]
fn ztunnel_config_shows_what_is_there() {
    let space = crate::flows::stage("istioctl");
    space.apply(&policy("callers", "ALLOW", "far", &principal(&space, "web"), ""));
    let open = Open::new(&space, "web", "far 5001", 60);
    let ns = &space.name[..];
    let wanted: [(&[&str], &[&str]); 7] = [
        (&["workloads"], &[ns, "far-", "node-2", "None", "HBONE"]),
        (&["services"], &[ns, "far", "1/1"]),
        (&["policies"], &[ns, "callers", "Allow", "WorkloadSelector"]),
        (&["certificates"], &["sa/far", "Leaf", "Available", "true"]),
        (&["certificates"], &["sa/far", "Root", "Available", "true"]),
        (&["connections"], &["far-", "Inbound", "web-", "HBONE"]),
        (&["all"], &["far-", "HBONE"]),
    ];
    for (what, words) in wanted {
        until(&format!("{what:?} with {words:?}"), SOON, || {
            let found = table(2, what, words);
            if found.is_empty() { Err(table(2, what, &[]).join("\n")) } else { Ok(()) }
        });
    }
    assert!(!table(1, &["connections"], &["web-", "Outbound", "far-", "HBONE"]).is_empty());
    for what in ["workloads", "services", "policies", "certificates", "connections"] {
        let items = config(2, what);
        assert!(items.as_array().is_some_and(|items| !items.is_empty()), "{what}: {items}");
    }
    let all = config(2, "all");
    for key in ["workloads", "services", "policies", "certificates"] {
        assert!(all[key].as_array().is_some_and(|items| !items.is_empty()), "{key}: {all}");
    }
    assert!(!table(2, &["log", "--level", "dns:debug"], &["dns=debug"]).is_empty());
    assert!(!table(2, &["log", "--reset"], &["current log level is info"]).is_empty());

    let status = istioctl(&["proxy-status"]);
    for node in 1..=2 {
        let line = status.out.lines().find(|line| line.contains(&agent_on(node))).unwrap_or_default();
        assert!(line.contains("WADS,WDS"), "{status:?}");
    }
    drop(open);
}
