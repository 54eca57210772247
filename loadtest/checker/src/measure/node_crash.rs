//! A node is killed and does not come back for a while: its users get in elsewhere, however many
//! connections they had, and whoever was present there is soon not any more.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use testkit::http::{self, RequestBuilder as _};
use testkit::token;
use testkit::websocket::Subscriber;
use tokio::time::sleep;

use super::findings::Findings;
use crate::environment::{CONNECTION_LIMIT as LIMIT, Environment, PROBE_NAMESPACE};

const ROOM: &str = "room";
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How soon the killed node's presence has to be gone, and how soon its users have to be in again.
const GONE: Duration = Duration::from_secs(60);
const IN_AGAIN: Duration = Duration::from_secs(10);
/// Until another node knows who is here.
const KNOWN: Duration = Duration::from_secs(10);

pub async fn run(env: &mut Environment) -> Result<Findings> {
    let mut found = Findings::default();
    let (victim, other) = (env.nodes.len() - 1, env.nodes[0].address);
    let (address, key) = (env.nodes[victim].address, env.secrets.api_key.clone());
    let room = format!("{PROBE_NAMESPACE}:{ROOM}");
    let [guest, ghost] = ["guest", "ghost"].map(|user| token::mint_for(&env.secrets.jwt, user, None));
    let mut clients = vec![Subscriber::open(address, &ghost, &room).await?];
    for _ in 0..LIMIT {
        clients.push(Subscriber::open(address, &guest, &room).await?);
    }
    let began = Instant::now();
    while present(other, &key, &room).await? != (LIMIT, 1) {
        if began.elapsed() > KNOWN {
            bail!("another node does not know who is present: {:?}", present(other, &key, &room).await?);
        }
        sleep(POLL_INTERVAL).await;
    }
    if env.redis.is_some() {
        let refused = Subscriber::open(other, &guest, &room).await.is_err();
        found.never("connections above the limit", usize::from(!refused));
    }

    env.nodes[victim].kill().await?;
    let killed = Instant::now();
    drop(clients);
    let (mut again, mut refusals) = (Vec::new(), 0);
    while again.len() < LIMIT && killed.elapsed() < GONE {
        match Subscriber::open(other, &guest, &room).await {
            Ok(client) => again.push(client),
            Err(_) => {
                refusals += 1;
                sleep(POLL_INTERVAL).await;
            }
        }
    }
    found.figure("refused before they were in again", f64::from(refusals));
    found.within("all connections of the user are in again after", killed.elapsed(), IN_AGAIN);
    // Over the API, because nobody of them asks.
    let last = loop {
        let (guests, ghosts) = present(other, &key, &room).await?;
        if (guests <= again.len() && ghosts == 0) || killed.elapsed() > GONE {
            break killed.elapsed();
        }
        sleep(POLL_INTERVAL).await;
    };
    found.within("the node's presence is gone after", last, GONE);
    env.nodes[victim].start().await?;
    Ok(found)
}

/// How many connections of the guest there are in the room, and of the ghost.
async fn present(node: SocketAddr, key: &str, room: &str) -> Result<(usize, usize)> {
    let request = http::post("/api/presence").header("X-API-Key", key).json(&json!({ "channel": room }));
    let answer = http::send(node, request).await?;
    let answer: Value = serde_json::from_slice(&answer.body).context("no answer about presence")?;
    let clients = answer["result"]["presence"].as_object();
    let count = |user: &str| {
        clients.map_or(0, |clients| clients.values().filter(|client| client["user"] == user).count())
    };
    Ok((count("guest"), count("ghost")))
}
