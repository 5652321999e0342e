//! Which endpoint of a destination takes a request: health, what was tried, weight, load.
//!
//! **Source**: Istio `LoadBalancerSettings`; Envoy, supported load balancers, panic threshold.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use super::outlier::{self, Detector, Health};
use crate::model::l7::{Balance, Outliers, Subset};
use crate::types::WorkloadUid;

/// Longest turn of a weighted round robin.
const LONGEST_TURN: u64 = 4096;

/// What a choice knows of an endpoint. Kept over changes of configuration, shared by all threads.
#[derive(Debug)]
pub struct Host {
    weight: u32,
    active: AtomicU32,
    pub(super) health: Health,
}

impl Host {
    /// A healthy one with nothing to do. With weight 0 it gets nothing.
    pub fn new(weight: u32) -> Self {
        Self { weight, active: AtomicU32::new(0), health: Health::default() }
    }

    /// Requests under way.
    pub fn active(&self) -> u32 {
        self.active.load(Relaxed)
    }

    /// Whether it is left alone.
    pub fn is_ejected(&self) -> bool {
        self.health.is_ejected()
    }
}

impl AsRef<Self> for Host {
    fn as_ref(&self) -> &Self {
        self
    }
}

/// A request under way to an endpoint, until it is dropped.
#[derive(Debug)]
pub struct Active<T: AsRef<Host>>(T);

impl<T: AsRef<Host>> Active<T> {
    /// One more.
    pub fn new(host: T) -> Self {
        host.as_ref().active.fetch_add(1, Relaxed);
        Self(host)
    }

    /// The endpoint.
    pub fn host(&self) -> &T {
        &self.0
    }
}

impl<T: AsRef<Host>> Drop for Active<T> {
    fn drop(&mut self) {
        self.0.as_ref().active.fetch_sub(1, Relaxed);
    }
}

/// Whether a workload may be among the endpoints of a destination.
pub fn is_member(subset: Option<&Subset>, workload: &WorkloadUid) -> bool {
    subset.is_none_or(|subset| subset.members.contains(workload))
}

/// The endpoints of a destination that are ready, as one revision of the configuration has them.
#[derive(Debug)]
pub struct Endpoints<T> {
    list: Vec<T>,
    detector: Arc<Detector>,
    /// Sums of weights up to and with each; empty if all weigh the same.
    sums: Vec<u64>,
    turn: OnceLock<Box<[u32]>>,
    next: AtomicUsize,
}

/// What a choice is made by.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// How.
    pub balance: Balance,
    /// When an endpoint is left alone.
    pub outliers: Option<&'a Outliers>,
    /// Any numbers; one for each that is drawn.
    pub random: [u64; 2],
    /// The time.
    pub now: Instant,
}

/// Whether an endpoint was tried for the same request.
pub type Avoid<'a, T> = dyn Fn(&T) -> bool + 'a;

/// No endpoint can take a request: 503 with the flag `UH`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no healthy upstream: {ready} endpoints are ready, {ejected} of them are ejected")]
pub struct NoEndpoint {
    /// Endpoints that are ready.
    pub ready: usize,
    /// Those of them that are left alone.
    pub ejected: usize,
}

/// An endpoint, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Picked<'e, T> {
    /// This one.
    Endpoint(&'e T),
    /// The address that was asked for.
    AsAsked,
}

impl<T: AsRef<Host>> Endpoints<T> {
    /// Endpoints in an order that stays; `detector` is kept over changes.
    pub fn new(list: Vec<T>, detector: Arc<Detector>) -> Self {
        let weight = |host: &T| u64::from(host.as_ref().weight);
        let are_equal = list.iter().all(|host| weight(host) == list.first().map_or(0, weight));
        let sum = |sum: &mut u64, host: &T| {
            *sum += weight(host);
            Some(*sum)
        };
        let is_simple = are_equal && list.first().is_some_and(|host| weight(host) > 0);
        let sums = if is_simple { Vec::new() } else { list.iter().scan(0, sum).collect() };
        Self { list, detector, sums, turn: OnceLock::new(), next: AtomicUsize::new(0) }
    }

    /// All of them.
    pub fn list(&self) -> &[T] {
        &self.list
    }

    /// What watches them.
    pub fn detector(&self) -> &Arc<Detector> {
        &self.detector
    }

