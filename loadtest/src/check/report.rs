//! The table: scenario, fault, events, verdict; for people and as JSON. Adds up, decides nothing.

use std::time::Duration;

use serde_json::{Value, json};

use super::case::{Outcome, Ran};
use super::history::Tally;
use super::plan::{Case, Fault};

/// What has run so far.
pub struct Report {
    seed: u64,
    /// Lies by name, and whether each was noticed.
    lies: Vec<(String, bool)>,
    rows: Vec<(Case, Ran)>,
}

impl Report {
    /// An empty one.
    pub fn new(seed: u64) -> Self {
        Self { seed, lies: Vec::new(), rows: Vec::new() }
    }

    /// Adds a lie.
    pub fn add_lie(&mut self, what: String, convicted: bool) {
        self.lies.push((what, convicted));
    }

    /// Adds a case; what has run before is counted together.
    pub fn add(&mut self, case: Case, ran: Ran) {
        let known = self.rows.iter_mut().find(|(known, _)| *known == case);
        match (known, ran) {
            (None, ran) => self.rows.push((case, ran)),
            (Some((_, Ran::Done(all))), Ran::Done(outcome)) => all.add(*outcome),
            (Some(_), _) => {}
        }
    }

    /// Everything could run.
    pub fn is_whole(&self) -> bool {
        self.rows.iter().all(|(_, ran)| matches!(ran, Ran::Done(_)))
    }

    /// No promise was broken, and every lie noticed.
    pub fn is_clean(&self) -> bool {
        self.lies.iter().all(|(_, convicted)| *convicted) && self.done().all(|outcome| outcome.violated == 0)
    }

    /// Prints it.
    pub fn print(&self, took: Duration) {
        for (what, convicted) in &self.lies {
            println!("self-test  {what:<40} {}", if *convicted { "as it must be" } else { "FAILED" });
        }
        if !self.rows.is_empty() {
            println!(
                "{:<14} {:<8} {:<18} {:>6} {:>7} {:>8} {:>7} {:>9}  verdict",
                "database", "scenario", "fault", "logged", "conns", "put off", "signals", "checked"
            );
        }
        for (Case { scenario, fault, database }, ran) in &self.rows {
            let row = match ran {
                Ran::Done(outcome) => line(*fault, outcome),
                Ran::NotHere(reason) => format!("{:>41}  could not run here: {reason}", ""),
            };
            println!("{database:<14} {scenario:<8} {fault:<18} {row}");
            if let Ran::Done(outcome) = ran {
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

    /// For `--json`.
    pub fn to_json(&self, took: Duration) -> Value {
        let rows: Vec<Value> = self.rows.iter().map(|(case, ran)| row(case, ran)).collect();
        let lies: Vec<Value> =
            self.lies.iter().map(|(lie, convicted)| json!({ "lie": lie, "convicted": convicted })).collect();
        json!({
            "scenario": "check", "seed": self.seed, "self_test": lies, "cases": rows,
            "checked": self.checked().sum(), "checked_over": by_name(&self.checked()), "violations": self.violated(), "seconds": took.as_secs_f64(),
        })
    }

    fn done(&self) -> impl Iterator<Item = &Outcome> {
        self.rows.iter().filter_map(|(_, ran)| match ran {
            Ran::Done(outcome) => Some(&**outcome),
            Ran::NotHere(_) => None,
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
    let Outcome { logged, connections, put_off, signals, checked, violated, slow, told_slow, gone, .. } =
        outcome;
    let checked = checked.sum();
    let mut verdict = if *violated == 0 { "kept".to_owned() } else { format!("{violated} VIOLATIONS") };
    if *slow > 0 || fault == Fault::Slow {
        verdict.push_str(&format!(", {slow} closed as slow, {told_slow} with 3008"));
    }
    if *gone > 0 {
        verdict.push_str(&format!(", {gone} told to be gone"));
    }
    format!("{logged:>6} {connections:>7} {put_off:>8} {signals:>7} {checked:>9}  {verdict}")
}

fn by_name(tally: &Tally) -> Value {
    tally.each().map(|(transport, events)| (transport.to_string(), json!(events))).collect()
}

fn row(Case { scenario, fault, database }: &Case, ran: &Ran) -> Value {
    let mut row = json!({
        "database": database.to_string(), "scenario": scenario.to_string(), "fault": fault.to_string(),
    });
    let more = match ran {
        Ran::NotHere(reason) => json!({ "could_not_run": reason }),
        Ran::Done(outcome) => {
            let violations: Vec<String> = outcome.violations.iter().map(ToString::to_string).collect();
            json!({
                "logged": outcome.logged, "connections": outcome.connections, "put_off": outcome.put_off,
                "acts": outcome.acts, "signals": outcome.signals, "gone": outcome.gone, "slow": outcome.slow,
                "told_slow": outcome.told_slow,
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
