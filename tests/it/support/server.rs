//! A server that a test starts for itself, as an ordinary user and tied to the test's thread: it
//! goes with it, whatever happens.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tokio::net::TcpStream;
use tokio::time::{Duration, sleep, timeout};

/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(5);

/// The process, ended when this is dropped.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
    log: PathBuf,
}

impl Server {
    /// Starts what `command` makes for a free port, and waits until it takes connections.
    pub async fn start(folder: &Path, command: impl Fn(u16) -> Command) -> Self {
        let log = folder.join("log");
        for attempt in 1.. {
            let address = free_address();
            let mut command = command(address.port());
            let said = std::fs::File::create(&log).expect("a log");
            command.stdin(Stdio::null()).stdout(said.try_clone().expect("a log")).stderr(said);
            let child = command.spawn().expect("the server's program is there");
            let mut server = Self { child, address, log: log.clone() };
            // Someone may take the port before the server does.
            if server.answers().await || attempt == 3 {
                return server;
            }
        }
        unreachable!("the third attempt is returned")
    }

    async fn answers(&mut self) -> bool {
        let up = async {
            while TcpStream::connect(self.address).await.is_err() {
                let ended = self.child.try_wait().expect("a child can be asked").is_some();
                if ended {
                    return false;
                }
                sleep(LOOK).await;
            }
            true
        };
        timeout(PATIENCE, up).await.unwrap_or(false)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the server's log:\n{}", self.log());
        }
        // Not killed: PostgreSQL would leave shared memory behind.
        let pid = self.child.id().to_string();
        let _ = Command::new("sh").args(["-c", "kill -INT \"$0\"", &pid]).stderr(Stdio::null()).status();
        let _ = self.child.wait();
    }
}

/// Free a moment ago.
pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port")
}

/// `program` as an ordinary user, which needs `folder`: PostgreSQL refuses root.
pub fn ordinary(program: impl AsRef<Path>, folder: &Path) -> Command {
    // Whoever runs tests in the background may have it ignored, and children inherit that.
    let mut command = Command::new("env");
    command.args(["--default-signal=INT", "setpriv", "--pdeathsig", "INT"]);
    if let Some(user) = unprivileged() {
        let owner = Command::new("chown").args(["-R", user]).arg(folder).status();
        assert!(owner.expect("chown").success());
        command.args(["--reuid", user, "--regid", user, "--clear-groups"]);
    }
    command.arg("--").arg(program.as_ref()).current_dir(folder);
    command
}

/// Whom to become, if this is root.
fn unprivileged() -> Option<&'static str> {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let mut ids =
        status.lines().find_map(|line| line.strip_prefix("Uid:")).expect("a user").split_whitespace();
    (ids.next() == Some("0")).then_some("postgres")
}
