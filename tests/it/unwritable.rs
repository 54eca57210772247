//! A store that answers and can keep nothing: the node is not ready, says so, and confirms nothing; and all
//! is well again by itself soon after the cause has gone away.

use std::process::Command;
use std::time::{Duration, Instant};

use campanile::store::{Location, Options, StoreError};
use testkit::postgres::Postgres;
use uuid::Uuid;

use crate::support::app::{Backend, TestApp, on_both, run_of, signature};
use crate::support::client::{DEADLINE, Request};
use crate::support::database::Database;
use crate::support::process::{Gateway, Home, WEBHOOK_SECRET};
use crate::support::store::{TestStore, eventually, on_postgres, on_sqlite, session};

/// Between the end of a cause and readiness.
const RECOVERY: Duration = Duration::from_secs(2);

async fn until_ready_is(app: &TestApp, status: u16) -> Duration {
    let began = Instant::now();
    while app.get("/readyz", "").await.status != status {
        assert!(began.elapsed() < DEADLINE, "/readyz does not become {status}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    began.elapsed()
}

async fn nothing_is_kept(app: &TestApp) {
    for run in 100..103 {
        let refused = app.post_webhook("workflow_run", &run_of("acme/api", run)).await;
        assert_eq!(refused.status, 503, "{}", refused.text());
        assert!(refused.header("retry-after").is_some());
    }
    until_ready_is(app, 503).await;
    app.until_metric("store_up", "", 0).await;
    assert_eq!(app.get("/healthz", "").await.status, 200);
}

async fn all_is_well_again(app: &TestApp) {
    let took = until_ready_is(app, 200).await;
    assert!(took < RECOVERY, "ready only after {took:?}");
    app.post_runs(100..103).await;
    app.until_metric("store_up", "", 1).await;
}

#[tokio::test]
async fn a_database_file_that_was_moved_away_is_missed_until_it_is_back() {
    let app = TestApp::start(Backend::Sqlite).await;
    app.post_runs(1..=3).await;
    for name in ["campanile.db", "campanile.db-wal"] {
        let (file, away) = (app.folder().join(name), app.folder().join("away"));
        std::fs::rename(&file, &away).unwrap();
        nothing_is_kept(&app).await;
        // A copy is not the file that the node has open.
        std::fs::copy(&away, &file).unwrap();
        nothing_is_kept(&app).await;
        std::fs::rename(&away, &file).unwrap();
        let took = until_ready_is(&app, 200).await;
        assert!(took < RECOVERY, "ready only after {took:?}");
    }
    all_is_well_again(&app).await;
}

#[tokio::test]
async fn an_idle_node_notices_by_itself_that_its_file_is_gone() {
    let app = TestApp::start(Backend::Sqlite).await;
    std::fs::remove_file(app.folder().join("campanile.db")).unwrap();
    // Nobody writes, and nobody asks whether it is ready.
    app.until_metric("store_up", "", 0).await;
    assert_eq!(app.get("/readyz", "").await.status, 503);
}

#[tokio::test]
async fn whoever_asks_an_idle_node_hears_of_it_before_the_node_looks_by_itself() {
    let app = TestApp::start(Backend::Sqlite).await;
    until_ready_is(&app, 200).await;
    std::fs::remove_file(app.folder().join("campanile.db")).unwrap();
    let took = until_ready_is(&app, 503).await;
    assert!(took < RECOVERY, "not ready only after {took:?}");
}

#[tokio::test]
async fn a_disk_that_is_full_is_said_until_there_is_room() {
    let home = Home::new(None);
    // The signal that comes with the limit would kill the process; a full disk sends none.
    let limited = ["sh", "-c", "trap '' XFSZ; exec prlimit \"$@\"", "sh", "--fsize=800000:unlimited"];
    let gateway = Gateway::start_under(&home, &limited).await;
    let mut runs = 1..;
    let answers = async |runs: &mut std::ops::RangeFrom<u64>| {
        let run = run_of("acme/api", runs.next().unwrap()).to_string();
        let signed = signature(WEBHOOK_SECRET, run.as_bytes());
        let delivery = Request::post("/webhooks/github")
            .header("Content-Type", "application/json")
            .header("X-GitHub-Event", "workflow_run")
            .header("X-GitHub-Delivery", &Uuid::new_v4().to_string())
            .header("X-Hub-Signature-256", &signed)
            .body(run);
        delivery.send(gateway.address).await.status
    };
    while answers(&mut runs).await == 202 {}
    // It is not ready from the first refusal on, though something less than a delivery may still fit.
    for _ in 0..10 {
        assert_eq!(answers(&mut runs).await, 503);
        assert_eq!(gateway.get("/readyz").await.status, 503);
    }
    assert!(gateway.get("/metrics").await.text().contains("campanile_store_up 0\n"));
    let pid = gateway.id().expect("it runs").to_string();
    let room = Command::new("prlimit").args(["--pid", &pid, "--fsize=unlimited:unlimited"]).status();
    assert!(room.expect("prlimit runs").success());
    let began = Instant::now();
    eventually("it is ready again", async || gateway.get("/readyz").await.status == 200).await;
    assert!(began.elapsed() < RECOVERY, "{:?}", began.elapsed());
    assert_eq!(answers(&mut runs).await, 202);
    gateway.stop().await;
}

/// A node on a database of its own server, whose whole default can be changed.
async fn on_a_server(server: &Postgres) -> TestApp {
    let database = Database::at(server.create_database("campanile").await.unwrap());
    TestApp::on(database, "").await
}

#[tokio::test]
async fn a_database_that_was_made_read_only_takes_nothing_until_it_is_writable() {
    let server = Postgres::start().await.expect("PostgreSQL");
    let app = on_a_server(&server).await;
    app.post_runs(1..=3).await;
    let admin = server.session("postgres").await.unwrap();
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
               WHERE datname = 'campanile' AND pid <> pg_backend_pid()";
    admin.batch_execute("ALTER DATABASE campanile SET default_transaction_read_only = on").await.unwrap();
    admin.batch_execute(end).await.unwrap();
    nothing_is_kept(&app).await;
    // Reads are answered meanwhile, from sessions that stay read-only for as long as they last.
    for _ in 0..8 {
        app.get("/api/events?channel=repo:acme/api", &app.ana()).await.expect(200);
    }
    admin.batch_execute("ALTER DATABASE campanile RESET default_transaction_read_only").await.unwrap();
    all_is_well_again(&app).await;
}

/// The tables that events need fail, and the one that the usual probe writes does not.
#[tokio::test]
async fn what_events_alone_need_counts_as_long_as_it_is_missing() {
    let server = Postgres::start().await.expect("PostgreSQL");
    let app = on_a_server(&server).await;
    app.post_runs(1..=3).await;
    let admin = server.session("campanile").await.unwrap();
    let full = "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS \
                $$ BEGIN RAISE EXCEPTION 'no room' USING ERRCODE = '53100'; END $$; \
                CREATE TRIGGER full_disk BEFORE INSERT ON events EXECUTE FUNCTION full_disk()";
    admin.batch_execute(full).await.unwrap();
    nothing_is_kept(&app).await;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        // What is kept without an event says nothing of events.
        app.send(app.webhook("star", "{}")).await.expect(202);
        app.get("/readyz", "").await.expect(503);
    }
    admin.batch_execute("DROP TRIGGER full_disk ON events").await.unwrap();
    all_is_well_again(&app).await;
}

#[tokio::test]
async fn rights_that_are_taken_away_are_an_outage_until_they_are_back() {
    let server = Postgres::start().await.expect("PostgreSQL");
    let url = server.create_database("campanile").await.unwrap();
    drop(TestApp::on(Database::at(url.clone()), "").await);
    let admin = server.session("campanile").await.unwrap();
    let rights = "SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public";
    admin.batch_execute(&format!("CREATE ROLE app LOGIN; GRANT {rights} TO app")).await.unwrap();
    let as_app = url.replace("postgres://postgres@", "postgres://app@");
    assert_ne!(as_app, url);
    let app = TestApp::on(Database::at(as_app), "").await;
    app.post_runs(1..=3).await;
    for table in ["events", "channels", "webhook_deliveries"] {
        admin.batch_execute(&format!("REVOKE INSERT, UPDATE ON {table} FROM app")).await.unwrap();
        nothing_is_kept(&app).await;
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            app.get("/readyz", "").await.expect(503);
        }
        admin.batch_execute(&format!("GRANT {rights} TO app")).await.unwrap();
        let took = until_ready_is(&app, 200).await;
        assert!(took < RECOVERY, "ready only after {took:?}");
    }
    all_is_well_again(&app).await;
}

