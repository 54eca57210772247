//! One case from start to verdict: a world, publishers, subscribers and a nemesis; then everybody
//! reaches the head or does not, and each history and each book is compared with the log.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use campanile::domain::position::Position;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};

use super::history::{Tally, Transport};
use super::judge::{self, Breach, Broken, Truth, Violation};
use super::lie::Lie;
use super::log::Log;
use super::nemesis;
use super::plan::{Case, Fault};
use super::publisher::{Book, Press, Progress};
use super::random::Random;
use super::subscriber::{Around, Channel, Counters, Follow, Phase, Subscriber};
use super::world::{NAMESPACE, World};
use crate::http::Connection;
use crate::payload::{OWNER, Payloads};
use crate::token;

/// Publishers of each kind.
const PUBLISHERS: u32 = 4;
const REPOS: usize = 3;
const CONFIGURED: usize = 2;
/// How long all publishing may take.
const PUBLISHING: Duration = Duration::from_secs(600);
/// Between two words about the progress.
const WORD: Duration = Duration::from_secs(5);
/// Violations of one kind that are kept; the others are only counted.
const SHOWN: usize = 5;

/// How much to do.
#[derive(Debug, Clone)]
pub struct Effort {
    /// Plans everything.
    pub seed: u64,
    /// Subscribers, each a user.
    pub subscribers: usize,
    /// Webhooks and publications together.
    pub events: u32,
    /// What subscribers may use.
    pub transports: Vec<Transport>,
    /// How long subscribers may take to reach the head at the end.
    pub settling: Duration,
    /// Under which name to say how it goes, if at all.
    pub talks_as: Option<String>,
}

/// What a case came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Events in the log, over all channels.
    pub logged: u64,
    /// Pairs of event and subscriber that were compared with the log, by what carried them.
    pub checked: Tally,
    /// Signals that subscribers got.
    pub signals: u64,
    /// Events behind signals that retention had taken.
    pub gone: u64,
    /// Connections and polling legs.
    pub connections: u64,
    /// Connections that the gateway closed as slow, as it says.
    pub slow: u64,
    /// And as subscribers heard it.
    pub told_slow: u64,
    /// Attempts to publish that were not accepted.
    pub put_off: u64,
    /// How often the nemesis acted.
    pub acts: u64,
    /// Broken promises, the first of each kind.
    pub violations: Vec<Violation>,
    /// All of them.
    pub violated: u64,
    /// From start to verdict.
    pub took: Duration,
}

/// A case that ran, or could not.
pub enum Ran {
    /// To its verdict.
    Done(Box<Outcome>),
    /// Not here, and why.
    NotHere(String),
}

/// Runs a case, perhaps against a server that lies.
pub async fn run(case: Case, lie: Option<Lie>, effort: &Effort) -> Result<Ran> {
    let began = Instant::now();
    let random = Random::new(effort.seed);
    let mut world = match World::start(case, lie, &random).await? {
        Ok(world) => world,
        Err(reason) => return Ok(Ran::NotHere(reason)),
    };
    let channels = Arc::new(channels(&world).await?);
    let mut stages = vec![("started", began.elapsed())];
    // What makes a reader slow is many bytes, which all the others have to read as well, and time.
    let (share, legs) = if case.fault == Fault::Slow { (4, 4) } else { (1, 1) };
    let (phase, counters) = (watch::Sender::new(Phase::Publishing), Arc::new(Counters::default()));
    let around = Around {
        doors: world.fronts(),
        channels: channels.clone(),
        scenario: case.scenario,
        legs,
        transports: effort.transports.clone(),
        phase: phase.subscribe(),
        counters: counters.clone(),
    };
    let mut subscribers = JoinSet::new();
    for number in 0..effort.subscribers.div_ceil(share) {
        let mut random = random.of("subscriber", number);
        let token = token::mint_reader(&world.secrets.jwt, &format!("reader-{number}"), OWNER);
        let follows = follows(&mut random);
        subscribers.spawn(Subscriber::new(number, follows, token, random, around.clone()).run());
    }

    let (over, progress) = (watch::Sender::new(false), watch::Sender::new(Progress::default()));
    let mut writers = writers(&world, case.fault, effort, &random, &over, &progress)?;
    let acting = nemesis::run(
        case.fault,
        &mut world,
        progress.subscribe(),
        u64::from(effort.events),
        random.of("nemesis", 0),
    );
    let publishing = async {
        let mut books = Vec::new();
        while let Some(book) = writers.join_next().await {
            books.push(book.context("a publisher panicked")?);
        }
        Ok::<Vec<Book>, anyhow::Error>(books)
    };
    let both = async {
        let talking = talk(effort, &progress, &counters);
        tokio::select! {
            both = async { tokio::join!(acting, publishing) } => both,
            never = talking => match never {},
        }
    };
    let Ok((acted, books)) = timeout(PUBLISHING, both).await else {
        bail!("publishing did not come to an end within {PUBLISHING:?}")
    };
    over.send_replace(true);
    let books = books?;

    let mut outcome = Outcome::default();
    match acted {
        Ok(acts) => outcome.acts = acts,
        Err(error) => outcome.violate(health(format!("{error:#}"))),
    }
    for node in &mut world.nodes {
        if let Err(error) = node.wait_until_ready().await {
            outcome.violate(health(format!("{error:#}")));
        }
    }
    stages.push(("published", began.elapsed()));
    let log = Log::read(&world.source).await?;
    let heads: Vec<u32> = channels.iter().map(|channel| log.head(&channel.name)).collect();
    phase.send_replace(Phase::Settling(Arc::new(heads)));
    let settled = settle(&mut subscribers, &phase, effort.settling).await?;

    stages.push(("settled", began.elapsed()));
    let log = Log::read(&world.source).await?;
    let kept = |channel: &str| world.kept.filter(|_| channel.starts_with(NAMESPACE));
    for violation in log.check(&books, &kept) {
        outcome.violate(violation);
    }
    let truths: Vec<Truth> =
        channels.iter().map(|channel| log.truth(&channel.name, kept(&channel.name))).collect();
    for subscriber in &settled {
        outcome.judge(subscriber, &channels, &truths);
    }
    stages.push(("judged", began.elapsed()));
    outcome.logged = log.count();
    outcome.connections = counters.connections.load(Ordering::Relaxed);
    outcome.told_slow = counters.slow.load(Ordering::Relaxed);
    outcome.slow = world.too_slow().await?.max(outcome.told_slow);
    outcome.put_off = progress.borrow().put_off;
    for node in &mut world.nodes {
        if let Err(error) = node.end().await {
            outcome.violate(health(format!("{error:#}")));
        }
    }
    outcome.took = began.elapsed();
    if let Some(name) = &effort.talks_as {
        let stages = stages.iter().map(|(stage, at)| format!("{stage} {:.1} s", at.as_secs_f64()));
        eprintln!("{name} {}", stages.collect::<Vec<_>>().join(", "));
    }
    Ok(Ran::Done(Box::new(outcome)))
}

