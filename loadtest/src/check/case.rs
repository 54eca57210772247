//! One case from start to verdict: a world, publishers, subscribers and a nemesis; then everybody
//! reaches the head or does not, and each history and each book is compared with the log.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::cast;
use super::history::{Tally, Transport};
use super::judge::{self, Breach, Broken, Truth, Violation};
use super::lie::Lie;
use super::log::Log;
use super::nemesis::{self, Acted};
use super::plan::{Case, Fault};
use super::publisher::{Book, Progress};
use super::random::Random;
use super::subscriber::{Around, Channel, Counters, Phase, Subscriber};
use super::world::{NAMESPACE, World};
use crate::payload::OWNER;
use crate::token;

/// How long all publishing may take.
const PUBLISHING: Duration = Duration::from_secs(600);
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
    /// Nodes of a cluster.
    pub nodes: usize,
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
    /// What was measured, by name.
    pub figures: Vec<(String, f64)>,
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
    let mut world = match World::start(case, lie, effort.nodes, &random).await? {
        Ok(world) => world,
        Err(reason) => return Ok(Ran::NotHere(reason)),
    };
    let channels = Arc::new(cast::channels(&world).await?);
    let mut stages = vec![("started", began.elapsed())];
    // What makes a reader slow is many bytes, which all the others have to read as well, and time.
    let (share, legs) = if case.fault == Fault::Slow { (4, 4) } else { (1, 1) };
    let (phase, counters) = (watch::Sender::new(Phase::Publishing), Arc::new(Counters::default()));
    let around = Around {
        door: world.front(),
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
        let follows = cast::follows(&channels, &mut random);
        subscribers.spawn(Subscriber::new(number, follows, token, random, around.clone()).run());
    }

    let (over, progress) = (watch::Sender::new(false), watch::Sender::new(Progress::default()));
    let enough = watch::Sender::new(false);
    let mut writers =
        cast::writers(&world, case, effort, &random, enough.subscribe(), over.subscribe(), &progress)?;
    let acting = async {
        let plan = (case, u64::from(effort.events));
        let acted = nemesis::run(plan, &mut world, progress.subscribe(), random.of("nemesis", 0)).await;
        enough.send_replace(true);
        acted
    };
    let publishing = async {
        let mut books = Vec::new();
        while let Some(book) = writers.join_next().await {
            books.push(book.context("a publisher panicked")?);
        }
        Ok::<Vec<Book>, anyhow::Error>(books)
    };
    let both = async {
        let talking = cast::talk(effort, &progress, &counters);
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
        Ok(Acted { acts, findings }) => {
            outcome.acts = acts;
            outcome.figures = findings.figures;
            for words in findings.breaches {
                outcome.violate(violation(Breach::Bound, words));
            }
        }
        Err(error) => outcome.violate(health(format!("{error:#}"))),
    }
    for node in &mut world.nodes {
        if let Err(error) = node.wait_until_ready().await {
            outcome.violate(health(format!("{error:#}")));
        }
    }
    stages.push(("published", began.elapsed()));
    let log = Log::read(&world.source).await.with_context(|| outcome.found_so_far())?;
    // The same channels; after a copy has taken over with another history.
    let last = cast::channels(&world).await?;
    let heads = last.iter().map(|Channel { name, epoch, .. }| (epoch.clone(), log.head(name))).collect();
    phase.send_replace(Phase::Settling(Arc::new(heads)));
    let settled = cast::settle(&mut subscribers, &phase, effort.settling).await?;

    // One that has ended meanwhile says why.
    for node in &mut world.nodes {
        if let Err(error) = node.wait_until_ready().await {
            outcome.violate(health(format!("{error:#}")));
        }
    }
    stages.push(("settled", began.elapsed()));
    let log = Log::read(&world.source).await?;
    let kept = |channel: &str| world.kept.filter(|_| channel.starts_with(NAMESPACE));
    for violation in log.check(&books, world.past.as_ref(), &kept) {
        outcome.violate(violation);
    }
    let truth = |Channel { name, epoch, .. }: &Channel| log.truth(name, epoch, kept(name));
    let truths: Vec<(Truth, Option<Truth>)> = match &world.past {
        None => channels.iter().map(|channel| (truth(channel), None)).collect(),
        Some(past) => {
            let first = |Channel { name, epoch, .. }: &Channel| past.truth(name, epoch, kept(name));
            channels.iter().map(first).zip(last.iter().map(truth).map(Some)).collect()
        }
    };
    for subscriber in &settled {
        outcome.judge(subscriber, &channels, &truths);
    }
    stages.push(("judged", began.elapsed()));
    outcome.logged = log.count();
    outcome.connections = counters.connections.load(Ordering::Relaxed);
    outcome.told_slow = counters.slow.load(Ordering::Relaxed);
    outcome.slow = world.too_slow().await.unwrap_or_default().max(outcome.told_slow);
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
    /// Adds another run; of what was measured the largest stays.
    pub fn add(&mut self, other: Self) {
        self.checked.add(&other.checked);
        for (sum, more) in [
            (&mut self.logged, other.logged),
            (&mut self.signals, other.signals),
            (&mut self.gone, other.gone),
            (&mut self.connections, other.connections),
            (&mut self.slow, other.slow),
            (&mut self.told_slow, other.told_slow),
            (&mut self.put_off, other.put_off),
            (&mut self.acts, other.acts),
            (&mut self.violated, other.violated),
        ] {
            *sum += more;
        }
        self.violations.extend(other.violations);
        for (name, value) in other.figures {
            match self.figures.iter_mut().find(|(known, _)| *known == name) {
                Some((_, most)) => *most = most.max(value),
                None => self.figures.push((name, value)),
            }
        }
        self.took += other.took;
    }

    /// Why there may be no log to read.
    fn found_so_far(&self) -> String {
        let mut words = "cannot read the log".to_owned();
        for violation in &self.violations {
            words = words + "; before: " + &violation.detail;
        }
        words
    }

    fn violate(&mut self, violation: Violation) {
        self.violated += 1;
        let same = self.violations.iter().filter(|known| known.breach == violation.breach).count();
        if same < SHOWN {
            self.violations.push(violation);
        }
    }

    fn judge(&mut self, subscriber: &Subscriber, channels: &[Channel], truths: &[(Truth, Option<Truth>)]) {
        for follow in &subscriber.follows {
            let (first, later) = &truths[follow.index];
            let verdict = judge::judge(&follow.history, first, later.as_ref());
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
    violation(Breach::Health, detail)
}

fn violation(breach: Breach, detail: String) -> Violation {
    let channel = String::new();
    Violation { breach, subscriber: None, transport: None, channel, offsets: None, detail }
}
