//! A real Redis that takes TLS alone, with users and their rights.

use std::path::{Path, PathBuf};

use campanile::net::tls;
use serde_json::json;
use testkit::server::Server;

use crate::support::certificates::Authority;
use crate::support::client::Request;
use crate::support::process::{API_KEY, Gateway, on_postgres, token};
use crate::support::store::eventually;
use crate::support::websocket;

/// What docs/OPERATIONS.md says that a user of ours needs.
const RIGHTS: &str = "resetkeys resetchannels ~campanile:* &campanile:* +@all -@dangerous";

/// The server, with a certificate for `localhost` alone.
pub struct Redis {
    server: Server,
    pub ours: PathBuf,
    others: PathBuf,
    _folder: tempfile::TempDir,
}

impl Redis {
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path();
        let (ours, others) = (Authority::new(path, "ours"), Authority::new(path, "others"));
        let (certificate, key) = ours.vouch("DNS:localhost");
        let users = format!("user default off\nuser node on >secret {RIGHTS}\n");
        let server = Server::start("redis-server", path, |port| {
            let (certificate, key) = (certificate.display(), key.display());
            let config = format!(
                "port 0\ntls-port {port}\nbind 127.0.0.1\ntls-cert-file {certificate}\ntls-key-file {key}\n\
                 tls-ca-cert-file {}\ntls-auth-clients no\nsave \"\"\n{users}",
                ours.file().display()
            );
            std::fs::write(path.join("redis.conf"), config).expect("a configuration");
            vec!["redis.conf".to_owned()]
        });
        let server = server.await.expect("Redis");
        Self { ours: ours.file(), others: others.file(), server, _folder: folder }
    }

    pub fn url(&self, user: &str, host: &str) -> String {
        format!("rediss://{user}@{host}:{}", self.server.address.port())
    }

    async fn publish(&self, user: &str, host: &str, authority: Option<&Path>) -> Result<(), String> {
        let client = tls::redis(&self.url(user, host), authority).map_err(|error| error.to_string())?;
        let said = async {
            let mut connection = client.get_multiplexed_async_connection().await?;
            redis::cmd("PUBLISH").arg("campanile:x").arg("y").query_async::<()>(&mut connection).await
        };
        said.await.map_err(|error| error.to_string())
    }
}

#[tokio::test]
async fn redis_is_believed_by_its_certificate_and_believes_by_a_password() {
    let redis = Redis::start().await;
    let (ours, others) = (Some(redis.ours.as_path()), Some(redis.others.as_path()));
    assert_eq!(redis.publish("node:secret", "localhost", ours).await, Ok(()));
    for (user, host, authority, wrong) in [
        ("node:secret", "localhost", others, "UnknownIssuer"),
        ("node:secret", "localhost", None, "UnknownIssuer"),
        ("node:secret", "127.0.0.1", ours, "not valid for name"),
        ("node:guess", "localhost", ours, "uthentication failed"),
        (":secret", "localhost", ours, "uthentication failed"),
    ] {
        let error = redis.publish(user, host, authority).await.unwrap_err();
        assert!(error.contains(wrong), "{user} {host}: {error}");
    }
}

#[test]
fn nodes_are_joined_by_a_redis_that_knows_a_user_of_ours_alone() {
    on_postgres(async |home| {
        let redis = Redis::start().await;
        let home = home
            .with("REDIS_URL", &redis.url("node:secret", "localhost"))
            .with("CAMPANILE_BUS__CA_FILE", redis.ours.to_str().expect("a path"))
            // Nothing is found by looking.
            .with("CAMPANILE_CHANNEL__POSITION_CHECK_INTERVAL", "1h");
        let (here, there) = (Gateway::start(&home).await, Gateway::start(&home).await);
        for node in [&here, &there] {
            eventually("the nodes hear each other", async || {
                let metrics = node.get("/metrics").await.text().to_owned();
                metrics.contains("campanile_bus_up 1\n") && metrics.contains("campanile_cluster_nodes 2\n")
            })
            .await;
        }
        let mut client = websocket::Client::open(there.address).await;
        client.connect(&token()).await;
        client.subscribe("repo:acme/api").await;
        let event = json!({ "channel": "repo:acme/api", "data": { "type": "build:done", "data": {} } });
        let publish = Request::post("/api/publish").header("X-API-Key", API_KEY).json(&event);
        publish.send(here.address).await.expect(200);
        assert!(client.push().await.to_string().contains("build:done"));
        // Counted when Redis has confirmed it.
        let metrics = here.get("/metrics").await.text().to_owned();
        assert!(!metrics.contains("campanile_bus_messages_sent_total{carrier=\"redis\"} 0\n"), "{metrics}");
    });
}
