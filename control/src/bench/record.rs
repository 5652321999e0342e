//! What a run of the benchmark has seen: the JSON that is kept, compared and drawn.
//!
//! Raw: a sample holds what was measured and nothing that is computed from several. Keys are stable; a new field has a
//! default, so that older recordings stay readable.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Version of the format; a reader refuses others.
pub const FORMAT: u32 = 1;

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recording {
    /// [`FORMAT`].
    pub format: u32,
    /// What ran, where and when.
    pub about: About,
    /// Modes, in the order of the first round.
    pub modes: Vec<ModeRecord>,
    /// Works, in the order they were run.
    pub works: Vec<WorkRecord>,
    /// Samples, in the order they were taken; those of disturbed tries too.
    pub samples: Vec<Sample>,
}

/// What ran, where and when.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// The command line.
    pub command: String,
    /// Version of the program.
    pub version: String,
    /// Commit it was built from, with `-dirty` if files differed; `None` outside a repository.
    pub commit: Option<String>,
    /// Begin, RFC 3339 in UTC.
    pub started: String,
    /// Length, in seconds.
    pub seconds: f64,
    /// Whether it went to its end.
    pub complete: bool,
    /// Rounds that were asked for.
    pub rounds: u32,
    /// Seconds of one sample.
    pub sample_seconds: f64,
    /// The machine.
    pub machine: Machine,
    /// Programs that took part, with their versions.
    pub tools: BTreeMap<String, String>,
    /// What a reader must know: limits of this machine, works left out with the reason.
    pub notes: Vec<String>,
}

/// The machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Processors that may be used.
    pub cpus: u32,
    /// Their model.
    pub model: String,
    /// MiB of memory.
    pub memory_mib: u64,
    /// Kernel release.
    pub kernel: String,
    /// Congestion control in all namespaces of the run.
    pub congestion_control: String,
}

/// One way of connecting the pods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModeRecord {
    /// Short name, such as `culvert`.
    pub name: String,
    /// One line for people.
    pub title: String,
    /// How what runs differs from its own defaults.
    pub deviations: Vec<String>,
}

/// One kind of work. What is measured in phases is a work for each phase, in their order: memory freshly started, with
/// idle connections, right after load and later are four, whose samples have memory and no cost per unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkRecord {
    /// Short name, such as `c64`.
    pub name: String,
    /// One line for people.
    pub title: String,
}

/// One work through one mode.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// From 1.
    pub round: u32,
    /// Name of the mode.
    pub mode: String,
    /// Name of the work.
    pub work: String,
    /// Begin, in seconds since that of the run.
    pub at: f64,
    /// Length, in seconds.
    pub seconds: f64,
    /// Why it does not count: foreign load on the machine. It was repeated unless it is the last try of its round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disturbed: Option<String>,
    /// Why there is no figure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// What was measured.
    #[serde(default)]
    pub values: BTreeMap<Measure, f64>,
    /// The part of each process in the mode's CPU or memory, by its name: in the unit of the work's main measure of cost.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub by_process: BTreeMap<String, f64>,
    /// Latency by percentile: pairs of percentile (0 to 100) and microseconds, rising.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub latency: Vec<(f64, f64)>,
}

impl Sample {
    /// Whether its figures count.
    pub fn counts(&self) -> bool {
        self.disturbed.is_none() && self.failed.is_none()
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// CPU of the mode's proxies for one request, µs.
    CpuUsPerRequest,
    /// CPU of the mode's proxies for one connection, µs.
    CpuUsPerConnection,
    /// CPU of the mode's proxies for one GiB, s.
    CpuSPerGib,
    /// Answered requests a second.
    RequestsPerSecond,
    /// Requests a second that were asked for.
    AskedPerSecond,
    /// New connections a second, each with one request.
    ConnectionsPerSecond,
    /// Payload, Gbit/s.
    GbitPerSecond,
    /// Latency that half of the requests stay under, µs.
    P50Us,
    /// Latency that 99 % stay under, µs.
    P99Us,
    /// Latency that 99.9 % stay under, µs.
    P999Us,
    /// Requests or connections that failed, counted at the socket.
    Failed,
    /// Resident memory of all proxies of the mode, MiB.
    RssMib,
    /// Proportional share of it, MiB.
    PssMib,
    /// Resident memory of the mode's largest proxy, MiB.
    LargestRssMib,
    /// From start to ready, ms.
    StartMs,
    /// Voluntary context switches of the proxies for one request, connection or GiB.
    Switches,
    /// CPU of the whole machine for one request or connection (µs) or GiB (s).
    MachineCpu,
}

impl Measure {
    /// All, in the order of tables.
    pub const ALL: [Self; 17] = [
        Self::CpuUsPerRequest,
        Self::CpuUsPerConnection,
        Self::CpuSPerGib,
        Self::RequestsPerSecond,
        Self::AskedPerSecond,
        Self::ConnectionsPerSecond,
        Self::GbitPerSecond,
        Self::P50Us,
        Self::P99Us,
        Self::P999Us,
        Self::Failed,
        Self::RssMib,
        Self::PssMib,
        Self::LargestRssMib,
        Self::StartMs,
        Self::Switches,
        Self::MachineCpu,
    ];

    /// Unit, as people read it.
    pub fn unit(self) -> &'static str {
        match self {
            Self::CpuUsPerRequest => "µs/request",
            Self::CpuUsPerConnection => "µs/connection",
            Self::CpuSPerGib => "s/GiB",
            Self::RequestsPerSecond | Self::AskedPerSecond => "requests/s",
            Self::ConnectionsPerSecond => "connections/s",
            Self::GbitPerSecond => "Gbit/s",
            Self::P50Us | Self::P99Us | Self::P999Us => "µs",
            Self::Failed => "failed",
            Self::RssMib | Self::PssMib | Self::LargestRssMib => "MiB",
            Self::StartMs => "ms",
            Self::Switches => "switches/unit",
            Self::MachineCpu => "CPU/unit",
        }
    }

    /// Whether more of it is better.
    pub fn more_is_better(self) -> bool {
        matches!(self, Self::RequestsPerSecond | Self::ConnectionsPerSecond | Self::GbitPerSecond)
    }
}
