//! A PostgreSQL server for one run: made by initdb in a folder of its own, on a free port of the
//! loopback, as durable as in production, on one core if asked. It can be stopped, killed, copied and
//! started again on the same port.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};
use tokio_postgres::{Client, NoTls};

use crate::process::{self, Signal, end_now};
use crate::{folder_in, port};

/// How long the server may take to answer, and to end.
const PATIENCE: Duration = Duration::from_secs(120);
const USER: &str = "postgres";
/// Between two looks at a server that starts.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The server, and the folder with all that it has.
pub struct Postgres {
    programs: PathBuf,
    folder: TempDir,
    port: u16,
    settings: Vec<String>,
    /// The one core that it may use.
    core: Option<usize>,
    /// The beginning of a command that becomes the server, such as one that watches it.
    under: Vec<String>,
    /// The main process, while there is one.
    running: Option<Child>,
    /// How long its log was when it was started last.
    log_start: u64,
}

/// How a server is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// Sessions are cut, everything is written: `pg_ctl stop -m fast`.
    Fast,
    /// At once and without a checkpoint: the next start recovers from the log.
    Immediate,
    /// SIGKILL to the main process. Its children notice.
    Kill,
}

impl Postgres {
    /// Makes one in the folder of temporary files, and waits until it answers.
    pub async fn start() -> Result<Self> {
        Self::start_in(None, &[], None).await
    }

    /// Makes one below `parent` with further settings, such as `wal_level=logical`, on one core if asked.
    pub async fn start_in(parent: Option<&Path>, settings: &[&str], core: Option<usize>) -> Result<Self> {
        Self::make(parent, settings, core, &[]).await
    }

    /// Makes one whose command, beginning with `under`, becomes the server.
    pub async fn start_under(under: &[String], settings: &[&str]) -> Result<Self> {
        Self::make(None, settings, None, under).await
    }

    async fn make(
        parent: Option<&Path>,
        settings: &[&str],
        core: Option<usize>,
        under: &[String],
    ) -> Result<Self> {
        let programs = find_programs()?;
        let folder = folder_in(parent, "campanile-postgres-")?;
        let (settings, under) =
            (settings.iter().map(|setting| (*setting).to_owned()).collect(), under.to_vec());
        let mut server =
            Self { programs, folder, port: 0, settings, core, under, running: None, log_start: 0 };
        server.init().await?;
        for attempt in 1.. {
            // Someone may take the port before the server does: hence the attempts.
            server.port = port::free()?;
            match server.start_once().await {
                Ok(()) => break,
                Err(error) if attempt == 3 => return Err(error),
                Err(_) => server.down(Shutdown::Kill).await?,
            }
        }
        Ok(server)
    }

