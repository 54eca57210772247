//! What there is to check: how subscribers behave, what goes wrong, on which database. A case is
//! one of each. More faults join here; nothing else lists them.

use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use clap::ValueEnum;
use testkit::random::Random;

use crate::history::Transport;

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
    /// A gateway is killed and started again.
    Kill,
    /// A gateway is asked to end and is started again.
    Term,
    /// A gateway stands still for a moment (SIGSTOP, SIGCONT).
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
    /// All nodes are asked to end and started again, one after the other.
    Rolling,
    /// A node is cut off from PostgreSQL: refused, or left in silence.
    PostgresCut,
    /// A node is cut off from its clients: refused, or left in silence.
    ClientsCut,
    /// A copy that lacks the last commits takes the place of PostgreSQL, once.
    Failover,
    /// Redis is killed, or asked to end, and started again with nothing in it.
    RedisRestart,
    /// Redis takes connections and does not answer.
    RedisFreeze,
    /// Single messages of Redis are lost on their way to a node.
    RedisDrop,
    /// A node is cut off from Redis: refused, or left in silence.
    RedisCut,
    /// Somebody at Redis invents messages of nodes.
    RedisForge,
    /// Nodes read their configuration anew, with other options of namespaces in use.
    Reload,
    /// A user is blocked while its clients connect.
    Block,
    /// Whatever concerns the nodes, one after the other.
    Mixed,
    /// Redis is away for half a minute, and what that means is measured.
    RedisDown,
    /// The same, but it takes connections and does not answer.
    RedisHang,
    /// PostgreSQL is away, and it is measured.
    PostgresDown,
    /// A node is killed and stays away until it is forgotten, and it is measured.
    NodeDeath,
}

/// Where the log is, and how many nodes share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
pub enum Database {
    /// One node, in its data folder.
    Sqlite,
    /// One node, and a server started for the run.
    Postgres,
    /// The same with a PgBouncer in transaction mode in between.
    Pgbouncer,
    /// Several nodes, such a server, and a Redis started for the run.
    Cluster,
    /// The same without Redis.
    ClusterNotify,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    pub scenario: Scenario,
    pub fault: Fault,
    pub database: Database,
}

#[derive(Debug, Clone)]
pub struct Workload {
    pub seed: u64,
    /// Subscribers, each a user.
    pub subscribers: usize,
    /// Webhooks and publications together.
    pub events: u32,
    pub nodes: usize,
    pub transports: Vec<Transport>,
    /// How long subscribers may take to reach the head at the end.
    pub settling: Duration,
    /// The name under which progress is printed, if it is.
    pub label: Option<String>,
}

impl Fault {
    /// Whether it can happen here.
    pub fn concerns(self, database: Database) -> bool {
        match self {
            Self::PostgresRestart | Self::PostgresTerminate => database.has_postgres(),
            Self::Rolling | Self::PostgresCut | Self::ClientsCut | Self::Failover | Self::Mixed => {
                database.is_cluster()
            }
            Self::PostgresDown | Self::NodeDeath => database.is_cluster(),
            Self::RedisRestart | Self::RedisFreeze | Self::RedisDrop => database.has_redis(),
            Self::RedisCut | Self::RedisForge => database.has_redis(),
            Self::RedisDown | Self::RedisHang => database.has_redis(),
            _ => true,
        }
    }

    /// Whether it happens once and takes its time, with figures.
    pub fn is_measured(self) -> bool {
        matches!(self, Self::RedisDown | Self::RedisHang | Self::PostgresDown | Self::NodeDeath)
    }

    /// Whether clients of a single node have to come through the proxy.
    pub fn needs_proxy(self) -> bool {
        matches!(self, Self::Cut | Self::Slow)
    }

    /// What `mixed` draws from: what can happen again and again, and to everybody's connections alike.
    pub fn mixed(database: Database) -> Vec<Self> {
        let alone = [Self::None, Self::Slow, Self::DiskFull, Self::Failover, Self::Mixed];
        let joins = |fault: &Self| fault.concerns(database) && !fault.is_measured() && !alone.contains(fault);
        Self::value_variants().iter().copied().filter(joins).collect()
    }
}

