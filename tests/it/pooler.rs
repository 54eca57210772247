//! PgBouncer in transaction mode between nodes and their Postgres: every transaction may be in another
//! session, and a session keeps nothing for the next one.

use std::time::Duration;

use campanile::store::{Location, Options, StoreError};
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use serde_json::json;
use testkit::pgbouncer::PgBouncer;
use testkit::postgres::Postgres;
use uuid::Uuid;

use crate::support::app::{run_of, signature};
use crate::support::client::Request;
use crate::support::database::Database;
use crate::support::process::{API_KEY, Gateway, Home, WEBHOOK_SECRET, token};
use crate::support::store::*;

/// Fewer sessions than nodes use at once.
const SESSIONS: usize = 4;
const RUN: &str = "repo:acme/api";

/// A database of its own behind a PgBouncer: schemas are chosen by session, which it does not pass on.
struct Pooled {
    bouncer: PgBouncer,
    name: String,
}

impl Pooled {
    async fn new() -> Self {
        let name = format!("t{}", Uuid::new_v4().simple());
        admin().await.batch_execute(&format!("CREATE DATABASE {name}")).await.expect("a database");
        let bouncer = PgBouncer::start(Database::server(), SESSIONS).await.expect("PgBouncer");
        Self { bouncer, name }
    }

    fn url(&self) -> String {
        Postgres::url_through(self.bouncer.address(), &self.name)
    }

    fn direct_url(&self) -> String {
        Postgres::url_through(Database::server(), &self.name)
    }

    fn location(&self) -> Location {
        Location::Postgres { url: self.url(), direct_url: Some(self.direct_url()) }
    }

    async fn end(self) {
        let Self { bouncer, name } = self;
        drop(bouncer);
        let drop = format!("DROP DATABASE {name} WITH (FORCE)");
        admin().await.batch_execute(&drop).await.expect("the database goes away");
    }
}

async fn admin() -> tokio_postgres::Client {
    session(&std::env::var("TEST_DATABASE_URL").expect("no TEST_DATABASE_URL: run tests/run")).await
}

#[test]
fn nodes_behind_pgbouncer_take_and_serve_everything() {
    runtime().block_on(async {
        let pooled = Pooled::new().await;
        let home = Home::new(Some(pooled.url())).with("DATABASE_URL_DIRECT", &pooled.direct_url());
        let nodes = [Gateway::start(&home).await, Gateway::start(&home).await];
        let deliver = async |run: u64| {
            let body = run_of("acme/api", run).to_string();
            let delivery = Request::post("/webhooks/github")
                .header("Content-Type", "application/json")
                .header("X-GitHub-Event", "workflow_run")
                .header("X-GitHub-Delivery", &Uuid::new_v4().to_string())
                .header("X-Hub-Signature-256", &signature(WEBHOOK_SECRET, body.as_bytes()))
                .body(body);
            delivery.send(nodes[run as usize % 2].address).await
        };
        let polled = format!("/api/events?channel={RUN}");
        let paths = ["/api/repos", "/api/dashboard/summary", "/api/dashboard/activity", &polled];
        for round in 0..5 {
            let deliveries = join_all((1..=12).map(|n| deliver(round * 12 + n)));
            let nodes = &nodes;
            let reads = join_all((0..24).map(|n| async move {
                let path = paths[n % 4];
                (path, Request::get(path).bearer(&token()).send(nodes[n / 4 % 2].address).await)
            }));
            let (deliveries, reads) = tokio::join!(deliveries, reads);
            for answer in deliveries {
                assert_eq!(answer.status, 202, "{}", answer.text());
            }
            for (path, answer) in reads {
                assert_eq!(answer.status, 200, "{path}: {}", answer.text());
            }
        }
        let page = nodes[0].get(&format!("{polled}&limit=100")).await.expect(200).json();
        assert_eq!(page["events"].as_array().map(Vec::len), Some(60));
        // Both nodes are there for each other: the server's own address serves LISTEN.
        let key = |request: Request| request.header("X-API-Key", API_KEY);
        let info = key(Request::post("/api/info")).json(&json!({})).send(nodes[1].address).await;
        assert_eq!(info.json()["result"]["nodes"].as_array().map(Vec::len), Some(2), "{}", info.text());
        for node in nodes {
            node.stop().await;
        }
        pooled.end().await;
    });
}

