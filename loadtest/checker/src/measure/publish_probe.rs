//! Probes how soon events reach every node: every few milliseconds one is published by one of the nodes in
//! turn, and a client at each node notes when it comes. Beside the publishers and subscribers of the case.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::json;
use testkit::http::{self, Client, RequestBuilder as _};
use testkit::token;
use testkit::websocket::Subscriber;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::environment::{Environment, PROBE_NAMESPACE};

const CHANNEL: &str = "events";
/// Between two events.
const INTERVAL: Duration = Duration::from_millis(40);

#[derive(Debug, Clone)]
pub struct Probe {
    /// The node that took it.
    pub node: usize,
    pub sent: Instant,
    /// When it answered 200, if it did.
    pub accepted: Option<Instant>,
    /// By node: when its client had it.
    pub received: Vec<Option<Instant>>,
}

#[derive(Debug, Default)]
pub struct Log {
    pub probes: Vec<Probe>,
    /// Clients that were cut off, and why.
    pub disconnects: Vec<String>,
}

/// Publishes and listens until it is dropped.
pub struct Prober {
    log: Arc<Mutex<Log>>,
    _tasks: JoinSet<()>,
}

impl Prober {
    /// Starts it, when a client is at each node.
    pub async fn start(env: &Environment) -> Result<Self> {
        let (log, mut tasks) = (Arc::new(Mutex::new(Log::default())), JoinSet::new());
        let channel = format!("{PROBE_NAMESPACE}:{CHANNEL}");
        for (number, node) in env.nodes.iter().enumerate() {
            let token = token::mint_for(&env.secrets.jwt, &format!("prober-{number}"), None);
            let client =
                Subscriber::open(node.address, &token, &channel).await.context("the prober's client")?;
            tasks.spawn(listen(number, client, log.clone()));
        }
        for (number, node) in env.nodes.iter().enumerate() {
            let (key, count) = (env.secrets.api_key.clone(), env.nodes.len());
            tasks.spawn(publish(number, node.address, key, count, log.clone()));
        }
        Ok(Self { log, _tasks: tasks })
    }

    pub fn log(&self) -> MutexGuard<'_, Log> {
        lock(&self.log)
    }
}

/// Each node is published to by a task of its own, so that none waits for another.
async fn publish(node: usize, address: SocketAddr, key: String, nodes: usize, log: Arc<Mutex<Log>>) {
    let (mut client, mut ticks) = (Client::new(address), interval(INTERVAL * nodes as u32));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let number = {
            let mut log = lock(&log);
            let received = vec![None; nodes];
            log.probes.push(Probe { node, sent: Instant::now(), accepted: None, received });
            log.probes.len() - 1
        };
        let body = json!({ "channel": format!("{PROBE_NAMESPACE}:{CHANNEL}"), "data": { "probe": number } });
        let request = http::post("/api/publish").header("X-API-Key", &key).json(&body);
        // The server API answers 200 to what failed as well, and says so in the body.
        if let Ok(answer) = client.send(request).await
            && answer.status == 200
            && answer.body.starts_with(b"{\"result\"")
        {
            lock(&log).probes[number].accepted = Some(Instant::now());
        }
    }
}

async fn listen(node: usize, mut client: Subscriber, log: Arc<Mutex<Log>>) {
    loop {
        match client.next().await {
            Ok(messages) => {
                let now = Instant::now();
                for message in messages {
                    let number = message["push"]["pub"]["data"]["probe"].as_u64();
                    if let Some(number) = number
                        && let Some(probe) = lock(&log).probes.get_mut(number as usize)
                    {
                        probe.received[node].get_or_insert(now);
                    }
                }
            }
            Err(error) => {
                lock(&log).disconnects.push(format!("{error:#}"));
                return;
            }
        }
    }
}

fn lock(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    log.lock().expect("no panic while the log is locked")
}
