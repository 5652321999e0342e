//! Culvert's node agent. Reads its settings, runs, and says why it ends.
//!
//! Exit codes: 0 after a clean drain, 64 for settings or configuration that are wrong, 1 for everything else.

mod admin;
mod admission;
mod app;
mod authority;
mod connections;
mod dns;
mod enroll;
mod inbound;
mod inpod;
mod memory;
mod origin;
mod outbound;
mod pages;
mod passthrough;
mod permit;
mod recheck;
mod sandbox;
mod settings;
mod shared;
mod spare;
mod successor;
mod tunnels;
mod worker;
mod young;

use std::io::Write;
use std::process::ExitCode;

use app::AppError;
use sandbox::Role;
use settings::{Cli, Command, Environment, ReadError};

fn main() -> ExitCode {
    let cli = match Environment::of_process() {
        Ok(environment) => Cli::read(std::env::args_os(), &environment),
        Err(problem) => Err(ReadError::Told(vec![problem])),
    };
    let cli = match cli {
        Ok(cli) => cli,
        Err(ReadError::Usage(usage)) => usage.exit(),
        Err(ReadError::Told(problems)) => return failed(&AppError::Settings(problems)),
    };
    let result = match cli.command {
        None => app::run(&cli.settings, Role::Enroll),
        Some(Command::Proxy(proxy)) => app::run(&proxy.settings, Role::Proxy),
        Some(Command::Enroll(settings)) => enroll::run(&settings),
        Some(Command::Release(settings)) => app::release(&settings),
        Some(Command::UdpDestinations) => dns::look_up_destinations().map_err(Into::into),
        Some(Command::Version) => {
            let written = writeln!(std::io::stdout(), "ztunnel {}", env!("CARGO_PKG_VERSION"));
            return if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &AppError) -> ExitCode {
    let _unseen = writeln!(std::io::stderr(), "ztunnel: {error}");
    ExitCode::from(error.exit_code())
}
