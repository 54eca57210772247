//! Where the load goes: an `http://` address of this machine and nothing else. A host that resolves
//! to any address outside the loopback is refused, so that a slip of the finger harms nobody.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};

/// A server on the loopback.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Where to connect.
    pub address: SocketAddr,
    /// The `Host` header: as the URL spells it.
    pub host: String,
}

impl Target {
    /// Resolves `http://host[:port][/]`.
    pub async fn resolve(url: &str) -> Result<Self> {
        let host = authority(url)?;
        let with_port = if has_port(host) { host.to_owned() } else { format!("{host}:80") };
        let mut addresses: Vec<SocketAddr> = tokio::net::lookup_host(&with_port)
            .await
            .with_context(|| format!("cannot resolve {host}"))?
            .collect();
        if let Some(foreign) = addresses.iter().find(|a| !a.ip().is_loopback()) {
            bail!("{host} is {}, and load goes to this machine only", foreign.ip());
        }
        // `localhost` is both; the server listens on IPv4 unless told otherwise.
        addresses.sort_by_key(SocketAddr::is_ipv6);
        let address = *addresses.first().with_context(|| format!("{host} has no address"))?;
        Ok(Self { address, host: host.to_owned() })
    }
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Self { address, host: address.to_string() }
    }
}

fn authority(url: &str) -> Result<&str> {
    let rest = url.strip_prefix("http://").context("the URL must start with http://")?;
    let host = rest.strip_suffix('/').unwrap_or(rest);
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '-' | '[' | ']');
    ensure!(!host.is_empty() && host.chars().all(plain), "the URL must be http://host:port and no more");
    Ok(host)
}

fn has_port(host: &str) -> bool {
    let after_v6 = host.rsplit(']').next().unwrap_or(host);
    after_v6.contains(':')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn this_machine_is_accepted() {
        for (url, address) in [
            ("http://127.0.0.1:8080", "127.0.0.1:8080"),
            ("http://127.0.0.1/", "127.0.0.1:80"),
            ("http://[::1]:9000", "[::1]:9000"),
            ("http://[::1]", "[::1]:80"),
        ] {
            assert_eq!(Target::resolve(url).await.unwrap().address, address.parse().unwrap(), "{url}");
        }
    }

    #[tokio::test]
    async fn other_machines_and_other_urls_are_refused() {
        for url in [
            "http://192.0.2.1:8080",
            "http://0.0.0.0:8080",
            "https://127.0.0.1",
            "127.0.0.1:8080",
            "http://",
            "http://127.0.0.1/path",
            "http://me@127.0.0.1",
        ] {
            assert!(Target::resolve(url).await.is_err(), "{url}");
        }
    }
}
