//! The real node on a port of its own, with its own data, on its own threads; and what a user of
//! it does, in a user's words. Every behaviour runs on SQLite and on Postgres: see [`on_both!`].
//!
//! A test talks to it over HTTP alone. [`TestApp::sql`] looks behind, for what must not change.

use std::net::SocketAddr;
use std::thread::JoinHandle;

use campanile::app::{self, Node};
use campanile::config::{Loader, StoreUrl};
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::client::{Answer, Request};
use super::database::{Database, Sql};
use super::sse::Stream;

pub const JWT_SECRET: &str = "a jwt secret of the tests, long enough";
pub const API_KEY: &str = "an api key of the tests, long enough";
pub const WEBHOOK_SECRET: &str = "a webhook secret of the tests";
/// As during a rotation.
pub const OLD_WEBHOOK_SECRET: &str = "the webhook secret of before";

/// Where the data of a test is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    Sqlite,
    Postgres,
}

/// Makes two tests of each function: `sqlite::name` and `postgres::name`.
macro_rules! on_both {
    ($($name:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test] async fn $name() { super::$name($crate::support::app::Backend::Sqlite).await })+
        }
        mod postgres {
            $(#[tokio::test] async fn $name() { super::$name($crate::support::app::Backend::Postgres).await })+
        }
    };
}
pub(crate) use on_both;

/// A node, and the only user of its data.
pub struct TestApp {
    database: Database,
    config: String,
    address: SocketAddr,
    node: Option<Running>,
}

struct Running {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl TestApp {
    /// With the default options.
    pub async fn start(backend: Backend) -> Self {
        Self::with(backend, "").await
    }

    /// With these options, as in `campanile.toml`.
    pub async fn with(backend: Backend, config: &str) -> Self {
        Self::on(Database::new(backend).await, config).await
    }

    /// On a database that the test has made.
    pub async fn on(database: Database, config: &str) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut app = Self { database, config: config.to_owned(), address: any, node: None };
        app.run().await;
        app
    }

    async fn run(&mut self) {
        let (node, address) = Running::start(&self.database, self.address, &self.config).await;
        (self.node, self.address) = (Some(node), address);
    }

    /// Stops gracefully; the data stays.
    pub async fn stop(&mut self) {
        let Some(Running { stop, thread }) = self.node.take() else { return };
        let _ = stop.send(());
        let lock = self.database.folder().join("campanile.lock");
        let stopped = move || {
            thread.join().expect("the node stops whole");
            // Work that nobody waits for may still have the database; a process would end with it.
            if let Ok(file) = std::fs::File::open(lock) {
                file.lock().expect("it is unlocked");
            }
        };
        tokio::task::spawn_blocking(stopped).await.expect("joined");
    }

    /// Stops gracefully and starts again on the same port and data.
    pub async fn restart(&mut self) {
        self.stop().await;
        self.run().await;
    }

    /// Starts again with other options.
    pub async fn restart_with(&mut self, config: &str) {
        self.stop().await;
        self.config = config.to_owned();
        self.run().await;
    }

