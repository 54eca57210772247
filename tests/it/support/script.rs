//! A process that plays a scenario of `tests/sdk` or `tests/browser`, in Node or in Python. It says a
//! JSON value a line on stdout; what it asks for is answered by a line on stdin. It is killed at the
//! latest when its [`Script`] is dropped.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

pub struct Script {
    name: String,
    child: Child,
    answers: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    /// How often it found something to be as it must be.
    checks: usize,
}

impl Script {
    /// Starts the scenario `name`; `stage` is where everything is.
    pub fn start(name: &str, stage: &Value) -> Self {
        Self::start_in("tests/sdk", "centrifuge", name, stage)
    }

    /// Starts one of the scenarios for the Python SDK.
    pub fn start_python(name: &str, stage: &Value) -> Self {
        static INSTALLED: OnceLock<PathBuf> = OnceLock::new();
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/sdk/python");
        let venv = INSTALLED.get_or_init(|| {
            let venv = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("centrifuge-python");
            let install = std::process::Command::new(folder.join("install")).arg(&venv).output();
            let done = install.expect("the script runs");
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            venv
        });
        let mut command = Command::new(venv.join("bin/python"));
        // No caches between the sources.
        command.arg("-B").arg(folder.join("play.py")).arg(name).current_dir(folder);
        Self::run(command, name, stage)
    }

    /// Starts one of the scenarios in `folder`, which needs the package `package`.
    pub fn start_in(folder: &str, package: &str, name: &str, stage: &Value) -> Self {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(folder);
        let installed = folder.join("node_modules").join(package).exists();
        assert!(installed, "{package} is missing in {}: run tests/run", folder.display());
        let mut command = Command::new("node");
        command.arg(folder.join("play.mjs")).arg(name).current_dir(folder);
        Self::run(command, name, stage)
    }

    fn run(mut command: Command, name: &str, stage: &Value) -> Self {
        command.env("CAMPANILE_STAGE", stage.to_string()).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("Node 20 or newer, and Python 3.10 or newer, are there");
        let answers = child.stdin.take().expect("a pipe");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Self { name: name.to_owned(), child, answers, lines, checks: 0 }
    }

    /// Plays to its good end, which must come in time. `perform` does what it asks for.
    pub async fn play(mut self, deadline: Duration, mut perform: impl AsyncFnMut(Value) -> Value) {
        let mut stderr = self.child.stderr.take().expect("a pipe");
        // Read from the start, so that it never waits for somebody to read.
        let said = tokio::spawn(async move {
            let mut said = Vec::new();
            // What was read until the pipe broke is still worth showing.
            let _ = stderr.read_to_end(&mut said).await;
            String::from_utf8_lossy(&said).into_owned()
        });
        let playing = async {
            while let Some(request) = self.request().await? {
                let answer = perform(request).await;
                self.answers.write_all(format!("{answer}\n").as_bytes()).await.ok()?;
            }
            self.child.wait().await.ok().filter(|status| status.success())
        };
        let played = timeout(deadline, playing).await;
        let _ = self.child.kill().await;
        if !matches!(played, Ok(Some(_))) {
            let why = if played.is_err() { "too long" } else { "failed" };
            panic!("{}: {why} after {} checks:\n{}", self.name, self.checks, said.await.unwrap_or_default());
        }
        assert!(self.checks > 0, "{} checks nothing", self.name);
    }

    /// What it asks for next; `Some(None)` at its good end, `None` at any other.
    async fn request(&mut self) -> Option<Option<Value>> {
        loop {
            let line = self.lines.next_line().await.ok()??;
            let line: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line}"));
            if line.get("ask").is_some() {
                return Some(Some(line));
            }
            if line.get("done").is_some() {
                return Some(None);
            }
            self.checks += 1;
        }
    }
}
