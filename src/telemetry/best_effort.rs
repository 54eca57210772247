//! Where log lines go: into a queue that a thread of its own writes to standard error. Whoever reads the log is
//! a dependency that may be away or stand still, and a line is worth neither a process nor anybody's time.

use std::cell::Cell;
use std::io::{self, Write};
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, Once, PoisonError};
use std::thread;
use std::time::Duration;

use super::metrics::{Counter, metrics};

metrics! {
    Metrics("") {
        /// Log lines that were not written: the reader of the log is gone or stands still, or its device is full.
        log_lines_lost: Counter = LOST.clone(),
    }
}

/// Lines may be lost before there is a node to count them.
static LOST: LazyLock<Counter> = LazyLock::new(Counter::default);

/// The most bytes that wait to be written.
const CAPACITY: usize = 1 << 20;
/// How long the end of the process waits for them.
const FLUSH: Duration = Duration::from_secs(1);

static QUEUE: Mutex<Queue> = Mutex::new(Queue { lines: Vec::new(), lost: 0, writing: false });
static CHANGED: Condvar = Condvar::new();

thread_local! {
    static WRITES: Cell<bool> = const { Cell::new(false) };
}

struct Queue {
    lines: Vec<u8>,
    /// Lines that found no room.
    lost: u64,
    /// Some have been taken out and are not written yet.
    writing: bool,
}

pub(super) struct BestEffort;

impl Write for BestEffort {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        static STARTED: Once = Once::new();
        STARTED.call_once(|| drop(thread::Builder::new().name("log".to_owned()).spawn(write_lines)));
        let mut queue = queue();
        // What the thread itself says is how much was lost.
        if queue.lines.len() + line.len() <= CAPACITY || WRITES.get() {
            queue.lines.extend_from_slice(line);
            CHANGED.notify_all();
        } else {
            queue.lost += 1;
            LOST.inc();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Waits until everything that was logged is written, but not for a reader that stands still.
pub fn flush_log() {
    let waits = |queue: &mut Queue| queue.writing || !queue.lines.is_empty();
    drop(CHANGED.wait_timeout_while(queue(), FLUSH, waits));
}

fn queue() -> MutexGuard<'static, Queue> {
    QUEUE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the thread does.
fn write_lines() {
    WRITES.set(true);
    let mut lost = 0;
    loop {
        let waiting = CHANGED.wait_while(queue(), |queue| queue.lines.is_empty());
        let mut waiting = waiting.unwrap_or_else(PoisonError::into_inner);
        waiting.writing = true;
        let lines = std::mem::take(&mut waiting.lines);
        lost += std::mem::take(&mut waiting.lost);
        drop(waiting);
        let failed = write(&lines);
        lost += failed;
        // While nothing can be written, this cannot be either.
        if failed == 0 && lost > 0 {
            tracing::warn!(lines = lost, "the log could not be written for a while: lines were lost");
            lost = 0;
        }
        queue().writing = false;
        CHANGED.notify_all();
    }
}

/// Gives how many of `lines` could not be written.
fn write(mut lines: &[u8]) -> u64 {
    while !lines.is_empty() {
        match io::stderr().write(lines) {
            Ok(written) if written > 0 => lines = &lines[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            _ => {
                let lost = lines.iter().filter(|byte| **byte == b'\n').count() as u64;
                LOST.inc_by(lost);
                return lost;
            }
        }
    }
    0
}
