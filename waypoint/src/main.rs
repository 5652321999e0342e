//! Culvert's waypoint: ends the tunnels of what is bound to it, decides on each request, and begins tunnels to endpoints.
//!
//! Exit codes: 0 after a clean drain, 64 for settings or configuration that are wrong, 1 for everything else.

mod admin;
mod app;
mod current;
mod dial;
mod filters;
mod forward;
mod grpc;
mod http1;
mod http2;
mod log;
mod message;
mod mirror;
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

fn main() -> ExitCode {
    match app::run(&settings::Settings::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _unseen = writeln!(std::io::stderr(), "waypoint: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
