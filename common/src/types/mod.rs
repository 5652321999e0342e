//! Small checked types that every other module speaks: identities, keys, authorities.
//!
//! Nothing here does I/O or knows another module; `Clock` is the argument by which others get the time. Text from
//! outside is parsed once, here, into types whose fields are private, so that a value that exists has been checked.

mod authority;
mod clock;
mod id;
mod text;

pub use authority::{Authority, NotAnAuthority};
pub use clock::{Clock, SystemClock};
pub use id::{NotASpiffeId, PolicyKey, ServiceKey, SpiffeId, WorkloadUid};
pub use text::{push_addr, push_hex, push_number, push_padded};
