//! A node is killed and does not come back for a while: its users get in elsewhere, however many
//! connections they had, and whoever was present there is soon not any more.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{Findings, LIMIT, LOOK_AGAIN, NAMESPACE};
use crate::check::world::World;
use crate::http::Connection;
use crate::target::Target;
use crate::token;
use crate::ws::wire::Wire;

const ROOM: &str = "room";
/// How soon the killed node's presence has to be gone, and how soon its users have to be in again.
const GONE: Duration = Duration::from_secs(60);
const IN_AGAIN: Duration = Duration::from_secs(10);
/// Until another node knows who is here.
const KNOWN: Duration = Duration::from_secs(10);

/// Runs it.
pub async fn run(world: &mut World) -> Result<Findings> {
    let mut found = Findings::default();
    let (victim, other) = (world.nodes.len() - 1, world.nodes[0].target());
    let (place, key) = (world.nodes[victim].target(), world.secrets.api_key.clone());
    let room = format!("{NAMESPACE}:{ROOM}");
    let [guest, ghost] = ["guest", "ghost"].map(|user| token::mint_for(&world.secrets.jwt, user, None));
    let mut wires = vec![Wire::open(&place, &ghost, &room).await?];
    for _ in 0..LIMIT {
        wires.push(Wire::open(&place, &guest, &room).await?);
    }
    let began = Instant::now();
    while present(&other, &key, &room).await? != (LIMIT, 1) {
        if began.elapsed() > KNOWN {
            bail!("another node does not know who is present: {:?}", present(&other, &key, &room).await?);
        }
        sleep(LOOK_AGAIN).await;
    }
    if world.redis.is_some() {
        let refused = Wire::open(&other, &guest, &room).await.is_err();
        found.never("connections above the limit", usize::from(!refused));
    }

    world.nodes[victim].kill().await?;
    let killed = Instant::now();
    drop(wires);
    let (mut again, mut refusals) = (Vec::new(), 0);
    while again.len() < LIMIT && killed.elapsed() < GONE {
        match Wire::open(&other, &guest, &room).await {
            Ok(wire) => again.push(wire),
            Err(_) => {
                refusals += 1;
                sleep(LOOK_AGAIN).await;
            }
        }
    }
    found.figure("refused before they were in again", f64::from(refusals));
    found.within("all connections of the user are in again after", killed.elapsed(), IN_AGAIN);
    // Over the API, because nobody of them asks.
    let last = loop {
        let (guests, ghosts) = present(&other, &key, &room).await?;
        if (guests <= again.len() && ghosts == 0) || killed.elapsed() > GONE {
            break killed.elapsed();
        }
        sleep(LOOK_AGAIN).await;
    };
    found.within("the node's presence is gone after", last, GONE);
    world.nodes[victim].up().await?;
    Ok(found)
}

/// How many connections of the guest there are in the room, and of the ghost.
async fn present(node: &Target, key: &str, room: &str) -> Result<(usize, usize)> {
    let body = json!({ "channel": room }).to_string();
    let request = format!(
        "POST /api/presence HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {key}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut answer = Vec::new();
    Connection::to(node).exchange(request.as_bytes(), &mut answer).await?;
    let answer: Value = serde_json::from_slice(&answer).context("no answer about presence")?;
    let clients = answer["result"]["presence"].as_object();
    let count = |user: &str| {
        clients.map_or(0, |clients| clients.values().filter(|client| client["user"] == user).count())
    };
    Ok((count("guest"), count("ghost")))
}
