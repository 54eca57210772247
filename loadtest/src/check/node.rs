//! One gateway process that is killed, stopped and started again on the same port with the same
//! folder. It inherits no setting, so that it can never reach a database that someone cares about,
//! and goes with this tool even if that is killed.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::http::Connection;
use crate::target::Target;
use crate::{port, postgres, server};

/// How long it may take to be ready, and to end: on a machine with a lot to do at once.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Its secrets, and where its data goes.
pub struct Setting {
    /// `campanile.toml`.
    pub config: String,
    /// Secrets and addresses.
    pub environment: Vec<(&'static str, String)>,
    /// Its data folder.
    pub data: PathBuf,
    /// Its working folder, with its log.
    pub folder: PathBuf,
}

/// The process, or the place where it comes back.
pub struct Node {
    setting: Setting,
    /// Where it listens, each time.
    pub address: SocketAddr,
    child: Option<Child>,
}

impl Node {
    /// Starts it and waits until it is ready.
    pub async fn start(setting: Setting) -> Result<Self> {
        std::fs::create_dir_all(&setting.folder)?;
        std::fs::write(setting.folder.join("campanile.toml"), &setting.config)?;
        let address = SocketAddr::from(([127, 0, 0, 1], port::free()?));
        let mut node = Self { setting, address, child: None };
        node.up().await?;
        Ok(node)
    }

    /// Where clients find it.
    pub fn target(&self) -> Target {
        Target::from(self.address)
    }

    /// Starts it, if it does not run, and waits until it is ready.
    pub async fn up(&mut self) -> Result<()> {
        if self.is_running()? {
            return self.wait_until_ready().await;
        }
        let folder = &self.setting.folder;
        let log = std::fs::File::options().create(true).append(true).open(folder.join("log"))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(binary()?).arg("serve");
        command.current_dir(folder).stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("CAMPANILE_LISTEN", self.address.to_string());
        command.env("CAMPANILE_DATA_DIR", &self.setting.data);
        command.envs(self.setting.environment.iter().map(|(name, value)| (name, value)));
        self.child = Some(command.spawn().context("cannot start the gateway")?);
        self.wait_until_ready().await
    }

    /// SIGKILL, and the wait until it is gone.
    pub async fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().await?;
        }
        Ok(())
    }

    /// SIGTERM, and the wait for exit status 0.
    pub async fn end(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        postgres::signal(&child, Signal::TERM)?;
        let status = timeout(PATIENCE, child.wait()).await.context("the gateway does not drain")??;
        ensure!(status.success(), "the gateway ended with {status}:\n{}", self.last_words());
        Ok(())
    }

    /// Stops it where it stands, for a while.
    pub async fn stand_still(&mut self, time: Duration) -> Result<()> {
        let child = self.child.as_ref().context("the gateway does not run")?;
        postgres::signal(child, Signal::STOP)?;
        sleep(time).await;
        postgres::signal(child, Signal::CONT)
    }

    /// Whether it runs. One that ended by itself is gone.
    pub fn is_running(&mut self) -> Result<bool> {
        let Some(child) = &mut self.child else { return Ok(false) };
        if let Some(status) = child.try_wait()? {
            self.child = None;
            bail!("the gateway ended by itself with {status}:\n{}", self.last_words());
        }
        Ok(true)
    }

    /// Waits for 200 of `/readyz`.
    pub async fn wait_until_ready(&mut self) -> Result<()> {
        let target = self.target();
        let request = format!("GET /readyz HTTP/1.1\r\nHost: {}\r\n\r\n", target.host);
        let (mut body, began) = (Vec::new(), Instant::now());
        while began.elapsed() < PATIENCE {
            ensure!(self.is_running()?, "the gateway does not run");
            let mut connection = Connection::to(&target);
            if matches!(connection.exchange(request.as_bytes(), &mut body).await, Ok(200)) {
                return Ok(());
            }
            sleep(LOOK_AGAIN).await;
        }
        bail!("the gateway was not ready after {PATIENCE:?}:\n{}", self.last_words())
    }

    /// The end of its log.
    pub fn last_words(&self) -> String {
        let log = std::fs::read(self.setting.folder.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(4096)..]).into_owned()
    }
}

fn binary() -> Result<PathBuf> {
    let file = server::neighbour()?;
    let missing = || format!("no {}: cargo build --workspace --locked", file.display());
    file.canonicalize().with_context(missing)
}

/// A folder of this run, gone when it is dropped.
pub struct Folder(PathBuf);

impl Folder {
    /// Makes it among temporary files.
    pub fn new(what: &str) -> Result<Self> {
        let name = format!("campanile-check-{what}-{}", &server::new_secret()[..8]);
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(Self(folder))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
