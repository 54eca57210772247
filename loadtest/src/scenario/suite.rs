//! `suite`: the scenarios one after the other, each a process of its own, with one report and one summary.
//! A scenario that fails does not keep the others from running, but the suite has failed then.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use clap::Args;
use tokio::process::Command;

use crate::compare::database::Database;
use crate::report::{self, Report, Section, summary, text};

/// What is measured: everything at full size, so that three rounds of it take twenty minutes.
/// Options that all have in common are appended.
pub const FULL: [&str; 20] = [
    "webhooks --seconds 4 --warmup 1",
    "latency --seconds 4",
    "fanout --seconds 4 --warmup 1",
    "fanout --subscribers 5000 --seconds 4 --warmup 1",
    "fanout --rate 200 --subscribers 500 --seconds 4 --warmup 1",
    "fanout --saturate --seconds 4 --warmup 1",
    "fanout --saturate --in-flight 48 --seconds 4 --warmup 1",
    "idle --seconds 5",
    "connect",
    "poll --seconds 4 --warmup 1",
    "reconnect",
    "channel-scaling --seconds 1",
    "channel-scaling --seconds 1 --subscribers 50 --connections 50 --follow 17000 --set CAMPANILE_CLIENT__CHANNEL_LIMIT=17000 \
     --set CAMPANILE_WEBSOCKET__MESSAGE_SIZE_LIMIT=4MiB --set CAMPANILE_CLIENT__QUEUE_MAX_SIZE=16MiB",
    "resume",
    "connect --others 50 --channels 100 --against gateway",
    "slow --before 2",
    "mixed --seconds 4 --warmup 1",
    "originals --seconds 10",
    "start",
    "soak --minutes 0.4",
];

/// A short version for checking: by count, however long it takes.
pub const QUICK: [&str; 8] = [
    "webhooks --deliveries 300 --concurrency 16",
    "latency --events 60",
    "fanout --subscribers 50 --messages 30",
    "fanout --subscribers 50 --messages 200 --in-flight 16",
    "fanout --subscribers 20 --messages 30 --rate 100",
    "fanout --subscribers 50 --messages 200 --saturate --no-history",
    "idle --connections 50 --seconds 1",
    "connect --connections 100",
];

/// Runs all scenarios: one report, one summary.
///
/// Every scenario starts servers of its own, and the floor in turns with the gateway where there is
/// one. The whole suite takes some 20 minutes on two cores; --quick takes one, and checks invariants rather
/// than measures: it counts what it does instead of timing it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  loadtest suite
  loadtest suite --quick
  loadtest suite --only fanout --repeats 5 --strict
  loadtest suite --json before.json --html before.html")]
#[group(skip)]
pub struct Options {
    /// Little of everything, by count: for checking.
    #[arg(long)]
    quick: bool,
    /// Only scenarios of this name; may be given several times.
    #[arg(long, value_name = "SCENARIO")]
    only: Vec<String>,
    /// Rounds of each [default: 3, or 1 with --quick].
    #[arg(long)]
    repeats: Option<u8>,
    /// The processor cores: `SERVER,CLIENT`, `off`, or `auto`.
    #[arg(long)]
    cores: Option<String>,
    /// The gateway's binary [default: the campanile next to this tool].
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Make the gateways' folders in here, to measure a certain disk.
    #[arg(long, value_name = "DIR")]
    data_in: Option<PathBuf>,
    /// What the gateways keep their logs in.
    #[arg(long, value_enum, default_value = "sqlite", conflicts_with = "database_url")]
    database: Database,
    /// The gateways' DATABASE_URL; what it holds stays.
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
    #[command(flatten)]
    report: report::Options,
}

pub async fn run(options: Options) -> Result<()> {
    let lines = options.lines();
    ensure!(!lines.is_empty(), "no scenario of the suite has this name: {}", options.only.join(", "));
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("report.json");
    let began = Instant::now();
    let (mut sections, mut failures) = (Vec::new(), Vec::new());
    for (number, line) in lines.iter().enumerate() {
        let (number, count, since) = (number + 1, lines.len(), began.elapsed().as_secs());
        eprintln!("[{number} of {count}, after {since} s] {line}");
        let mut scenario = Command::new(std::env::current_exe()?);
        scenario.args(line.split(' ')).args(options.common()).arg("--json").arg(&file).kill_on_drop(true);
        let status = scenario.status().await?;
        if !status.success() {
            failures.push(line.clone());
        }
        let reported = Report::read(&file).map(|report| report.scenarios).unwrap_or_else(|error| {
            let failed = Some(format!("{status}, {error:#}"));
            vec![Section { title: line.clone(), failed, ..Section::default() }]
        });
        let command = format!("loadtest {line}");
        sections.extend(reported.into_iter().map(|section| Section { command: command.clone(), ..section }));
        let _ = std::fs::remove_file(&file);
    }
    let report = Report::new(sections);
    report.write(&options.report)?;
    println!("\n{}\n{}", text::heading(&report), summary::table(&report));
    eprintln!("{} scenarios took {:.0} s", lines.len(), began.elapsed().as_secs_f64());
    for file in [&options.report.json, &options.report.html].into_iter().flatten() {
        println!("written: {}", file.display());
    }
    if !failures.is_empty() {
        bail!("{} of {} failed: {}", failures.len(), lines.len(), failures.join("; "));
    }
    report.judge(&options.report)
}

impl Options {
    /// The scenarios to run, as they would be asked for.
    fn lines(&self) -> Vec<String> {
        let all: &[&str] = if self.quick { &QUICK } else { &FULL };
        let wanted = |line: &&&str| {
            let name = line.split(' ').next().unwrap_or_default();
            self.only.is_empty() || self.only.iter().any(|only| only == name)
        };
        let repeats = self.repeats.or(self.quick.then_some(1));
        let repeats = repeats.map(|repeats| format!(" --repeats {repeats}")).unwrap_or_default();
        all.iter().filter(wanted).map(|line| format!("{line}{repeats}")).collect()
    }

    /// Options that are about this machine rather than about the work.
    fn common(&self) -> Vec<String> {
        let path = |path: &PathBuf| path.display().to_string();
        let pairs = [
            ("--cores", self.cores.clone()),
            ("--binary", self.binary.as_ref().map(path)),
            ("--data-in", self.data_in.as_ref().map(path)),
            ("--database", (self.database == Database::Postgres).then(|| "postgres".to_owned())),
            ("--database-url", self.database_url.clone()),
        ];
        let given = pairs.into_iter().filter_map(|(option, value)| Some([option.to_owned(), value?]));
        given.flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn a_part_of_the_suite_is_chosen_by_name() {
        let suite = |only: &[&str], quick: bool| {
            let words = ["suite"].into_iter().chain(only.iter().flat_map(|name| ["--only", name]));
            let words = words.chain(quick.then_some("--quick"));
            Cli::try_parse_from(words).unwrap().options.lines()
        };
        let connect = ["connect", "connect --others 50 --channels 100 --against gateway", "start"];
        assert_eq!(suite(&["connect", "start"], false), connect);
        assert_eq!(suite(&["connect"], true), ["connect --connections 100 --repeats 1"]);
        assert_eq!(suite(&["nothing"], false), [""; 0]);
    }
}
