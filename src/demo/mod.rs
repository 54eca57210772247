//! A simulated GitHub for `serve --demo`: three repositories whose workflows run, fail and are run again.
//! Deliveries are a function of the seed and of the times given, and enter through the same endpoint as
//! real ones. A caller that keeps its data takes another seed for the
//! next start, since the delivery ids of one seed are the same again.

mod catalog;
mod objects;
mod payload;
mod rng;

pub use catalog::OWNER;

use std::collections::VecDeque;

use catalog::{REPOS, RepoSpec, TITLES, WorkflowSpec};
use rng::Rng;

use crate::domain::event::Time;

/// One delivery, ready to be signed and posted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DemoDelivery {
    /// `X-GitHub-Event`.
    pub event: &'static str,
    /// `X-GitHub-Delivery`, a UUID.
    pub delivery_id: String,
    /// The JSON payload.
    pub body: String,
}

/// An account with three repositories that are always active.
pub struct Demo {
    rng: Rng,
    repos: Vec<Repo>,
    /// The last id given to a run, a job or a pull request.
    last_id: u64,
}

/// One repository and what will happen in it next.
struct Repo {
    spec: &'static RepoSpec,
    head: String,
    pulls: u64,
    runs: u64,
    run: Option<Run>,
    plan: VecDeque<Step>,
}

/// One attempt of a run, under way.
struct Run {
    workflow: &'static WorkflowSpec,
    id: u64,
    number: u64,
    attempt: u64,
    event: &'static str,
    branch: String,
    sha: String,
    before: String,
    pull: Option<(u64, u64)>,
    title: &'static str,
    /// How it will end.
    conclusion: &'static str,
    created_at: Time,
    started_at: Time,
    jobs: Vec<Job>,
}

struct Job {
    id: u64,
    name: &'static str,
    steps: &'static [&'static str],
    conclusion: &'static str,
    created_at: Time,
    started_at: Time,
}

/// What is delivered next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Push,
    PullRequest,
    Requested,
    Queued(usize),
    InProgress,
    Started(usize),
    Done(usize),
    Completed,
}