impl Database {
    pub fn is_cluster(self) -> bool {
        matches!(self, Self::Cluster | Self::ClusterNotify)
    }

    pub fn has_postgres(self) -> bool {
        self != Self::Sqlite
    }

    pub fn has_redis(self) -> bool {
        self == Self::Cluster
    }
}

/// All cases of a choice; an empty list stands for all there are.
pub fn cases(scenarios: &[Scenario], faults: &[Fault], databases: &[Database]) -> Vec<Case> {
    let mut cases = Vec::new();
    for database in all_or(databases) {
        for scenario in all_or(scenarios) {
            // What is measured is measured with those who stay.
            let fits = |fault: &Fault| !fault.is_measured() || scenario == Scenario::Stay;
            let concerned =
                all_or(faults).into_iter().filter(|fault| fault.concerns(database) && fits(fault));
            cases.extend(concerned.map(|fault| Case { scenario, fault, database }));
        }
    }
    cases
}

/// Each fault of these once for each database, in an order and with scenarios by seed.
pub fn draw(cases: &[Case], seed: u64) -> Vec<Case> {
    let mut random = Random::new(seed).derive("order", 0);
    let mut drawn: Vec<Case> = Vec::new();
    let mut known = HashSet::new();
    for Case { fault, database, .. } in cases {
        if known.insert((*fault, *database)) {
            let alike: Vec<Case> =
                cases.iter().copied().filter(|c| c.fault == *fault && c.database == *database).collect();
            let place = random.within(0..drawn.len() as u64 + 1) as usize;
            drawn.insert(place, random.pick(&alike));
        }
    }
    drawn
}

fn all_or<T: ValueEnum + Clone>(chosen: &[T]) -> Vec<T> {
    if chosen.is_empty() { T::value_variants() } else { chosen }.to_vec()
}

/// A choice is shown under the name by which it is asked for.
macro_rules! shown_by_name {
    ($($choice:ty),+) => {
        $(impl fmt::Display for $choice {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let value = self.to_possible_value();
                f.pad(value.as_ref().map_or("", |value| value.get_name()))
            }
        })+
    };
}

shown_by_name!(Scenario, Fault, Database);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_choice_is_everything_that_can_happen() {
        let all = cases(&[], &[], &[]);
        let on = |database| all.iter().filter(|case| case.database == database).count();
        let single = [Database::Sqlite, Database::Postgres, Database::Pgbouncer];
        assert_eq!(single.map(on), [3 * 9, 3 * 11, 3 * 11]);
        assert_eq!([Database::ClusterNotify, Database::Cluster].map(on), [3 * 16 + 2, 3 * 21 + 4]);
        let of = |fault| all.iter().filter(|case| case.fault == fault).count();
        assert!(of(Fault::Kill) > of(Fault::PostgresRestart));
        let one = cases(&[Scenario::Stay], &[Fault::Kill], &[Database::Sqlite]);
        assert_eq!(one, [Case { scenario: Scenario::Stay, fault: Fault::Kill, database: Database::Sqlite }]);
        assert_eq!(cases(&[], &[Fault::PostgresRestart], &[Database::Sqlite]), []);
    }

    #[test]
    fn a_round_has_every_fault_on_every_database() {
        let (all, rounds) = (cases(&[], &[], &[]), [1, 2].map(|seed| draw(&cases(&[], &[], &[]), seed)));
        assert_ne!(rounds[0], rounds[1]);
        for round in rounds {
            let kinds = |cases: &[Case]| cases.iter().map(|c| (c.fault, c.database)).collect::<HashSet<_>>();
            assert_eq!((kinds(&round), round.len()), (kinds(&all), kinds(&all).len()));
        }
    }

    #[test]
    fn a_mix_has_nothing_that_ends_all_the_rest() {
        let mix = Fault::mixed(Database::ClusterNotify);
        assert!(mix.contains(&Fault::Kill) && !mix.contains(&Fault::Failover) && !mix.contains(&Fault::None));
    }
}