    /// The URL of one of its databases; `postgres` is always there.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/{database}", self.port)
    }

    /// The same behind a proxy.
    pub fn url_through(address: SocketAddr, database: &str) -> String {
        format!("postgres://{USER}@{address}/{database}")
    }

    /// Where all that it has is, with its working directory.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where it listens, each time.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// A physical copy that follows this one for as long as `link` leads to it.
    pub async fn copy(&self, link: SocketAddr) -> Result<Self> {
        let folder = folder_in(None, "campanile-postgres-")?;
        let (programs, settings) = (self.programs.clone(), self.settings.clone());
        let (port, core, under) = (port::free()?, self.core, Vec::new());
        let mut copy = Self { programs, folder, port, settings, core, under, running: None, log_start: 0 };
        process::give_away(copy.folder.path())?;
        let mut command = copy.command("pg_basebackup")?;
        command.args(["--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync"]);
        command.args(["--host", "127.0.0.1", "--port", &link.port().to_string(), "--username", USER]);
        command.arg("--pgdata").arg(copy.data());
        let status = command.status().await.context("cannot run pg_basebackup")?;
        ensure!(status.success(), "pg_basebackup ended with {status}:\n{}", copy.log_tail());
        copy.up().await?;
        Ok(copy)
    }

    /// A copy becomes a server of its own, with a history of its own from here on.
    pub async fn promote(&self) -> Result<()> {
        let session = self.session("postgres").await?;
        let promoted: bool = session.query_one("SELECT pg_promote(true, 60)", &[]).await?.get(0);
        ensure!(promoted, "the copy was not promoted");
        Ok(())
    }

    /// The id of its main process, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.running.as_ref()?.id()
    }

    /// Makes an empty database and gives its URL.
    pub async fn create_database(&self, name: &str) -> Result<String> {
        let session = self.session("postgres").await?;
        session.batch_execute(&format!("CREATE DATABASE \"{name}\"")).await?;
        Ok(self.url(name))
    }

    /// A session of its own.
    pub async fn session(&self, database: &str) -> Result<Client> {
        session(&self.url(database)).await
    }

    /// Starts it, if it does not run, and waits until it answers.
    pub async fn up(&mut self) -> Result<()> {
        if self.is_running()? {
            return Ok(());
        }
        let began = Instant::now();
        while let Err(error) = self.start_once().await {
            // The children of a server that was killed live on for a moment, with its memory and, if
            // they were new, its port.
            let log = self.log_since(self.log_start);
            let orphans = ["is still in use", "Address already in use"].iter().any(|sign| log.contains(sign));
            let again = orphans && !self.is_running()? && began.elapsed() < PATIENCE;
            if !again {
                return Err(error);
            }
            sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    async fn start_once(&mut self) -> Result<()> {
        let mut command = self.command("postgres")?;
        self.log_start = self.log_length();
        command.arg("-D").arg(self.data()).args(["-p", &self.port.to_string()]);
        let durable = ["fsync=on", "synchronous_commit=on", "full_page_writes=on"];
        let sized = ["max_connections=200", "shared_buffers=64MB"];
        // No socket in a folder: its name would have to be short.
        let reached = ["listen_addresses=127.0.0.1", "unix_socket_directories="];
        for setting in reached.into_iter().chain(durable).chain(sized) {
            command.args(["-c", setting]);
        }
        for setting in &self.settings {
            command.args(["-c", setting]);
        }
        self.running = Some(command.spawn().context("cannot start postgres")?);
        self.wait_until_it_answers().await
    }

    /// Ends it, if it runs, and waits until it has ended.
    pub async fn down(&mut self, how: Shutdown) -> Result<()> {
        if !self.is_running()? {
            return Ok(());
        }
        let Some(mut child) = self.running.take() else { return Ok(()) };
        process::signal(&child, how.signal())?;
        if timeout(PATIENCE, child.wait()).await.is_err() {
            child.kill().await?;
            bail!("postgres did not end within {PATIENCE:?}:\n{}", self.log_tail());
        }
        Ok(())
    }

    /// Ends it and starts it again, on the same port and with what it has kept.
    pub async fn restart(&mut self, how: Shutdown) -> Result<()> {
        self.down(how).await?;
        self.up().await
    }

    /// Whether its main process lives. One that ended by itself, because its disk is full, can be
    /// started again.
    pub fn is_running(&mut self) -> Result<bool> {
        let Some(child) = &mut self.running else { return Ok(false) };
        if child.try_wait()?.is_some() {
            self.running = None;
        }
        Ok(self.running.is_some())
    }

    async fn init(&self) -> Result<()> {
        process::give_away(self.folder.path())?;
        let mut command = self.command("initdb")?;
        command.arg("-D").arg(self.data()).args(["-U", USER, "--auth=trust", "--encoding=UTF8"]);
        command.args(["--locale=C.UTF-8", "--no-sync"]);
        let status = command.status().await.context("cannot run initdb")?;
        ensure!(status.success(), "initdb ended with {status}:\n{}", self.log_tail());
        Ok(())
    }

    async fn wait_until_it_answers(&mut self) -> Result<()> {
        let began = Instant::now();
        loop {
            let answer = match self.session("postgres").await {
                Ok(session) => session.simple_query("SELECT 1").await.map(drop).map_err(Into::into),
                Err(error) => Err(error),
            };
            let Err(error) = answer else { return Ok(()) };
            ensure!(self.is_running()?, "postgres ended:\n{}", self.log_tail());
            let waited = began.elapsed() < PATIENCE;
            ensure!(waited, "postgres does not answer: {error:#}\n{}", self.log_tail());
            sleep(POLL_INTERVAL).await;
        }
    }

    /// One of its programs, with its words in the log, as an ordinary user (it refuses root), and
    /// tied to this process so that it goes even if this one is killed.
    fn command(&self, program: &str) -> Result<Command> {
        // What was killed may still have a last word: whoever writes, writes at the end.
        let log = File::options().create(true).append(true).open(self.log())?;
        let under = if program == "postgres" { &self.under[..] } else { &[] };
        let program = self.programs.join(program);
        let mut command = process::ordinary(&program, "INT", self.core, self.folder.path(), under)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(command)
    }

    /// The cluster, with its configuration.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn log_tail(&self) -> String {
        self.log_since(self.log_length().saturating_sub(4096))
    }

    /// What the log says from this byte on.
    fn log_since(&self, start: u64) -> String {
        let mut words = Vec::new();
        let read = File::open(self.log()).and_then(|mut log| {
            log.seek(SeekFrom::Start(start))?;
            log.read_to_end(&mut words)
        });
        read.map_or_else(|error| error.to_string(), |_| String::from_utf8_lossy(&words).into_owned())
    }

    fn log_length(&self) -> u64 {
        std::fs::metadata(self.log()).map_or(0, |log| log.len())
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }
}

