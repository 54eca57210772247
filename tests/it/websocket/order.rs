//! The order rules of design §5 under stress: many clients that come, go, drop their sockets and
//! come back with their positions, while events come over HTTP, over sockets, and some unannounced,
//! as if the bus had lost them. Each client is checked event by event, and all of them against the
//! log as SQL reads it. The plan is seeded; the seed is shown when the test fails, and `TEST_SEED` is
//! another one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::watcher::{CHANNELS, Watcher, channel};
use crate::support::app::{Backend, TestApp, on_both};
use crate::support::websocket::*;

const CONFIG: &str = "
client.user_connection_limit = 0
client.recovery_max_publication_limit = 10000
channel.linger = \"30ms\"
channel.position_check_interval = \"300ms\"
[[channel.namespaces]]
name = \"rush\"
history_size = 100000
history_ttl = \"1h\"
force_recovery = true
allow_subscribe_for_client = true
allow_publish_for_client = true
";
const CLIENTS: u64 = 30;
const THREADS: u64 = 3;
const STRESS: Duration = Duration::from_secs(6);
/// Events that are published at least.
const ENOUGH: u64 = 200;

/// What the publishers share.
#[derive(Default)]
struct Press {
    stop: AtomicBool,
    numbers: AtomicU64,
}

impl Press {
    fn next(&self) -> Option<u64> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        (!self.stop.load(Ordering::Relaxed)).then_some(number)
    }

    /// Several at once, so that they share transactions.
    async fn over_http(&self, app: &TestApp, mut random: StdRng) {
        while let Some(n) = self.next() {
            let first = random.random_range(0..CHANNELS);
            let publishing = (first..CHANNELS.min(first + 3))
                .map(|at| app.publish(json!({ "channel": channel(at), "data": { "n": n, "by": "http" } })));
            for answer in futures_util::future::join_all(publishing).await {
                answer.expect(200);
            }
            sleep(Duration::from_micros(random.random_range(0..6_000))).await;
        }
    }

    /// Bursts of commands in one frame, from a client that follows nothing.
    async fn over_a_socket(&self, app: &TestApp, mut random: StdRng) {
        let mut client = Client::connected(app, &app.ana()).await;
        while !self.stop.load(Ordering::Relaxed) {
            let count = random.random_range(1..=20);
            let commands = (0..count).filter_map(|_| {
                let (n, to) = (self.next()?, channel(random.random_range(0..CHANNELS)));
                let publish = json!({ "channel": to, "data": { "n": n, "by": "socket" } });
                Some(json!({ "id": n + 2, "publish": publish }).to_string())
            });
            let commands: Vec<String> = commands.collect();
            if !commands.is_empty() {
                client.send_text(&commands.join("\n")).await;
            }
            for _ in commands {
                assert_eq!(client.message().await["publish"], json!({}));
            }
            sleep(Duration::from_millis(random.random_range(0..25))).await;
        }
    }

    async fn unheard(&self, app: &TestApp, mut random: StdRng) {
        while let Some(n) = self.next() {
            let to = channel(random.random_range(0..CHANNELS));
            app.sql().append_unheard(&to, &json!({ "n": n, "by": "nobody" }).to_string()).await;
            sleep(Duration::from_millis(random.random_range(5..60))).await;
        }
    }
}

/// One client's life, until it is told to come to an end: then it follows all channels up to
/// their heads.
async fn live(address: SocketAddr, token: String, seed: u64, stop: Arc<AtomicBool>) -> Watcher {
    let mut random = StdRng::seed_from_u64(seed);
    let mut watcher = Watcher::new(address, token);
    while !stop.load(Ordering::Relaxed) {
        let at = random.random_range(0..CHANNELS);
        match random.random_range(0..20) {
            0 => watcher.drop_socket(),
            1 => watcher.reset_socket(),
            2..=6 => watcher.unsubscribe(at).await,
            7..=9 => watcher.turn_round(at).await,
            10 => watcher.begin_anew(at).await,
            _ => watcher.subscribe(at).await,
        }
        // Some act on what they read, others before they have read anything.
        if random.random_bool(0.6) {
            watcher.read_for(Duration::from_micros(random.random_range(0..40_000))).await;
        }
    }
    watcher
}

