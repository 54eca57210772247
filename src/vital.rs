//! Which work the promise rests on: the publisher, the bus, the hub, the fan-out, the tasks. A
//! panic in it ends the process with a message, because a process that lives on without a part of
//! itself is silent where it promised to speak; whoever watches it starts it again, and the log is
//! whole. A panic in one request or one connection ends that alone.

use std::cell::Cell;
use std::pin::pin;

/// What the process ends with: an internal error, by the custom of `sysexits.h`.
const EXIT_CODE: i32 = 70;

thread_local! {
    static VITAL: Cell<bool> = const { Cell::new(false) };
}

/// Everything on this thread is vital from now on.
pub fn mark_thread() {
    VITAL.set(true);
}

/// Makes `work` vital on a thread that also does other things.
pub async fn part<T>(work: impl Future<Output = T>) -> T {
    polled_as(true, work).await
}

/// Makes `work` an exception on a thread that is vital: its caller catches the panic.
pub async fn guest<T>(work: impl Future<Output = T>) -> T {
    polled_as(false, work).await
}

async fn polled_as<T>(vital: bool, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    std::future::poll_fn(|cx| {
        let _before = Before(VITAL.replace(vital));
        work.as_mut().poll(cx)
    })
    .await
}

/// Puts the mark back, also when a panic passes.
struct Before(bool);

impl Drop for Before {
    fn drop(&mut self) {
        VITAL.set(self.0);
    }
}

/// From now on a panic in vital work ends the process.
pub fn end_with_its_parts() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        let thread = std::thread::current();
        let name = thread.name().unwrap_or_default();
        // The thread that lets clients in is actix's own and cannot be marked.
        if VITAL.get() || name == "actix-server acceptor" {
            tracing::error!(thread = name, "a vital part panicked; the process ends");
            std::process::exit(EXIT_CODE);
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_part_itself_is_vital() {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let part = tokio::task::LocalSet::new();
        let work = part.run_until(async {
            let work = tokio::task::spawn_local(part_that_waits(receiver));
            tokio::task::yield_now().await;
            assert!(!VITAL.get(), "the part waits, others run");
            sender.send(()).expect("the part is there");
            work.await.expect("the part ends")
        });
        assert_eq!(work.await, (true, true));
        assert!(!VITAL.get(), "the part is over");
    }

    #[tokio::test]
    async fn a_guest_that_panics_leaves_its_host_vital() {
        use futures_util::FutureExt as _;
        let host = part(async {
            let guest = std::panic::AssertUnwindSafe(guest(async {
                assert!(VITAL.get(), "a guest is not");
            }));
            (guest.catch_unwind().await.is_err(), VITAL.get())
        });
        assert_eq!(host.await, (true, true));
    }

    async fn part_that_waits(signal: tokio::sync::oneshot::Receiver<()>) -> (bool, bool) {
        part(async {
            let before = VITAL.get();
            signal.await.expect("a signal");
            (before, VITAL.get())
        })
        .await
    }
}
