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
/// Subscribers of a server that holds events back wait no longer than this.
const DEADLINE: Duration = Duration::from_secs(2);
/// Those of one that does not.
const PATIENCE: Duration = Duration::from_secs(30);
/// Nobody moves, so that nothing is healed by coming back.
const CASE: Case = Case { scenario: Scenario::Stay, fault: Fault::None, database: Database::Sqlite };

/// Runs against every lie, on every transport if `thorough`.
pub async fn run(seed: u64, thorough: bool, report: &mut Report) -> Result<()> {
    let honest = found(seed, None, Transport::ALL.to_vec()).await?;
    report.add_lie("no lie: no violation".into(), honest.is_empty());
    for lie in Lie::value_variants() {
        let transports: &[&[Transport]] = match lie {
            Lie::Forget => &[&Transport::ALL],
            _ if thorough => &[&[Transport::WebSocket], &[Transport::Sse]],
            _ => &[&[Transport::WebSocket, Transport::Sse]],
        };
        for transports in transports {
            let breaches = found(seed, Some(*lie), transports.to_vec()).await?;
            let over = match transports {
                [only] => only.to_string(),
                _ => "all".into(),
            };
            let name = format!("{lie:?} over {over}").to_lowercase();
            report.add_lie(name, breaches.contains(&expected(*lie)));
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
        Lie::Delay => Breach::Missing,
        Lie::Forget => Breach::Lost,
    }
}

async fn found(seed: u64, lie: Option<Lie>, transports: Vec<Transport>) -> Result<Vec<Breach>> {
    let settling = if lie == Some(Lie::Delay) { DEADLINE } else { PATIENCE };
    let effort =
        Effort { seed, subscribers: SUBSCRIBERS, events: EVENTS, transports, settling, talks: false };
    match case::run(CASE, lie, &effort).await? {
        Ran::Done(outcome) => {
            if lie.is_none() {
                outcome.violations.iter().for_each(|violation| eprintln!("  VIOLATION {violation}"));
            }
            Ok(outcome.violations.iter().map(|violation| violation.breach).collect())
        }
        Ran::NotHere(reason) => anyhow::bail!("the self-test could not run: {reason}"),
    }
}
