//! Which work is critical: the publisher, the bus, the hub, the fan-out, the tasks of the core, the
//! listener. A panic in it ends the process with a message, because a process that lives on without
//! one of them would silently lose messages; the supervisor of the process restarts it, and the log
//! is complete. A panic in one request, connection or job ends only that.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::Cell;
use std::pin::pin;

use crate::telemetry;

/// The exit code of the process: an internal error (`EX_SOFTWARE` in `sysexits.h`).
const EXIT_CODE: i32 = 70;

thread_local! {
    static CRITICAL: Cell<bool> = const { Cell::new(false) };
}

/// Marks everything that runs on this thread as critical: for a thread that runs one part alone.
pub fn mark_thread_critical() {
    CRITICAL.set(true);
}

/// Marks `work` as critical.
pub async fn critical<T>(work: impl Future<Output = T>) -> T {
    poll_with_mark(true, work).await
}

/// Marks `work` as non-critical within critical work: its caller catches the panic.
pub async fn non_critical<T>(work: impl Future<Output = T>) -> T {
    poll_with_mark(false, work).await
}

async fn poll_with_mark<T>(critical: bool, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    std::future::poll_fn(|cx| {
        let _restore = Restore(CRITICAL.replace(critical));
        work.as_mut().poll(cx)
    })
    .await
}

/// Restores the mark, also while a panic unwinds.
struct Restore(bool);

impl Drop for Restore {
    fn drop(&mut self) {
        CRITICAL.set(self.0);
    }
}

/// Installs a panic hook that ends the process when critical work panics. What it says goes the way of the log,
/// because the usual hook would wait for a reader of standard error that stands still.
pub fn exit_on_critical_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or_default();
        let mut text = format!("thread '{name}' {panic}\n");
        let backtrace = Backtrace::capture();
        if backtrace.status() == BacktraceStatus::Captured {
            text += &format!("{backtrace}\n");
        }
        telemetry::write_to_log(&text);
        // The thread that accepts connections is actix's own and cannot be marked.
        if CRITICAL.get() || name == "actix-server acceptor" {
            tracing::error!(thread = name, "a critical task panicked; the process exits");
            telemetry::flush_log();
            std::process::exit(EXIT_CODE);
        }
    }));
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[tokio::test]
    async fn only_the_task_itself_is_critical() {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let local = tokio::task::LocalSet::new();
        let work = local.run_until(async {
            let work = tokio::task::spawn_local(critical_task_that_waits(receiver));
            tokio::task::yield_now().await;
            assert!(!CRITICAL.get(), "other tasks run while the critical one waits");
            sender.send(()).expect("the receiver exists");
            work.await.expect("the task ends")
        });
        assert_eq!(work.await, (true, true));
        assert!(!CRITICAL.get(), "the task has ended");
    }

    #[tokio::test]
    async fn non_critical_work_that_panics_leaves_its_caller_critical() {
        use futures_util::FutureExt as _;
        let caller = critical(async {
            let work = std::panic::AssertUnwindSafe(non_critical(async {
                assert!(CRITICAL.get(), "non-critical work is not marked");
            }));
            (work.catch_unwind().await.is_err(), CRITICAL.get())
        });
        assert_eq!(caller.await, (true, true));
    }

    #[test]
    fn a_panic_in_a_critical_task_ends_the_process() {
        const INSIDE: &str = "CAMPANILE_TEST_OF_A_CRITICAL_PANIC";
        if std::env::var_os(INSIDE).is_some() {
            exit_on_critical_panic();
            let runtime = tokio::runtime::Runtime::new().expect("threads");
            let survived = runtime.block_on(async { tokio::spawn(async { panic!("not critical") }).await });
            assert!(survived.is_err(), "a panic in another task ends only that task");
            let _ = runtime.block_on(async { tokio::spawn(critical(async { panic!("critical") })).await });
            return;
        }
        // This test again, in a process that may end.
        let test = std::env::current_exe().expect("the tests are a program");
        let name = "supervision::tests::a_panic_in_a_critical_task_ends_the_process";
        let mut again = std::process::Command::new(test);
        again.args(["--exact", name, "--nocapture"]).env(INSIDE, "1");
        let ended = again.output().expect("it starts");
        assert_eq!(ended.status.code(), Some(EXIT_CODE));
        let said = String::from_utf8(ended.stderr).expect("text");
        assert!(said.contains("src/supervision.rs") && said.contains("\ncritical\n"), "{said}");
        // And again, where nobody reads what it says.
        let (_reader, mut writer) = std::io::pipe().expect("a pipe");
        let stderr = writer.try_clone().expect("it is open");
        std::thread::spawn(move || while writer.write_all(b"\n").is_ok() {});
        assert_eq!(again.stderr(stderr).status().expect("it starts").code(), Some(EXIT_CODE));
    }

    async fn critical_task_that_waits(signal: tokio::sync::oneshot::Receiver<()>) -> (bool, bool) {
        critical(async {
            let before = CRITICAL.get();
            signal.await.expect("a signal");
            (before, CRITICAL.get())
        })
        .await
    }
}
