//! A connection that runs Diesel's queries by tokio-postgres. Diesel's own connection prepares every
//! statement under a name, which a pooler between two transactions takes away, and keeps no SQLSTATE of
//! an error. Here a statement is either kept prepared, or sent whole in one message with its values.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use diesel::QueryResult;
use diesel::pg::{Pg, PgMetadataLookup, PgQueryBuilder, PgTypeMetadata};
use diesel::query_builder::bind_collector::RawBytesBindCollector;
use diesel::query_builder::{AsQuery, QueryBuilder as _, QueryFragment, QueryId};
use diesel::result::Error as DieselError;
use diesel_async::{AsyncConnectionCore, SimpleAsyncConnection};
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::task::AbortHandle;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, SimpleQueryMessage, Statement};

use super::row::{Bind, PgRow};
use crate::store::metrics::Metrics;

/// What a connection does about statements and settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statements {
    /// Sessions are shared by transactions, because a pooler is in between: a session keeps nothing from
    /// one transaction to the next.
    pub pooled: bool,
    /// Statements stay prepared.
    pub prepared: bool,
    /// How long the server may work on one, and wait for a lock.
    pub deadline: Duration,
}

impl Statements {
    /// The server gives up when we do, so that nothing commits long after we answered.
    fn settings(self, scope: &str) -> String {
        let ms = self.deadline.as_millis();
        format!(
            "SET {scope} statement_timeout = {ms}; SET {scope} lock_timeout = {ms}; \
             SET {scope} idle_in_transaction_session_timeout = {}; SET {scope} client_min_messages = warning",
            2 * ms
        )
    }
}

/// Told of each error by which a server says that this session, and those like it, cannot write.
pub(super) type OnReadOnly = Arc<dyn Fn() + Send + Sync>;

pub struct PgConnection {
    client: Client,
    driver: AbortHandle,
    statements: Statements,
    /// By text and types of the values.
    prepared: HashMap<(String, Vec<u32>), Statement>,
    on_read_only: Option<OnReadOnly>,
    metrics: Arc<Metrics>,
}

impl PgConnection {
    /// A session with the settings that all work needs.
    pub(in crate::store) async fn begin(
        client: Client,
        driver: AbortHandle,
        statements: Statements,
    ) -> QueryResult<Self> {
        let mut conn = Self {
            client,
            driver,
            statements,
            prepared: HashMap::new(),
            on_read_only: None,
            metrics: Arc::default(),
        };
        if !statements.pooled {
            conn.batch_execute(&statements.settings("")).await?;
        }
        Ok(conn)
    }

    pub(super) fn on_read_only(&mut self, told: OnReadOnly) {
        self.on_read_only = Some(told);
    }

