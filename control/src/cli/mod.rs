//! The command line: what can be asked for, and how it ends. Each subcommand is a file of its own.

mod bench;
mod demo;
mod interrupt;
mod load;
mod paint;
mod preflight;
mod why;

use std::io::Write as _;
use std::process::ExitCode;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Parser, Subcommand};

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold());

/// Culvert: an ambient service mesh.
#[derive(Parser, Debug)]
#[command(name = "culvert", version, styles = STYLES, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Bench(Box<bench::BenchArgs>),
    Demo(demo::DemoArgs),
    Why(why::WhyArgs),
    Load(load::LoadArgs),
}

/// Runs what the command line asks for.
pub(crate) fn run() -> ExitCode {
    let ended = match Cli::parse().command {
        Command::Bench(args) => bench::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Why(args) => Ok(why::run(&args)),
        Command::Load(args) => Ok(load::run(&args)),
    };
    interrupt::hold_if_signalled();
    ended.unwrap_or_else(|e| {
        let _nobody_to_tell = writeln!(std::io::stderr(), "culvert: {e:#}");
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory as _;
        super::Cli::command().debug_assert();
    }
}
