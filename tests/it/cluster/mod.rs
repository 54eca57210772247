//! Several nodes on one PostgreSQL, joined by Redis or by NOTIFY alone: real processes, each with a
//! way to Redis that can be cut.

mod bus;
mod clients;
mod emulation;
mod limits;

use std::net::SocketAddr;

use base64::Engine as _;
use campanile::auth::{NewToken, mint};
use serde_json::{Value, json};
use testkit::proxy::{Link, Proxy};

use crate::support::client::{Answer, Request};
use crate::support::process::{self, API_KEY, Gateway, Home, JWT_SECRET};
use crate::support::websocket::Client;

/// Events are kept in `news`, everybody is seen and heard there; `talk` keeps nothing.
const NAMESPACES: &str = r#"[
    {"name":"news","history_size":1000,"history_ttl":"1h","allow_subscribe_for_client":true,
     "presence":true,"join_leave":true,"force_push_join_leave":true,"allow_presence_for_subscriber":true,
     "force_recovery":true},
    {"name":"talk","allow_subscribe_for_client":true}]"#;

/// How nodes are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Joined {
    ByRedis,
    ByNotify,
}

/// Nodes and their ways to Redis.
struct Nodes {
    nodes: Vec<Gateway>,
    ways: Vec<Proxy>,
}

/// Runs `story` with `count` nodes on a database of their own.
fn with_nodes(joined: Joined, count: usize, story: impl AsyncFnOnce(Nodes)) {
    process::on_postgres(async |home| {
        let server = std::env::var("TEST_REDIS_URL").expect("TEST_REDIS_URL is missing: run tests/run");
        let server: SocketAddr =
            server.trim_start_matches("redis://").trim_end_matches('/').parse().expect("an address of Redis");
        let (mut homes, mut ways) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let mut own = Home::new(home.database().map(str::to_owned))
                .with("CAMPANILE_CHANNEL__NAMESPACES", NAMESPACES)
                // What is not announced must be found by other means than this.
                .with("CAMPANILE_CHANNEL__POSITION_CHECK_INTERVAL", "1h");
            if joined == Joined::ByRedis {
                let way = Proxy::to(server).await.expect("a proxy");
                own = own.with("REDIS_URL", &format!("redis://{}", way.address));
                ways.push(way);
            }
            homes.push(own);
        }
        let mut nodes = Vec::new();
        for home in &homes {
            nodes.push(Gateway::start(home).await);
        }
        let nodes = Nodes { nodes, ways };
        nodes.know_each_other().await;
        story(nodes).await;
    });
}

impl Nodes {
    fn address(&self, node: usize) -> SocketAddr {
        self.nodes[node].address
    }

    /// A method of the server API on a node; its result.
    async fn api(&self, node: usize, method: &str, body: Value) -> Value {
        let answer = self.call(node, method, &body).await.expect(200).json();
        assert!(answer["result"].is_object(), "{method}: {answer}");
        answer["result"].clone()
    }

    async fn call(&self, node: usize, method: &str, body: &Value) -> Answer {
        let request = Request::post(&format!("/api/{method}")).header("X-API-Key", API_KEY).json(body);
        request.send(self.address(node)).await
    }

    async fn publish(&self, node: usize, channel: &str, data: Value) {
        self.api(node, "publish", json!({ "channel": channel, "data": data })).await;
    }

    async fn metric(&self, node: usize, line: &str) -> i64 {
        let text = self.nodes[node].get("/metrics").await.text().to_owned();
        let found = text.lines().find_map(|one| one.strip_prefix(line)?.strip_prefix(' '));
        found.unwrap_or_else(|| panic!("{line} in {text}")).parse().expect("a whole number")
    }

    /// Waits until each node counts all of them and hears them at once.
    async fn know_each_other(&self) {
        for node in 0..self.nodes.len() {
            self.until(node, "campanile_cluster_nodes", self.nodes.len() as i64).await;
            self.until(node, "campanile_bus_up", 1).await;
        }
    }

    async fn until(&self, node: usize, line: &str, value: i64) {
        crate::support::store::eventually(&format!("node {node} has {line} {value}"), async || {
            self.metric(node, line).await == value
        })
        .await;
    }

    fn cut_redis(&self, mode: Link) {
        self.ways.iter().for_each(|way| way.set(mode));
    }

    /// Connected to a node as `user` and subscribed.
    async fn subscriber(&self, node: usize, user: &str, channel: &str) -> Client {
        let mut client = Client::open(self.address(node)).await;
        client.connect(&token(user)).await;
        client.subscribe(channel).await;
        client
    }
}

fn token(user: &str) -> String {
    let claims = NewToken { user: user.into(), ..NewToken::default() };
    mint(JWT_SECRET, &claims, chrono::Utc::now()).expect("a token")
}

/// The id that a token has.
fn jti_of(token: &str) -> Value {
    let claims = token.split('.').nth(1).expect("three parts");
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims).expect("base64url");
    serde_json::from_slice::<Value>(&claims).expect("JSON")["jti"].clone()
}

/// The data of the next publication; others' coming and leaving is passed over.
async fn next(client: &mut Client) -> Value {
    loop {
        let push = client.push().await;
        if push["pub"].is_object() {
            return push["pub"]["data"].clone();
        }
        assert!(push["join"].is_object() || push["leave"].is_object(), "{push}");
    }
}