async fn every_client_sees_all_of_its_channels_in_order(backend: Backend) {
    let seed = std::env::var("TEST_SEED").map_or(20_261_121, |seed| seed.parse().expect("a number"));
    println!("seed {seed}");
    let app = Arc::new(TestApp::with(backend, CONFIG).await);
    for at in 0..CHANNELS {
        app.publish(json!({ "channel": channel(at), "data": "first" })).await.expect(200);
    }
    let (press, stop) = (Arc::new(Press::default()), Arc::new(AtomicBool::new(false)));
    // Threads of their own, so that what clients do overlaps for real.
    let mut threads = JoinSet::new();
    for thread in 0..THREADS {
        let (address, token, stop) = (app.address(), app.ana(), stop.clone());
        threads.spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let clients = (0..CLIENTS / THREADS)
                .map(|n| live(address, token.clone(), seed + 1_000 * thread + n, stop.clone()));
            let runtime = runtime.expect("a runtime");
            (runtime.block_on(futures_util::future::join_all(clients)), runtime)
        });
    }
    let began = Instant::now();
    let by = |n| StdRng::seed_from_u64(seed + n);
    let publishing = async {
        tokio::join!(
            press.over_http(&app, by(1)),
            press.over_http(&app, by(2)),
            press.over_http(&app, by(6)),
            press.over_a_socket(&app, by(3)),
            press.over_a_socket(&app, by(4)),
            press.unheard(&app, by(5)),
        );
    };
    let ends = async {
        sleep(STRESS).await;
        // A machine that is busy with something else takes longer for as much.
        while app.metric("events", "").await <= ENOUGH && began.elapsed() < 10 * STRESS {
            sleep(STRESS / 10).await;
        }
        press.stop.store(true, Ordering::Relaxed);
    };
    tokio::join!(publishing, ends);
    stop.store(true, Ordering::Relaxed);
    let mut logs = Vec::new();
    for at in 0..CHANNELS {
        logs.push(app.sql().log(&channel(at)).await);
    }
    let (mut events, mut returns) = (0, 0);
    while let Some(joined) = threads.join_next().await {
        let (watchers, runtime) = joined.expect("no client saw anything wrong");
        let checked = tokio::task::spawn_blocking({
            let logs = logs.clone();
            move || {
                runtime.block_on(async {
                    let mut sums = (0, 0);
                    for mut watcher in watchers {
                        let heads = logs.iter().map(|log| log.len() as u64).collect::<Vec<_>>();
                        let end = timeout(Duration::from_secs(20), watcher.catch_up(&heads)).await;
                        end.unwrap_or_else(|_| panic!("not at the head: {watcher:?}, {heads:?}"));
                        sums.0 += watcher.check(&logs);
                        sums.1 += watcher.returns;
                    }
                    sums
                })
            }
        });
        let (seen, returned) = checked.await.expect("every client agrees with the log");
        (events, returns) = (events + seen, returns + returned);
    }
    let published: usize = logs.iter().map(Vec::len).sum();
    println!("{published} events, seen {events} times, {returns} returns, {:?}", began.elapsed());
    assert!(published > ENOUGH as usize && events > 2_000 && returns > 200, "this was no stress");
    assert!(app.metric("gaps_filled", "").await > 0, "nothing was lost on the way");
    assert_eq!(app.metric("channel_resets", "").await, 0);
    for code in ["3004", "3008", "3009", "3010", "3501"] {
        assert_eq!(app.metric("disconnects", code).await, 0, "{code}");
    }
    app.until_metric("connections", "websocket", 0).await;
    app.until_metric("subscriptions", "", 0).await;
}

on_both!(every_client_sees_all_of_its_channels_in_order);
