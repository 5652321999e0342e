//! Filled by the commits that follow.

mod flag;

pub use flag::ResponseFlag;
