//! Sockets, network namespaces and the rules that redirect a pod's traffic to them.
//!
//! Decides how a namespace is entered and left, which options a socket carries, and which packets the kernel hands to the
//! node agent. Must not know workloads, policies, certificates or HBONE: callers pass addresses, marks and limits.
//!
//! Start with [`netns`] (enter, run, come back), then [`socket`] (listen, original destination, dial) and [`rules`]
//! (the rule set as data; install, verify, remove). [`nft`] turns the rules into netlink messages and back, `routing`
//! does the same for the way back, [`conntrack`] spares connections that are open already and knows where a redirected datagram
//! was going, [`netlink`] carries them all, and [`changes`] tells when another hand has written. [`datagram`] has UDP sockets.
//! [`seqpacket`] carries packets and descriptors between processes, [`memory`] gives back what a burst has left, [`trim`] says when.
//! `sys` holds the system calls no safe wrapper exists for.

pub mod changes;
pub mod conntrack;
pub mod copy;
pub mod datagram;
pub mod memory;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod proxy_protocol;
pub mod rules;
pub mod seqpacket;
pub mod socket;
pub mod trim;

mod routing;
mod sys;
