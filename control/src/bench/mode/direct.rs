//! Nothing between the pods.

use std::time::Duration;

use super::{Mode, Proxy, Stage, World};

/// The pods talk to each other over the nodes' network alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Direct;

impl Mode for Direct {
    fn name(&self) -> &'static str {
        "direct"
    }

    fn title(&self) -> String {
        "no mesh: plaintext from pod to pod, two nodes".to_owned()
    }

    fn has_proxies(&self) -> bool {
        false
    }

    fn start(&mut self, _stage: &Stage, _world: &World) -> anyhow::Result<Duration> {
        Ok(Duration::ZERO)
    }

    fn proxies(&self) -> Vec<Proxy> {
        Vec::new()
    }

    fn stop(&mut self, _stage: &Stage) -> anyhow::Result<()> {
        Ok(())
    }
}
