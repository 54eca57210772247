//! Readers that are slow, stand still, or only talk: each loses its own connection and nothing
//! else, in words as long as it reads any, and nobody else feels it.

use std::time::{Duration, Instant};

use campanile::hub::outbox::io_uring::UringQueue;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::support::app::{Backend, TestApp, on_both};
use crate::support::process::{Gateway, Home, on_sqlite, token};
use crate::support::websocket::*;

const SLOW: &str = "channel.max_publication_size = \"32KiB\"
client.queue_max_size = \"64KiB\"
[[channel.namespaces]]
name = \"news\"
history_size = 1000
history_ttl = \"1h\"
force_recovery = true
allow_subscribe_for_client = true
";
/// What the system's buffers between two sockets can hold at most, in events of 30 KB.
const MANY: u64 = 600;

async fn publish(app: &TestApp, n: u64, size: usize) {
    let data = json!({ "n": n, "p": "x".repeat(size) });
    app.publish(json!({ "channel": "news:x", "data": data })).await.expect(200);
}

/// The offset of a push, whose number must be the same.
fn offset(push: &Value) -> u64 {
    let publication = &push["pub"];
    assert_eq!(publication["offset"], publication["data"]["n"], "{}", push["channel"]);
    publication["offset"].as_u64().expect("an offset")
}

/// A client that follows `news:x` and will not read, with little room for what it does not read.
async fn a_client_that_stands_still(app: &TestApp) -> Client {
    let mut client = Client::open_narrow(app.address()).await;
    client.connect(&app.ana()).await;
    client.subscribe("news:x").await;
    client
}

/// Publishes until so many have ended with `code`, while `swift` reads; gives the times that took.
async fn publish_until(app: &TestApp, swift: &mut Client, from: u64, code: &str) -> Vec<Duration> {
    let mut times = Vec::new();
    for n in from..MANY {
        let began = Instant::now();
        publish(app, n, 30_000).await;
        assert_eq!(offset(&swift.push().await), n);
        times.push(began.elapsed());
        if app.metric("disconnects", code).await > 0 {
            return times;
        }
    }
    panic!("{MANY} events wait for a client that does not read");
}

