//! A Redis server for one run, on a free port of the loopback. It keeps nothing: what is in a gateway's
//! Redis may be gone at any time. It can be killed, frozen and started again on the same port.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Child;
use tokio::time::{sleep, timeout};

use crate::port;
use crate::process::{self, Signal, signal};

/// How long it may take to answer, and to end.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The server.
pub struct Redis {
    program: PathBuf,
    /// Where it listens, each time.
    pub address: SocketAddr,
    running: Option<Child>,
}

/// The server's program, if this machine has it; `REDIS_BIN` names an unusual folder.
pub fn program() -> Option<PathBuf> {
    let named = std::env::var_os("REDIS_BIN").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = named.into_iter().chain(std::env::split_paths(&path));
    let mut programs = places.map(|folder| folder.join("redis-server"));
    programs.find(|file| file.is_file())
}

impl Redis {
    /// Starts one and waits until it answers.
    pub async fn start() -> Result<Self> {
        let program = program().context("no Redis here: install it, or name its folder by REDIS_BIN")?;
        let address = SocketAddr::from(([127, 0, 0, 1], port::free()?));
        let mut server = Self { program, address, running: None };
        server.up().await?;
        Ok(server)
    }

    /// Starts it, if it does not run, and waits until it answers.
    pub async fn up(&mut self) -> Result<()> {
        if self.running.is_some() {
            return Ok(());
        }
        let mut command = process::command(&self.program, "KILL", None, &[]);
        command.args(["--bind", "127.0.0.1", "--port", &self.address.port().to_string()]);
        command.args(["--save", "", "--appendonly", "no", "--loglevel", "warning"]);
        command.current_dir(std::env::temp_dir());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.running = Some(command.spawn().context("cannot start redis-server")?);
        let began = Instant::now();
        while !self.answers().await {
            let ended = self.child()?.try_wait()?;
            ensure!(ended.is_none(), "redis-server ended by itself");
            ensure!(began.elapsed() < PATIENCE, "redis-server does not answer");
            sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// Ends it: killed, or asked.
    pub async fn down(&mut self, killed: bool) -> Result<()> {
        let Some(mut child) = self.running.take() else { return Ok(()) };
        signal(&child, if killed { Signal::KILL } else { Signal::TERM })?;
        timeout(PATIENCE, child.wait()).await.context("redis-server does not end")??;
        Ok(())
    }

    /// It takes connections and answers nothing.
    pub fn freeze(&mut self) -> Result<()> {
        signal(self.child()?, Signal::STOP)
    }

    /// It goes on, with all that it was told meanwhile.
    pub fn thaw(&mut self) -> Result<()> {
        signal(self.child()?, Signal::CONT)
    }

    fn child(&mut self) -> Result<&mut Child> {
        self.running.as_mut().context("redis-server does not run")
    }

    async fn answers(&self) -> bool {
        let asked = async {
            let mut stream = TcpStream::connect(self.address).await?;
            stream.write_all(b"PING\r\n").await?;
            let mut answer = [0; 7];
            stream.read_exact(&mut answer).await?;
            Ok::<bool, std::io::Error>(answer == *b"+PONG\r\n")
        };
        matches!(timeout(Duration::from_secs(1), asked).await, Ok(Ok(true)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_comes_back_on_the_same_port() {
        let mut server = Redis::start().await.unwrap();
        for killed in [true, false] {
            server.down(killed).await.unwrap();
            assert!(!server.answers().await);
            server.up().await.unwrap();
            assert!(server.answers().await);
        }
        server.freeze().unwrap();
        assert!(!server.answers().await, "it takes the connection and says nothing");
        server.thaw().unwrap();
        assert!(server.answers().await);
    }
}
