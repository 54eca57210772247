//! Changes of state for tests of the store and the publisher, which leave marks in the order in which they
//! were applied.

use campanile::publish::{Apply, UnitOfWork, Verdict};
use campanile::store::{self, LockKey, StoreError, Table, Transaction};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use uuid::Uuid;

use super::store::TestStore;

/// A lock that orders the units of a transaction by `order`.
pub fn lock(order: i64) -> LockKey {
    LockKey::of(Table::Builds, Uuid::from_u128(order.abs_diff(i64::MIN).into()))
}

/// A change of state for tests: runs its statements, then ends as it is told.
pub struct Change {
    pub order: i64,
    pub statements: Vec<String>,
    pub end: End,
}

pub enum End {
    Proceed,
    Refuse,
    Fail,
}

impl Change {
    /// Adds `mark` to what [`TestStore::marks`] answers.
    pub fn mark(order: i64, mark: &str) -> Self {
        let statement = format!("UPDATE meta SET value = value || '{mark}' WHERE key = 'marks'");
        Self { order, statements: vec![statement], end: End::Proceed }
    }

    /// Breaks a constraint of the database.
    pub fn broken() -> Self {
        let statement = "INSERT INTO meta (key, value) VALUES ('nothing', NULL)".to_owned();
        Self { order: 0, statements: vec![statement], end: End::Proceed }
    }

    pub fn ending(self, end: End) -> Self {
        Self { end, ..self }
    }

    pub fn on(self, unit: UnitOfWork) -> UnitOfWork {
        UnitOfWork { apply: Some(Box::new(self)), ..unit }
    }
}

impl Apply for Change {
    fn locks(&self) -> Vec<LockKey> {
        vec![lock(self.order)]
    }

    fn apply<'a>(&'a self, tx: &'a mut Transaction<'_>) -> BoxFuture<'a, store::Result<Verdict>> {
        async move {
            for statement in &self.statements {
                tx.conn.execute(diesel::sql_query(statement.clone())).await?;
            }
            match self.end {
                End::Proceed => Ok(Verdict::Proceed),
                End::Refuse => Ok(Verdict::Refuse),
                End::Fail => Err(StoreError::Failed("it was told to fail".into())),
            }
        }
        .boxed()
    }
}

impl TestStore {
    /// A place where changes of state leave their marks.
    pub async fn prepare_marks(&self) {
        self.execute("INSERT INTO meta (key, value) VALUES ('marks', '')").await;
    }

    pub async fn marks(&self) -> String {
        self.text("SELECT value AS text FROM meta WHERE key = 'marks'").await
    }
}
