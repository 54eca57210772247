//! The `campanile` binary: reads the command line, runs the command, says what went wrong.

use std::process::ExitCode;

use campanile::cli::Cli;
use clap::Parser as _;

/// A connection is some twenty small pieces of memory that live for hours. This allocator packs them
/// closer than the C library's (docs/PERFORMANCE.md). SQLite and zstd use it too.
#[cfg(not(target_env = "msvc"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    Cli::parse().run().unwrap_or_else(|error| {
        eprintln!("error: {error}");
        for cause in error.chain().skip(1) {
            eprintln!("  caused by: {cause}");
        }
        ExitCode::FAILURE
    })
}
