//! Kinds of work, and how each is done with real tools.
//!
//! `wrk.rs` and `iperf.rs` run those programs in the client's pod and read what they counted, strictly: an answer that is
//! not of its form is an error, never a figure. `http.rs` makes the load that they cannot make. Nothing here knows what is
//! between the pods, or what it costs; the runner measures that around [`perform`].
//!
//! The server answers [`path`] with a body of that many bytes, on [`super::mode::HTTP_PORT`].

mod http;
mod iperf;
mod list;
mod wrk;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::bail;

pub use http::hold_idle;
pub use list::{all, quick};

use super::record::{Measure, WorkRecord};
use crate::lab::Pod;
pub use crate::load::Idle;

/// One kind of work.
#[derive(Clone, Debug, PartialEq)]
pub struct Work {
    /// Short name, such as `c64`.
    pub name: String,
    /// One line for people.
    pub title: String,
    /// What is done.
    pub kind: Kind,
}

impl Work {
    /// What it is called in a recording: one entry, or one for each state that a memory work looks at.
    pub fn records(&self) -> Vec<WorkRecord> {
        let record = |name: &str, title: String| WorkRecord { name: name.to_owned(), title };
        match self.kind {
            Kind::Memory { idle } => vec![
                record(MEMORY_IDLE, "memory, freshly started".to_owned()),
                record(MEMORY_CONNECTIONS, format!("memory, with {idle} idle connections")),
                record(
                    MEMORY_LOADED,
                    "memory, right after load (64 connections, then four bulk streams)".to_owned(),
                ),
                record(MEMORY_LATER, "memory, 10 s after load".to_owned()),
            ],
            _ => vec![record(&self.name, self.title.clone())],
        }
    }
}

/// Name of a memory work's samples: freshly started.
pub const MEMORY_IDLE: &str = "memory-idle";
/// Name of a memory work's samples: with idle connections.
pub const MEMORY_CONNECTIONS: &str = "memory-connections";
/// Name of a memory work's samples: right after load.
pub const MEMORY_LOADED: &str = "memory-loaded";
/// Name of a memory work's samples: 10 s after load.
pub const MEMORY_LATER: &str = "memory-later";

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// HTTP/1.1 keep-alive, the next request as soon as the last is answered.
    Closed {
        /// Connections.
        connections: u32,
        /// Bytes of a response's body.
        body: u32,
    },
    /// HTTP/1.1 keep-alive at a constant rate, whether or not answers come.
    Open {
        /// Requests a second.
        rate: u32,
        /// Connections.
        connections: u32,
    },
    /// A connection for each request.
    Connections {
        /// At a time.
        concurrency: u32,
    },
    /// Bulk.
    Bulk {
        /// Streams.
        streams: u32,
        /// From the server to the client.
        down: bool,
    },
    /// Memory of proxies: freshly started, with idle connections, right after load, and later.
    Memory {
        /// Idle connections held open.
        idle: u32,
    },
    /// From start to ready, and memory with so many workloads known.
    Start {
        /// Workloads beside the two pods.
        workloads: u32,
    },
}

/// Between whom and how long.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// Where the client's program runs.
    pub client: &'a Pod,
    /// The server's address: its pod's own, or its service's.
    pub server: IpAddr,
    /// How long.
    pub duration: Duration,
}

/// What a load program has seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Requests, connections or GiB: what the cost is divided by.
    pub units: f64,
    /// What it measured.
    pub values: BTreeMap<Measure, f64>,
    /// Pairs of percentile and microseconds, rising.
    pub latency: Vec<(f64, f64)>,
}

/// Path that the server answers with a body of so many bytes: `/100` or `/16k`.
///
/// **Errors:** the server has no such body.
pub fn path(body: u32) -> anyhow::Result<&'static str> {
    match body {
        100 => Ok("/100"),
        16_384 => Ok("/16k"),
        other => bail!("the server has no body of {other} bytes; it has 100 and 16384"),
    }
}

/// Does one work between two pods; returns what the load program has seen.
///
/// **Errors:** a program is missing (with its Debian package), broke off, or nothing was answered. Single requests that
/// failed are counted in [`Measure::Failed`] instead.
pub fn perform(work: &Work, run: &Run<'_>) -> anyhow::Result<Outcome> {
    match work.kind {
        Kind::Closed { connections, body } => wrk::closed(run, connections, body),
        Kind::Bulk { streams, down } => iperf::bulk(run, streams, down),
        Kind::Open { rate, connections } => http::open(run, rate, connections),
        Kind::Connections { concurrency } => http::new_connections(run, concurrency),
        Kind::Memory { .. } | Kind::Start { .. } => bail!("{} sends nothing between the pods", work.name),
    }
}

#[cfg(test)]
mod tests;
