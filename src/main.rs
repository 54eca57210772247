//! The `campanile` binary: reads the command line, runs the command, says what went wrong.

use std::process::ExitCode;

use campanile::cli::Cli;
use campanile::telemetry;
use clap::Parser as _;

/// A connection is some twenty small pieces of memory that live for hours. This allocator packs them
/// closer than the C library's (docs/PERFORMANCE.md). SQLite and zstd use it too.
#[cfg(not(target_env = "msvc"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let code = Cli::parse().run().unwrap_or_else(|error| {
        let mut text = format!("error: {error}\n");
        for cause in error.chain().skip(1) {
            text += &format!("  caused by: {cause}\n");
        }
        telemetry::write_to_log(&text);
        ExitCode::FAILURE
    });
    telemetry::flush_log();
    code
}
