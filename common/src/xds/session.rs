//! One stream with the discovery server: what is asked, what an answer changes, what is said in return. Pure.
//!
//! A type's first request tells what is known already, with versions, so that the server sends only what differs; each
//! answer is acknowledged, with the names of what could not be used. What could be used is in force all the same.
//! Start with [`Session::open`], then [`Session::receive`]. **Source**: l4.md §4.2.

use std::collections::{BTreeMap, BTreeSet};

use super::proto::discovery::{DeltaDiscoveryRequest, Node, Status};
use super::store::{Applied, Kind, Log, Store};
use super::wire::Response;

/// Most bytes of names and versions in a type's first request: istiod takes messages of 4 MiB.
const VERSIONS_MAX: usize = 3 << 20;
/// `INVALID_ARGUMENT`
const INVALID_ARGUMENT: i32 = 3;
/// Stands for everything.
const ALL: &str = "*";

/// How addresses are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All that there are.
    Everything,
    /// Those that somebody needs.
    OnDemand,
}

/// One stream.
pub struct Session {
    types: BTreeMap<Kind, Type>,
}

#[derive(Default)]
struct Type {
    answered: bool,
    /// Nothing is promised before something is asked for.
    on_demand: bool,
    /// Held, but too many to be told: what the first answer does not name is gone.
    untold: BTreeSet<String>,
}

/// What one answer did.
#[derive(Debug)]
pub struct Received {
    /// Its type.
    pub kind: Kind,
    /// What changed.
    pub applied: Applied,
    /// What is said in return.
    pub reply: Option<DeltaDiscoveryRequest>,
}

impl Session {
    /// Begins a stream: its first requests, in order. `wanted` are the names that are asked for on demand.
    pub fn open(
        node: Node,
        store: &Store,
        scope: Scope,
        wanted: Vec<String>,
    ) -> (Self, Vec<DeltaDiscoveryRequest>) {
        let (mut types, mut requests, mut wanted) = (BTreeMap::new(), Vec::new(), Some(wanted));
        for kind in Kind::ALL {
            let mut state = Type::default();
            let mut request = DeltaDiscoveryRequest { type_url: kind.url().to_owned(), ..Default::default() };
            if kind == Kind::Address && scope == Scope::OnDemand {
                // Asked for and given up in one breath: nothing unless named.
                request.resource_names_subscribe = vec![ALL.to_owned()];
                request.resource_names_subscribe.extend(wanted.take().unwrap_or_default());
                request.resource_names_unsubscribe = vec![ALL.to_owned()];
                state.on_demand = true;
            }
            let mut room = VERSIONS_MAX;
            for (name, version) in store.versions(kind) {
                match room.checked_sub(name.len() + version.len() + 16) {
                    Some(left) => {
                        room = left;
                        request.initial_resource_versions.insert(name, version);
                    }
                    None => drop(state.untold.insert(name)),
                }
            }
            types.insert(kind, state);
            requests.push(request);
        }
        if let Some(first) = requests.first_mut() {
            first.node = Some(node);
        }
        (Self { types }, requests)
    }

    /// Takes an answer into the store; `None` if it is of a type that nobody asked for, which changes nothing.
    pub fn receive(&mut self, response: &Response, store: &mut Store, log: &mut dyn Log) -> Option<Received> {
        let kind = Kind::of(&response.type_url)?;
        let state = self.types.entry(kind).or_default();
        let untold = std::mem::take(&mut state.untold);
        state.answered = true;
        let gone = if untold.is_empty() { BTreeSet::new() } else { unnamed(untold, response) };
        let removed = response.removed().chain(gone.iter().map(String::as_str));
        let applied = store.apply(kind, removed, response.resources(), log);
        // Without a nonce an answer would be a new question.
        let reply = (!response.nonce.is_empty()).then(|| DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: applied.nack().map(|message| Status { code: INVALID_ARGUMENT, message }),
            ..Default::default()
        });
        Some(Received { kind, applied, reply })
    }

    /// Whether anything has been answered on this stream.
    pub fn is_answered(&self) -> bool {
        self.types.values().any(|state| state.answered)
    }

    /// Whether every type that is asked for as a whole has been answered on this stream, good or bad.
    pub fn is_synced(&self) -> bool {
        self.types.values().all(|state| state.answered || state.on_demand)
    }
}

fn unnamed(mut held: BTreeSet<String>, response: &Response) -> BTreeSet<String> {
    for resource in response.resources() {
        let name = match &resource {
            Ok(resource) => &resource.name,
            Err((name, _)) => name,
        };
        held.remove(name);
    }
    held
}

/// A request for some names more, and some less.
pub(super) fn interest(subscribe: Vec<String>, unsubscribe: Vec<String>) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: Kind::Address.url().to_owned(),
        resource_names_subscribe: subscribe,
        resource_names_unsubscribe: unsubscribe,
        ..Default::default()
    }
}
