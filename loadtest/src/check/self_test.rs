//! The checker is checked: against a server that lies it has to find just that, on each transport,
//! and against the same server without the lie nothing. Before a check of the gateway the short
//! form runs: every lie once.

use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum as _;

use super::case::{self, Effort, Ran};
use super::history::Transport;
use super::judge::Breach;
use super::lie::Lie;
use super::plan::{Case, Database, Fault, Scenario};
use super::report::Report;

const SUBSCRIBERS: usize = 12;
const EVENTS: u32 = 160;
/// Subscribers of a server that lies wait no longer than this: what it took, the last event perhaps,
/// never comes.
pub const DEADLINE: Duration = Duration::from_secs(2);
/// Those of one that does not lie.
const PATIENCE: Duration = Duration::from_secs(120);
/// Nobody moves, so that nothing is healed by coming back.
const CASE: Case = Case { scenario: Scenario::Stay, fault: Fault::None, database: Database::Sqlite };

/// Runs against every lie, on every transport if `thorough`; all at once, because they mostly wait.
pub async fn run(seed: u64, thorough: bool, report: &mut Report) -> Result<()> {
    let mut runs = vec![(None, Transport::ALL.to_vec())];
    for lie in Lie::value_variants() {
        let pushing = Transport::pushing();
        match lie {
            // Takes a database and Redis, and so a while.
            Lie::Deaf if !thorough => {}
            Lie::Deaf => runs.push((Some(*lie), pushing)),
            Lie::Forget => runs.push((Some(*lie), Transport::ALL.to_vec())),
            _ if thorough => {
                runs.extend(pushing.into_iter().map(|transport| (Some(*lie), vec![transport])));
                // A page that is late is simply asked for again.
                if *lie != Lie::Delay {
                    runs.push((Some(*lie), vec![Transport::Poll]));
                }
            }
            _ => runs.push((Some(*lie), pushing)),
        }
    }
    let running: Vec<_> = runs
        .into_iter()
        .map(|(lie, transports)| (lie, transports.clone(), tokio::spawn(found(seed, lie, transports))))
        .collect();
    for (lie, transports, found) in running {
        let breaches = found.await??;
        match lie {
            None => report.add_lie("no lie, no violation".into(), breaches.is_empty()),
            Some(lie) => {
                let over = match *transports {
                    [one] => one.to_string(),
                    _ => "all".into(),
                };
                let name = format!("{lie:?} over {over}").to_lowercase();
                // Pages have one cursor for all their events, so that any lie there looks alike.
                let pages = transports == [Transport::Poll] && !breaches.is_empty();
                report.add_lie(name, pages || breaches.contains(&expected(lie)));
            }
        }
    }
    Ok(())
}

/// What a server that tells this lie has to be convicted of.
fn expected(lie: Lie) -> Breach {
    match lie {
        Lie::Drop => Breach::Gap,
        Lie::Repeat => Breach::Repeat,
        Lie::Reorder => Breach::OutOfOrder,
        Lie::Delay | Lie::Deaf => Breach::Missing,
        Lie::Forget => Breach::Lost,
    }
}

async fn found(seed: u64, lie: Option<Lie>, transports: Vec<Transport>) -> Result<Vec<Breach>> {
    let settling = if lie.is_some() { DEADLINE } else { PATIENCE };
    let (subscribers, events, nodes) = (SUBSCRIBERS, EVENTS, 2);
    let database = if lie == Some(Lie::Deaf) { Database::Cluster } else { CASE.database };
    let case = Case { database, ..CASE };
    let effort = Effort { seed, subscribers, events, nodes, transports, settling, talks_as: None };
    match case::run(case, lie, &effort).await? {
        Ran::Done(outcome) => {
            if lie.is_none() {
                outcome.violations.iter().for_each(|violation| eprintln!("  VIOLATION {violation}"));
            }
            Ok(outcome.violations.iter().map(|violation| violation.breach).collect())
        }
        Ran::NotHere(reason) => anyhow::bail!("the self-test could not run: {reason}"),
    }
}