    pub fn folder(&self) -> &std::path::Path {
        self.database.folder()
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Signs any claims.
    pub fn token(&self, claims: Value) -> String {
        token_by(JWT_SECRET, &claims)
    }

    /// A token that sees the repositories of `acme`.
    pub fn ana(&self) -> String {
        self.token(json!({ "sub": "ana", "orgs": ["acme"] }))
    }

    pub fn admin(&self) -> String {
        self.token(json!({ "sub": "root", "scope": "admin" }))
    }

    pub async fn send(&self, request: Request) -> Answer {
        request.send(self.address).await
    }

    /// Without a token if it is empty.
    pub async fn get(&self, path: &str, token: &str) -> Answer {
        let request = Request::get(path);
        self.send(if token.is_empty() { request } else { request.bearer(token) }).await
    }

    /// A delivery with a fresh id and the right signature, to be sent or spoilt.
    pub fn webhook(&self, event: &str, body: impl Into<Vec<u8>>) -> Request {
        let body = body.into();
        Request::post("/webhooks/github")
            .header("Content-Type", "application/json")
            .header("X-GitHub-Event", event)
            .header("X-GitHub-Delivery", &Uuid::new_v4().to_string())
            .header("X-Hub-Signature-256", &signature(WEBHOOK_SECRET, &body))
            .body(body)
    }

    pub async fn post_webhook(&self, event: &str, body: &Value) -> Answer {
        self.send(self.webhook(event, body.to_string())).await
    }

    /// Posts one delivery for each number of `runs`: the start of a run of `acme/api`.
    pub async fn post_runs(&self, runs: impl IntoIterator<Item = u64>) {
        for run in runs {
            self.post_webhook("workflow_run", &run_of("acme/api", run)).await.expect(202);
        }
    }

    /// `POST /api/publish` with the key.
    pub async fn publish(&self, body: Value) -> Answer {
        self.call("publish", body).await
    }

    /// A method of the server API, with the key.
    pub async fn call(&self, method: &str, body: Value) -> Answer {
        self.send(Request::post(&format!("/api/{method}")).header("X-API-Key", API_KEY).json(&body)).await
    }

    /// What a method of the server API gives, which must succeed.
    pub async fn result(&self, method: &str, body: Value) -> Value {
        let answer = self.call(method, body).await.expect(200).json();
        assert!(answer["error"].is_null(), "{answer}");
        answer["result"].clone()
    }

    /// The code of the error of a method of the server API.
    pub async fn error(&self, method: &str, body: Value) -> u64 {
        let answer = self.call(method, body).await.expect(200).json();
        answer["error"]["code"].as_u64().unwrap_or_else(|| panic!("no error: {answer}"))
    }

    /// Opens a stream that must open.
    pub async fn stream(&self, channels: &str, token: &str, cursor: Option<&str>) -> Stream {
        let request = stream_request(channels, token, cursor);
        match Stream::open(self.address, &request).await {
            Ok(stream) => stream,
            Err(answer) => panic!("no stream: {} {}", answer.status, answer.text()),
        }
    }

    /// A page of a poll that must succeed.
    pub async fn poll(&self, query: &str, token: &str) -> Value {
        self.get(&format!("/api/events?{query}"), token).await.expect(200).json()
    }

    /// A session on its Postgres.
    pub async fn session(&self) -> tokio_postgres::Client {
        super::store::session(&self.database.url().expect("its data is in Postgres")).await
    }

    pub fn sql(&self) -> Sql {
        self.database.sql()
    }

    /// The value of a metric without its prefix; of all values of its label if `label` is empty.
    pub async fn metric(&self, name: &str, label: &str) -> u64 {
        let text = self.get("/metrics", "").await.expect(200);
        let values = text.text().lines().filter_map(|line| {
            let (series, value) = line.strip_prefix("campanile_")?.rsplit_once(' ')?;
            let (metric, labels) = series.split_once('{').unwrap_or((series, ""));
            let same = metric.strip_suffix("_total").unwrap_or(metric) == name;
            let fits = label.is_empty() || labels.ends_with(&format!("=\"{label}\"}}"));
            (same && fits).then(|| value.parse::<u64>().expect("a whole number"))
        });
        values.sum()
    }

    /// Asks until the metric has this value; for what happens shortly after an answer.
    pub async fn until_metric(&self, name: &str, label: &str, value: u64) {
        let reached = async {
            while self.metric(name, label).await != value {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        let reached = tokio::time::timeout(super::client::DEADLINE, reached).await;
        assert!(reached.is_ok(), "campanile_{name} of `{label}` does not become {value}");
    }
}

impl Drop for TestApp {
    fn drop(&mut self) {
        if let Some(Running { stop, thread }) = self.node.take() {
            let _ = stop.send(());
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the node did not stop whole");
        }
    }
}

impl Running {
    async fn start(database: &Database, listen: SocketAddr, config: &str) -> (Self, SocketAddr) {
        let secrets = [WEBHOOK_SECRET, OLD_WEBHOOK_SECRET].join(",");
        let listen = listen.to_string();
        let folder = database.folder().to_string_lossy();
        let mut environment = vec![
            ("CAMPANILE_LISTEN", listen.as_str()),
            ("CAMPANILE_DATA_DIR", &folder),
            ("CAMPANILE_JWT_SECRET", JWT_SECRET),
            ("CAMPANILE_API_KEY", API_KEY),
            ("GITHUB_WEBHOOK_SECRET", &secrets),
            ("CAMPANILE_SERVER__WORKERS", "2"),
            ("CAMPANILE_STORE__POOL_SIZE", "8"),
        ];
        let url = database.url();
        environment.extend(url.as_deref().map(|url| ("DATABASE_URL", url)));
        let loader = Loader::new().text("test.toml", config).environment(environment);
        let config = loader.load().expect("the options of a test are right");
        let secrets = config.resolve_secrets().expect("the secrets of a test are set");
        assert_eq!(matches!(config.store.url, Some(StoreUrl::Postgres(_))), url.is_some());

        if let Ok(filter) = std::env::var("TEST_LOG") {
            // The first test of a process starts it for all.
            let _ = campanile::telemetry::start_logging(&filter, None);
        }
        let (started, address) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let core = app::core_runtime().expect("threads");
            actix_rt::System::new().block_on(async {
                match Node::start(&config, &secrets, core.handle()).await {
                    Ok(node) => {
                        let _ = started.send(Ok(node.address()));
                        let _ = stopped.await;
                        node.stop().await;
                    }
                    Err(error) => drop(started.send(Err(error))),
                }
            });
        });
        let address = address.await.expect("the node says where it listens");
        (Self { stop, thread }, address.expect("the node starts"))
    }
}

/// As a token says it.
pub fn in_seconds(seconds: i64) -> i64 {
    chrono::Utc::now().timestamp() + seconds
}

pub fn token_by(secret: &str, claims: &Value) -> String {
    let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), claims, &key).expect("claims are JSON")
}