impl Demo {
    /// The deliveries that `seed` stands for.
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let last_id = 17_000_000_000 + rng.below(900_000_000);
        let repo = |spec| {
            let (head, runs, pulls) = (rng.sha(), 100 + rng.below(400), 20 + rng.below(200));
            Repo { spec, head, pulls, runs, run: None, plan: VecDeque::new() }
        };
        Self { repos: REPOS.iter().map(repo).collect(), rng, last_id }
    }

    /// The first deliveries: the ping of the webhook, and the installation with its repositories.
    pub fn setup(&mut self, now: Time) -> Vec<DemoDelivery> {
        vec![
            self.delivery("ping", payload::ping(now)),
            self.delivery("installation", payload::installation_created(now)),
        ]
    }

    /// What happens next, in one of the repositories. `now` never goes back.
    pub fn next(&mut self, now: Time) -> DemoDelivery {
        let at = self.rng.below(self.repos.len() as u64) as usize;
        let step = match self.repos[at].plan.pop_front() {
            Some(step) => step,
            None => self.begin(at, now),
        };
        let repo = &mut self.repos[at];
        let Some(run) = &mut repo.run else { return self.delivery("ping", payload::ping(now)) };
        match step {
            Step::Queued(job) => run.jobs[job].created_at = now,
            Step::Started(job) => run.jobs[job].started_at = now,
            _ => {}
        }
        let (event, body) = match step {
            Step::Push => ("push", payload::push(repo.spec, run, now)),
            Step::PullRequest => ("pull_request", payload::pull_request(repo.spec, run, now)),
            Step::Requested | Step::InProgress | Step::Completed => {
                ("workflow_run", payload::workflow_run(repo.spec, run, step, now))
            }
            Step::Queued(job) | Step::Started(job) | Step::Done(job) => {
                ("workflow_job", payload::workflow_job(repo.spec, run, &run.jobs[job], step, now))
            }
        };
        self.delivery(event, body)
    }

    fn delivery(&mut self, event: &'static str, body: serde_json::Value) -> DemoDelivery {
        DemoDelivery { event, delivery_id: self.rng.uuid().to_string(), body: body.to_string() }
    }

    fn id(&mut self) -> u64 {
        self.last_id += 1 + self.rng.below(5_000);
        self.last_id
    }

    /// Plans the next run of a repository and gives its first step.
    fn begin(&mut self, at: usize, now: Time) -> Step {
        let last = self.repos[at].run.take();
        let (run, first) = match last {
            Some(run) if run.conclusion != "success" && run.attempt < 3 && self.rng.percent(60) => {
                (self.run_again(run, now), None)
            }
            _ => {
                let (run, first) = self.new_run(at, now);
                (run, Some(first))
            }
        };
        let plan = &mut self.repos[at].plan;
        plan.push_back(Step::Requested);
        plan.extend((0..run.jobs.len()).map(Step::Queued));
        plan.push_back(Step::InProgress);
        plan.extend((0..run.jobs.len()).flat_map(|job| [Step::Started(job), Step::Done(job)]));
        plan.push_back(Step::Completed);
        self.repos[at].run = Some(run);
        match first {
            Some(step) => step,
            // A second attempt has no new push: it begins with the run itself.
            None => self.repos[at].plan.pop_front().unwrap_or(Step::Requested),
        }
    }

    fn new_run(&mut self, at: usize, now: Time) -> (Run, Step) {
        let (sha, conclusion, id) = (self.rng.sha(), self.conclusion(), self.id());
        let title = self.rng.pick(&TITLES);
        let by_pull = self.rng.percent(35);
        let pull_id = self.id();
        let Self { rng, repos, .. } = self;
        let repo = &mut repos[at];
        repo.runs += 1;
        let workflow = &repo.spec.workflows[rng.below(repo.spec.workflows.len() as u64) as usize];
        let (branch, pull) = if by_pull {
            repo.pulls += 1;
            (format!("topic/{}", title.to_lowercase().replace(' ', "-")), Some((pull_id, repo.pulls)))
        } else {
            ("main".to_owned(), None)
        };
        let before = repo.head.clone();
        if pull.is_none() {
            repo.head = sha.clone();
        }
        let (event, first) = if by_pull { ("pull_request", Step::PullRequest) } else { ("push", Step::Push) };
        let mut run = Run {
            workflow,
            id,
            number: repo.runs,
            attempt: 1,
            event,
            branch,
            sha,
            before,
            pull,
            title,
            conclusion,
            created_at: now,
            started_at: now,
            jobs: Vec::new(),
        };
        run.jobs = self.jobs(&run, now);
        (run, first)
    }

    fn run_again(&mut self, mut run: Run, now: Time) -> Run {
        run.attempt += 1;
        run.started_at = now;
        run.conclusion = self.conclusion();
        run.jobs = self.jobs(&run, now);
        run
    }

    /// Every job succeeds, except that the last one ends as the run does.
    fn jobs(&mut self, run: &Run, now: Time) -> Vec<Job> {
        let count = run.workflow.jobs.len();
        let job = |(at, (name, steps)): (usize, &(&'static str, &'static [&'static str]))| Job {
            id: self.id(),
            name,
            steps,
            conclusion: if at + 1 == count { run.conclusion } else { "success" },
            created_at: now,
            started_at: now,
        };
        run.workflow.jobs.iter().enumerate().map(job).collect()
    }

    fn conclusion(&mut self) -> &'static str {
        match self.rng.below(100) {
            0..72 => "success",
            72..88 => "failure",
            88..96 => "cancelled",
            _ => "timed_out",
        }
    }
}

#[cfg(test)]
mod tests;
