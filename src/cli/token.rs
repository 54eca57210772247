//! `campanile token`: makes a connection token. Prints the token and nothing else on standard
//! output, so that it can stand in `$(…)`.

use std::process::ExitCode;

use clap::Args;

use super::ConfigArgs;
use super::terminal::print_line;
use crate::auth::{NewToken, mint};
use crate::config::{Config, RepoName};
use crate::domain::channel::is_owner;
use crate::domain::units::Span;

const ABOUT: &str = "\
Makes a connection token (a JWT, HS256) for a client of the gateway.

It is signed with CAMPANILE_JWT_SECRET, or client.token.hmac_secret_key of the configuration, or else \
with the secret that `campanile serve` generated in the data folder. If the configuration names an \
audience or an issuer, the token has them.

A token gives access to what its claims name and to nothing else: --org to all repositories of an owner, \
--repo to one, --scope admin to all. The scopes scan and publish allow starting scans and publishing.";

const AFTER_HELP: &str = "\
Examples:
  campanile token --sub ana --org acme
  campanile token --sub ci --repo acme/api --scope publish --ttl 15m
  curl -H \"Authorization: Bearer $(campanile token --sub ana --org acme)\" \\
       'http://127.0.0.1:8080/api/events?channel=org:acme'

Output: the token alone, on standard output. Anyone who has it can use it until it expires or is revoked: by \
its `jti` with `campanile revoke JTI` (POST /api/revoke_token), or with all others of its user by `campanile \
block USER`. `campanile connections` shows the `jti` of each connected client.

Exit codes: 0 done, 1 there is no secret or the configuration is wrong, 2 wrong usage.";

/// Make a connection token
#[derive(Debug, Args)]
#[command(long_about = ABOUT, after_long_help = AFTER_HELP)]
pub(super) struct Token {
    /// The user, as `sub`
    #[arg(long, value_name = "USER", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    sub: String,
    /// An account whose repositories may be seen; may be repeated
    #[arg(long = "org", value_name = "ORG", value_parser = owner)]
    orgs: Vec<String>,
    /// A repository that may be seen, as OWNER/NAME; may be repeated
    #[arg(long = "repo", value_name = "REPO", value_parser = repo)]
    repos: Vec<String>,
    /// What else may be done; may be repeated
    #[arg(long = "scope", value_name = "SCOPE", value_parser = ["read", "scan", "publish", "admin"])]
    scopes: Vec<String>,
    /// How long it is valid
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = lifetime)]
    ttl: Span,
}

impl Token {
    pub(super) fn run(self, source: &ConfigArgs) -> anyhow::Result<ExitCode> {
        let config = source.load()?;
        let secrets = config.read_secrets()?;
        let secret = secrets.jwt()?;
        if let Some(warning) = self.warning() {
            eprintln!("warning: {warning}");
        }
        print_line(mint(secret.expose(), &self.claims(&config), chrono::Utc::now())?)?;
        Ok(ExitCode::SUCCESS)
    }

    fn claims(self, config: &Config) -> NewToken {
        NewToken {
            user: self.sub,
            orgs: self.orgs,
            repos: self.repos,
            scopes: self.scopes,
            ttl: Some(self.ttl.0),
            audience: config.client.token.audience.clone(),
            issuer: config.client.token.issuer.clone(),
            ..NewToken::default()
        }
    }

    /// A warning about a token that is probably not what was intended.
    fn warning(&self) -> Option<&'static str> {
        let admitted = !self.orgs.is_empty() || !self.repos.is_empty();
        let admin = self.scopes.iter().any(|scope| scope == "admin");
        (!admitted && !admin).then_some(
            "no claim of this token admits to any repository: add --org, --repo or --scope admin. It opens \
             only what the configuration opens to every client",
        )
    }
}

fn owner(text: &str) -> Result<String, &'static str> {
    if is_owner(text) { Ok(text.to_owned()) } else { Err("write the name of an account as GitHub spells it") }
}

fn repo(text: &str) -> Result<String, String> {
    RepoName::try_from(text.to_owned()).map(|name| name.as_str().to_owned())
}

fn lifetime(text: &str) -> Result<Span, String> {
    let span: Span = text.parse()?;
    if span.0.as_secs() == 0 { Err("a token must be valid for a second at least".into()) } else { Ok(span) }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::auth::Keys;
    use crate::cli::{Cli, Command};

    fn token(args: &[&str]) -> Result<Token, clap::Error> {
        let args = ["campanile", "token"].iter().chain(args);
        Cli::try_parse_from(args).map(|cli| match cli.command {
            Command::Token(token) => token,
            other => panic!("not a token: {other:?}"),
        })
    }

    #[test]
    fn a_token_says_what_was_asked_for() {
        let args = ["--sub", "ana", "--org", "acme", "--org", "b", "--repo", "c/d", "--scope", "scan"];
        let token = token(&args).unwrap();
        assert_eq!(token.warning(), None);
        let mut config = Config::default();
        config.client.token.audience = Some("us".into());
        let now = chrono::Utc::now();
        let minted = mint("secret", &token.claims(&config), now).unwrap();
        let who = Keys::hmac(["secret"], Some("us".into()), None).authenticate(&minted, now).unwrap();
        assert_eq!(who.user, "ana");
        assert!(who.orgs.iter().eq(["acme", "b"]) && who.repos.iter().eq(["c/d"]));
        assert!(who.scopes.scan && !who.scopes.admin);
        assert_eq!(who.expires_at.unwrap().timestamp(), now.timestamp() + 3600);
    }

    #[test]
    fn a_token_that_admits_to_nothing_comes_with_a_warning() {
        assert!(token(&["--sub", "ana", "--scope", "publish"]).unwrap().warning().is_some());
        assert!(token(&["--sub", "ana", "--scope", "admin"]).unwrap().warning().is_none());
    }

    #[test]
    fn what_would_not_work_is_wrong_usage() {
        let bad: [&[&str]; 7] = [
            &[],
            &["--sub", ""],
            &["--sub", "a", "--org", "a/b"],
            &["--sub", "a", "--repo", "acme"],
            &["--sub", "a", "--scope", "amdin"],
            &["--sub", "a", "--ttl", "0"],
            &["--sub", "a", "--ttl", "soon"],
        ];
        for args in bad {
            assert_eq!(token(args).unwrap_err().exit_code(), 2, "{args:?}");
        }
    }
}
