//! Redirection of a pod's TCP for proxies that are not ours: the capture rules of the agent, without the agent.

use anyhow::Context as _;
use culvert_common::net::rules::{self, CaptureSpec};

use crate::lab::Pod;

/// What redirected proxies set on their own sockets (`SO_MARK`).
pub(super) fn mark() -> u32 {
    CaptureSpec::default().mark
}

/// Sends what the pods send to their port 15001 and what arrives for them to 15006.
pub(super) fn on(pods: &[&Pod]) -> anyhow::Result<()> {
    for pod in pods {
        pod.run(|| rules::install(&CaptureSpec::default()))?
            .with_context(|| format!("redirect the traffic of {}", pod.name()))?;
    }
    Ok(())
}

/// Takes the redirection away; also where there is none.
pub(super) fn off(pods: &[&Pod]) -> anyhow::Result<()> {
    for pod in pods {
        pod.run(rules::remove)?.with_context(|| format!("end the redirection of {}", pod.name()))?;
    }
    Ok(())
}
