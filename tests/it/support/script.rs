//! A process that plays a scenario of `tests/sdk` or `tests/browser`, in Node or in Python. It says a
//! JSON value a line on stdout; what it asks for is answered by a line on stdin. It is ended by its own
//! process id, at the latest when its [`Script`] is dropped.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::thread::JoinHandle;

use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// A process that plays.
pub struct Script {
    name: String,
    child: Child,
    answers: ChildStdin,
    lines: UnboundedReceiver<String>,
    stderr: Option<JoinHandle<String>>,
    /// How often it found something to be as it must be.
    pub checks: usize,
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
            let done = Command::new(folder.join("install")).arg(&venv).output().expect("the script runs");
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
        command.env("CAMPANILE_STAGE", stage.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("Node 20 or newer, and Python 3.10 or newer, are there");
        let answers = child.stdin.take().expect("a pipe");
        let lines = lines_of(child.stdout.take().expect("a pipe"));
        let mut stderr = child.stderr.take().expect("a pipe");
        let stderr = std::thread::spawn(move || {
            let mut text = Vec::new();
            // What was read until the pipe broke is still worth showing.
            let _ = stderr.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        Self { name: name.to_owned(), child, answers, lines, stderr: Some(stderr), checks: 0 }
    }

    /// What it asks for next; `None` at its good end.
    pub async fn request(&mut self) -> Option<Value> {
        while let Some(line) = self.lines.recv().await {
            let line: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line}"));
            if line.get("ask").is_some() {
                return Some(line);
            }
            if line.get("done").is_some() {
                assert!(self.child.wait().expect("it ends").success(), "{}", self.stderr());
                return None;
            }
            self.checks += 1;
        }
        panic!("{}", self.stderr());
    }

    /// Answers the request that came last.
    pub fn answer(&mut self, answer: &Value) {
        if writeln!(self.answers, "{answer}").is_err() {
            panic!("{}", self.stderr());
        }
    }

    /// Ends it if it still runs; gives what it said to people.
    pub fn stderr(&mut self) -> String {
        let _ = self.child.kill();
        let said = self.stderr.take().and_then(|stderr| stderr.join().ok());
        format!("{} failed after {} checks:\n{}", self.name, self.checks, said.unwrap_or_default())
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        // It may have ended before: then there is nothing left to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines of a pipe, read on a thread of their own.
fn lines_of(pipe: ChildStdout) -> UnboundedReceiver<String> {
    let (sender, lines) = unbounded_channel();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            // Nobody listens once the test is over.
            let _ = sender.send(line);
        }
    });
    lines
}
