//! The `campanile` binary: reads the command line, runs the command, says what went wrong.

use std::process::ExitCode;

use campanile::cli::Cli;
use clap::Parser as _;

fn main() -> ExitCode {
    Cli::parse().run().unwrap_or_else(|error| {
        eprintln!("error: {error}");
        for cause in error.chain().skip(1) {
            eprintln!("  caused by: {cause}");
        }
        ExitCode::FAILURE
    })
}
