//! What all nodes count together, in Redis: rates, and the connections of each user. Every node
//! counts for itself as well, and goes by that alone while Redis is away or late: nobody waits long
//! for a count, and none is a truth that must not be lost.

mod pool;
mod rates;
mod users;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Client, RedisResult};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::telemetry::{Metrics, count};
use pool::Pool;
pub use users::{Claimed, Tally};

/// Between two looks whether Redis is there, and still has what it had.
const LOOK: Duration = Duration::from_secs(1);
/// For a look and for a write, which nobody waits for.
const WHILE: Duration = Duration::from_secs(1);
/// What nodes have not written for so long is forgotten.
const KEPT: Duration = Duration::from_secs(30 * 60);

/// A handle on the counts; cheap to clone.
#[derive(Clone, Default)]
pub struct Counts(Option<Arc<Shared>>);

/// How long whoever asks waits for Redis before its node decides alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// A request within a rate.
    pub rate: Duration,
    /// A connection for its place.
    pub place: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { rate: Duration::from_millis(50), place: Duration::from_millis(100) }
    }
}

struct Shared {
    pool: Pool,
    patience: Patience,
    /// Begins every name in Redis.
    prefix: String,
    node: String,
    standing: watch::Sender<Standing>,
    metrics: Arc<Metrics>,
}

/// How it stands with Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    /// Whether it is asked at all.
    pub up: bool,
    /// Grows whenever what this node wrote may be gone.
    pub losses: u64,
}

impl Counts {
    /// This node counts for itself.
    pub fn none() -> Self {
        Self(None)
    }

    /// Counts together with all nodes that use the same names, and the work that keeps an eye on
    /// Redis, to be spawned. Connections are opened on `runtime`.
    pub fn shared(
        client: &Client,
        prefix: String,
        node: Uuid,
        patience: Patience,
        metrics: Arc<Metrics>,
        runtime: &Handle,
    ) -> RedisResult<(Self, impl Future<Output = ()> + use<>)> {
        let shared = Arc::new(Shared {
            pool: Pool::new(client, runtime)?,
            patience,
            prefix,
            node: node.to_string(),
            standing: watch::Sender::default(),
            metrics,
        });
        let counts = Self(Some(shared.clone()));
        Ok((counts, async move { shared.watch().await }))
    }

    /// Whether others count, too.
    pub fn is_shared(&self) -> bool {
        self.0.is_some()
    }

    /// How it stands with Redis, and tells of each change.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        match &self.0 {
            Some(shared) => shared.standing.subscribe(),
            None => watch::channel(Standing::default()).1,
        }
    }
}

impl Shared {
    fn name(&self, kind: &str, of: &str) -> String {
        format!("{}:{kind}:{of}", self.prefix)
    }

    /// Asks Redis. `None`: it is away or late, and will not be asked until it has been seen again.
    async fn ask<T>(
        &self,
        within: Duration,
        question: impl AsyncFnOnce(&mut MultiplexedConnection) -> RedisResult<T>,
    ) -> Option<T> {
        if !self.standing.borrow().up {
            return None;
        }
        let answer = self.try_ask(within, question).await;
        if answer.is_none() {
            self.is_away();
        }
        answer
    }

    async fn try_ask<T>(
        &self,
        within: Duration,
        question: impl AsyncFnOnce(&mut MultiplexedConnection) -> RedisResult<T>,
    ) -> Option<T> {
        let why = match timeout(within, self.pool.ask(question)).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(why)) => why,
            Err(_) => "no answer in time".to_owned(),
        };
        self.pool.renew();
        if self.standing.borrow().up {
            tracing::warn!(why, "Redis does not count: this node counts for itself until it does");
        }
        None
    }

    fn is_away(&self) {
        self.metrics.counts_shared.set(0);
        self.standing.send_if_modified(|standing| std::mem::replace(&mut standing.up, false));
    }

    /// Looks again and again whether Redis is there. A number that grows with each look tells
    /// whether it has forgotten something: it was emptied, or is not the one that it was.
    async fn watch(&self) {
        let mut last = 0;
        loop {
            let name = self.name("node", &self.node);
            let look = self.try_ask(WHILE, async |conn| {
                let mut look = redis::pipe();
                look.atomic().incr(&name, 1).pexpire(&name, KEPT.as_millis() as i64).ignore();
                let (number,): (u64,) = look.query_async(conn).await?;
                Ok(number)
            });
            match look.await {
                Some(number) => {
                    let forgot = number <= std::mem::replace(&mut last, number);
                    self.standing.send_if_modified(|standing| {
                        let lost = forgot || !standing.up;
                        *standing = Standing { up: true, losses: standing.losses + u64::from(lost) };
                        lost
                    });
                    self.metrics.counts_shared.set(1);
                }
                None => self.is_away(),
            }
            sleep(LOOK).await;
        }
    }

    fn count(&self, kind: &'static str) {
        count(&self.metrics.counts, kind);
    }
}