#[test]
fn a_session_that_cannot_write_is_not_used_again_nor_are_those_of_its_time() {
    on_postgres(async |TestStore { store, options }| {
        drop(store);
        let Options { location: Location::Postgres { url, .. }, .. } = &options else { panic!("Postgres") };
        let role = format!("r{}", Uuid::new_v4().simple());
        let admin = session(url).await;
        admin.batch_execute(&format!("CREATE ROLE {role} SUPERUSER LOGIN")).await.unwrap();
        let as_role = url.replace("postgres://postgres@", &format!("postgres://{role}@"));
        let location = Location::Postgres { url: as_role, direct_url: None };
        let store = TestStore::open(Options { location, ..options }).await;
        admin
            .batch_execute(&format!("ALTER ROLE {role} SET default_transaction_read_only = on"))
            .await
            .unwrap();
        let end =
            format!("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = '{role}'");
        admin.batch_execute(&end).await.unwrap();
        const WRITE: &str = "UPDATE meta SET value = value";
        let writes = || {
            futures_util::future::join_all(
                (0..8).map(|_| store.store.write(|conn| conn.execute(diesel::sql_query(WRITE)))),
            )
        };
        eventually("all sessions are read-only", async || {
            let done = writes().await;
            let outage = |done: &Result<_, StoreError>| matches!(done, Err(StoreError::Unavailable(_)));
            assert!(done.iter().all(outage), "{done:?}");
            done.iter()
                .all(|done| matches!(done, Err(StoreError::Unavailable(why)) if why.contains("read-only")))
        })
        .await;
        admin.batch_execute(&format!("ALTER ROLE {role} RESET default_transaction_read_only")).await.unwrap();
        let began = Instant::now();
        eventually("writes succeed", async || store.store.probe().await.is_ok()).await;
        assert!(began.elapsed() < RECOVERY, "{:?}", began.elapsed());
        assert!(writes().await.iter().all(Result::is_ok));
        drop(store);
        admin.batch_execute(&format!("DROP ROLE {role}")).await.unwrap();
    });
}

