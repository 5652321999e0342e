//! What a pod's DNS query gets for an answer: names of the mesh are answered here, all others are for somebody else.
//!
//! Decides by one snapshot: which service (or pod of a StatefulSet) a name means to the pod that asks, which addresses
//! that has for it, and the bytes of the answer. Pure: no socket, clock or randomness; the shuffle's number is an argument.
//! Must not know where queries come from, nor who else could be asked: what is not answered here is relayed, byte for
//! byte, by the agent (`ztunnel/src/dns/`), so nothing but the question of a message is ever decoded.
//!
//! Start with [`answer`], then `names` (what a name may stand for) and `message` (bytes). `lookup` is the other side: what
//! the agent itself asks, for workloads that are host names.

mod answer;
mod lookup;
mod message;
mod names;

pub use answer::{Asker, Naming, Outcome, Resolved, answer, keys};
pub use lookup::{Told, ask, told};
pub use message::{Answer, Code, Family, HEADER, Query, Question, READ_MAX, answers, failure, read};
pub use names::{Candidate, candidates};
