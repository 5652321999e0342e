//! Small checked types that every other module speaks: identities, keys, authorities.
//!
//! Nothing here does I/O, reads a clock or knows another module. Text from outside is parsed once, here, into types
//! whose fields are private, so that a value that exists has been checked.

mod authority;
mod id;

pub use authority::{Authority, NotAnAuthority};
pub use id::{NotASpiffeId, PolicyKey, ServiceKey, SpiffeId, WorkloadUid};