/// Reads what `slow` left lying after `last`: every frame is whole, also the one that was on its way;
/// then comes the reason. The last offset.
async fn read_to_the_reason(slow: &mut Client, mut last: u64) -> u64 {
    let (code, reason) = loop {
        match slow.next().await {
            Received::Message(message) => {
                assert_eq!(offset(&message["push"]), last + 1);
                last += 1;
            }
            Received::Close(code, reason) => break (code, reason),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((code, reason.as_str()), (3008, "slow"));
    assert_eq!(slow.next().await, Received::End(true));
    last
}

fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort();
    times[times.len() / 2]
}

pub(super) async fn a_slow_reader_is_told_so_and_nobody_else_feels_it(backend: Backend) {
    let app = TestApp::with(backend, SLOW).await;
    let mut swift = Client::connected(&app, &app.ana()).await;
    swift.subscribe("news:x").await;
    let mut alone = Vec::new();
    for n in 1..=40 {
        let began = Instant::now();
        publish(&app, n, 30_000).await;
        assert_eq!(offset(&swift.push().await), n);
        alone.push(began.elapsed());
    }
    let mut slow = a_client_that_stands_still(&app).await;
    let beside = publish_until(&app, &mut swift, 41, "3008").await;
    let published = 40 + beside.len() as u64;
    let (alone, beside) = (median(&alone), median(&beside));
    assert!(beside < alone * 8 + Duration::from_millis(20), "{beside:?}, alone {alone:?}");
    assert_eq!(app.metric("slow_disconnects", "queue").await, 1);
    assert_eq!(app.metric("subscriptions", "").await, 1, "it follows nothing any more");
    let last = read_to_the_reason(&mut slow, 40).await;
    assert!(last < published, "nothing was held back");
    // It comes back, and has lost nothing.
    let epoch = swift.ask(json!({ "unsubscribe": { "channel": "news:x" } })).await;
    assert!(epoch["error"].is_null());
    let epoch = swift.subscribe("news:x").await["epoch"].clone();
    let mut again = Client::connected(&app, &app.ana()).await;
    let from = json!({ "channel": "news:x", "recover": true, "epoch": epoch, "offset": last });
    let reply = again.ask(json!({ "subscribe": from })).await["subscribe"].clone();
    assert_eq!(reply["recovered"], true);
    let missed = reply["publications"].as_array().expect("publications");
    let missed: Vec<_> = missed.iter().map(|event| event["offset"].as_u64().expect("an offset")).collect();
    assert_eq!(missed, (last + 1..=published).collect::<Vec<_>>());
}

/// So many on each of two threads that their deliveries can share system calls.
async fn slow_readers_among_swift_ones(io_uring: bool) {
    let config = format!("client.user_connection_limit = 0\nserver.io_uring = {io_uring}\n{SLOW}");
    let app = TestApp::with(Backend::Sqlite, &config).await;
    let shared = io_uring && UringQueue::open().is_ok();
    app.until_metric("io_uring_workers", "", 2 * u64::from(shared)).await;
    let (mut swift, mut slow) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        slow.push(a_client_that_stands_still(&app).await);
        for _ in 0..3 {
            let mut client = Client::connected(&app, &app.ana()).await;
            client.subscribe("news:x").await;
            swift.push(client);
        }
    }
    let mut published = 0;
    while app.metric("slow_disconnects", "queue").await < slow.len() as u64 {
        published += 1;
        assert!(published < MANY, "{MANY} events wait for clients that do not read");
        publish(&app, published, 30_000).await;
        for client in &mut swift {
            assert_eq!(offset(&client.push().await), published);
        }
    }
    for client in &mut slow {
        assert!(read_to_the_reason(client, 0).await < published);
    }
}

#[tokio::test]
async fn slow_readers_hold_up_nobody_who_shares_a_system_call_with_them() {
    slow_readers_among_swift_ones(true).await;
}

#[tokio::test]
async fn slow_readers_hold_up_nobody_without_io_uring() {
    slow_readers_among_swift_ones(false).await;
}

async fn who_never_reads_is_reset_and_forgotten(backend: Backend) {
    let app = TestApp::with(backend, SLOW).await;
    let mut swift = Client::connected(&app, &app.ana()).await;
    swift.subscribe("news:x").await;
    let mut still = a_client_that_stands_still(&app).await;
    let times = publish_until(&app, &mut swift, 1, "3008").await;
    let began = Instant::now();
    assert_eq!(app.metric("connections", "websocket").await, 2, "it may still read the reason");
    app.until_metric("connections", "websocket", 1).await;
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
    publish(&app, times.len() as u64 + 1, 1).await;
    assert_eq!(offset(&swift.push().await), times.len() as u64 + 1);
    let end = loop {
        match still.next().await {
            Received::Message(_) => {}
            other => break other,
        }
    };
    assert_eq!(end, Received::End(false), "a reset, in the middle of a frame");
}

pub(super) async fn who_takes_nothing_for_too_long_is_cut(backend: Backend) {
    let patient = SLOW.replace("64KiB", "64MiB");
    let app = TestApp::with(backend, &format!("client.write_timeout = \"300ms\"\n{patient}")).await;
    let mut swift = Client::connected(&app, &app.ana()).await;
    swift.subscribe("news:x").await;
    let mut still = a_client_that_stands_still(&app).await;
    publish_until(&app, &mut swift, 1, "3009").await;
    assert_eq!(app.metric("slow_disconnects", "write_timeout").await, 1);
    app.until_metric("connections", "websocket", 1).await;
    assert_eq!(app.metric("subscriptions", "").await, 1);
    loop {
        match still.next().await {
            Received::Message(_) => {}
            end => return assert_eq!(end, Received::End(false)),
        }
    }
}

