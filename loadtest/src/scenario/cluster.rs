//! `cluster`: several nodes on one PostgreSQL and one Redis, subscribers at each, and events at a steady
//! rate to each in turn. Every subscriber must receive everything of its channel in order; how much later
//! that is at the other nodes than at the one that was published to is the figure.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};
use testkit::gateway::{Gateway, Launch, new_secret};
use testkit::http::{self, Client, RequestBuilder as _};
use testkit::postgres::Postgres;
use testkit::redis::Redis;
use testkit::token;
use testkit::websocket::Subscriber;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::count;
use crate::stats::Histogram;

/// Publishers at each node, each with one event at a time.
const PUBLISHERS: usize = 16;
/// Events that wait for a publisher. More: the rate cannot be kept.
const WAITING: usize = 1024;
/// How long the last events may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Connections that are being opened at once.
const WINDOW: usize = 32;

/// Measures delivery on the node that was published to, and on the others, in one run.
///
/// Starts the nodes, a PostgreSQL and a Redis. Events go to the nodes in turn, over the channels in
/// turn; each subscriber follows one channel and must receive all of it, in order. Times are from the
/// request to the subscriber's socket, with the commit in them.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  loadtest --threads 2 cluster
  loadtest --threads 2 cluster --nodes 2 --rate 1000 --no-redis")]
