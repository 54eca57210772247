//! Who has no business here, and gets nothing: somebody at Redis who invents messages of nodes, and a user
//! who is blocked while it connects all the time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use redis_protocol::resp2::decode::decode;
use redis_protocol::resp2::types::{OwnedFrame, Resp2Frame as _};
use serde_json::json;
use testkit::http::{self, RequestBuilder as _};
use testkit::random::Random;
use testkit::sse::Events;
use testkit::token;
use testkit::websocket::Subscriber;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::environment::{Environment, PROBE_NAMESPACE};

/// How long messages are invented.
const FORGING: Duration = Duration::from_secs(2);
/// How many clients of the blocked user connect again and again.
const CONNECTING: usize = 12;
/// Its builds, each of which is looked up in the store while a stream opens.
const BUILDS: usize = 16;
/// How long after its block a user may still have a connection.
const OUT_WITHIN: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Hears every announcement at Redis, and invents the one that follows before it happens.
pub async fn forge_messages(env: &Environment) -> Result<()> {
    let redis = env.redis.as_ref().context("there is no Redis")?.address;
    let (mut hears, mut says) = (TcpStream::connect(redis).await?, TcpStream::connect(redis).await?);
    hears.write_all(b"PSUBSCRIBE *\r\n").await?;
    let (mut input, mut forged, began) = (Vec::new(), 0, Instant::now());
    while let Some(left) = FORGING.checked_sub(began.elapsed()) {
        match timeout(left, hears.read_buf(&mut input)).await {
            Ok(read) => ensure!(read? > 0, "Redis has closed the connection"),
            Err(_) => break,
        }
        while let Some((frame, length)) = decode(&input)? {
            input.drain(..length);
            let Some((topic, packet)) = invented(&frame) else { continue };
            let command = format!(
                "*3\r\n$7\r\nPUBLISH\r\n${}\r\n{topic}\r\n${}\r\n{packet}\r\n",
                topic.len(),
                packet.len()
            );
            says.write_all(command.as_bytes()).await?;
            // What has been said is answered; nothing here wants to know how many heard it.
            let mut answers = [0; 4096];
            let _ = says.try_read(&mut answers);
            forged += 1;
        }
    }
    ensure!(forged > 0, "there was nothing to imitate: does Redis carry anything?");
    Ok(())
}

/// A message that is like this one, and says that another event comes next.
fn invented(frame: &OwnedFrame) -> Option<(String, String)> {
    let OwnedFrame::Array(parts) = frame else { return None };
    let [kind, _, topic, packet] = &parts[..] else { return None };
    if kind.as_str() != Some("pmessage") {
        return None;
    }
    let (topic, packet) = (topic.as_str()?, packet.as_str()?);
    let (before, rest) = packet.rsplit_once("\"offset\":")?;
    let (offset, after) = rest.split_once(',')?;
    let next = offset.parse::<u64>().ok()? + 1;
    let (_, after) = after.split_once("\"kind\"")?;
    let id = uuid::Uuid::new_v4();
    Some((topic.to_owned(), format!("{before}\"offset\":{next},\"id\":\"{id}\",\"kind\"{after}")))
        // Not what this function has made: that would be imitated for ever.
        .filter(|_| !packet.contains("\"forged\""))
        .map(|(topic, packet)| (topic, packet.replacen("\"kind\":\"", "\"forged\":1,\"kind\":\"", 1)))
}

