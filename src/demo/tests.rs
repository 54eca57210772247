//! Whatever the seed, the deliveries are interpreted like those of GitHub, and every run ends.

use std::collections::{BTreeSet, HashMap, HashSet};

use serde_json::Value;

use super::{Demo, DemoDelivery};
use crate::domain::delivery::DeliveryId;
use crate::domain::event::Time;
use crate::domain::workflow::{StateChange, advances};
use crate::sources::github::{Interpretation, Outcome, RepoMap, body_text, interpret};

fn start() -> Time {
    Time::from_timestamp(1_795_248_000, 0).unwrap()
}

fn deliveries(seed: u64, count: i64) -> Vec<DemoDelivery> {
    let mut demo = Demo::new(seed);
    let mut all = demo.setup(start());
    all.extend((0..count).map(|n| demo.next(start() + chrono::Duration::seconds(n * 3))));
    all
}

fn interpretation(delivery: &DemoDelivery) -> Interpretation {
    let text = body_text(Some("application/json"), delivery.body.as_bytes()).unwrap();
    interpret(delivery.event, text.as_bytes(), &RepoMap::default()).unwrap()
}

#[test]
fn a_seed_always_means_the_same() {
    assert_eq!(deliveries(7, 50), deliveries(7, 50));
    assert_ne!(deliveries(7, 50), deliveries(8, 50));
}

#[test]
fn setup_adds_three_repositories() {
    let all = deliveries(1, 0);
    let added: Vec<_> = all.iter().flat_map(|delivery| interpretation(delivery).events).collect();
    let names: Vec<_> = added.iter().map(|event| (event.kind, event.repo.as_deref().unwrap())).collect();
    assert_eq!(names, [("repo:added", "api"), ("repo:added", "web"), ("repo:added", "docs")]);
}

#[test]
fn it_looks_like_github() {
    for delivery in deliveries(3, 200) {
        let body: Value = serde_json::from_str(&delivery.body).unwrap();
        if let Some(run) = body.get("workflow_run") {
            let sha = run["head_sha"].as_str().unwrap();
            assert!(sha.len() == 40 && sha.bytes().all(|b| b.is_ascii_hexdigit()));
            assert_eq!(body["repository"]["owner"]["login"], "acme");
            assert_eq!(run["updated_at"].as_str().unwrap().len(), "2026-11-21T08:00:00Z".len());
        }
        if delivery.event != "ping" {
            assert!(body["sender"]["login"].is_string() && body["installation"]["id"].is_u64());
        }
    }
}

#[test]
fn every_run_goes_forward_and_ends() {
    for seed in 0..12 {
        let (mut ids, mut runs, mut jobs) = (HashSet::new(), HashMap::new(), HashMap::new());
        let (mut kinds, mut repos) = (BTreeSet::new(), BTreeSet::new());
        for delivery in deliveries(seed, 500) {
            assert!(DeliveryId::parse(&delivery.delivery_id).is_some());
            assert!(ids.insert(delivery.delivery_id.clone()));
            let interpretation = interpretation(&delivery);
            assert_eq!(interpretation.outcome, Outcome::Handled);
            kinds.extend(interpretation.events.iter().map(|event| event.kind));
            repos.extend(interpretation.repo.map(|repo| repo.name));
            for change in interpretation.changes {
                let (before, after) = match change {
                    StateChange::Run { run, .. } => (runs.insert(run.run_id, run.progress()), run.progress()),
                    StateChange::Job { job, .. } => {
                        assert!(runs.contains_key(&job.run_id));
                        (jobs.insert(job.job_id, job.progress()), job.progress())
                    }
                    _ => continue,
                };
                assert!(before.is_none_or(|before| advances(before, after)));
            }
        }
        for kind in ["started", "progress", "job", "completed", "failed"] {
            assert!(kinds.contains(&*format!("workflow:{kind}")), "{seed}: {kinds:?}");
        }
        assert_eq!(repos.len(), 3);
        // At most one run of each repository is still under way.
        assert!(runs.values().filter(|progress| progress.1 < 2).count() <= 3);
    }
}
