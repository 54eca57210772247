//! Who takes part in a case besides the nemesis: the channels, who follows them, who publishes, and how
//! long one waits for all of them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use campanile::domain::position::Position;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::interval;

use super::case::Effort;
use super::plan::{Case, Fault};
use super::publisher::{Book, Press, Progress};
use super::random::Random;
use super::subscriber::{Channel, Counters, Follow, Phase, Subscriber};
use super::world::{NAMESPACE, World};
use crate::http::Connection;
use crate::payload::{OWNER, Payloads};
use crate::token;

/// Publishers of each kind.
const PUBLISHERS: u32 = 4;
const REPOS: usize = 3;
const CONFIGURED: usize = 2;
/// Between two words about the progress.
const WORD: Duration = Duration::from_secs(5);
/// One node of several is missing without holding publishers up, so that they take their time.
const SLOWER: u32 = 4;

/// All channels with the epoch in which they begin, as a poll names it.
pub async fn channels(world: &World) -> Result<Vec<Channel>> {
    let token = token::mint_reader(&world.secrets.jwt, "checker", OWNER);
    let built_in = std::iter::once(format!("org:{OWNER}"))
        .chain((0..REPOS).map(|repo| format!("repo:{OWNER}/r{repo}")))
        .map(|name| (name, true));
    let configured = (0..CONFIGURED).map(|number| (format!("{NAMESPACE}:{number}"), false));
    let mut channels = Vec::new();
    for (name, built_in) in built_in.chain(configured) {
        let request = format!(
            "GET /api/events?channel={name} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
        );
        let mut body = Vec::new();
        let status = Connection::to(&world.nodes[0].target()).exchange(request.as_bytes(), &mut body).await?;
        let page: Value = serde_json::from_slice(&body).unwrap_or_default();
        let position = page["cursor"].as_str().and_then(Position::parse).filter(|_| status == 200);
        let position = position.with_context(|| format!("{name} was answered {status} {page}"))?;
        channels.push(Channel { name, epoch: position.epoch.as_str().to_owned(), built_in });
    }
    Ok(channels)
}

/// One channel, or a built-in and a configured one.
pub fn follows(channels: &[Channel], random: &mut Random) -> Vec<Follow> {
    let follow = |index: usize| Follow::new(index, &channels[index].epoch);
    let built_in = follow(random.within(0..1 + REPOS as u64) as usize);
    let configured = follow(1 + REPOS + random.within(0..CONFIGURED as u64) as usize);
    match random.within(0..4) {
        0 => vec![built_in],
        1 => vec![configured],
        _ => vec![built_in, configured],
    }
}

/// Publishers of both kinds, at work.
pub fn writers(
    world: &World,
    case: Case,
    effort: &Effort,
    random: &Random,
    enough: watch::Receiver<bool>,
    over: watch::Receiver<bool>,
    progress: &watch::Sender<Progress>,
) -> Result<JoinSet<Book>> {
    let press = Press {
        door: world.door(),
        api_key: world.secrets.api_key.clone(),
        payloads: Arc::new(Payloads::new(&world.nodes[0].target(), &world.secrets.webhook, REPOS, 0)?),
        channels: (0..CONFIGURED).map(|number| format!("{NAMESPACE}:{number}")).collect(),
        // The kernel takes some megabytes for a reader that stands still, before the gateway has to.
        padding: if case.fault == Fault::Slow { 60_000 } else { 400 },
        progress: progress.clone(),
        pace: if case.database.is_cluster() { SLOWER } else { 1 },
        enough,
        over,
    };
    let mut writers = JoinSet::new();
    for number in 0..PUBLISHERS {
        let share = |kind: u32| {
            let all = 2 * PUBLISHERS;
            effort.events / all + u32::from(effort.events % all > 2 * number + kind)
        };
        writers.spawn(press.clone().webhooks(share(0), random.of("webhooks", number as usize)));
        let random = random.of("publications", number as usize);
        writers.spawn(press.clone().publications(number, share(1), random));
    }
    Ok(writers)
}

/// Waits until all subscribers are at the head, but not for ever.
pub async fn settle(
    subscribers: &mut JoinSet<Subscriber>,
    phase: &watch::Sender<Phase>,
    patience: Duration,
) -> Result<Vec<Subscriber>> {
    let mut settled = Vec::new();
    let until = tokio::time::Instant::now() + patience;
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

/// Says now and then how it goes.
pub async fn talk(
    effort: &Effort,
    progress: &watch::Sender<Progress>,
    counters: &Counters,
) -> std::convert::Infallible {
    let mut ticks = interval(WORD);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        if let Some(name) = &effort.talks_as {
            let Progress { settled, put_off } = *progress.borrow();
            let events = counters.events.load(Ordering::Relaxed);
            let connections = counters.connections.load(Ordering::Relaxed);
            eprintln!(
                "{name} {settled} of {} published, {put_off} attempts put off, {events} events received over \
                 {connections} connections",
                effort.events
            );
        }
    }
}