async fn however_many_ask_one_probe_at_a_time_finds_out(backend: Backend) {
    let app = TestApp::start(backend).await;
    until_ready_is(&app, 200).await;
    let (began, before) = (Instant::now(), app.metric("store_commits", "").await);
    let mut asked = 0;
    while began.elapsed() < Duration::from_secs(3) {
        asked += 50;
        let all = futures_util::future::join_all((0..50).map(|_| app.get("/readyz", "")));
        assert!(all.await.iter().all(|answer| answer.status == 200));
    }
    let seconds = began.elapsed().as_secs() + 2;
    let probes = app.metric("store_commits", "").await - before;
    assert!(probes <= 3 * seconds, "{probes} commits in {seconds} s for {asked} requests");
}

on_both![however_many_ask_one_probe_at_a_time_finds_out];

#[test]
fn a_file_that_may_not_be_written_is_an_outage() {
    on_sqlite(async |store| {
        store.execute("UPDATE meta SET value = value").await;
        let refused = store.store.write(|conn| {
            futures_util::FutureExt::boxed(async move {
                conn.execute(diesel::sql_query("PRAGMA query_only = 1")).await?;
                let done = conn.execute(diesel::sql_query("UPDATE meta SET value = value")).await;
                conn.execute(diesel::sql_query("PRAGMA query_only = 0")).await?;
                done
            })
        });
        let refused = refused.await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    });
}
