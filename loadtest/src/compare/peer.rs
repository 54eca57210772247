//! Another server that does the same work, started by the user: which it is, where it is, and how to
//! get in. It gets the same connections, messages and checks as the gateway; what it costs is known
//! if its process is.

use anyhow::{Context, Result, ensure};
use clap::Args;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity};

use crate::cores::Cores;
use crate::report::Section;
use crate::target::Target;
use crate::ws::dialect::Dialect;

/// Which other server to measure, in the options of every scenario that compares.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Peer")]
#[group(skip)]
pub struct Options {
    /// Measure another server too, which you have started: `centrifugo`, `nchan` or `socketio`, and
    /// its http:// URL on this machine. Start it on the server's core (taskset -c 0), or the
    /// comparison is not one. Only fanout, idle and connect can do this.
    ///
    /// centrifugo: /connection/websocket and POST /api/publish; also fits another Campanile.
    /// nchan: a subscriber location /sub/CHANNEL and a publisher location /pub/CHANNEL.
    /// socketio: a server that joins the room named by `subscribe` and acknowledges it, and emits the
    /// `data` of POST /publish as `message` to the room `channel`.
    #[arg(long, num_args = 2, value_names = ["KIND", "URL"])]
    peer: Option<Vec<String>>,
    /// Its process id, to know what it costs.
    #[arg(long, requires = "peer", value_name = "PID")]
    peer_pid: Option<u32>,
    /// Its API key, to publish (centrifugo).
    #[arg(
        long,
        requires = "peer",
        value_name = "KEY",
        hide_env_values = true,
        env = "LOADTEST_PEER_API_KEY"
    )]
    peer_api_key: Option<String>,
    /// Its token secret (centrifugo); without it connections have no token.
    #[arg(
        long,
        requires = "peer",
        value_name = "SECRET",
        hide_env_values = true,
        env = "LOADTEST_PEER_JWT_SECRET"
    )]
    peer_jwt_secret: Option<String>,
    /// The channel there.
    #[arg(long, requires = "peer", value_name = "CHANNEL", default_value = "bench:load")]
    peer_channel: String,
}

/// How to use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// What it speaks.
    pub dialect: Dialect,
    /// Where it is.
    pub target: Target,
    /// Its process, if that is known.
    pub pid: Option<u32>,
    /// To publish.
    pub api_key: String,
    /// To sign tokens.
    pub jwt_secret: Option<String>,
    /// Where to.
    pub channel: String,
}

impl Options {
    /// What it speaks, if there is one.
    pub fn dialect(&self) -> Result<Option<Dialect>> {
        let Some([name, _]) = self.peer.as_deref() else { return Ok(None) };
        let known = Dialect::named(name);
        Ok(Some(
            known.with_context(|| format!("no peer {name:?}; there are centrifugo, nchan and socketio"))?,
        ))
    }

    /// Finds it.
    pub async fn find(&self) -> Result<Peer> {
        let (Some(dialect), Some([_, url])) = (self.dialect()?, self.peer.as_deref()) else {
            anyhow::bail!("--peer is missing");
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, ':' | '-' | '_' | '.');
        let channel = self.peer_channel.clone();
        ensure!(!channel.is_empty() && channel.chars().all(plain), "--peer-channel must be a plain name");
        Ok(Peer {
            dialect,
            target: Target::resolve(url).await?,
            pid: self.peer_pid,
            api_key: self.peer_api_key.clone().unwrap_or_default(),
            jwt_secret: self.peer_jwt_secret.clone(),
            channel,
        })
    }

    /// What a reader should know of it.
    pub fn condition(&self) -> Option<String> {
        let [name, url] = self.peer.as_deref()? else { return None };
        Some(format!("{name}: {url}, {}, started by hand", self.peer_channel))
    }

    /// Warns of a peer that runs on other cores than the gateway.
    pub fn judge(&self, section: &mut Section, cores: Option<Cores>) {
        let (Some([name, _]), Some(cores)) = (self.peer.as_deref(), cores) else { return };
        let runs_elsewhere = match self.peer_pid {
            Some(pid) => !is_on(pid, cores.server),
            None => true,
        };
        if runs_elsewhere {
            let text = format!(
                "{name}: not known to run on core {0} alone, as the gateway does: taskset -c {0}, and --peer-pid",
                cores.server
            );
            section.warn("peer_unpinned", text);
        }
    }
}

/// Whether a process may use this core and no other.
fn is_on(pid: u32, core: usize) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let Some(Ok(allowed)) = pid.map(|pid| sched_getaffinity(Some(pid))) else { return false };
    (0..CpuSet::MAX_CPU).filter(|each| allowed.is_set(*each)).eq([core])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &[&str]) -> Options {
        let peer = Some(words.iter().map(|word| (*word).to_owned()).collect());
        Options { peer, peer_channel: "bench:load".into(), ..Options::default() }
    }

    #[tokio::test]
    async fn a_peer_is_known_by_name_and_is_on_this_machine() {
        let peer = options(&["nchan", "http://127.0.0.1:81"]).find().await.unwrap();
        assert_eq!((peer.dialect, peer.target.address.port()), (Dialect::Nchan, 81));
        for words in [["gopher", "http://127.0.0.1:81"], ["nchan", "http://192.0.2.1:81"]] {
            assert!(options(&words).find().await.is_err(), "{words:?}");
        }
        assert!(Options::default().dialect().unwrap().is_none());
    }

    #[test]
    fn a_peer_on_other_cores_is_told() {
        let mut section = Section::default();
        let cores = Some(Cores { server: 0, client: 1 });
        options(&["nchan", "http://127.0.0.1:81"]).judge(&mut section, cores);
        assert_eq!(section.warnings[0].code, "peer_unpinned");
        assert!(!is_on(0, 0), "nobody");
    }
}
