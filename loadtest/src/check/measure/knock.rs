//! Webhooks at each node's own door, one after the other, and how each was answered. They mean nothing
//! to the gateway, so that they leave no trace in the log.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::check::world::World;
use crate::framing::Head;
use crate::target::Target;

/// Between an answer and the next webhook.
const PAUSE: Duration = Duration::from_millis(50);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);
const BODY: &str = r#"{"zen":"Anything added dilutes everything else."}"#;

/// One webhook.
#[derive(Debug, Clone)]
pub struct Knock {
    /// The node that it came to.
    pub node: usize,
    /// When it was sent.
    pub sent: Instant,
    /// When it was answered, or given up.
    pub answered: Instant,
    /// How, if at all.
    pub status: Option<u16>,
    /// The answer says when to come again.
    pub retry_after: bool,
}

/// Somebody who knocks until this is dropped.
pub struct Door {
    knocks: Arc<Mutex<Vec<Knock>>>,
    tasks: Vec<AbortHandle>,
}

impl Door {
    /// At all nodes.
    pub fn start(world: &World) -> Self {
        let knocks = Arc::new(Mutex::new(Vec::new()));
        let secret = world.secrets.webhook.clone();
        let task = |(number, target)| {
            tokio::spawn(knock((number, target), secret.clone(), knocks.clone())).abort_handle()
        };
        let targets = world.nodes.iter().map(|node| node.target());
        let tasks = targets.enumerate().map(task).collect();
        Self { knocks, tasks }
    }

    /// All until now.
    pub fn knocks(&self) -> MutexGuard<'_, Vec<Knock>> {
        lock(&self.knocks)
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

async fn knock((node, target): (usize, Target), secret: String, knocks: Arc<Mutex<Vec<Knock>>>) {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes a key of any length");
    mac.update(BODY.as_bytes());
    let signature = hex::encode(mac.finalize().into_bytes());
    loop {
        let request = format!(
            "POST /webhooks/github HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
             X-GitHub-Event: star\r\nX-GitHub-Delivery: {}\r\nX-Hub-Signature-256: sha256={signature}\r\n\
             Connection: close\r\nContent-Length: {}\r\n\r\n{BODY}",
            target.host,
            Uuid::new_v4(),
            BODY.len()
        );
        let sent = Instant::now();
        let answer = timeout(PATIENCE, ask(&target, request.as_bytes())).await;
        let (status, retry_after) = match answer {
            Ok(Ok((status, retry_after))) => (Some(status), retry_after),
            _ => (None, false),
        };
        lock(&knocks).push(Knock { node, sent, answered: Instant::now(), status, retry_after });
        sleep(PAUSE).await;
    }
}

async fn ask(target: &Target, request: &[u8]) -> Result<(u16, bool)> {
    let mut stream = TcpStream::connect(target.address).await?;
    stream.write_all(request).await?;
    let mut answer = Vec::new();
    loop {
        if let Some((head, length)) = Head::parse(&answer)? {
            let text = String::from_utf8_lossy(&answer[..length]).to_ascii_lowercase();
            return Ok((head.status, text.contains("\r\nretry-after:")));
        }
        ensure!(stream.read_buf(&mut answer).await? > 0, "closed instead of an answer");
    }
}

fn lock(knocks: &Mutex<Vec<Knock>>) -> MutexGuard<'_, Vec<Knock>> {
    knocks.lock().expect("nobody panics with the list in hand")
}
