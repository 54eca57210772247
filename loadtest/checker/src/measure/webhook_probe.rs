//! Probes how each node answers webhooks: one after the other. They mean nothing to the gateway, so that
//! they leave no trace in the log.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use testkit::http;
use testkit::payload::signed;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::environment::Environment;

/// Between an answer and the next webhook.
const PAUSE: Duration = Duration::from_millis(50);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);
const BODY: &str = r#"{"zen":"Anything added dilutes everything else."}"#;

#[derive(Debug, Clone)]
pub struct Attempt {
    pub node: usize,
    pub sent: Instant,
    /// When it was answered, or given up.
    pub answered: Instant,
    pub status: Option<u16>,
    /// The answer says when to come again.
    pub retry_after: bool,
}

/// Sends webhooks until it is dropped.
pub struct Prober {
    attempts: Arc<Mutex<Vec<Attempt>>>,
    _tasks: JoinSet<()>,
}

impl Prober {
    /// At all nodes.
    pub fn start(env: &Environment) -> Self {
        let (attempts, mut tasks) = (Arc::default(), JoinSet::new());
        for (number, node) in env.nodes.iter().enumerate() {
            tasks.spawn(probe(number, node.address, env.secrets.webhook.clone(), Arc::clone(&attempts)));
        }
        Self { attempts, _tasks: tasks }
    }

    pub fn attempts(&self) -> MutexGuard<'_, Vec<Attempt>> {
        lock(&self.attempts)
    }
}

async fn probe(node: usize, address: SocketAddr, secret: String, attempts: Arc<Mutex<Vec<Attempt>>>) {
    loop {
        let request = signed(&secret, "star", Uuid::new_v4(), BODY);
        let sent = Instant::now();
        let (status, retry_after) = match timeout(PATIENCE, http::send(address, request)).await {
            Ok(Ok(answer)) => (Some(answer.status), answer.header("retry-after").is_some()),
            _ => (None, false),
        };
        lock(&attempts).push(Attempt { node, sent, answered: Instant::now(), status, retry_after });
        sleep(PAUSE).await;
    }
}

fn lock(attempts: &Mutex<Vec<Attempt>>) -> MutexGuard<'_, Vec<Attempt>> {
    attempts.lock().expect("no panic while the list is locked")
}
