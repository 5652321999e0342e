//! Culvert's waypoint as a library: the program, and for those who feed it bytes what it makes of them.
//!
//! The program is [`main`]; start reading at `app.rs`, then `serve.rs` and `request.rs`.

mod admin;
mod app;
pub mod client_hello;
mod current;
mod dial;
mod flood;
mod forward;
mod grpc;
pub mod http1;
mod http2;
mod link_io;
mod log;
mod message;
mod mirror;
mod names;
mod pump;
mod relay;
mod replay;
mod reply;
mod request;
mod serve;
mod settings;
mod shared;
mod tcp;
mod tunnel;
mod upstream;
mod worker;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

/// Runs the program until it has drained.
///
/// Exit codes: 0 after a clean drain, 64 for settings or configuration that are wrong, 1 for everything else.
pub fn main() -> ExitCode {
    match app::run(&settings::Settings::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _unseen = writeln!(std::io::stderr(), "waypoint: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
