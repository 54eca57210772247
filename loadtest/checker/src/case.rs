//! One case from start to verdict: an environment, publishers, subscribers and a nemesis; then everybody
//! reaches the head or does not, and each history and each publisher's record is compared with the log.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use testkit::payload::OWNER;
use testkit::random::Random;
use testkit::token;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::environment::{Environment, NAMESPACE};
use crate::faulty_proxy::Defect;
use crate::history::Tally;
use crate::log::Log;
use crate::nemesis::{self, Acted};
use crate::plan::{Case, Fault, Workload};
use crate::publisher::{Progress, Record};
use crate::roster;
use crate::subscriber::Subscriber;
use crate::subscriber::subscription::{Channel, Context, Counters, Phase};
use crate::verifier::{Breach, Expected, Violation, verify};

/// How long all publishing may take.
const PUBLISHING: Duration = Duration::from_secs(600);
/// Violations of one kind that are retained; the others are only counted.
const SHOWN: usize = 5;

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
    /// And as subscribers were told.
    pub slow_seen: u64,
    /// Attempts to publish that were not accepted.
    pub put_off: u64,
    /// How often the nemesis acted.
    pub actions: u64,
    /// What was measured, by name.
    pub figures: Vec<(String, f64)>,
    /// Broken promises, the first of each kind.
    pub violations: Vec<Violation>,
    /// All of them.
    pub violated: u64,
    /// From start to verdict.
    pub took: Duration,
}

pub enum CaseResult {
    Done(Box<Outcome>),
    /// Not on this machine, and why.
    Unsupported(String),
}

