//! Nodes read their configuration anew (SIGHUP) while events flow: options of the checked namespace change and
//! change back, and a namespace that somebody follows on each node gets a history, which whoever comes then
//! must have and whoever was there must not notice.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use testkit::http::{self, RequestBuilder as _};
use testkit::process::Signal;
use testkit::token;
use testkit::websocket::{self, Message, Subscriber};
use tokio::time::{sleep, timeout};

use crate::environment::{Environment, LATE_NAMESPACE};

/// How long a reload may take, and an event to everybody after it.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// So many clients in a row, on whichever worker thread, must find the history.
const NEWCOMERS: usize = 4;
/// Events after the reload.
const EVENTS: u64 = 3;

/// Turns options on for a moment, and off again.
pub async fn options(env: &Environment, number: u64) -> Result<()> {
    let channel = format!("{LATE_NAMESPACE}:{number}");
    let token = token::mint_for(&env.secrets.jwt, "early", None);
    let mut early = Vec::new();
    for node in &env.nodes {
        early.push(Subscriber::open(node.address, &token, &channel).await.context("the early client")?);
    }
    reload(env, &env.config.replace("presence = false", "presence = true").replace(LATE_OFF, LATE_ON))?;
    for node in &env.nodes {
        newcomers_recover(node.address, &token, &channel).await?;
    }
    for data in 1..=EVENTS {
        let request = http::post("/api/publish").header("X-API-Key", &env.secrets.api_key);
        let request = request.json(&json!({ "channel": channel, "data": data }));
        let answer = http::send(env.nodes[data as usize % env.nodes.len()].address, request).await?;
        ensure!(answer.status == 200, "an event after the reload was answered {}", answer.excerpt());
    }
    for client in &mut early {
        timeout(PATIENCE, hears_all(client))
            .await
            .context("who was there before the reload hears nothing")??;
    }
    reload(env, &env.config)
}

/// The options that begin and end a history.
pub const LATE_OFF: &str = "# no history yet";
const LATE_ON: &str = "history_size = 100\nhistory_ttl = \"1h\"\nforce_recovery = true";

fn reload(env: &Environment, config: &str) -> Result<()> {
    for node in &env.nodes {
        node.configure(config)?;
        node.signal(Signal::HUP)?;
    }
    Ok(())
}

/// Waits until clients that come to the node get a position, one after the other.
async fn newcomers_recover(address: SocketAddr, token: &str, channel: &str) -> Result<()> {
    let (began, mut in_a_row) = (Instant::now(), 0);
    while in_a_row < NEWCOMERS {
        let reply = subscribe(address, token, channel).await?;
        if reply["subscribe"]["recoverable"] == true && reply["subscribe"]["epoch"].is_string() {
            in_a_row += 1;
            continue;
        }
        ensure!(began.elapsed() < PATIENCE, "after a reload a client gets {reply}, and no position");
        in_a_row = 0;
        sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

/// The reply to a subscribe.
async fn subscribe(address: SocketAddr, token: &str, channel: &str) -> Result<Value> {
    let mut socket = websocket::connect(address, "/connection/websocket").await?;
    let connect = json!({ "id": 1, "connect": { "token": token } });
    let subscribe = json!({ "id": 2, "subscribe": { "channel": channel } });
    socket.send(Message::text(format!("{connect}\n{subscribe}"))).await?;
    while let Some(message) = timeout(PATIENCE, socket.next()).await.context("a subscribe has no reply")? {
        let Message::Text(text) = message? else { break };
        for line in text.lines().filter(|line| !line.is_empty()) {
            let message: Value = serde_json::from_str(line)?;
            if message["id"] == 2 {
                return Ok(message);
            }
        }
    }
    bail!("the connection ended before its reply")
}

/// Every event of this action, once and in order.
async fn hears_all(client: &mut Subscriber) -> Result<()> {
    let mut next = 1;
    while next <= EVENTS {
        for message in client.next().await? {
            let publication = &message["push"]["pub"]["data"];
            if publication.is_number() {
                ensure!(*publication == next, "{publication} instead of {next} after a reload");
                next += 1;
            }
        }
    }
    Ok(())
}
