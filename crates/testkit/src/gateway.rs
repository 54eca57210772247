//! A gateway process that can be killed, stopped and started again on the same port with the same data.
//! It inherits no setting, so that it can never reach a database that someone cares about.

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;
use tokio::process::Child;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::http::{self, RequestBuilder as _};
use crate::process::{self, Signal, end_now};
use crate::target::Target;
use crate::{folder_in, port};

/// How long it may take to be ready, and to end, on a machine that has much to do at once.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at a process that starts: how exactly it is known how long that took.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// How to start a gateway.
#[derive(Default)]
pub struct Launch {
    /// The binary, if not the one next to this program.
    pub binary: Option<PathBuf>,
    /// Where its folder is made, if not among temporary files.
    pub parent: Option<PathBuf>,
    /// Its folder, which stays, if not one of its own.
    pub folder: Option<PathBuf>,
    /// The beginning of a command that becomes the gateway, such as one that watches it.
    pub under: Vec<String>,
    /// Where its data goes, if not into its folder.
    pub data: Option<PathBuf>,
    /// Its `campanile.toml`.
    pub config: Option<String>,
    /// Its secrets and addresses.
    pub environment: Vec<(&'static str, String)>,
    /// Further variables.
    pub settings: Vec<(String, String)>,
    /// The one processor core that it may use.
    pub core: Option<usize>,
}

/// The process, or the place where it comes back.
pub struct Gateway {
    /// Where it listens, each time.
    pub address: SocketAddr,
    /// How long its last start took, until it was ready.
    pub ready_after: Duration,
    launch: Launch,
    binary: PathBuf,
    folder: PathBuf,
    /// Goes with it.
    _own_folder: Option<TempDir>,
    child: Option<Child>,
}

impl Launch {
    /// Starts it and waits until it is ready.
    pub async fn start(self) -> Result<Gateway> {
        let binary = self.binary.clone().map_or_else(beside_this_program, Ok)?;
        let missing = || format!("no {}: cargo build --workspace --locked", binary.display());
        let binary = binary.canonicalize().with_context(missing)?;
        let own = match self.folder {
            Some(_) => None,
            None => Some(folder_in(self.parent.as_deref(), "campanile-")?),
        };
        let folder = own.as_ref().map(|own| own.path().to_owned()).or_else(|| self.folder.clone());
        let folder = folder.context("it has a folder")?;
        if let Some(config) = &self.config {
            std::fs::write(folder.join("campanile.toml"), config)?;
        }
        let address = SocketAddr::from(([127, 0, 0, 1], port::free()?));
        let (ready_after, launch) = (Duration::ZERO, self);
        let mut gateway =
            Gateway { address, ready_after, launch, binary, folder, _own_folder: own, child: None };
        gateway.start().await?;
        Ok(gateway)
    }
}

impl Gateway {
    /// Starts it, if it does not run, and waits until it is ready.
    pub async fn start(&mut self) -> Result<()> {
        if self.is_running()? {
            return self.wait_until_ready().await;
        }
        let log = File::options().create(true).append(true).open(self.log_file())?;
        let mut words = self.launch.under.iter().map(Path::new).chain([&*self.binary]);
        let program = words.next().unwrap_or(&self.binary);
        let mut command = process::command(program, "KILL", self.launch.core, &[]);
        command.args(words).arg("serve").current_dir(&self.folder).stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs(self.launch.settings.iter().cloned());
        command.env("CAMPANILE_LISTEN", self.address.to_string());
        command.env("CAMPANILE_DATA_DIR", self.data());
        command.envs(self.launch.environment.iter().map(|(name, value)| (name, value)));
        let began = Instant::now();
        self.child = Some(command.spawn().context("cannot start the gateway")?);
        self.wait_until_ready().await?;
        self.ready_after = began.elapsed();
        Ok(())
    }

    /// Waits for 200 of `/readyz`.
    pub async fn wait_until_ready(&mut self) -> Result<()> {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            ensure!(self.is_running()?, "the gateway does not run");
            let answer = http::send(self.address, http::get("/readyz").with("")).await;
            if answer.is_ok_and(|answer| answer.status == 200) {
                return Ok(());
            }
            sleep(POLL_INTERVAL).await;
        }
        bail!("the gateway was not ready after {PATIENCE:?}:\n{}", self.log_tail())
    }

    /// Whether it runs. One that ended by itself is an error, once.
    pub fn is_running(&mut self) -> Result<bool> {
        let Some(child) = &mut self.child else { return Ok(false) };
        if let Some(status) = child.try_wait()? {
            self.child = None;
            bail!("the gateway ended by itself with {status}:\n{}", self.log_tail());
        }
        Ok(true)
    }

    /// SIGKILL, and the wait until it is gone; an error if something else ended it.
    pub async fn kill(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        child.start_kill()?;
        let status = child.wait().await?;
        ensure!(status.signal() == Some(Signal::KILL.as_raw()), "the gateway ended with {status}");
        Ok(())
    }

    /// SIGTERM, and the wait for exit status 0; says how long that took.
    pub async fn terminate(&mut self) -> Result<Duration> {
        let began = Instant::now();
        if self.child.is_some() {
            self.signal(Signal::TERM)?;
            self.ended().await?;
        }
        Ok(began.elapsed())
    }

    /// The wait for exit status 0.
    pub async fn ended(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the gateway does not run")?;
        let status = timeout(PATIENCE, child.wait()).await.context("the gateway does not drain")??;
        ensure!(status.success(), "the gateway ended with {status}:\n{}", self.log_tail());
        Ok(())
    }

    /// Writes another `campanile.toml`, which counts from its next start or reload.
    pub fn configure(&self, config: &str) -> Result<()> {
        Ok(std::fs::write(self.folder.join("campanile.toml"), config)?)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        process::signal(self.child.as_ref().context("the gateway does not run")?, signal)
    }

    /// Stops it where it stands, for a while.
    pub async fn pause(&mut self, time: Duration) -> Result<()> {
        self.signal(Signal::STOP)?;
        sleep(time).await;
        self.signal(Signal::CONT)
    }

    /// Its process id, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref()?.id()
    }

    /// Where clients find it.
    pub fn target(&self) -> Target {
        Target::from(self.address)
    }

    /// Where its data is.
    pub fn data(&self) -> PathBuf {
        self.launch.data.clone().unwrap_or_else(|| self.folder.join("data"))
    }

    fn log_file(&self) -> PathBuf {
        self.folder.join("log")
    }

    fn log_tail(&self) -> String {
        let log = std::fs::read(self.log_file()).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(4096)..]).into_owned()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.child.iter().for_each(|child| end_now(child, Signal::KILL));
        if std::thread::panicking() {
            eprintln!("the gateway's log:\n{}", self.log_tail());
        }
    }
}

/// A secret that nobody guesses, for one run.
pub fn new_secret() -> String {
    Uuid::new_v4().simple().to_string().repeat(2)
}

/// The campanile next to this program.
fn beside_this_program() -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    Ok(here.parent().unwrap_or(Path::new(".")).join("campanile"))
}
