//! `campanile check-config`: shows the configuration that the gateway would start with, or why it could not
//! start. Only reads.

use std::process::ExitCode;

use clap::Args;

use super::ConfigArgs;
use super::terminal::print_line;
use crate::config::{Config, ConfigError, DEFAULT_FILE, Problem};

const ABOUT: &str = "\
Reads the configuration as `campanile serve` would and reports everything that is wrong with it. If nothing \
is, shows the value of every option and what set it. Creates nothing and connects to nothing.

On Postgres it also checks that CAMPANILE_JWT_SECRET, CAMPANILE_API_KEY and GITHUB_WEBHOOK_SECRET are set, \
because nodes must share them. Secrets are shown as [secret].";

const AFTER_HELP: &str = "\
Examples:
  campanile check-config
  campanile check-config --config /etc/campanile.toml --quiet
  campanile check-config > effective.toml

Output: the effective configuration as TOML on standard output. Problems (where, which option, what is \
wrong, what to do), warnings and notes on standard error; --quiet leaves out all but the problems.

Exit codes: 0 the gateway can start with this configuration, 1 it cannot, 2 wrong usage.";

/// Check the configuration and show its effective values
#[derive(Debug, Args)]
#[command(long_about = ABOUT, after_long_help = AFTER_HELP)]
pub(super) struct CheckConfig {
    /// Print nothing but problems
    #[arg(long)]
    quiet: bool,
}

impl CheckConfig {
    pub(super) fn run(self, source: &ConfigArgs) -> anyhow::Result<ExitCode> {
        let (config, notes) = match checked(source.load()) {
            Ok(checked) => checked,
            Err(problems) => {
                for problem in &problems {
                    eprintln!("problem: {problem}");
                }
                return Ok(ExitCode::FAILURE);
            }
        };
        if self.quiet {
            return Ok(ExitCode::SUCCESS);
        }
        if source.config.is_none() && !std::path::Path::new(DEFAULT_FILE).exists() {
            eprintln!("note: there is no {DEFAULT_FILE} here");
        }
        for note in notes {
            eprintln!("note: {note}");
        }
        for warning in config.warnings() {
            eprintln!("warning: {warning}");
        }
        print_line(config.describe().trim_end())?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The configuration with notes about its secrets, or all of its problems.
fn checked(loaded: Result<Config, ConfigError>) -> Result<(Config, Vec<String>), Vec<Problem>> {
    let problems = |error: ConfigError| error.problems().to_vec();
    let config = loaded.map_err(problems)?;
    let secrets = config.read_secrets().map_err(problems)?;
    config.token_keys(None).map_err(problems)?;
    config.check_authorities().map_err(problems)?;
    let missing: Vec<Problem> = [secrets.jwt().err(), secrets.api_key().err(), secrets.github().err()]
        .into_iter()
        .flatten()
        .flat_map(problems)
        .collect();
    if config.is_cluster() && !missing.is_empty() {
        return Err(missing);
    }
    let note = |problem: Problem| format!("{} will be generated when the gateway starts", problem.option);
    Ok((config, missing.into_iter().map(note).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Loader;

    fn check(variables: &[(&str, &str)]) -> Result<Vec<String>, Vec<String>> {
        let loaded = Loader::new().environment(variables.iter().copied()).load();
        let text = |problems: Vec<Problem>| problems.iter().map(ToString::to_string).collect();
        checked(loaded).map(|(_, notes)| notes).map_err(text)
    }

    #[test]
    fn embedded_missing_secrets_are_noted_and_nothing_is_created() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let set = ("CAMPANILE_API_KEY", "a long enough key");
        let notes = check(&[("CAMPANILE_DATA_DIR", data.to_str().unwrap()), set]).unwrap();
        assert!(!data.exists());
        assert_eq!(
            notes,
            [
                "client.token.hmac_secret_key will be generated when the gateway starts",
                "github.webhook_secrets will be generated when the gateway starts"
            ]
        );
    }

    #[test]
    fn in_a_cluster_each_missing_secret_is_a_problem() {
        let problems = check(&[("DATABASE_URL", "postgres://db/x"), ("CAMPANILE_API_KEY", "k")]).unwrap_err();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].contains("set CAMPANILE_JWT_SECRET"), "{problems:?}");
        assert!(problems[1].contains("set GITHUB_WEBHOOK_SECRET"), "{problems:?}");
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        let problems = check(&[("CAMPANILE_FOO", "1"), ("CAMPANILE_LISTEN", "here")]).unwrap_err();
        assert_eq!(problems.len(), 2, "{problems:?}");
    }

    #[test]
    fn a_key_set_that_cannot_be_used_is_a_problem() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("jwks.json");
        let path = file.to_str().unwrap();
        let check = || check(&[("CAMPANILE_CLIENT__TOKEN__JWKS_FILE", path)]).unwrap_err().join("\n");
        for (json, wrong) in [
            (None, "cannot be read"),
            (Some(r#"{"keys":[]}"#), "no public key"),
            (Some("hunter2"), "not a JSON Web Key Set"),
            (Some(&*"x".repeat(100_000)), "larger than 64 KiB"),
        ] {
            json.inspect(|json| std::fs::write(&file, json).unwrap());
            let problem = check();
            assert!(
                problem.contains("CAMPANILE_CLIENT__TOKEN__JWKS_FILE: client.token.jwks_file: "),
                "{problem}"
            );
            assert!(problem.contains(path) && problem.contains(wrong), "{problem}");
            assert!(!problem.contains("hunter2"), "{problem}");
        }
    }

    #[test]
    fn authorities_that_cannot_be_read_are_a_problem() {
        let files = [("CAMPANILE_STORE__CA_FILE", "nowhere.pem"), ("DATABASE_URL", "postgres://db/x")];
        let problem = check(&files).unwrap_err().join("\n");
        assert!(problem.contains("nowhere.pem: No such file"), "{problem}");
    }

    #[test]
    fn generated_secrets_that_cannot_be_read_are_a_problem() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("secrets.toml"), "hunter2").unwrap();
        let problems = check(&[("CAMPANILE_DATA_DIR", folder.path().to_str().unwrap())]).unwrap_err();
        assert!(problems[0].contains("secrets.toml") && !problems[0].contains("hunter2"), "{problems:?}");
    }
}
