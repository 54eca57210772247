//! Where log lines go: to standard error, or nowhere. Whoever reads the log is a dependency that may be away,
//! and a line is not worth a process.

use std::io::{self, Write};
use std::sync::LazyLock;

use super::metrics::{Counter, metrics};

metrics! {
    Metrics("") {
        /// Writes to the log that failed: its reader is gone, or its device is full.
        log_lines_lost: Counter = LOST.clone(),
    }
}

/// Lines may be lost before there is a node to count them.
static LOST: LazyLock<Counter> = LazyLock::new(Counter::default);

pub(super) struct BestEffort;

impl Write for BestEffort {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if io::stderr().write_all(line).is_err() {
            LOST.inc();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
