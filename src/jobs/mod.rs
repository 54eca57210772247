//! Where work runs that may fail without harm to the node: it has threads of its own, so that it
//! delays nobody, and a panic is an error of that work alone.

use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;

/// Work that runs at once; more waits.
const MAX_CONCURRENT: usize = 16;
const THREADS: usize = 2;

/// A runtime for jobs. Its threads end when it is dropped; work that is under way is abandoned.
pub struct JobsRuntime {
    runtime: Option<Runtime>,
    slots: Semaphore,
}

/// Why work has no result.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    #[error("the job panicked: {0}")]
    Panicked(String),
    #[error("the job was abandoned because the node stops")]
    Abandoned,
}

impl JobsRuntime {
    /// Starts the threads.
    pub fn start() -> std::io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .thread_name("campanile-jobs")
            .worker_threads(THREADS)
            .enable_all()
            .build()?;
        Ok(Self { runtime: Some(runtime), slots: Semaphore::new(MAX_CONCURRENT) })
    }

    /// Runs `work`, as soon as there is room for it. It ends when nobody waits for it any more.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, JobError> {
        let Ok(_slot) = self.slots.acquire().await else { return Err(JobError::Abandoned) };
        let Some(runtime) = &self.runtime else { return Err(JobError::Abandoned) };
        let mut running = AbortOnDrop(runtime.spawn(work));
        (&mut running.0).await.map_err(|error| match error.try_into_panic() {
            Ok(panic) => {
                let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
                JobError::Panicked(text.unwrap_or_default())
            }
            Err(_) => JobError::Abandoned,
        })
    }
}

impl Drop for JobsRuntime {
    fn drop(&mut self) {
        // It may be dropped where no thread may block.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Aborts a task when dropped.
struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_of_that_work_alone() {
        let jobs = JobsRuntime::start().expect("threads");
        let failed =
            jobs.run(async { assert!(std::hint::black_box(false), "the scan found nonsense") }).await;
        assert!(matches!(failed, Err(JobError::Panicked(text)) if text == "the scan found nonsense"));
        assert_eq!(jobs.run(async { 7 }).await.expect("the runtime lives on"), 7);
    }

    #[tokio::test]
    async fn only_so_much_runs_at_once() {
        let jobs = JobsRuntime::start().expect("threads");
        let (release, _) = tokio::sync::broadcast::channel::<()>(1);
        let mut waiting: Vec<_> = (0..=MAX_CONCURRENT)
            .map(|_| {
                let mut released = release.subscribe();
                Box::pin(jobs.run(async move { drop(released.recv().await) }))
            })
            .collect();
        for work in &mut waiting {
            assert!(futures_util::poll!(work).is_pending());
        }
        assert_eq!(jobs.slots.available_permits(), 0);
        release.send(()).expect("work waits for it");
        for work in waiting {
            work.await.expect("all of it runs in the end");
        }
    }
}
