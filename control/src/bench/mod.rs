//! `culvert bench`: the same real work through each way of connecting two pods, interleaved in one run.
//!
//! A **mode** is a way ([`mode::Mode`]: nothing between the pods, Culvert, sidecars, or what a file describes), a **work**
//! is what is done and measured ([`work::Work`]), a **sample** is one work through one mode in one round
//! ([`record::Sample`]). Samples are compared inside a round, because the machine differs more between rounds than the
//! modes do. What is measured is written down as it was seen ([`record`]); what it means is computed from the record
//! alone (statistics, report, comparison), so that a report can be made again from its JSON.
//!
//! Nothing here is known to the agents: they read the same files and see the same traffic as anywhere else.

pub mod about;
pub mod account;
pub mod compare;
pub mod keep;
pub mod mode;
pub mod plan;
pub mod progress;
pub mod record;
pub mod report;
mod restart;
pub mod run;
mod sample;
pub mod stage;
pub mod statistics;
pub mod work;
pub mod world;