/// Blocks a user while its clients open streams and sockets on all nodes: soon after it has none, and gets no
/// other.
pub async fn block_while_connecting(env: &Environment, number: u64, random: &mut Random) -> Result<()> {
    let user = format!("stranger-{number}");
    let token = token::mint_for(&env.secrets.jwt, &user, None);
    let mut builds = Vec::new();
    for _ in 0..BUILDS {
        let build = uuid::Uuid::new_v4();
        let event = json!({ "type": "build:started", "data": {} });
        let request = http::post(&format!("/api/builds/{build}/events")).bearer(&token).json(&event);
        let answer = http::send(env.nodes[0].address, request).await?;
        ensure!(answer.status == 201, "a build was answered {}", answer.excerpt());
        builds.push(format!("build:{build}"));
    }
    let stream = format!("/api/events/stream?channels={}", builds.join(","));
    let (open, mut connecting) = (Arc::new(AtomicUsize::new(0)), JoinSet::new());
    for client in 0..CONNECTING {
        let address = env.nodes[client % env.nodes.len()].address;
        let stream = (client % 4 > 0).then(|| stream.clone());
        connecting.spawn(connect_again(address, token.clone(), stream, open.clone()));
    }
    let began = Instant::now();
    while open.load(Ordering::SeqCst) == 0 {
        ensure!(began.elapsed() < OUT_WITHIN * 5, "nobody could connect");
        sleep(POLL_INTERVAL).await;
    }
    sleep(random.millis(0..200)).await;
    let node = random.within(0..env.nodes.len() as u64) as usize;
    call(env, node, "block_user", &user).await?;
    // They go on trying.
    sleep(OUT_WITHIN).await;
    let left = open.load(Ordering::SeqCst);
    ensure!(left == 0, "{left} connections of a user are open {OUT_WITHIN:?} after its block");
    call(env, node, "unblock_user", &user).await
}

async fn call(env: &Environment, node: usize, method: &str, user: &str) -> Result<()> {
    let request = http::post(&format!("/api/{method}")).header("X-API-Key", &env.secrets.api_key);
    let answer = http::send(env.nodes[node].address, request.json(&json!({ "user": user }))).await?;
    ensure!(answer.status == 200 && answer.body.starts_with(b"{\"result\""), "{}", answer.excerpt());
    Ok(())
}

/// Opens a stream or a socket, keeps it for a moment or until it is ended, and opens the next.
async fn connect_again(address: SocketAddr, token: String, stream: Option<String>, open: Arc<AtomicUsize>) {
    let channel = format!("{PROBE_NAMESPACE}:strangers");
    for round in 0.. {
        let stay = Duration::from_millis(if round % 4 == 0 { 60_000 } else { 10 });
        let ended = if let Some(path) = &stream {
            match http::open(address, http::get(path).bearer(&token).with("")).await {
                Ok(answer) if answer.status().as_u16() == 200 => {
                    let (_counted, mut events) = (Counted::new(&open), Events::of(answer));
                    timeout(stay, async { while let Ok(Some(_)) = events.next().await {} }).await.is_ok()
                }
                _ => true,
            }
        } else {
            match Subscriber::open(address, &token, &channel).await {
                Ok(mut client) => {
                    let _counted = Counted::new(&open);
                    timeout(stay, async { while client.next().await.is_ok() {} }).await.is_ok()
                }
                Err(_) => true,
            }
        };
        if ended {
            sleep(POLL_INTERVAL).await;
        }
    }
}

/// Counts a connection while it lives.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::SeqCst);
        Self(open.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_is_imitated_once() {
        let packet =
            "2 n 1 5 c\n{\"appended\":{\"events\":[{\"offset\":7,\"id\":\"x\",\"kind\":\"k\",\"data\":1}]}}";
        let heard = |packet: &str| {
            let parts = ["pmessage", "*", "p:c:a", packet].map(|part| OwnedFrame::BulkString(part.into()));
            OwnedFrame::Array(parts.into())
        };
        let (topic, next) = invented(&heard(packet)).expect("it is an announcement");
        assert_eq!(topic, "p:c:a");
        assert!(next.contains("\"offset\":8,") && !next.contains("\"id\":\"x\""), "{next}");
        assert!(next.ends_with("\"kind\":\"k\",\"data\":1}]}}"), "{next}");
        assert_eq!(invented(&heard(&next)), None);
        assert_eq!(invented(&heard("2 n 1 5 c\n{\"ping\":{}}")), None);
    }
}
