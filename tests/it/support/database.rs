//! The data of one test: a folder with a SQLite file, or a schema of its own in the Postgres of
//! `TEST_DATABASE_URL`. Removed when the test is over.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use diesel::RunQueryDsl as _;
use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use tokio_postgres::NoTls;
use tokio_postgres::config::Host;
use uuid::Uuid;

use super::app::Backend;

/// Every table whose rows a refused request must leave alone.
const TABLES: [&str; 8] = [
    "webhook_deliveries",
    "events",
    "channels",
    "idempotency",
    "builds",
    "repos",
    "workflow_runs",
    "workflow_jobs",
];

/// The data of one test.
pub struct Database {
    folder: tempfile::TempDir,
    schema: Option<Schema>,
}

struct Schema {
    server: tokio_postgres::Config,
    name: String,
    /// How the node reaches the server, if not directly.
    through: Option<SocketAddr>,
}

impl Database {
    pub async fn new(backend: Backend) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let schema = match backend {
            Backend::Sqlite => None,
            Backend::Postgres => Some(Schema::new().await),
        };
        Self { folder, schema }
    }

    /// Where the Postgres of the tests listens.
    pub fn server() -> SocketAddr {
        let config = server();
        let Some(Host::Tcp(host)) = config.get_hosts().first() else {
            panic!("TEST_DATABASE_URL has a host")
        };
        let port = config.get_ports().first().copied().unwrap_or(5432);
        let mut addresses = std::net::ToSocketAddrs::to_socket_addrs(&(host.as_str(), port)).expect("a host");
        addresses.next().expect("an address")
    }

    /// In Postgres; the node reaches it through `proxy`.
    pub async fn through(proxy: SocketAddr) -> Self {
        let mut database = Self::new(Backend::Postgres).await;
        database.schema.as_mut().expect("a schema").through = Some(proxy);
        database
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The address of the node's data in Postgres.
    pub fn url(&self) -> Option<String> {
        self.schema.as_ref().map(|schema| {
            let user = schema.server.get_user().unwrap_or("postgres");
            let password = schema.server.get_password().map(String::from_utf8_lossy).unwrap_or_default();
            let database = schema.server.get_dbname().unwrap_or("postgres");
            let address = schema.through.unwrap_or_else(Self::server);
            let options = format!("-csearch_path%3D{}", schema.name);
            format!("postgres://{user}:{password}@{address}/{database}?options={options}")
        })
    }

    pub fn sql(&self) -> Sql {
        match &self.schema {
            None => Sql::Sqlite(self.folder().join("campanile.db")),
            Some(schema) => Sql::Postgres(Box::new(schema.server.clone()), schema.name.clone()),
        }
    }
}

fn server() -> tokio_postgres::Config {
    let url = std::env::var("TEST_DATABASE_URL").expect("no TEST_DATABASE_URL: run tests/run");
    url.parse().expect("TEST_DATABASE_URL is an address of Postgres")
}

impl Schema {
    async fn new() -> Self {
        let name = format!("t{}", Uuid::new_v4().simple());
        let schema = Self { server: server(), name, through: None };
        execute(&schema.server, &format!("CREATE SCHEMA {}", schema.name)).await;
        schema
    }
}

async fn execute(server: &tokio_postgres::Config, sql: &str) {
    connect(server).await.batch_execute(sql).await.expect("the test's own SQL works");
}

async fn connect(server: &tokio_postgres::Config) -> tokio_postgres::Client {
    let (client, connection) = server.connect(NoTls).await.expect("the Postgres of the tests answers");
    tokio::spawn(connection);
    client
}

impl Drop for Schema {
    fn drop(&mut self) {
        let (server, sql) = (self.server.clone(), format!("DROP SCHEMA {} CASCADE", self.name));
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(execute(&server, &sql));
        });
        // What is left goes with the server.
        let _ = dropping.join();
    }
}

/// The test's own way to the tables.
pub enum Sql {
    Sqlite(PathBuf),
    Postgres(Box<tokio_postgres::Config>, String),
}

