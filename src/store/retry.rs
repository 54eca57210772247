//! Transactions that were in each other's way run again, after a pause that grows and is random, so
//! that they do not meet again.

use std::time::Duration;

use rand::RngExt as _;

use super::error::{Result, StoreError};

/// How often a transaction that conflicted with another is retried.
const RETRIES: u32 = 5;

/// Runs `transaction` until it does not end with [`StoreError::Contended`], a few times at most.
pub async fn retry_conflicts<T, F>(mut transaction: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    for tries in 1..=RETRIES {
        match transaction().await {
            Err(StoreError::Contended) => {}
            done => return done,
        }
        let pause = rand::rng().random_range(1..=4u64 << tries);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    transaction().await
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn conflicting(mut times: u32) -> (Result<u32>, u32) {
        let mut runs = 0;
        let done = retry_conflicts(|| {
            runs += 1;
            let conflicts = times > 0;
            times = times.saturating_sub(1);
            std::future::ready(if conflicts { Err(StoreError::Contended) } else { Ok(7) })
        });
        (done.await, runs)
    }

    #[tokio::test]
    async fn a_conflict_is_retried_a_few_times_and_nothing_else_is() {
        assert!(matches!(conflicting(2).await, (Ok(7), 3)));
        assert!(matches!(conflicting(RETRIES).await, (Ok(7), 6)));
        assert!(matches!(conflicting(RETRIES + 1).await, (Err(StoreError::Contended), 6)));
        let mut runs = 0;
        let failed: Result<()> = retry_conflicts(|| {
            runs += 1;
            std::future::ready(Err(StoreError::Busy))
        })
        .await;
        assert!(matches!((failed, runs), (Err(StoreError::Busy), 1)));
    }
}
