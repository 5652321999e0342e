//! Culvert's command line as a library: what its subcommands, the benchmarks and the end-to-end tests share.

pub mod bench;
pub mod lab;
pub mod load;
