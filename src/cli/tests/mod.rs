//! The command line as a whole, and its HTTP against a server that says what it is told to.

use std::io::Write as _;
use std::net::TcpListener;
use std::thread::JoinHandle;

use clap::{CommandFactory as _, Parser as _};

use super::*;
use crate::config::Secret;
use crate::domain::channel::ChannelName;
use backoff::Backoff;
use channel_reader::{ChannelReader, Credential, Output};
use remote::Remote;

mod publishing;
mod readiness;
mod signing_in;
mod tailing;
mod webhooks;

#[test]
fn the_definition_holds_together() {
    Cli::command().debug_assert();
}

#[test]
fn the_names_that_scripts_rely_on_are_there() {
    let lines = [
        "serve",
        "serve --demo --listen 127.0.0.1:0 --data-dir d",
        "migrate --config c.toml",
        "token --sub s --org o --org p --repo a/b --scope scan --ttl 1h",
        "sign-in --url http://127.0.0.1:1",
        "publish chat:a 1 --key k --tag a=b",
        "publish chat:a -",
        "tail org:acme --since k.1 --json --count 3 --token t --url http://127.0.0.1:1",
        "webhook ping - --delivery d-1",
        "check-config --quiet",
        "ready --url http://127.0.0.1:1",
        "log new-epoch --yes",
        "--config c.toml log new-epoch",
    ];
    for line in lines {
        let args = std::iter::once("campanile").chain(line.split(' '));
        Cli::try_parse_from(args).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
}

#[test]
fn wrong_usage_is_exit_code_2_and_asking_is_0() {
    for line in ["", "srve", "tail", "tail org:acme --count 0", "tail repo:acme", "webhook Ping! -", "log"] {
        let args = std::iter::once("campanile").chain(line.split_whitespace());
        assert_eq!(Cli::try_parse_from(args).unwrap_err().exit_code(), 2, "{line}");
    }
    for line in ["--version", "--help", "help tail", "log new-epoch --help"] {
        let args = std::iter::once("campanile").chain(line.split(' '));
        assert_eq!(Cli::try_parse_from(args).unwrap_err().exit_code(), 0, "{line}");
    }
}

#[test]
fn every_help_teaches_by_example_and_names_its_exit_codes() {
    fn visit(command: &mut clap::Command) {
        let names: Vec<String> = command.get_subcommands().map(|inner| inner.get_name().to_owned()).collect();
        for name in names.iter().filter(|name| *name != "help") {
            visit(command.find_subcommand_mut(name).expect("its own name"));
        }
        if names.is_empty() {
            let help = command.render_long_help().to_string();
            let examples = help.matches(&format!("campanile {}", command.get_name())).count();
            let in_group =
                |group: &str| help.matches(&format!("campanile {group} {}", command.get_name())).count();
            assert!(examples + in_group("log") + in_group("github") >= 2, "{help}");
            assert!(help.contains("Exit codes: 0"), "{help}");
        }
    }
    let mut command = Cli::command();
    command.build();
    visit(&mut command);
}

/// A server that answers each connection with the next script and closes it.
struct Scripted {
    base: String,
    requests: JoinHandle<Vec<String>>,
}

impl Scripted {
    fn start<const N: usize>(answers: [String; N]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let base = format!("http://{}", listener.local_addr().expect("it is bound"));
        let requests = std::thread::spawn(move || {
            let answer = |answer: String| {
                let (mut stream, _) = listener.accept().expect("a client");
                let request = read_request(&mut stream);
                // The client may have closed the connection.
                let _ = stream.write_all(answer.as_bytes());
                request
            };
            answers.into_iter().map(answer).collect()
        });
        Self { base, requests }
    }

    fn remote(&self) -> Remote {
        Remote::new(self.base.parse().expect("a good URL"))
    }

    /// What was asked, after the last script.
    fn requests(self) -> Vec<String> {
        self.requests.join().expect("the server does not panic")
    }
}

/// The head, and as much of a body as it announces.
fn read_request(stream: &mut impl std::io::Read) -> String {
    let (mut request, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&request).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = |line: &str| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok();
            if body.len() >= head.lines().find_map(length).unwrap_or(0_usize) {
                return text;
            }
        }
        match stream.read(&mut piece).expect("a request") {
            0 => return text,
            n => request.extend_from_slice(&piece[..n]),
        }
    }
}

fn answer(status: &str, kind: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}

fn json(status: &str, body: &str) -> String {
    answer(status, "application/json", body)
}