impl Outcome {
    fn violate(&mut self, violation: Violation) {
        self.violated += 1;
        let same = self.violations.iter().filter(|known| known.breach == violation.breach).count();
        if same < SHOWN {
            self.violations.push(violation);
        }
    }

    fn judge(&mut self, subscriber: &Subscriber, channels: &[Channel], truths: &[Truth]) {
        for follow in &subscriber.follows {
            let verdict = judge::judge(&follow.history, &truths[follow.index]);
            self.checked.add(&verdict.checked);
            self.signals += verdict.signals;
            self.gone += verdict.gone;
            for Broken { breach, transport, offsets, detail } in verdict.breaches {
                let channel = channels[follow.index].name.clone();
                let subscriber = Some(subscriber.number);
                self.violate(Violation { breach, subscriber, transport, channel, offsets, detail });
            }
        }
    }
}

fn health(detail: String) -> Violation {
    let channel = String::new();
    Violation { breach: Breach::Health, subscriber: None, transport: None, channel, offsets: None, detail }
}

/// All channels with the epoch in which they begin, as a poll names it.
async fn channels(world: &World) -> Result<Vec<Channel>> {
    let target = world.nodes[0].target();
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
        let status = Connection::to(&target).exchange(request.as_bytes(), &mut body).await?;
        let page: Value = serde_json::from_slice(&body).unwrap_or_default();
        let position = page["cursor"].as_str().and_then(Position::parse).filter(|_| status == 200);
        let position = position.with_context(|| format!("{name} was answered {status} {page}"))?;
        channels.push(Channel { name, epoch: position.epoch.as_str().to_owned(), built_in });
    }
    Ok(channels)
}

/// One channel, or a built-in and a configured one.
fn follows(random: &mut Random) -> Vec<Follow> {
    let built_in = Follow::new(random.within(0..1 + REPOS as u64) as usize);
    let configured = Follow::new(1 + REPOS + random.within(0..CONFIGURED as u64) as usize);
    match random.within(0..4) {
        0 => vec![built_in],
        1 => vec![configured],
        _ => vec![built_in, configured],
    }
}

fn writers(
    world: &World,
    fault: Fault,
    effort: &Effort,
    random: &Random,
    over: &watch::Sender<bool>,
    progress: &watch::Sender<Progress>,
) -> Result<JoinSet<Book>> {
    let press = Press {
        doors: world.doors(),
        api_key: world.secrets.api_key.clone(),
        payloads: Arc::new(Payloads::new(&world.nodes[0].target(), &world.secrets.webhook, REPOS, 0)?),
        channels: (0..CONFIGURED).map(|number| format!("{NAMESPACE}:{number}")).collect(),
        // The kernel takes some megabytes for a reader that stands still, before the gateway has to.
        padding: if fault == Fault::Slow { 60_000 } else { 400 },
        progress: progress.clone(),
        over: over.subscribe(),
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
async fn settle(
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

async fn talk(
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
