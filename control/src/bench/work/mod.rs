//! Kinds of work, and how each is done with real tools.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::record::Measure;
use crate::lab::Pod;

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
    /// The server pod's address.
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
