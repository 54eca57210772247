//! What strangers and greedy clients do while GitHub delivers: bodies that stop half-way, two events with one
//! idempotency key, tokens with many channels of history. Invariant: every genuine delivery is taken, and in time,
//! and the server's memory stays within bounds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};
use testkit::http::{self, RequestBuilder as _};
use testkit::payload::Payloads;
use testkit::target::Target;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{MEBI, percentile};
use crate::clients::Limit;
use crate::clients::webhook_load::WebhookLoad;
use crate::compare::session::Session;
use crate::report::table::{Figure, aside, figure};
use crate::stats::Histogram;

/// Senders that stop half-way, more than fit in `limits.webhook_in_flight`.
const SLOW: usize = 60;
/// How long a stranger waits before it comes again: this is about room, and not about bandwidth.
const PAUSE: Duration = Duration::from_secs(1);
const PAIRS: usize = 2;
/// Clients with wide tokens at once, and the channels in each token.
const WIDE: usize = 12;
const CHANNELS: usize = 16;
/// Events in each of those channels, and into how many of them what a stranger sends is divided.
const EVENTS: usize = 20;
const PARTS: usize = 170;
const DELIVERIES: u64 = 600;
const RATE: f64 = 60.0;
/// GitHub gives up after ten seconds.
const IN_TIME_MS: f64 = 5000.0;
/// MiB that all of that may take: the rooms of bodies and of replies, and what they are made of.
const GROWTH: f64 = 768.0;

/// Delivers while all of them do what they can; a body that stops half-way has `sent` bytes by then.
pub(super) async fn deliver_among_strangers(session: &Session, sent: usize) -> Result<Vec<Figure>> {
    let (Ok(secret), Some(_)) = (session.webhook_secret(), wide_token(session, 0)) else {
        // Of a server that is not ours the secrets are not known.
        return Ok(Vec::new());
    };
    let target = session.target();
    let event = (sent / PARTS).max(1);
    fill(session, event).await?;
    let before = session.resident();
    let mut strangers = JoinSet::new();
    for number in 0..SLOW {
        let path = ["/webhooks/github", "/emulation"][usize::from(number % 4 == 3)];
        strangers.spawn(stop_half_way(target.clone(), path, sent));
    }
    for pair in 0..PAIRS {
        strangers.spawn(equal_keys(target.clone(), session.token(pair, Some("acme"))));
    }
    let replies = Arc::new(AtomicU64::new(0));
    for token in (0..WIDE).filter_map(|number| wide_token(session, number)) {
        strangers.spawn(come_back(target.clone(), token, channels(session), event * EVENTS, replies.clone()));
    }
    let payloads = Payloads::new(&target, secret, 8, 10_000)?;
    let delivering = tokio::task::spawn_blocking(move || -> Result<Histogram> {
        let mut latencies = Histogram::new();
        let mut load = WebhookLoad::open(&target, payloads, 4)?;
        load.run(Limit::Count(DELIVERIES), Some(RATE), |answered| {
            latencies.record(answered.at - answered.due.unwrap_or(answered.sent));
        })?;
        Ok(latencies)
    });
    let mut peak = before;
    let latencies = loop {
        if delivering.is_finished() {
            break delivering.await.context("the deliveries panicked")??;
        }
        peak = peak.max(session.resident());
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    strangers.shutdown().await;

    let p99 = percentile(&latencies, 99)?;
    ensure!(p99 < IN_TIME_MS, "deliveries among strangers take {p99:.0} ms");
    let replies = replies.load(Ordering::Relaxed);
    ensure!(replies > 0, "no client with a wide token was answered");
    let mut figures =
        vec![figure("delivery among strangers p99, ms", p99), aside("wide replies", replies as f64)];
    if let (Some(before), Some(peak)) = (before, peak) {
        let grown = peak.saturating_sub(before) as f64 / MEBI;
        ensure!(grown <= GROWTH, "the server grew by {grown:.0} MiB among strangers");
        figures.push(aside("grown among strangers, MiB", grown));
    }
    Ok(figures)
}

fn channels(session: &Session) -> Vec<String> {
    (0..CHANNELS).map(|number| session.channel(9000 + number)).collect()
}

fn wide_token(session: &Session, number: usize) -> Option<String> {
    let expires = SystemTime::now() + Duration::from_secs(3600);
    let expires = expires.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    session.signed(&json!({ "sub": format!("wide-{number}"), "exp": expires, "channels": channels(session) }))
}

async fn fill(session: &Session, event: usize) -> Result<()> {
    let mut client = http::Client::new(session.address);
    let key = session.publishing(0).api_key.to_owned();
    for channel in channels(session) {
        for _ in 0..EVENTS {
            let event = json!({ "channel": channel, "data": "x".repeat(event) });
            let request = http::post("/api/publish").header("X-API-Key", &key).json(&event);
            let answer = client.send(request).await?;
            ensure!(answer.status == 200, "a publication is answered {}", answer.excerpt());
        }
    }
    Ok(())
}

/// Sends a part of a body that nobody has signed, stays silent until it is sent away, and begins anew.
async fn stop_half_way(target: Target, path: &'static str, sent: usize) {
    let (sent, announced) = if path == "/emulation" { (60_000, 65_000) } else { (sent, 2 * sent) };
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: {announced}\r\nX-GitHub-Event: push\r\n\
         X-GitHub-Delivery: {}\r\nX-Hub-Signature-256: sha256={}\r\n\r\n",
        target.host,
        id(),
        "0".repeat(64)
    );
    loop {
        // However it is sent away: the deliveries count.
        let _ = timeout(Duration::from_secs(20), async {
            let mut socket = TcpStream::connect(target.address).await?;
            socket.set_zero_linger()?;
            socket.write_all(head.as_bytes()).await?;
            socket.write_all(&vec![b' '; sent]).await?;
            socket.read_to_end(&mut Vec::new()).await
        })
        .await;
        tokio::time::sleep(PAUSE).await;
    }
}

