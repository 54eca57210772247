//! The address of a running gateway: from `--url`, from CAMPANILE_URL, or where the configuration
//! says that one listens. Valid by construction, and free of anything that must not be shown.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use actix_web::http::Uri;
use clap::Args;

use crate::config::Config;

/// Where to find the gateway, as a flag of the commands that talk to one.
#[derive(Debug, Clone, Args)]
pub(super) struct UrlArg {
    /// Address of the running gateway [default: where the configuration says it listens]
    #[arg(long, env = "CAMPANILE_URL", hide_env_values = true, value_name = "URL")]
    url: Option<String>,
}

impl UrlArg {
    /// The address; an empty variable counts as unset.
    pub(super) fn resolve(&self, config: &Config) -> anyhow::Result<BaseUrl> {
        match self.url.as_deref().map(str::trim).filter(|url| !url.is_empty()) {
            Some(url) => url.parse().map_err(anyhow::Error::msg),
            None => BaseUrl::of(config),
        }
    }
}

/// Scheme, host and perhaps a path below which a gateway is, without a slash at the end.
#[derive(Debug, Clone, PartialEq, Eq, derive_more::Display)]
pub(super) struct BaseUrl(String);

impl BaseUrl {
    /// Where the gateway with this configuration can be reached from its own machine.
    fn of(config: &Config) -> anyhow::Result<Self> {
        let listen = config.server.listen;
        match (&config.server.public_url, listen.port()) {
            (Some(public), 0) => public.to_string().parse().map_err(anyhow::Error::msg),
            (None, 0) => anyhow::bail!("the configuration lets the gateway take any free port: pass --url"),
            _ => Ok(Self(format!("http://{}", reachable(listen)))),
        }
    }

    /// The address of `path`, which begins with a slash.
    pub(super) fn join(&self, path: &str) -> String {
        format!("{}{path}", self.0)
    }
}

/// An address that one can connect to, for one that stands for all of the machine's.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

impl FromStr for BaseUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        // The text is not repeated: it may hold a password.
        let wrong = "the URL of the gateway is malformed: write http://HOST:PORT or https://HOST";
        let uri: Uri = text.parse().map_err(|_| wrong)?;
        let authority = uri.authority().ok_or(wrong)?;
        if authority.as_str().contains('@') {
            return Err("the URL of the gateway must not hold a user or password");
        }
        if !matches!(uri.scheme_str(), Some("http" | "https")) || authority.host().is_empty() {
            return Err(wrong);
        }
        // The parser drops fragments silently.
        if uri.query().is_some() || text.contains('#') {
            return Err("the URL of the gateway has something behind its path: leave out `?…` and `#…`");
        }
        Ok(Self(text.trim_end_matches('/').to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Loader;

    fn resolve(url: Option<&str>, options: &[(&str, &str)]) -> anyhow::Result<String> {
        let config = Loader::new().environment(options.iter().copied()).load().expect("a good configuration");
        UrlArg { url: url.map(Into::into) }.resolve(&config).map(|url| url.join("/x"))
    }

    #[test]
    fn the_default_is_where_the_gateway_listens() {
        let listening = |address| resolve(None, &[("CAMPANILE_LISTEN", address)]).unwrap();
        assert_eq!(resolve(None, &[]).unwrap(), "http://127.0.0.1:8080/x");
        assert_eq!(resolve(Some(" "), &[]).unwrap(), "http://127.0.0.1:8080/x");
        assert_eq!(listening("0.0.0.0:80"), "http://127.0.0.1:80/x");
        assert_eq!(listening("[::]:8081"), "http://[::1]:8081/x");
        assert_eq!(listening("192.168.1.2:8080"), "http://192.168.1.2:8080/x");
    }

    #[test]
    fn a_port_that_is_not_known_before_needs_a_url() {
        let any = ("CAMPANILE_LISTEN", "127.0.0.1:0");
        let public = ("CAMPANILE_SERVER__PUBLIC_URL", "https://live.example.com");
        assert!(resolve(None, &[any]).unwrap_err().to_string().contains("pass --url"));
        assert_eq!(resolve(None, &[any, public]).unwrap(), "https://live.example.com/x");
        assert_eq!(resolve(None, &[public]).unwrap(), "http://127.0.0.1:8080/x");
    }

    #[test]
    fn a_url_may_have_a_path_and_nothing_behind_it() {
        let ok = |url| resolve(Some(url), &[]).unwrap();
        assert_eq!(ok("https://live.example.com"), "https://live.example.com/x");
        assert_eq!(ok("http://localhost:9/campanile//"), "http://localhost:9/campanile/x");
        for bad in [
            "live.example.com",
            "localhost:8080",
            "ftp://host",
            "http://",
            "http:///x",
            "http://a b/",
            "http://ana:hunter2@host",
            "http://host/?token=hunter2",
            "http://host/#hunter2",
        ] {
            let error = resolve(Some(bad), &[]).unwrap_err().to_string();
            assert!(error.contains("the URL of the gateway") && !error.contains("hunter2"), "{bad}: {error}");
        }
    }
}
