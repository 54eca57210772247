//! The data of one test: a folder with a SQLite file, or a schema of its own in the Postgres of
//! `TEST_DATABASE_URL`. Removed when the test is over.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use campanile::store::Location;
use testkit::sql::{Source, columns};
use url::Url;
use uuid::Uuid;

use super::app::Backend;
use super::store::with_setting;

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

pub struct Database {
    folder: tempfile::TempDir,
    schema: Option<Schema>,
    /// All of a database that the test has made.
    whole: Option<String>,
}

struct Schema {
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
        Self { folder, schema, whole: None }
    }

    /// The whole database at this address, which the test has made on a server of its own.
    pub fn at(url: String) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        Self { folder, schema: None, whole: Some(url) }
    }

    /// Where the Postgres of the tests listens.
    pub fn server() -> SocketAddr {
        let addresses = server().socket_addrs(|| Some(5432)).expect("TEST_DATABASE_URL has a host");
        *addresses.first().expect("an address")
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
        self.whole.clone().or_else(|| self.schema.as_ref().map(|schema| schema.url(schema.through)))
    }

    /// Where a store finds it.
    pub fn location(&self) -> Location {
        match self.url() {
            Some(url) => Location::Postgres { url, direct_url: None },
            None => Location::Sqlite { path: self.folder().join("campanile.db") },
        }
    }

    pub fn sql(&self) -> Sql {
        Sql(match (&self.schema, &self.whole) {
            (Some(schema), _) => Source::Postgres(schema.url(None)),
            (None, Some(url)) => Source::Postgres(url.clone()),
            (None, None) => Source::Sqlite(self.folder().join("campanile.db")),
        })
    }
}

fn server() -> Url {
    let url = std::env::var("TEST_DATABASE_URL").expect("no TEST_DATABASE_URL: run tests/run");
    url.parse().expect("TEST_DATABASE_URL is an address of Postgres")
}

impl Schema {
    async fn new() -> Self {
        let schema = Self { name: format!("t{}", Uuid::new_v4().simple()), through: None };
        Sql(Source::Postgres(server().into())).execute(&format!("CREATE SCHEMA {}", schema.name)).await;
        schema
    }

    fn url(&self, through: Option<SocketAddr>) -> String {
        let mut url = server();
        if let Some(address) = through {
            url.set_host(Some(&address.ip().to_string())).expect("a host");
            url.set_port(Some(address.port())).expect("a port");
        }
        // The name tells the store's sessions from those of other tests.
        let url = with_setting(url.as_str(), "application_name", &self.name);
        with_setting(&url, "search_path", &self.name)
    }
}

impl Drop for Schema {
    fn drop(&mut self) {
        let drop = format!("DROP SCHEMA {} CASCADE", self.name);
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(Sql(Source::Postgres(server().into())).execute(&drop));
        });
        assert!(dropping.join().is_ok() || std::thread::panicking(), "the schema cannot be dropped");
    }
}

/// The test's own way to the tables.
pub struct Sql(pub Source);

impl Sql {
    /// How many rows `query` (a table, perhaps with a condition) has.
    pub async fn count(&self, query: &str) -> i64 {
        let lines = self.lines(&format!("SELECT CAST(count(*) AS TEXT) AS line FROM {query}")).await;
        lines[0].parse().expect("a number")
    }

    /// The log of a channel: offsets and data, in order.
    pub async fn log(&self, channel: &str) -> Vec<(u64, String)> {
        let query = format!(
            "SELECT CAST(\"offset\" AS TEXT) || '|' || data AS line FROM events
             WHERE channel = '{channel}' ORDER BY \"offset\""
        );
        let row = |line: &String| {
            let [offset, data] = columns(line).expect("two columns");
            (offset.parse().expect("an offset"), data.to_owned())
        };
        self.lines(&query).await.iter().map(row).collect()
    }

    /// Appends an event that no node hears of, as if its announcement were lost.
    pub async fn append_unheard(&self, channel: &str, data: &str) {
        let (begin, id) = match self.0 {
            Source::Sqlite(_) => ("BEGIN IMMEDIATE", "randomblob(16)"),
            Source::Postgres(_) => ("BEGIN", "gen_random_uuid()"),
        };
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
        self.age_by_minutes(channel, offset, days * 24 * 60).await;
    }

    pub async fn age_by_minutes(&self, channel: &str, offset: u64, minutes: u64) {
        let age = match self.0 {
            Source::Sqlite(_) => (minutes * 60 * 1_000_000).to_string(),
            Source::Postgres(_) => format!("interval '{minutes} minutes'"),
        };
        let events = format!("channel = '{channel}' AND \"offset\" <= {offset}");
        self.execute(&format!("UPDATE events SET created_at = created_at - {age} WHERE {events}")).await;
    }

    pub async fn execute(&self, sql: &str) {
        let mut session = self.0.writer().await.expect("the node's own data");
        session.execute(sql).await.expect("the test's own SQL works");
    }

    async fn lines(&self, query: &str) -> Vec<String> {
        let mut session = self.0.writer().await.expect("the node's own data");
        session.lines(query).await.expect("the test's own SQL works")
    }
}
