//! Sockets, network namespaces and the rules that redirect a pod's traffic to them.
//!
//! Decides how a namespace is entered and left, which options a socket carries, and which packets the kernel hands to the
//! node agent. Must not know workloads, policies, certificates or HBONE: callers pass addresses, marks and limits.
//!
//! Start with [`netns`] (enter, run, come back), then [`socket`] (listen, original destination, dial).
//! `sys` holds the system calls no safe wrapper exists for.

pub mod netns;
pub mod socket;

mod sys;