impl Shutdown {
    fn signal(self) -> Signal {
        match self {
            Self::Fast => Signal::INT,
            Self::Immediate => Signal::QUIT,
            Self::Kill => Signal::KILL,
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Not killed, so that no shared memory stays behind: it ends within five seconds by itself.
        self.running.iter().for_each(|child| end_now(child, Signal::QUIT));
    }
}

/// A session with the server of `url`, without TLS; it ends with the client.
pub async fn session(url: &str) -> Result<Client> {
    let connecting = timeout(PATIENCE, tokio_postgres::connect(url, NoTls)).await;
    let (client, connection) = connecting.context("postgres does not answer")??;
    tokio::spawn(connection);
    Ok(client)
}

/// The newest folder with the server's programs; one with only the client's does not count.
fn find_programs() -> Result<PathBuf> {
    let named = std::env::var_os("PG_BIN").map(PathBuf::from);
    let mut installed: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|folders| folders.flatten().map(|folder| folder.path().join("bin")).collect())
        .unwrap_or_default();
    let version = |bin: &PathBuf| -> Option<u32> { bin.parent()?.file_name()?.to_str()?.parse().ok() };
    installed.sort_by_key(|bin| std::cmp::Reverse(version(bin)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).filter_map(|folder| {
        let postgres = folder.join("postgres").canonicalize().ok()?;
        Some(postgres.parent()?.to_owned())
    });
    let mut places = named.into_iter().chain(installed).chain(on_path);
    let has_all = |bin: &PathBuf| ["initdb", "postgres"].iter().all(|name| bin.join(name).is_file());
    places.find(has_all).context("no PostgreSQL here: install it, or name the folder of initdb by PG_BIN")
}

#[cfg(test)]
mod tests {
    use rustix::process::{Pid, kill_process};

    use super::*;

    async fn count(server: &Postgres) -> i64 {
        let session = server.session("kept").await.unwrap();
        session.query_one("SELECT count(*) FROM things", &[]).await.unwrap().get(0)
    }

    #[tokio::test]
    async fn a_copy_follows_and_can_take_over() {
        let server = Postgres::start().await.unwrap();
        let url = server.create_database("kept").await.unwrap();
        let table = "CREATE TABLE things (id INT); INSERT INTO things VALUES (1)";
        session(&url).await.unwrap().batch_execute(table).await.unwrap();
        let copy = server.copy(server.address()).await.unwrap();
        assert_eq!(count(&copy).await, 1);
        copy.promote().await.unwrap();
        let writer = copy.session("kept").await.unwrap();
        writer.execute("INSERT INTO things VALUES (2)", &[]).await.unwrap();
        assert_eq!((count(&copy).await, count(&server).await), (2, 1));
    }

    #[tokio::test]
    async fn it_comes_back_although_what_was_killed_lives_on_and_has_a_last_word() {
        let mut server = Postgres::start().await.unwrap();
        let (mut sessions, mut children) = (Vec::new(), Vec::new());
        for _ in 0..60 {
            let session = server.session("postgres").await.unwrap();
            let id: i32 = session.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
            // So that there is more in the log than what is read of it.
            session.simple_query("SELECT 'which is not a number'::INT").await.unwrap_err();
            children.push(Pid::from_raw(id).unwrap());
            sessions.push(session);
        }
        for child in &children {
            kill_process(*child, Signal::STOP).unwrap();
        }
        let waking = async {
            for child in &children {
                sleep(POLL_INTERVAL / 2).await;
                kill_process(*child, Signal::CONT).unwrap();
            }
        };
        let (restarted, ()) = tokio::join!(server.restart(Shutdown::Kill), waking);
        restarted.unwrap();
    }

    #[tokio::test]
    async fn what_was_committed_is_there_after_every_kind_of_restart() {
        let mut server = Postgres::start().await.unwrap();
        let url = server.create_database("kept").await.unwrap();
        session(&url).await.unwrap().batch_execute("CREATE TABLE things (id INT)").await.unwrap();
        for (already, how) in [Shutdown::Fast, Shutdown::Immediate, Shutdown::Kill].into_iter().enumerate() {
            let writer = server.session("kept").await.unwrap();
            writer.execute("INSERT INTO things VALUES (1)", &[]).await.unwrap();
            server.restart(how).await.unwrap();
            assert_eq!(count(&server).await, already as i64 + 1, "{how:?}");
        }
        assert_eq!(server.url("kept"), url, "the port stays");

        let folder = server.folder.path().to_owned();
        server.down(Shutdown::Fast).await.unwrap();
        assert!(!server.is_running().unwrap() && server.session("kept").await.is_err());
        drop(server);
        assert!(!folder.exists(), "nothing is left behind");
    }
}
