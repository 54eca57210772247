//! Logging, and what every module needs to declare its metrics. Neither logs nor labels ever carry a
//! payload, a token or a query string.

mod best_effort;
pub mod metrics;
pub mod process;

use std::io::{IsTerminal as _, Write as _};
use std::net::{IpAddr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use best_effort::BestEffort;
pub use best_effort::{Metrics, flush_log};

/// How much of a client's address log lines show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogAddresses {
    Full,
    /// Its network: the first 24 bits of IPv4, 48 of IPv6.
    #[default]
    Short,
    None,
}

impl LogAddresses {
    /// What of `address` is shown.
    pub fn shown(self, address: IpAddr) -> Option<String> {
        match (self, address) {
            (Self::None, _) => None,
            (Self::Full, address) => Some(address.to_string()),
            (Self::Short, IpAddr::V4(address)) => {
                let [a, b, c, _] = address.octets();
                Some(format!("{a}.{b}.{c}.0/24"))
            }
            (Self::Short, IpAddr::V6(address)) => {
                let network = address.to_bits() >> 80 << 80;
                Some(format!("{}/48", Ipv6Addr::from_bits(network)))
            }
        }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    /// For machines: one JSON object a line.
    Json,
}

/// Puts `text` into the log as it is, whatever the filter.
pub fn write_to_log(text: &str) {
    // Whether anybody reads it is not ours to say.
    let _ = BestEffort.write_all(text.as_bytes());
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
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| BestEffort)
        // It would print them, and panic where that fails.
        .log_internal_errors(false);
    let started = match format {
        LogFormat::Text => builder.with_ansi(terminal).with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("logging is on already: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_shown_whole_by_their_network_or_not_at_all() {
        let shown = |how: LogAddresses, text: &str| how.shown(text.parse().expect("an address"));
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(shown(LogAddresses::Full, "192.0.2.77"), some("192.0.2.77"));
        assert_eq!(shown(LogAddresses::Short, "192.0.2.77"), some("192.0.2.0/24"));
        assert_eq!(shown(LogAddresses::Short, "2001:db8:7:8::9"), some("2001:db8:7::/48"));
        assert_eq!(shown(LogAddresses::None, "192.0.2.77"), None);
    }
}
