//! Requests at a constant rate out of a pod while something changes. Failures are counted at its socket, by reason.

use std::process::{Child, Stdio};
use std::time::Duration;

use crate::kube::{Said, kubectl_command, until};
use crate::space::Space;

/// `culvert load` in a pod.
#[derive(Debug)]
pub(crate) struct Traffic {
    child: Option<Child>,
    namespace: String,
    from: String,
    url: String,
}

/// What it counted.
#[derive(Debug)]
pub(crate) struct Counted {
    pub(crate) answered: u64,
    pub(crate) failed: u64,
    /// Failures by reason, for the message of a failed test.
    pub(crate) failures: String,
}

impl std::fmt::Display for Counted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { answered, failed, failures } = self;
        write!(f, "{answered} answered, {failed} failed: {failures}")
    }
}

/// What becomes of the connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Connections {
    /// A new one for each request.
    New,
    /// A few that stay.
    Kept,
}

impl Traffic {
    /// Starts it in a Deployment's pod and returns when requests are answered.
    #[track_caller]
    pub(crate) fn start(space: &Space, from: &str, url: &str, rate: u32, connections: Connections) -> Self {
        space.becomes(from, url, true);
        let mut command = kubectl_command();
        let rate = rate.to_string();
        let object = format!("deploy/{from}");
        command.args(["-n", &space.name, "exec", &object, "--", "culvert", "load", "--rate", &rate]);
        command.args(["--duration", "10m", "--timeout", "8s", "-o", "json"]);
        command.args(match connections {
            Connections::New => ["--close", "--connections=64"],
            Connections::Kept => ["--connections=4", "--warm-up=0s"],
        });
        command.arg(url).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().expect("start nsenter");
        let traffic =
            Self { child: Some(child), namespace: space.name.clone(), from: object, url: url.to_owned() };
        until("culvert load runs", Duration::from_secs(10), || {
            let said = traffic.exec(&["pidof", "culvert"]);
            if said.ok { Ok(()) } else { Err(said.err) }
        });
        traffic
    }

    fn exec(&self, command: &[&str]) -> Said {
        crate::kube::try_kubectl(&[&["-n", &self.namespace, "exec", &self.from, "--"], command].concat())
    }

    /// Ends it and counts. At least one request must have been answered.
    #[track_caller]
    pub(crate) fn stop(mut self) -> Counted {
        let signalled = self.exec(&["killall", "-INT", "culvert"]);
        let said = Said::from(self.child.take().unwrap().wait_with_output().unwrap());
        let at = said.out.find('{').unwrap_or_else(|| panic!("{}: {said:?} {signalled:?}", self.url));
        let report: serde_json::Value = serde_json::from_str(said.out.get(at..).unwrap()).unwrap();
        let number = |name: &str| report[name].as_u64().unwrap_or_else(|| panic!("no {name} in {report}"));
        let counted = Counted {
            answered: number("answered"),
            failed: number("failed"),
            failures: report["failures"].to_string(),
        };
        assert!(counted.answered > 0, "nothing was answered: {counted}");
        counted
    }

    /// Ends it; not one request may have failed.
    #[track_caller]
    pub(crate) fn none_failed(self, during: &str) {
        let url = self.url.clone();
        let counted = self.stop();
        assert_eq!(counted.failed, 0, "requests to {url} failed during {during}: {counted}");
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            self.exec(&["killall", "-KILL", "culvert"]);
            child.kill().ok();
            child.wait().ok();
        }
    }
}
