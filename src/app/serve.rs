//! `campanile serve`: a node from start to signal. Says where to open and how to get in, runs
//! until SIGTERM or Ctrl-C, and drains.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Node, core_runtime, demo, reload};
use crate::config::{Backend, BusBackend, Config, ConfigError, LogFormat, Secrets};
use crate::{supervision, telemetry};

/// Open files that a busy node needs; with fewer, it logs a warning.
const MIN_OPEN_FILES: u64 = 10_000;

/// Signals to stop within this time are one request.
const ONE_REQUEST: Duration = Duration::from_secs(1);

/// Runs a node until it is told to stop. Blocks.
/// SIGHUP reads the configuration by `load`.
pub fn serve(
    config: &Config,
    secrets: &Secrets,
    with_demo: bool,
    load: impl Fn() -> Result<Config, ConfigError>,
) -> anyhow::Result<()> {
    let format = match config.telemetry.log_format {
        LogFormat::Auto => None,
        LogFormat::Text => Some(telemetry::LogFormat::Text),
        LogFormat::Json => Some(telemetry::LogFormat::Json),
    };
    telemetry::start_logging(config.telemetry.log.as_str(), format)?;
    supervision::exit_on_critical_panic();
    config.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
    raise_file_limit();
    let core = core_runtime().context("cannot start threads")?;
    let done = actix_rt::System::new().block_on(async {
        let mut signals = Signals::listen()?;
        let node = Node::start(config, secrets, core.handle()).await?;
        let link = sign_in_link(&node).await;
        print_welcome(config, secrets, node.address(), link.as_deref(), with_demo);
        let demo = with_demo.then(|| actix_rt::spawn(demo::run(node.address(), secrets.github[0].clone())));
        while signals.next().await == SignalAction::Reload {
            reload::reload(&node, load()).await;
        }
        demo.inspect(|demo| demo.abort());
        tokio::select! {
            () = node.stop() => Ok(()),
            () = signals.stop_again() => Err(anyhow::anyhow!("stopped at once by a second signal")),
        }
    });
    core.shutdown_timeout(Duration::from_secs(5));
    done
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SignalAction {
    Stop,
    Reload,
}

/// SIGTERM and Ctrl-C stop; SIGHUP reloads, unless it says that the terminal is gone.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    on_terminal: bool,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
            on_terminal: std::io::stdin().is_terminal(),
        })
    }

    async fn next(&mut self) -> SignalAction {
        tokio::select! {
            _ = self.terminate.recv() => SignalAction::Stop,
            _ = self.interrupt.recv() => SignalAction::Stop,
            _ = self.hangup.recv() => {
                // A closed terminal is not a terminal any more.
                let closed = self.on_terminal && !std::io::stdin().is_terminal();
                if closed { SignalAction::Stop } else { SignalAction::Reload }
            }
        }
    }

    /// Waits for another request to stop. Supervisors signal a process and its group: what follows at once is
    /// the same request.
    async fn stop_again(&mut self) {
        let first = Instant::now();
        while self.next().await != SignalAction::Stop || first.elapsed() < ONE_REQUEST {}
    }
}

fn raise_file_limit() {
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) if limit < MIN_OPEN_FILES => {
            tracing::warn!(
                limit,
                "the limit of open files is low: raise `ulimit -n` to serve many connections"
            );
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "the limit of open files cannot be raised"),
    }
}

/// Prints what a person needs next. Secrets are not printed: the commands read them.
fn print_welcome(
    config: &Config,
    secrets: &Secrets,
    address: SocketAddr,
    link: Option<&str>,
    with_demo: bool,
) {
    if !std::io::stdout().is_terminal() && !with_demo {
        return;
    }
    let url =
        config.server.public_url.as_ref().map_or_else(|| format!("http://{address}"), ToString::to_string);
    let store = match config.backend() {
        Backend::Sqlite { path } => format!("SQLite in {} (embedded)", path.display()),
        Backend::Postgres { .. } => "Postgres (DATABASE_URL)".to_owned(),
    };
    let org = if with_demo { demo::OWNER } else { "YOUR-ORG" };
    let mut text = String::new();
    macro_rules! say {
        ($($words:tt)*) => {{ let _ = writeln!(text, $($words)*); }};
    }
    say!("\n  Campanile {} is ready: {url}", env!("CARGO_PKG_VERSION"));
    say!("    store     {store}");
    let bus = match config.bus_backend() {
        BusBackend::InProcess => "in process (embedded)",
        BusBackend::Postgres => "Postgres (set REDIS_URL for speed between nodes)",
        BusBackend::Redis { .. } => "Redis (REDIS_URL)",
    };
    say!("    bus       {bus}");
    if !secrets.generated.is_empty() {
        say!(
            "    secrets   generated into {}: {}",
            config.server.data_dir.display(),
            secrets.generated.join(", ")
        );
    }
    say!("    webhooks  {url}/webhooks/github");
    if let Some(link) = link {
        say!("    sign in   {link}");
        say!("              valid once, for ten minutes; `campanile sign-in` creates another link");
    }
    say!("");
    // As it was called, so that the lines can be copied.
    let me = std::env::args().next().unwrap_or_else(|| "campanile".to_owned());
    say!("  Watch:  {me} tail org:{org}");
    say!("  Or:     curl -N -H \"Authorization: Bearer $({me} token --sub me --org {org})\" \\");
    say!("               '{url}/api/events/stream?channels=org:{org}'");
    if with_demo {
        say!("\n  Demo: three repositories of `{org}` get a webhook every few seconds.");
    }
    say!("  Ctrl-C drains and stops.\n");
    // A closed standard output is nobody's loss.
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// A sign-in link for the person at the terminal. It is never logged, because everyone who reads the
/// log could use it.
async fn sign_in_link(node: &Node) -> Option<String> {
    if !std::io::stdout().is_terminal() {
        return None;
    }
    let made = node.sign_in_link().await;
    made.inspect_err(
        |error| tracing::warn!(%error, "no sign-in link could be created: run `campanile sign-in`"),
    )
    .ok()
}