/// The queue bounds what a reader leaves lying, not what it missed.
async fn a_long_recovery_does_not_count_as_slow(backend: Backend) {
    let app = TestApp::with(backend, SLOW).await;
    let mut client = Client::connected(&app, &app.ana()).await;
    let epoch = client.subscribe("news:x").await["epoch"].clone();
    for n in 1..=120 {
        publish(&app, n, 30_000).await;
    }
    let mut narrow = Client::open_narrow(app.address()).await;
    narrow.connect(&app.ana()).await;
    let from = json!({ "channel": "news:x", "recover": true, "epoch": epoch, "offset": 0 });
    let id = narrow.command(json!({ "subscribe": from })).await;
    app.until_metric("subscriptions", "", 2).await;
    for n in 121..=170 {
        publish(&app, n, 1_000).await;
    }
    let reply = narrow.message().await;
    assert_eq!((&reply["id"], &reply["subscribe"]["recovered"]), (&json!(id), &json!(true)));
    let publications = reply["subscribe"]["publications"].as_array().expect("publications");
    let offsets = publications.iter().map(|event| event["offset"].as_u64().expect("an offset"));
    let mut seen: Vec<_> = offsets.collect();
    assert!(seen.len() >= 120);
    while seen.len() < 170 {
        seen.push(offset(&narrow.push().await));
    }
    assert_eq!(seen, (1..=170).collect::<Vec<_>>());
    narrow.is_quiet().await;
}

on_both!(
    a_slow_reader_is_told_so_and_nobody_else_feels_it,
    who_never_reads_is_reset_and_forgotten,
    who_takes_nothing_for_too_long_is_cut,
    a_long_recovery_does_not_count_as_slow,
);

/// Commands without end, and not one reply is read. In a process of its own, for its memory.
#[test]
fn who_only_talks_costs_no_more_than_its_queue() {
    const FLOODERS: usize = 8;
    on_sqlite(async |home| {
        let home: Home = home.with("CAMPANILE_CLIENT__USER_CONNECTION_LIMIT", "0");
        let gateway = Gateway::start(&home).await;
        let mut other = Client::open(gateway.address).await;
        other.connect(&token()).await;
        let before = resident(&gateway);
        let commands: Vec<String> = (2..3_000).map(|id| json!({ "id": id, "rpc": {} }).to_string()).collect();
        let flood = frame(TEXT, commands.join("\n").as_bytes());
        // All are there before the first one begins, so that none has to come in through the flood.
        let mut clients = Vec::new();
        for _ in 0..FLOODERS {
            let mut client = Client::open_narrow(gateway.address).await;
            client.connect(&token()).await;
            clients.push(client);
        }
        let mut flooders = tokio::task::JoinSet::new();
        for mut client in clients {
            let flood = flood.clone();
            // Until the server has had enough of it.
            flooders.spawn(async move { while client.stream.write_all(&flood).await.is_ok() {} });
        }
        let (mut most, mut times) = (before, Vec::new());
        while !flooders.is_empty() {
            let began = Instant::now();
            other.is_quiet().await;
            times.push(began.elapsed());
            most = most.max(resident(&gateway));
            while flooders.try_join_next().is_some() {}
        }
        let metrics = gateway.get("/metrics").await.text().to_owned();
        let slow = format!("campanile_disconnects_total{{code=\"3008\"}} {FLOODERS}\n");
        assert!(metrics.contains(&slow), "{metrics}");
        // A queue of 1 MiB, a message, and what the allocator makes of it.
        let each = most.saturating_sub(before) / FLOODERS;
        assert!(each < 6 << 20, "{each} bytes for each, {before} before, {most} at most");
        times.sort();
        assert!(times[times.len() / 2] < Duration::from_millis(250), "{:?}", times[times.len() / 2]);
        println!("{each} bytes each, {} round trips, median {:?}", times.len(), times[times.len() / 2]);
    });
}

/// What a process has in memory, in bytes.
fn resident(gateway: &Gateway) -> usize {
    gateway.id().and_then(testkit::process::resident).expect("the process lives") as usize
}