impl Sql {
    /// How many rows `query` (a table, perhaps with a condition) has.
    pub async fn count(&self, query: &str) -> i64 {
        let sql = format!("(SELECT count(*) FROM {query})");
        match self {
            Self::Sqlite(_) => {
                let count = diesel::select(diesel::dsl::sql::<BigInt>(&sql));
                count.get_result(&mut self.sqlite()).expect("the test's own SQL works")
            }
            Self::Postgres(..) => {
                let row = self.postgres().await.query_one(&format!("SELECT {sql}"), &[]).await;
                row.expect("the test's own SQL works").get(0)
            }
        }
    }

    /// The log of a channel: offsets and data, in order.
    pub async fn log(&self, channel: &str) -> Vec<(u64, String)> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = BigInt)]
            place: i64,
            #[diesel(sql_type = Text)]
            data: String,
        }
        let sql = format!(
            "SELECT \"offset\" AS place, data FROM events WHERE channel = '{channel}' ORDER BY \"offset\""
        );
        let rows: Vec<(i64, String)> = match self {
            Self::Sqlite(_) => {
                let rows: Vec<Row> =
                    diesel::sql_query(sql).load(&mut self.sqlite()).expect("the test's own SQL works");
                rows.into_iter().map(|row| (row.place, row.data)).collect()
            }
            Self::Postgres(..) => {
                let rows = self.postgres().await.query(&sql, &[]).await.expect("the test's own SQL works");
                rows.iter().map(|row| (row.get(0), row.get(1))).collect()
            }
        };
        rows.into_iter().map(|(place, data)| (place.try_into().expect("an offset"), data)).collect()
    }

    /// Appends an event that no node hears of, as if its announcement were lost.
    pub async fn append_unheard(&self, channel: &str, data: &str) {
        let id = match self {
            Self::Sqlite(_) => "randomblob(16)",
            Self::Postgres(..) => "gen_random_uuid()",
        };
        let begin = if let Self::Sqlite(_) = self { "BEGIN IMMEDIATE" } else { "BEGIN" };
        self.execute(&format!(
            "{begin};
             UPDATE channels SET head = head + 1 WHERE name = '{channel}';
             INSERT INTO events (channel, \"offset\", event_id, kind, data, created_at)
                 SELECT name, head, {id}, 'message', '{data}', updated_at FROM channels
                 WHERE name = '{channel}';
             COMMIT"
        ))
        .await;
    }

    /// How many rows each table has.
    pub async fn counts(&self) -> BTreeMap<&'static str, i64> {
        let mut counts = BTreeMap::new();
        for table in TABLES {
            counts.insert(table, self.count(table).await);
        }
        counts
    }

    /// Makes the events of `channel` up to `offset` some days older.
    pub async fn age(&self, channel: &str, offset: u64, days: u64) {
        let age = match self {
            Self::Sqlite(_) => (days * 24 * 3600 * 1_000_000).to_string(),
            Self::Postgres(..) => format!("interval '{days} days'"),
        };
        let events = format!("channel = '{channel}' AND \"offset\" <= {offset}");
        self.execute(&format!("UPDATE events SET created_at = created_at - {age} WHERE {events}")).await;
    }

    pub async fn execute(&self, sql: &str) {
        match self {
            Self::Sqlite(_) => self.sqlite().batch_execute(sql).expect("the test's own SQL works"),
            Self::Postgres(..) => {
                self.postgres().await.batch_execute(sql).await.expect("the test's own SQL works");
            }
        }
    }

    fn sqlite(&self) -> SqliteConnection {
        let Self::Sqlite(path) = self else { panic!("not on SQLite") };
        let mut conn = SqliteConnection::establish(&path.to_string_lossy()).expect("the node's own file");
        conn.batch_execute("PRAGMA busy_timeout = 5000").expect("a pragma");
        conn
    }

    async fn postgres(&self) -> tokio_postgres::Client {
        let Self::Postgres(server, schema) = self else { panic!("not on Postgres") };
        let client = connect(server).await;
        client.batch_execute(&format!("SET search_path = {schema}")).await.expect("a schema of its own");
        client
    }
}
