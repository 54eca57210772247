//! A server that a test configures by itself, as an ordinary user: a proxy, or a Redis with TLS. It ends
//! with the test, whatever happens.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::port;
use crate::process::{self, Signal, end_now};

/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at a server that starts.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The process, ended when this is dropped.
pub struct Server {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
    log: PathBuf,
}

impl Server {
    /// Starts `program` in `folder`, where `configure` has written what it needs for a free port and gives its
    /// arguments, and waits until it takes connections.
    pub async fn start(
        program: &str,
        folder: &Path,
        configure: impl FnOnce(u16) -> Vec<String>,
    ) -> Result<Self> {
        let (port, log) = (port::free()?, folder.join("log"));
        let arguments = configure(port);
        let mut command: Command = process::ordinary(Path::new(program), "TERM", None, folder, &[])?;
        let words = File::create(&log)?;
        command.args(arguments).stdin(Stdio::null()).stdout(words.try_clone()?).stderr(words);
        process::give_away(folder)?;
        let child = command.spawn().with_context(|| format!("cannot start {program}"))?;
        let mut server = Self { child, address: SocketAddr::from(([127, 0, 0, 1], port)), log };
        timeout(PATIENCE, server.answers()).await.with_context(|| format!("{program} does not answer"))??;
        Ok(server)
    }

    async fn answers(&mut self) -> Result<()> {
        while TcpStream::connect(self.address).await.is_err() {
            ensure!(self.child.try_wait()?.is_none(), "it ended:\n{}", self.log());
            sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// All that it has said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        end_now(&self.child, Signal::TERM);
        if std::thread::panicking() {
            eprintln!("the server's log:\n{}", self.log());
        }
    }
}