    /// Counts what is sent from now on.
    pub(in crate::store) fn count(&mut self, metrics: Arc<Metrics>) {
        self.metrics = metrics;
    }

    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Opens a transaction. Where sessions are shared, the server may be another one than before without
    /// a new connection of ours: what is answered then tells one from the other.
    pub(super) async fn begin_transaction(&mut self) -> QueryResult<Option<String>> {
        if !self.statements.pooled {
            self.batch_execute("BEGIN").await?;
            return Ok(None);
        }
        self.metrics.statements.inc();
        let begin = format!(
            "BEGIN; {}; SELECT concat_ws('/', pg_postmaster_start_time(), \
             substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8), \
             (SELECT value FROM meta WHERE key = 'marker'))",
            self.statements.settings("LOCAL")
        );
        let answers = self.client.simple_query(&begin).await.map_err(|error| self.told(error))?;
        let server = answers.iter().find_map(|answer| match answer {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        Ok(server.map(str::to_owned))
    }

    pub(in crate::store) async fn commit(&mut self) -> QueryResult<()> {
        self.metrics.commits.inc();
        self.batch_execute("COMMIT").await
    }

    pub(in crate::store) async fn rollback(&mut self) -> QueryResult<()> {
        self.batch_execute("ROLLBACK").await
    }

    async fn statement(&mut self, query: &Query) -> QueryResult<Option<Statement>> {
        if !(self.statements.prepared && query.keep) {
            return Ok(None);
        }
        let key = (query.sql.clone(), query.types.iter().map(Type::oid).collect());
        if let Some(known) = self.prepared.get(&key) {
            return Ok(Some(known.clone()));
        }
        let prepared = self.client.prepare_typed(&query.sql, &query.types).await;
        let prepared = prepared.map_err(|error| self.told(error))?;
        self.prepared.insert(key, prepared.clone());
        Ok(Some(prepared))
    }

    async fn rows(&mut self, query: Query) -> QueryResult<BoxStream<'static, QueryResult<PgRow>>> {
        self.metrics.statements.inc();
        let rows = match self.statement(&query).await? {
            Some(statement) => self.client.query_raw(&statement, query.binds).await,
            None => {
                let binds = query.binds.into_iter().zip(query.types);
                self.client.query_typed_raw(&query.sql, binds).await
            }
        };
        let rows = rows.map_err(|error| self.told(error))?;
        // An error may come between rows.
        let on_read_only = self.on_read_only.clone();
        Ok(rows.map_ok(PgRow).map_err(move |error| told(on_read_only.as_ref(), error)).boxed())
    }

    async fn count_rows(&mut self, query: Query) -> QueryResult<usize> {
        self.metrics.statements.inc();
        let values = query.binds.iter().map(|bind| bind as &(dyn ToSql + Sync));
        let done = match self.statement(&query).await? {
            Some(statement) => self.client.execute(&statement, &values.collect::<Vec<_>>()).await,
            None => {
                let values: Vec<_> = values.zip(query.types.iter().cloned()).collect();
                self.client.execute_typed(&query.sql, &values).await
            }
        };
        let count = done.map_err(|error| self.told(error))?;
        usize::try_from(count).map_err(|error| DieselError::DeserializationError(Box::new(error)))
    }

    fn told(&self, error: tokio_postgres::Error) -> DieselError {
        told(self.on_read_only.as_ref(), error)
    }
}

impl Drop for PgConnection {
    /// What is under way is not waited for: the server may never answer.
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Of Diesel's errors this one takes another as it is: with its SQLSTATE.
fn told(on_read_only: Option<&OnReadOnly>, error: tokio_postgres::Error) -> DieselError {
    if error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION)
        && let Some(told) = on_read_only
    {
        told();
    }
    DieselError::QueryBuilderError(Box::new(error))
}

/// A query as the server gets it.
struct Query {
    sql: String,
    types: Vec<Type>,
    binds: Vec<Bind>,
    /// Whether there are few texts of its kind.
    keep: bool,
}

impl Query {
    fn of(query: &impl QueryFragment<Pg>) -> QueryResult<Self> {
        let mut sql = PgQueryBuilder::default();
        query.to_sql(&mut sql, &Pg)?;
        let mut collected = RawBytesBindCollector::<Pg>::new();
        query.collect_binds(&mut collected, &mut BuiltIn, &Pg)?;
        let unknown = || DieselError::QueryBuilderError("only types of Postgres itself are used".into());
        let types =
            collected.metadata.iter().map(|of| Type::from_oid(of.oid().ok()?).filter(|of| of.oid() != 0));
        Ok(Self {
            sql: sql.finish(),
            types: types.collect::<Option<_>>().ok_or_else(unknown)?,
            binds: collected.binds.into_iter().map(Bind).collect(),
            keep: query.is_safe_to_cache_prepared(&Pg)?,
        })
    }
}

/// Finds no types beside those that every server has under the same number.
struct BuiltIn;

impl PgMetadataLookup for BuiltIn {
    fn lookup_type(&mut self, _: &str, _: Option<&str>) -> PgTypeMetadata {
        PgTypeMetadata::new(0, 0)
    }
}

impl SimpleAsyncConnection for PgConnection {
    async fn batch_execute(&mut self, query: &str) -> QueryResult<()> {
        self.metrics.statements.inc();
        self.client.batch_execute(query).await.map_err(|error| self.told(error))
    }
}

impl AsyncConnectionCore for PgConnection {
    type LoadFuture<'conn, 'query> = BoxFuture<'conn, QueryResult<Self::Stream<'conn, 'query>>>;
    type ExecuteFuture<'conn, 'query> = BoxFuture<'conn, QueryResult<usize>>;
    type Stream<'conn, 'query> = BoxStream<'static, QueryResult<PgRow>>;
    type Row<'conn, 'query> = PgRow;
    type Backend = Pg;

    fn load<'conn, 'query, T>(&'conn mut self, source: T) -> Self::LoadFuture<'conn, 'query>
    where
        T: AsQuery + 'query,
        T::Query: QueryFragment<Pg> + QueryId + 'query,
    {
        let query = Query::of(&source.as_query());
        Box::pin(async move { self.rows(query?).await })
    }

    fn execute_returning_count<'conn, 'query, T>(
        &'conn mut self,
        source: T,
    ) -> Self::ExecuteFuture<'conn, 'query>
    where
        T: QueryFragment<Pg> + QueryId + 'query,
    {
        let query = Query::of(&source);
        Box::pin(async move { self.count_rows(query?).await })
    }
}