/// Sends two events of a build with one key at the same time, again and again.
async fn equal_keys(target: Target, token: String) {
    let mut clients = [http::Client::new(target.address), http::Client::new(target.address)];
    let path = format!("/api/builds/{}/events", id());
    loop {
        let key = id();
        let event = || {
            let request = http::post(&path).bearer(&token).header("Idempotency-Key", &key);
            request.json(&json!({ "type": "build:step", "data": {} }))
        };
        let [first, second] = &mut clients;
        let (_first, _second) = tokio::join!(first.send(event()), second.send(event()));
        tokio::time::sleep(PAUSE / 50).await;
    }
}

/// Comes back to all channels of its token, from their beginning, and reads `wanted` bytes of what it gets.
async fn come_back(
    target: Target,
    token: String,
    channels: Vec<String>,
    wanted: usize,
    replies: Arc<AtomicU64>,
) {
    let since = json!({ "recover": true, "epoch": "", "offset": 0 });
    let subs: Map<String, Value> = channels.into_iter().map(|channel| (channel, since.clone())).collect();
    let connect = json!({ "id": 1, "connect": { "token": token, "subs": subs } });
    let connect = connect.to_string();
    let request = format!(
        "POST /connection/http_stream HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n{connect}",
        target.host,
        connect.len()
    );
    loop {
        let read = timeout(Duration::from_secs(20), async {
            let mut socket = TcpStream::connect(target.address).await?;
            socket.set_zero_linger()?;
            socket.write_all(request.as_bytes()).await?;
            let mut read = Vec::new();
            while read.len() < wanted && socket.read_buf(&mut read).await? > 0 {}
            std::io::Result::Ok(read.len())
        });
        if read.await.is_ok_and(|read| read.is_ok_and(|read| read >= wanted)) {
            replies.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// In the form of a UUID.
fn id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("00000000-0000-4000-8000-{:012x}", NEXT.fetch_add(1, Ordering::Relaxed))
}
