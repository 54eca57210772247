//! Logging, and what every module needs to declare its metrics. Neither logs nor labels ever carry a
//! payload, a token or a query string.

pub mod metrics;

use std::io::IsTerminal as _;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    /// For machines: one JSON object a line.
    Json,
}

/// Starts logging to standard error with a `tracing` filter such as `info,campanile::hub=debug`.
/// `format` defaults to text on a terminal and to JSON elsewhere.
pub fn start_logging(filter: &str, format: Option<LogFormat>) -> anyhow::Result<()> {
    // The driver shows the values of queries, and so payloads, at `debug`: only whoever names it
    // gets that.
    let quiet = if filter.contains("tokio_postgres") { "" } else { ",tokio_postgres=info" };
    let filter = tracing_subscriber::EnvFilter::try_new(format!("{filter}{quiet}"))
        .map_err(|error| anyhow::anyhow!("the log filter `{filter}` is malformed: {error}"))?;
    let terminal = std::io::stderr().is_terminal();
    let format = format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Text => builder.with_ansi(terminal).with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("logging is on already: {error}"))
}