#[test]
fn a_transaction_behind_pgbouncer_has_its_deadlines_and_leaves_no_settings_behind() {
    runtime().block_on(async {
        let pooled = Pooled::new().await;
        let deadline = Duration::from_millis(400);
        let store = TestStore::open(Options { deadline, ..options(pooled.location()) }).await;
        let news = channel("news");
        store.fill(&news, 1).await;
        let holder = session(&pooled.direct_url()).await;
        holder.batch_execute("BEGIN; SELECT FROM channels WHERE name = 'news' FOR UPDATE").await.unwrap();
        let row = "UPDATE channels SET version = 1 WHERE name = 'news'";
        let blocked = store.store.write(move |conn| conn.execute(diesel::sql_query(row))).await;
        assert!(matches!(blocked, Err(StoreError::Unavailable(_))), "{blocked:?}");
        // The server gives up as well, so that nothing of it is committed later.
        eventually("nobody waits any more", async || {
            let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
                           AND datname = current_database()";
            holder.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) == 0
        })
        .await;
        holder.batch_execute("COMMIT").await.unwrap();

        // Sessions whose transactions went well stay, for others to use.
        let writes = (0..SESSIONS).map(|_| {
            store.store.write(|conn| conn.execute(diesel::sql_query("UPDATE meta SET value = value")))
        });
        assert!(join_all(writes).await.iter().all(Result::is_ok));
        let shared = session(&pooled.url()).await;
        for setting in ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"] {
            for _ in 0..2 * SESSIONS {
                let shown = shared.simple_query(&format!("SELECT current_setting('{setting}') AS it")).await;
                let shown = shown.unwrap().into_iter().find_map(|line| match line {
                    tokio_postgres::SimpleQueryMessage::Row(row) => row.get("it").map(str::to_owned),
                    _ => None,
                });
                assert_eq!(shown.as_deref(), Some("0"), "{setting}");
            }
        }
        drop(store);
        pooled.end().await;
    });
}

#[test]
fn a_commit_behind_pgbouncer_is_in_the_history_of_the_server_that_has_it() {
    runtime().block_on(async {
        let pooled = Pooled::new().await;
        let store = TestStore::open(options(pooled.location())).await;
        let news = channel("news");
        let (publisher, _) = store.publisher();
        let server = session(&pooled.direct_url()).await;
        // Our connections to the pooler stay.
        let after = commit_after_failover(&publisher, &news, &server, async {}).await;
        assert_eq!(after, store.head(&news).await);
        drop((store, publisher));
        pooled.end().await;
    });
}

/// What PgBouncer of Debian cannot do: it does not know which statements a client has prepared.
#[test]
fn statements_that_stay_prepared_behind_an_old_pgbouncer_fail_as_an_outage_that_says_what_to_do() {
    runtime().block_on(async {
        let pooled = Pooled::new().await;
        let prepared = Options { prepared_statements: Some(true), ..options(pooled.location()) };
        let failed = match campanile::store::Store::open(&prepared).await {
            Err(error) => error.to_string(),
            Ok(store) => {
                let mut failures = Vec::new();
                for _ in 0..100 {
                    let reads =
                        join_all((0..16).map(|_| {
                            store.read(|tx| async move { tx.head(&channel("news")).await }.boxed())
                        }));
                    failures.extend(reads.await.into_iter().filter_map(Result::err));
                }
                assert!(matches!(failures[0], StoreError::Unavailable(_)), "{:?}", failures[0]);
                failures[0].to_string()
            }
        };
        assert!(failed.contains("DATABASE_URL_DIRECT"), "{failed}");
        pooled.end().await;
    });
}
