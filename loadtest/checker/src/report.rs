//! The table: scenario, fault, events, verdict; for people and as JSON. Adds up, decides nothing.

use std::time::Duration;

use serde_json::{Value, json};

use crate::case::{CaseResult, Outcome};
use crate::history::Tally;
use crate::plan::{Case, Fault};

/// What has run so far.
pub struct Report {
    seed: u64,
    /// Defects by name, and whether each was noticed.
    defects: Vec<(String, bool)>,
    rows: Vec<(Case, CaseResult)>,
}

impl Report {
    pub fn new(seed: u64) -> Self {
        Self { seed, defects: Vec::new(), rows: Vec::new() }
    }

    /// Adds a server that is known to be wrong, or right.
    pub fn add_defect(&mut self, what: String, convicted: bool) {
        self.defects.push((what, convicted));
    }

    /// Adds a case; what has run before is counted together.
    pub fn add(&mut self, case: Case, result: CaseResult) {
        let known = self.rows.iter_mut().find(|(known, _)| *known == case);
        match (known, result) {
            (None, result) => self.rows.push((case, result)),
            (Some((_, CaseResult::Done(all))), CaseResult::Done(outcome)) => all.add(*outcome),
            (Some(_), _) => {}
        }
    }

    /// Everything could run.
    pub fn is_whole(&self) -> bool {
        self.rows.iter().all(|(_, result)| matches!(result, CaseResult::Done(_)))
    }

    /// No promise was broken, and every defect noticed.
    pub fn is_clean(&self) -> bool {
        self.defects.iter().all(|(_, convicted)| *convicted)
            && self.done().all(|outcome| outcome.violated == 0)
    }

    pub fn print(&self, took: Duration) {
        for (what, convicted) in &self.defects {
            println!("self-test  {what:<40} {}", if *convicted { "as it must be" } else { "FAILED" });
        }
        if !self.rows.is_empty() {
            println!(
                "{:<14} {:<8} {:<18} {:>6} {:>7} {:>8} {:>7} {:>9}  verdict",
                "database", "scenario", "fault", "logged", "conns", "put off", "signals", "checked"
            );
        }
        for (Case { scenario, fault, database }, result) in &self.rows {
            let row = match result {
                CaseResult::Done(outcome) => line(*fault, outcome),
                CaseResult::Unsupported(reason) => format!("{:>41}  could not run here: {reason}", ""),
            };
            println!("{database:<14} {scenario:<8} {fault:<18} {row}");
            if let CaseResult::Done(outcome) = result {
                outcome.figures.iter().for_each(|(name, value)| println!("    {name:<50} {value:>9}"));
            }
        }
        let (checked, violated) = (self.checked().sum(), self.violated());
        let carried: Vec<String> =
            self.checked().each().map(|(transport, events)| format!("{transport} {events}")).collect();
        if checked > 0 {
            println!("checked over  {}", carried.join(", "));
        }
        let seconds = took.as_secs_f64();
        println!(
            "total      {checked} checked events, {violated} violations, seed {}, {seconds:.0} s",
            self.seed
        );
    }

    pub fn to_json(&self, took: Duration) -> Value {
        let rows: Vec<Value> = self.rows.iter().map(|(case, result)| row(case, result)).collect();
        let defects: Vec<Value> = self
            .defects
            .iter()
            .map(|(defect, convicted)| json!({ "defect": defect, "convicted": convicted }))
            .collect();
        json!({
            "scenario": "checker", "seed": self.seed, "self_test": defects, "cases": rows,
            "checked": self.checked().sum(), "checked_over": by_name(&self.checked()), "violations": self.violated(), "seconds": took.as_secs_f64(),
        })
    }

    fn done(&self) -> impl Iterator<Item = &Outcome> {
        self.rows.iter().filter_map(|(_, result)| match result {
            CaseResult::Done(outcome) => Some(&**outcome),
            CaseResult::Unsupported(_) => None,
        })
    }

    fn checked(&self) -> Tally {
        let mut all = Tally::default();
        self.done().for_each(|outcome| all.add(&outcome.checked));
        all
    }

    fn violated(&self) -> u64 {
        self.done().map(|outcome| outcome.violated).sum()
    }
}

fn line(fault: Fault, outcome: &Outcome) -> String {
    let Outcome { logged, connections, put_off, signals, checked, violated, slow, slow_seen, gone, .. } =
        outcome;
    let checked = checked.sum();
    let mut verdict = if *violated == 0 { "kept".to_owned() } else { format!("{violated} VIOLATIONS") };
    if *slow > 0 || fault == Fault::Slow {
        verdict.push_str(&format!(", {slow} closed as slow, {slow_seen} with 3008"));
    }
    if *gone > 0 {
        verdict.push_str(&format!(", {gone} reported as gone"));
    }
    format!("{logged:>6} {connections:>7} {put_off:>8} {signals:>7} {checked:>9}  {verdict}")
}

fn by_name(tally: &Tally) -> Value {
    tally.each().map(|(transport, events)| (transport.to_string(), json!(events))).collect()
}

fn row(Case { scenario, fault, database }: &Case, result: &CaseResult) -> Value {
    let mut row = json!({
        "database": database.to_string(), "scenario": scenario.to_string(), "fault": fault.to_string(),
    });
    let more = match result {
        CaseResult::Unsupported(reason) => json!({ "could_not_run": reason }),
        CaseResult::Done(outcome) => {
            let violations: Vec<String> = outcome.violations.iter().map(ToString::to_string).collect();
            json!({
                "logged": outcome.logged, "connections": outcome.connections, "put_off": outcome.put_off,
                "actions": outcome.actions, "signals": outcome.signals, "gone": outcome.gone, "slow": outcome.slow,
                "slow_seen": outcome.slow_seen,
                "checked": outcome.checked.sum(), "checked_over": by_name(&outcome.checked), "violated": outcome.violated, "violations": violations,
                "figures": outcome.figures.iter().map(|(name, value)| (name.clone(), json!(value))).collect::<Value>(),
                "seconds": outcome.took.as_secs_f64(),
            })
        }
    };
    if let (Some(row), Value::Object(more)) = (row.as_object_mut(), more) {
        row.extend(more);
    }
    row
}
