//! What is never sent in plaintext.

use ipnet::IpNet;

/// Settings of the rule that nothing meant for the mesh leaves it in plaintext.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NoDowngrade {
    /// What happens to plaintext towards workloads that should be captured or take none.
    pub mode: DowngradeMode,
    /// Ranges of pods' addresses; empty if unknown.
    pub pod_ranges: Vec<IpNet>,
    /// Ranges of services' addresses; empty if unknown.
    pub service_ranges: Vec<IpNet>,
}

/// What happens to plaintext towards workloads that should be captured or take none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DowngradeMode {
    /// It is held, then refused.
    #[default]
    Enforce,
    /// It goes out and is counted.
    Count,
}

impl NoDowngrade {
    /// The range of the mesh that holds this address.
    pub fn range_of(&self, ip: std::net::IpAddr) -> Option<IpNet> {
        self.pod_ranges.iter().chain(&self.service_ranges).find(|range| range.contains(&ip)).copied()
    }
}
