//! The files that need a container engine to run, read by the real tools.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const COMPOSE: &str = "deploy/compose.yaml";
const EXAMPLE: &str = "deploy/env.example";

/// `docker-compose config` with these variables in a file, and nothing inherited but where programs
/// are.
fn config(folder: &Path, variables: &str) -> Output {
    let file = folder.join("env");
    std::fs::write(&file, variables).expect("a file");
    let path = std::env::var_os("PATH").expect("a path");
    let mut command = Command::new("docker-compose");
    command.env_clear().env("PATH", path).arg("--env-file").arg(file).args(["-f", COMPOSE, "config"]);
    command.output().expect("tests/services installs docker-compose")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The variables of the service `name`: no more of YAML than compose writes itself.
fn environment_of(config: &str, name: &str) -> Vec<(String, String)> {
    let mut lines = config.lines().skip_while(|line| *line != format!("  {name}:")).skip(1);
    lines.by_ref().find(|line| *line == "    environment:").expect("variables");
    let variables = lines.take_while(|line| line.starts_with("      "));
    let unquoted = |value: &str| value.trim_matches(|quote| quote == '\'' || quote == '"').to_owned();
    let pair =
        |line: &str| line.trim().split_once(": ").map(|(name, value)| (name.to_owned(), unquoted(value)));
    variables.map(|line| pair(line).expect("NAME: VALUE")).collect()
}

#[test]
fn compose_has_two_nodes_that_accept_what_they_are_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let example = std::fs::read_to_string(EXAMPLE).expect("the example");
    let bare = config(folder.path(), &example);
    assert!(!bare.status.success(), "secrets must be set");
    assert!(text(&bare.stderr).contains("is missing in .env"), "{}", text(&bare.stderr));

    let mut filled = String::new();
    for line in example.lines() {
        let secret = if line.ends_with('=') { "0123456789abcdef0123456789abcdef" } else { "" };
        filled += &format!("{line}{secret}\n");
    }
    let read = config(folder.path(), &filled);
    assert!(read.status.success(), "{}", text(&read.stderr));
    let read = text(&read.stdout);
    let nodes = ["node-1", "node-2"].map(|name| environment_of(&read, name));
    assert_eq!(nodes[0], nodes[1]);
    for name in ["DATABASE_URL", "REDIS_URL"] {
        assert!(
            nodes[0].iter().any(|(set, value)| set == name && value.contains("0123456789abcdef@")),
            "{name}"
        );
    }
    let mut check = Command::new(env!("CARGO_BIN_EXE_campanile"));
    check.args(["check-config", "--quiet"]).current_dir(folder.path()).env_clear().envs(nodes[0].clone());
    let checked = check.output().expect("the binary runs");
    assert!(checked.status.success(), "{}", text(&checked.stderr));
}

#[test]
fn the_dockerfile_is_one() {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("hadolint");
    let done = Command::new("tests/deploy/hadolint").arg("deploy/Dockerfile").arg(folder).output();
    let done = done.expect("the script runs");
    assert!(done.status.success(), "{}{}", text(&done.stdout), text(&done.stderr));
}
