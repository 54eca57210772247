//! Who takes part in a case besides the nemesis: the channels, who follows them, who publishes, and how
//! long one waits for all of them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;
use testkit::http::{self, Answer, Request, RequestBuilder as _};
use testkit::payload::{OWNER, Payloads};
use testkit::random::Random;
use testkit::token;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::interval;

use crate::cursor;
use crate::environment::{Environment, NAMESPACE};
use crate::plan::{Case, Fault, Workload};
use crate::publisher::{self, Progress, Record};
use crate::subscriber::Subscriber;
use crate::subscriber::subscription::{Channel, Counters, Phase, Subscription};

/// Publishers of each kind.
const PUBLISHERS: u32 = 4;
const REPOS: usize = 3;
const CONFIGURED: usize = 2;
/// Between two lines about the progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);
/// One node of several is missing without holding publishers up, so that they take their time.
const SLOWER: u32 = 4;

/// All channels with the epoch in which they begin, as a poll names it.
pub async fn channels(env: &Environment) -> Result<Vec<Channel>> {
    let token = token::mint_for(&env.secrets.jwt, "checker", Some(OWNER));
    let built_in = std::iter::once(format!("org:{OWNER}"))
        .chain((0..REPOS).map(|repo| format!("repo:{OWNER}/r{repo}")))
        .map(|name| (name, true));
    let configured = (0..CONFIGURED).map(|number| (format!("{NAMESPACE}:{number}"), false));
    let mut channels = Vec::new();
    for (name, built_in) in built_in.chain(configured) {
        let request = http::get(&format!("/api/events?channel={name}")).bearer(&token).with("");
        let answer = ask(env.nodes[0].address, request).await?;
        let page: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let position = page["cursor"].as_str().and_then(cursor::parse).filter(|_| answer.status == 200);
        let (epoch, _) = position.with_context(|| format!("{name} was answered {} {page}", answer.status))?;
        channels.push(Channel { name, epoch, built_in });
    }
    Ok(channels)
}

/// Asks once more if nothing, or 408, is answered: this process may be slow on a machine with a lot to do.
async fn ask(node: SocketAddr, request: Request) -> Result<Answer> {
    match http::send(node, request.clone()).await {
        Ok(answer) if answer.status != 408 => Ok(answer),
        _ => http::send(node, request).await,
    }
}

/// One channel, or a built-in and a configured one.
pub fn subscriptions(channels: &[Channel], random: &mut Random) -> Vec<Subscription> {
    let follow = |index: usize| Subscription::new(index, &channels[index].epoch);
    let built_in = follow(random.within(0..1 + REPOS as u64) as usize);
    let configured = follow(1 + REPOS + random.within(0..CONFIGURED as u64) as usize);
    match random.within(0..4) {
        0 => vec![built_in],
        1 => vec![configured],
        _ => vec![built_in, configured],
    }
}

pub fn publishers(
    env: &Environment,
    case: Case,
    workload: &Workload,
    random: &Random,
    enough: watch::Receiver<bool>,
    over: watch::Receiver<bool>,
    progress: &watch::Sender<Progress>,
) -> Result<JoinSet<Record>> {
    let context = publisher::Context {
        address: env.publisher_address(),
        api_key: env.secrets.api_key.clone(),
        payloads: Arc::new(Payloads::new(&env.nodes[0].target(), &env.secrets.webhook, REPOS, 0)?),
        channels: (0..CONFIGURED).map(|number| format!("{NAMESPACE}:{number}")).collect(),
        // The kernel takes some megabytes for a client that does not read, before the gateway has to.
        padding: if case.fault == Fault::Slow { 60_000 } else { 400 },
        progress: progress.clone(),
        pace: if case.database.is_cluster() { SLOWER } else { 1 },
        enough,
        over,
    };
    let mut publishers = JoinSet::new();
    for number in 0..PUBLISHERS {
        let share = |kind: u32| {
            let all = 2 * PUBLISHERS;
            workload.events / all + u32::from(workload.events % all > 2 * number + kind)
        };
        publishers.spawn(context.clone().webhooks(share(0), random.derive("webhooks", number as usize)));
        let random = random.derive("publications", number as usize);
        publishers.spawn(context.clone().publications(number, share(1), random));
    }
    Ok(publishers)
}

/// Waits until all subscribers are at the head, but not for ever.
pub async fn settle(
    subscribers: &mut JoinSet<Subscriber>,
    phase: &watch::Sender<Phase>,
    settling: Duration,
) -> Result<Vec<Subscriber>> {
    let mut settled = Vec::new();
    let until = tokio::time::Instant::now() + settling;
    loop {
        let next = match tokio::time::timeout_at(until, subscribers.join_next()).await {
            Ok(next) => next,
            Err(_) => {
                phase.send_replace(Phase::Over);
                subscribers.join_next().await
            }
        };
        match next {
            Some(subscriber) => settled.push(subscriber.context("a subscriber panicked")?),
            None => return Ok(settled),
        }
    }
}

pub async fn print_progress(
    workload: &Workload,
    progress: &watch::Sender<Progress>,
    counters: &Counters,
) -> std::convert::Infallible {
    let mut ticks = interval(PROGRESS_INTERVAL);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        if let Some(label) = &workload.label {
            let Progress { settled, put_off } = *progress.borrow();
            let events = counters.events.load(Ordering::Relaxed);
            let connections = counters.connections.load(Ordering::Relaxed);
            eprintln!(
                "{label} {settled} of {} published, {put_off} attempts put off, {events} events received over \
                 {connections} connections",
                workload.events
            );
        }
    }
}