/// Runs a case, perhaps against a server with a defect.
pub async fn run(case: Case, defect: Option<Defect>, workload: &Workload) -> Result<CaseResult> {
    let began = Instant::now();
    let random = Random::new(workload.seed);
    let mut env = match Environment::start(case, defect, workload.nodes, &random).await? {
        Ok(env) => env,
        Err(reason) => return Ok(CaseResult::Unsupported(reason)),
    };
    let channels = Arc::new(roster::channels(&env).await?);
    let mut stages = vec![("started", began.elapsed())];
    // What makes a reader slow is many bytes, which all the others have to read as well, and time.
    let (share, patience) = if case.fault == Fault::Slow { (4, 4) } else { (1, 1) };
    let (phase, counters) = (watch::Sender::new(Phase::Publishing), Arc::new(Counters::default()));
    let context = Context {
        address: env.subscriber_address(),
        channels: channels.clone(),
        scenario: case.scenario,
        patience,
        transports: workload.transports.clone(),
        phase: phase.subscribe(),
        counters: counters.clone(),
    };
    let mut subscribers = JoinSet::new();
    for number in 0..workload.subscribers.div_ceil(share) {
        let mut random = random.derive("subscriber", number);
        let token = token::mint_for(&env.secrets.jwt, &format!("reader-{number}"), Some(OWNER));
        let subscriptions = roster::subscriptions(&channels, &mut random);
        subscribers.spawn(Subscriber::new(number, subscriptions, token, random, context.clone()).run());
    }

    let (over, progress) = (watch::Sender::new(false), watch::Sender::new(Progress::default()));
    let enough = watch::Sender::new(false);
    let mut publishers =
        roster::publishers(&env, case, workload, &random, enough.subscribe(), over.subscribe(), &progress)?;
    let acting = async {
        let plan = (case, u64::from(workload.events));
        let acted = nemesis::run(plan, &mut env, progress.subscribe(), random.derive("nemesis", 0)).await;
        enough.send_replace(true);
        acted
    };
    let publishing = async {
        let mut records = Vec::new();
        while let Some(record) = publishers.join_next().await {
            records.push(record.context("a publisher panicked")?);
        }
        Ok::<Vec<Record>, anyhow::Error>(records)
    };
    let both = async {
        let progressing = roster::print_progress(workload, &progress, &counters);
        tokio::select! {
            both = async { tokio::join!(acting, publishing) } => both,
            never = progressing => match never {},
        }
    };
    let Ok((acted, records)) = Box::pin(timeout(PUBLISHING, both)).await else {
        bail!("publishing did not come to an end within {PUBLISHING:?}")
    };
    over.send_replace(true);
    let records = records?;

    let mut outcome = Outcome::default();
    match acted {
        Ok(Acted { actions, findings }) => {
            outcome.actions = actions;
            outcome.figures = findings.figures;
            for detail in findings.breaches {
                outcome.violate(Violation::new(Breach::Bound, detail));
            }
        }
        Err(error) => outcome.violate(health(format!("{error:#}"))),
    }
    for node in &mut env.nodes {
        if let Err(error) = node.wait_until_ready().await {
            outcome.violate(health(format!("{error:#}")));
        }
    }
    stages.push(("published", began.elapsed()));
    let log = Log::read(&env.source).await.with_context(|| outcome.found_so_far())?;
    // The same channels; after a copy has taken over with another history.
    let last = roster::channels(&env).await?;
    let heads = last.iter().map(|Channel { name, epoch, .. }| (epoch.clone(), log.head(name))).collect();
    phase.send_replace(Phase::Settling(Arc::new(heads)));
    let settled = roster::settle(&mut subscribers, &phase, workload.settling).await?;

    // One that has ended meanwhile says why.
    for node in &mut env.nodes {
        if let Err(error) = node.wait_until_ready().await {
            outcome.violate(health(format!("{error:#}")));
        }
    }
    stages.push(("settled", began.elapsed()));
    let log = Log::read(&env.source).await?;
    let retained = |channel: &str| env.retained.filter(|_| channel.starts_with(NAMESPACE));
    for violation in log.check(&records, env.lost.as_ref(), &retained) {
        outcome.violate(violation);
    }
    let expected = |Channel { name, epoch, .. }: &Channel| log.expected(name, epoch, retained(name));
    let expected_channels: Vec<(Expected, Option<Expected>)> = match &env.lost {
        None => channels.iter().map(|channel| (expected(channel), None)).collect(),
        Some(lost) => {
            let first = |Channel { name, epoch, .. }: &Channel| lost.expected(name, epoch, retained(name));
            channels.iter().map(first).zip(last.iter().map(expected).map(Some)).collect()
        }
    };
    for subscriber in &settled {
        outcome.verify(subscriber, &channels, &expected_channels);
    }
    stages.push(("verified", began.elapsed()));
    outcome.logged = log.count();
    outcome.connections = counters.connections.load(Ordering::Relaxed);
    outcome.slow_seen = counters.slow.load(Ordering::Relaxed);
    outcome.slow = env.too_slow().await.unwrap_or_default().max(outcome.slow_seen);
    outcome.put_off = progress.borrow().put_off;
    for node in &mut env.nodes {
        if let Err(error) = node.terminate().await {
            outcome.violate(health(format!("{error:#}")));
        }
    }
    outcome.took = began.elapsed();
    if let Some(label) = &workload.label {
        let stages = stages.iter().map(|(stage, at)| format!("{stage} {:.1} s", at.as_secs_f64()));
        eprintln!("{label} {}", stages.collect::<Vec<_>>().join(", "));
    }
    Ok(CaseResult::Done(Box::new(outcome)))
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
            (&mut self.slow_seen, other.slow_seen),
            (&mut self.put_off, other.put_off),
            (&mut self.actions, other.actions),
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
        let mut text = "cannot read the log".to_owned();
        for violation in &self.violations {
            text = text + "; before: " + &violation.detail;
        }
        text
    }

    fn violate(&mut self, violation: Violation) {
        self.violated += 1;
        let same = self.violations.iter().filter(|known| known.breach == violation.breach).count();
        if same < SHOWN {
            self.violations.push(violation);
        }
    }

    fn verify(
        &mut self,
        subscriber: &Subscriber,
        channels: &[Channel],
        expected_channels: &[(Expected, Option<Expected>)],
    ) {
        for subscription in &subscriber.subscriptions {
            let (first, later) = &expected_channels[subscription.channel];
            let verdict = verify(&subscription.history, first, later.as_ref());
            self.checked.add(&verdict.checked);
            self.signals += verdict.signals;
            self.gone += verdict.gone;
            for violation in verdict.breaches {
                let channel = channels[subscription.channel].name.clone();
                self.violate(Violation { subscriber: Some(subscriber.number), channel, ..violation });
            }
        }
    }
}

fn health(detail: String) -> Violation {
    Violation::new(Breach::Health, detail)
}
