//! The checker is checked: against a server with a known defect it has to find just that, on each
//! transport, and against the same server without the defect nothing. Before a check of the gateway the
//! short form runs: every defect once.

use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum as _;

use crate::case::{self, CaseResult};
use crate::faulty_proxy::Defect;
use crate::history::Transport;
use crate::plan::{Case, Database, Fault, Scenario, Workload};
use crate::report::Report;
use crate::verifier::Breach;

const SUBSCRIBERS: usize = 12;
const EVENTS: u32 = 160;
/// Subscribers of a wrong server wait no longer than this: what it took, the last event perhaps,
/// never comes.
pub const DEADLINE: Duration = Duration::from_secs(2);
/// Those of one without a defect.
const PATIENCE: Duration = Duration::from_secs(120);
/// Nobody moves, so that nothing is healed by coming back.
const CASE: Case = Case { scenario: Scenario::Stay, fault: Fault::None, database: Database::Sqlite };

/// Runs against every defect, on every transport if `thorough`; all at once, because they mostly wait.
pub async fn run(seed: u64, thorough: bool, report: &mut Report) -> Result<()> {
    let mut runs = vec![(None, Transport::ALL.to_vec())];
    for defect in Defect::value_variants() {
        let pushing = Transport::pushing();
        match defect {
            // Takes a database and Redis, and so a while.
            Defect::NoBus if !thorough => {}
            Defect::NoBus => runs.push((Some(*defect), pushing)),
            Defect::AckWithoutCommit => runs.push((Some(*defect), Transport::ALL.to_vec())),
            _ if thorough => {
                runs.extend(pushing.into_iter().map(|transport| (Some(*defect), vec![transport])));
                // A page that is late is simply asked for again.
                if *defect != Defect::Delay {
                    runs.push((Some(*defect), vec![Transport::Poll]));
                }
            }
            _ => runs.push((Some(*defect), pushing)),
        }
    }
    let running: Vec<_> = runs
        .into_iter()
        .map(|(defect, transports)| {
            (defect, transports.clone(), tokio::spawn(found(seed, defect, transports)))
        })
        .collect();
    for (defect, transports, found) in running {
        let breaches = found.await??;
        match defect {
            None => report.add_defect("no defect, no violation".into(), breaches.is_empty()),
            Some(defect) => {
                let over = match *transports {
                    [one] => one.to_string(),
                    _ => "all".into(),
                };
                let name = format!("{defect:?} over {over}").to_lowercase();
                // Pages have one cursor for all their events, so that any defect looks alike there.
                let pages = transports == [Transport::Poll] && !breaches.is_empty();
                report.add_defect(name, pages || breaches.contains(&expected(defect)));
            }
        }
    }
    Ok(())
}

/// What a server with this defect has to be convicted of.
fn expected(defect: Defect) -> Breach {
    match defect {
        Defect::Drop => Breach::Gap,
        Defect::Repeat => Breach::Repeat,
        Defect::Reorder => Breach::OutOfOrder,
        Defect::Delay | Defect::NoBus => Breach::Missing,
        Defect::AckWithoutCommit => Breach::Lost,
    }
}

async fn found(seed: u64, defect: Option<Defect>, transports: Vec<Transport>) -> Result<Vec<Breach>> {
    let settling = if defect.is_some() { DEADLINE } else { PATIENCE };
    let (subscribers, events, nodes) = (SUBSCRIBERS, EVENTS, 2);
    let database = if defect == Some(Defect::NoBus) { Database::Cluster } else { CASE.database };
    let case = Case { database, ..CASE };
    let workload = Workload { seed, subscribers, events, nodes, transports, settling, label: None };
    match Box::pin(case::run(case, defect, &workload)).await? {
        CaseResult::Done(outcome) => {
            if defect.is_none() {
                outcome.violations.iter().for_each(|violation| eprintln!("  VIOLATION {violation}"));
            }
            Ok(outcome.violations.iter().map(|violation| violation.breach).collect())
        }
        CaseResult::Unsupported(reason) => anyhow::bail!("the self-test could not run: {reason}"),
    }
}