    /// One for a request, or for another try: then `avoid` says which were tried, and these come only if no other can.
    ///
    /// **Errors**: none is healthy.
    pub fn pick(&self, ask: &Ask<'_>, avoid: Option<&Avoid<'_, T>>) -> Result<Picked<'_, T>, NoEndpoint> {
        if ask.balance == Balance::Passthrough {
            return Ok(Picked::AsAsked);
        }
        let is_left_alone = ask.outliers.is_some_and(|outliers| self.leaves_alone(outliers, ask.now));
        let chosen = if !is_left_alone && avoid.is_none() {
            self.any(ask)
        } else {
            let is_well = |host: &T| !(is_left_alone && host.as_ref().is_ejected());
            let untried = |host: &T| is_well(host) && !avoid.is_some_and(|avoid| avoid(host));
            self.some(ask, &untried).or_else(|| avoid.and_then(|_| self.some(ask, &is_well)))
        };
        let none = || NoEndpoint { ready: self.list.len(), ejected: outlier::ejected(&self.list) };
        chosen.and_then(|index| self.list.get(index)).map(Picked::Endpoint).ok_or_else(none)
    }

    /// Whether ejections count: some are ejected, and enough are not.
    fn leaves_alone(&self, outliers: &Outliers, now: Instant) -> bool {
        self.detector.sweep(outliers, &self.list, now);
        if !self.detector.may_have_ejected() {
            return false;
        }
        let healthy = self.list.len() - outlier::ejected(&self.list);
        healthy * 100 >= self.list.len() * outliers.min_health_percent as usize
    }

    /// One of all.
    fn any(&self, ask: &Ask<'_>) -> Option<usize> {
        let [first, second] = ask.random;
        match ask.balance {
            Balance::RoundRobin => self.in_turn(),
            Balance::LeastRequest => self.lighter(self.drawn(first)?, self.drawn(second)?),
            Balance::Random | Balance::Passthrough => self.drawn(first),
        }
    }

    /// One of those that are `usable`.
    fn some(&self, ask: &Ask<'_>, usable: &dyn Fn(&T) -> bool) -> Option<usize> {
        let weight = |host: &T| if usable(host) { u64::from(host.as_ref().weight) } else { 0 };
        let total: u64 = self.list.iter().map(weight).sum();
        let drawn = |random: u64| {
            let mut left = random.checked_rem(total)?;
            self.list.iter().position(|host| {
                let weight = weight(host);
                let is_here = left < weight;
                left = left.saturating_sub(weight);
                is_here
            })
        };
        let [first, second] = ask.random;
        match ask.balance {
            Balance::RoundRobin if total > 0 => {
                let turns = self.turn_len();
                let in_turn = std::iter::repeat_with(|| self.in_turn()).take(turns).flatten();
                let mut in_turn = in_turn.filter(|index| self.list.get(*index).is_some_and(usable));
                in_turn.next().or_else(|| drawn(first))
            }
            Balance::LeastRequest => self.lighter(drawn(first)?, drawn(second)?),
            Balance::RoundRobin | Balance::Random | Balance::Passthrough => drawn(first),
        }
    }

    /// One by weight.
    fn drawn(&self, random: u64) -> Option<usize> {
        match self.sums.last() {
            Some(total) => {
                let at = random.checked_rem(*total)?;
                Some(self.sums.partition_point(|sum| *sum <= at))
            }
            None => usize::try_from(random.checked_rem(self.list.len() as u64)?).ok(),
        }
    }

    /// The one with less to do for its weight; the first if both have as much.
    fn lighter(&self, first: usize, second: usize) -> Option<usize> {
        let (a, b) = (self.list.get(first)?.as_ref(), self.list.get(second)?.as_ref());
        let load = |host: &Host, other: &Host| u64::from(host.active()) * u64::from(other.weight);
        Some(if load(b, a) < load(a, b) { second } else { first })
    }

    /// The next one, each as often in a turn as it weighs.
    fn in_turn(&self) -> Option<usize> {
        let at = self.next.fetch_add(1, Relaxed).checked_rem(self.turn_len())?;
        if self.sums.is_empty() { Some(at) } else { self.turn().get(at).map(|index| *index as usize) }
    }

    fn turn_len(&self) -> usize {
        if self.sums.is_empty() { self.list.len() } else { self.turn().len() }
    }

    fn turn(&self) -> &[u32] {
        self.turn.get_or_init(|| turn(&self.list.iter().map(|host| host.as_ref().weight).collect::<Vec<_>>()))
    }
}

/// An order in which each index comes as often as it weighs, spread evenly: the one that is due earliest goes first.
fn turn(weights: &[u32]) -> Box<[u32]> {
    let divisor = weights.iter().fold(0, |a, b| gcd(a, *b)).max(1);
    let total: u64 = weights.iter().map(|weight| u64::from(weight / divisor)).sum();
    let most = LONGEST_TURN.max(weights.len() as u64);
    let scaled = |weight: u32| {
        let weight = u64::from(weight / divisor);
        // Nobody who weighs something is left out because others weigh so much more.
        if total > most && weight > 0 { (weight * most / total).max(1) } else { weight }
    };
    let mut due = BinaryHeap::new();
    for (index, weight) in (0_u32..).zip(weights) {
        let weight = scaled(*weight);
        if let Some(step) = (1_u64 << 40).checked_div(weight) {
            due.push(Reverse((step, index, step, weight)));
        }
    }
    let mut order = Vec::new();
    while let Some(Reverse((at, index, step, left))) = due.pop() {
        order.push(index);
        if left > 1 {
            due.push(Reverse((at + step, index, step, left - 1)));
        }
    }
    order.into()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests;
