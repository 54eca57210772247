//! What there is to check: how subscribers behave, what goes wrong, on which database. A case is
//! one of each. More faults and more nodes join here; nothing else lists them.

use std::fmt;

use clap::ValueEnum;

/// How subscribers behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
pub enum Scenario {
    /// They stay until they are cut: what is sent live has to be whole by itself.
    Stay,
    /// They leave and come back all the time, on another transport, with the same cursor.
    Churn,
    /// They stay away longer than recovery and retention reach, so that there must be signals.
    Signals,
}

/// What goes wrong meanwhile, several times in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
pub enum Fault {
    /// Nothing.
    None,
    /// The gateway is killed and started again.
    Kill,
    /// The gateway is asked to end and is started again.
    Term,
    /// The gateway stands still for a moment (SIGSTOP, SIGCONT).
    Stop,
    /// PostgreSQL is restarted: in good order, at once, or killed.
    PostgresRestart,
    /// All sessions of the database are terminated.
    PostgresTerminate,
    /// Clients are cut by a proxy: closed, reset, or left in silence first.
    Cut,
    /// Clients are throttled and delayed by a proxy until the gateway's queues fill up.
    Slow,
    /// The disk with the data is full, and then has room again.
    DiskFull,
}

/// Where the log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Database {
    /// In the data folder.
    Sqlite,
    /// A server of the tool's own.
    Postgres,
}

/// The choice of `--database`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Databases {
    /// The embedded one.
    Sqlite,
    /// The server.
    Postgres,
    /// First the one, then the other.
    Both,
}

/// One run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// How subscribers behave.
    pub scenario: Scenario,
    /// What goes wrong.
    pub fault: Fault,
    /// Where the log is.
    pub database: Database,
}

impl Fault {
    /// Whether it can happen with this database.
    pub fn concerns(self, database: Database) -> bool {
        match self {
            Self::PostgresRestart | Self::PostgresTerminate => database == Database::Postgres,
            _ => true,
        }
    }

    /// Whether clients have to come through the proxy.
    pub fn needs_proxy(self) -> bool {
        matches!(self, Self::Cut | Self::Slow)
    }
}

impl Databases {
    fn each(self) -> &'static [Database] {
        match self {
            Self::Sqlite => &[Database::Sqlite],
            Self::Postgres => &[Database::Postgres],
            Self::Both => &[Database::Sqlite, Database::Postgres],
        }
    }
}

/// All cases of a choice; an empty list stands for all there are.
pub fn cases(scenarios: &[Scenario], faults: &[Fault], databases: Databases) -> Vec<Case> {
    let all_or =
        |chosen: &[Scenario]| if chosen.is_empty() { Scenario::value_variants() } else { chosen }.to_vec();
    let faults = if faults.is_empty() { Fault::value_variants() } else { faults };
    let mut cases = Vec::new();
    for database in databases.each() {
        for scenario in all_or(scenarios) {
            let concerned = faults.iter().filter(|fault| fault.concerns(*database));
            cases.extend(concerned.map(|fault| Case { scenario, fault: *fault, database: *database }));
        }
    }
    cases
}

fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&name(self))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&name(self))
    }
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_choice_is_everything_that_can_happen() {
        let all = cases(&[], &[], Databases::Both);
        assert_eq!(all.len(), 3 * (7 + 9));
        let of = |fault| all.iter().filter(|case| case.fault == fault).count();
        assert_eq!((of(Fault::Kill), of(Fault::PostgresRestart)), (6, 3));
        let one = cases(&[Scenario::Stay], &[Fault::Kill], Databases::Sqlite);
        assert_eq!(one, [Case { scenario: Scenario::Stay, fault: Fault::Kill, database: Database::Sqlite }]);
        assert_eq!(cases(&[], &[Fault::PostgresRestart], Databases::Sqlite), []);
    }
}
