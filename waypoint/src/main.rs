//! Culvert's waypoint: ends the tunnels of what is bound to it, decides on each request, and begins tunnels to endpoints.

use std::process::ExitCode;

fn main() -> ExitCode {
    waypoint::main()
}