pub fn signature(secret: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("a key of any length");
    mac.update(body);
    format!("sha256={}", hex::encode(mac.finalize().into_bytes()))
}

/// A request for a stream; the channels that the claims admit if `channels` is empty.
pub fn stream_request(channels: &str, token: &str, cursor: Option<&str>) -> Request {
    let query = if channels.is_empty() { String::new() } else { format!("?channels={channels}") };
    let request = Request::get(&format!("/api/events/stream{query}")).bearer(token);
    cursor.into_iter().fold(request, |request, cursor| request.header("Last-Event-ID", cursor))
}

/// GitHub's words for the start of the run `run` in `repo`.
pub fn run_of(repo: &str, run: u64) -> Value {
    let (owner, name) = repo.split_once('/').expect("owner/name");
    let number = repo.bytes().fold(7u64, |sum, byte| sum * 31 % 1_000_003 + u64::from(byte));
    json!({
        "action": "requested",
        "workflow_run": {
            "id": run, "name": "CI", "workflow_id": 9, "run_number": run, "run_attempt": 1,
            "status": "queued", "conclusion": null, "event": "push", "head_branch": "main",
            "head_sha": "7f1c3a90be52d46f8a0e9b7c15d2e4f60318a9cd",
            "html_url": format!("https://github.com/{repo}/actions/runs/{run}"),
            "created_at": "2026-11-21T08:00:00Z", "updated_at": "2026-11-21T08:00:00Z",
            "run_started_at": "2026-11-21T08:00:00Z",
        },
        "repository": {
            "id": number, "name": name, "full_name": repo, "private": false,
            "default_branch": "main", "owner": { "login": owner, "id": 1 },
        },
    })
}