#[group(skip)]
pub struct Options {
    /// Nodes.
    #[arg(long, default_value_t = 3, value_parser = count(2..=5))]
    nodes: usize,
    /// Subscribers of each node.
    #[arg(long, default_value_t = 300, value_parser = count(1..=5000))]
    subscribers: usize,
    /// Channels.
    #[arg(long, default_value_t = 50, value_parser = count(1..=1000))]
    channels: usize,
    /// Events a second.
    #[arg(long, default_value_t = 500, value_parser = count(1..=20_000))]
    rate: usize,
    /// Measured seconds.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Seconds before them that are checked but not measured.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(0..=60))]
    warmup: u64,
    /// Let PostgreSQL carry the messages between nodes.
    #[arg(long)]
    no_redis: bool,
    /// Write the figures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The nodes, and what they drain into.
struct Cluster {
    nodes: Vec<Gateway>,
    jwt: String,
    api_key: String,
    _redis: Option<Redis>,
    _postgres: Postgres,
}

/// When an event was sent, and to which node.
#[derive(Clone, Copy)]
struct Sent {
    node: usize,
    at: Instant,
}

struct Heard {
    /// From the node that was published to, and from another one.
    here: Histogram,
    elsewhere: Histogram,
}

type SentLog = Arc<Mutex<Vec<Sent>>>;

pub async fn run(options: Options) -> Result<()> {
    let mut cluster = Cluster::start(&options).await?;
    let (sent, begin) = (SentLog::default(), Instant::now() + Duration::from_secs(options.warmup));
    let heads = watch::Sender::new(None);
    let mut subscribers = subscribe(&options, &cluster, &sent, begin, &heads).await?;
    eprintln!("{} subscribers are there", subscribers.len());

    let (published, took) = publish(&options, &cluster, &sent).await?;
    let events: u64 = published.iter().sum();
    heads.send_replace(Some(published));
    let (mut here, mut elsewhere) = (Histogram::new(), Histogram::new());
    let all = async {
        while let Some(heard) = subscribers.join_next().await {
            let heard = heard.context("a subscriber panicked")??;
            here.merge(&heard.here);
            elsewhere.merge(&heard.elsewhere);
        }
        Ok::<(), anyhow::Error>(())
    };
    timeout(TIMEOUT, all).await.context("a subscriber still misses something")??;
    for node in &mut cluster.nodes {
        node.terminate().await?;
    }

    let rate = events as f64 / took.as_secs_f64();
    println!("published    {events} events, {rate:.0} a second, over {} nodes", options.nodes);
    println!("received     {} deliveries measured, none missing", here.count() + elsewhere.count());
    let mut figures = json!({ "scenario": "cluster", "events": events, "rate": rate });
    let mut times = Vec::new();
    for (name, histogram) in [("same node", &here), ("other nodes", &elsewhere)] {
        let [p50, p99] = [50, 99].map(|percent| histogram.percentile(percent));
        let (p50, p99) = (p50.context("nothing was measured")?, p99.context("nothing was measured")?);
        println!("{name:<12} p50 {p50:.2} ms, p99 {p99:.2} ms");
        figures[name] = json!({ "p50_ms": p50, "p99_ms": p99, "deliveries": histogram.count() });
        times.push((p50, p99));
    }
    if let [(p50, p99), (other_p50, other_p99)] = times[..] {
        let (middle, most) = (other_p50 / p50, other_p99 / p99);
        println!("ratio        p50 {middle:.2}, p99 {most:.2}");
        figures["ratio"] = json!({ "p50": middle, "p99": most });
    }
    let Some(file) = options.json else { return Ok(()) };
    std::fs::write(&file, format!("{figures:#}\n"))
        .with_context(|| format!("cannot write {}", file.display()))
}

impl Cluster {
    async fn start(options: &Options) -> Result<Self> {
        let postgres = Postgres::start().await?;
        let url = postgres.create_database("campanile").await?;
        let redis = if options.no_redis { None } else { Some(Redis::start().await?) };
        let (jwt, api_key) = (new_secret(), new_secret());
        let config = "[server]\ndrain_timeout = \"2s\"\n[client]\nuser_connection_limit = 0\n\
                      [[channel.namespaces]]\nname = \"load\"\nhistory_size = 100000\nhistory_ttl = \"1h\"\n\
                      force_recovery = true\nallow_subscribe_for_client = true\n";
        let mut nodes = Vec::new();
        for _ in 0..options.nodes {
            let mut environment = vec![
                ("GITHUB_WEBHOOK_SECRET", new_secret()),
                ("CAMPANILE_JWT_SECRET", jwt.clone()),
                ("CAMPANILE_API_KEY", api_key.clone()),
                ("DATABASE_URL", url.clone()),
            ];
            environment.extend(redis.iter().map(|redis| ("REDIS_URL", format!("redis://{}", redis.address))));
            let launch = Launch { config: Some(config.to_owned()), environment, ..Launch::default() };
            nodes.push(launch.start().await?);
        }
        Ok(Self { nodes, jwt, api_key, _redis: redis, _postgres: postgres })
    }
}

/// Opens all connections, each with a task that listens until it has received all.
async fn subscribe(
    options: &Options,
    cluster: &Cluster,
    sent: &SentLog,
    begin: Instant,
    heads: &watch::Sender<Option<Vec<u64>>>,
) -> Result<JoinSet<Result<Heard>>> {
    let (mut opening, mut listening) = (JoinSet::new(), JoinSet::new());
    for number in 0..options.subscribers * cluster.nodes.len() {
        let node = number % cluster.nodes.len();
        let channel = number / cluster.nodes.len() % options.channels;
        let token = token::mint_for(&cluster.jwt, &format!("subscriber-{number}"), None);
        let address = cluster.nodes[node].address;
        opening.spawn(async move {
            let subscriber = Subscriber::open(address, &token, &format!("load:{channel}")).await;
            (node, channel, subscriber)
        });
        if opening.len() == WINDOW {
            listen(&mut opening, &mut listening, sent, begin, heads).await?;
        }
    }
    while !opening.is_empty() {
        listen(&mut opening, &mut listening, sent, begin, heads).await?;
    }
    Ok(listening)
}

async fn listen(
    opening: &mut JoinSet<(usize, usize, Result<Subscriber>)>,
    listening: &mut JoinSet<Result<Heard>>,
    sent: &SentLog,
    begin: Instant,
    heads: &watch::Sender<Option<Vec<u64>>>,
) -> Result<()> {
    let Some(opened) = opening.join_next().await else { return Ok(()) };
    let (node, channel, subscriber) = opened.context("opening panicked")?;
    listening.spawn(follow(node, channel, subscriber?, sent.clone(), begin, heads.subscribe()));
    Ok(())
}

/// Receives everything of a channel, in order, until nothing more will come.
async fn follow(
    node: usize,
    channel: usize,
    mut subscriber: Subscriber,
    sent: SentLog,
    begin: Instant,
    mut heads: watch::Receiver<Option<Vec<u64>>>,
) -> Result<Heard> {
    let mut heard = Heard { here: Histogram::new(), elsewhere: Histogram::new() };
    let mut last = 0;
    loop {
        if heads.borrow().as_ref().is_some_and(|heads| last >= heads[channel]) {
            return Ok(heard);
        }
        let messages = tokio::select! {
            messages = subscriber.next() => messages?,
            changed = heads.changed() => {
                changed.context("publishing failed")?;
                continue;
            }
        };
        let now = Instant::now();
        for message in &messages {
            let publication: &Value = &message["push"]["pub"];
            let Some(offset) = publication["offset"].as_u64() else {
                bail!("something else came: {message}");
            };
            ensure!(offset == last + 1, "load:{channel} at node {node}: {offset} came after {last}");
            last = offset;
            let number = publication["data"]["number"].as_u64().context("an event of somebody else")?;
            let sent = sent.lock().expect("no thread panics while holding the lock")[number as usize];
            if sent.at >= begin {
                let times = if sent.node == node { &mut heard.here } else { &mut heard.elsewhere };
                times.record(now - sent.at);
            }
        }
    }
}

/// Publishes at the rate; gives how many events each channel has, and how long it took to send them.
async fn publish(options: &Options, cluster: &Cluster, sent: &SentLog) -> Result<(Vec<u64>, Duration)> {
    let mut publishers = JoinSet::new();
    let mut queues = Vec::new();
    for (node, spawned) in cluster.nodes.iter().enumerate() {
        let (queue, events) = mpsc::channel::<(usize, usize)>(WAITING);
        let events = Arc::new(tokio::sync::Mutex::new(events));
        queues.push(queue);
        for _ in 0..PUBLISHERS {
            let (client, key) = (Client::new(spawned.address), cluster.api_key.clone());
            publishers.spawn(deliver(node, client, key, events.clone(), sent.clone()));
        }
    }
    let mut counts = vec![0; options.channels];
    let events = (options.seconds + options.warmup) as usize * options.rate;
    let (mut ticks, began) = (interval(Duration::from_secs(1) / options.rate as u32), Instant::now());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for number in 0..events {
        ticks.tick().await;
        let (channel, node) = (number % counts.len(), number % queues.len());
        // The entry is added in order, and corrected by the publisher that sends it.
        sent.lock().expect("no thread panics while holding the lock").push(Sent { node, at: Instant::now() });
        if queues[node].try_send((number, channel)).is_err() {
            // A publisher that failed has the reason.
            while let Some(ended) = publishers.try_join_next() {
                ended.context("a publisher panicked")??;
            }
            bail!("{WAITING} events wait for a publisher: the rate is not reached");
        }
        counts[channel] += 1;
    }
    drop(queues);
    let took = began.elapsed();
    while let Some(ended) = publishers.join_next().await {
        ended.context("a publisher panicked")??;
    }
    Ok((counts, took))
}

async fn deliver(
    node: usize,
    mut client: Client,
    key: String,
    events: Arc<tokio::sync::Mutex<mpsc::Receiver<(usize, usize)>>>,
    sent: SentLog,
) -> Result<()> {
    loop {
        let Some((number, channel)) = events.lock().await.recv().await else { return Ok(()) };
        let body = json!({ "channel": format!("load:{channel}"), "data": { "number": number } });
        let request = http::post("/api/publish").header("X-API-Key", &key).json(&body);
        sent.lock().expect("no thread panics while holding the lock")[number] =
            Sent { node, at: Instant::now() };
        let answer = client.send(request).await?;
        let published = answer.status == 200 && answer.body.starts_with(b"{\"result\"");
        ensure!(published, "publishing was answered {} {}", answer.status, answer.excerpt());
    }
}
