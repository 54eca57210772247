//! A real PostgreSQL with `ssl = on`: whom a store believes, and that all its connections are
//! encrypted.

use std::path::{Path, PathBuf};

use campanile::store::{ListenEvent, Location, OpenError, Store};
use testkit::postgres::{Postgres, Shutdown};
use testkit::process::give_away;

use crate::support::certificates::Authority;
use crate::support::store::options;

/// Users by what they are let in with.
const RULES: &str = "\
hostssl   all encrypted all trust
hostnossl all plain     all trust
hostssl   all secret    all scram-sha-256
host      all postgres  all trust
";
const USERS: &str = "\
CREATE ROLE encrypted SUPERUSER LOGIN;
CREATE ROLE plain SUPERUSER LOGIN;
CREATE ROLE secret SUPERUSER LOGIN PASSWORD 'knows it';";

/// The server, with a certificate for `localhost` alone.
struct Server {
    postgres: Postgres,
    ours: PathBuf,
    others: PathBuf,
}

impl Server {
    async fn start() -> Self {
        let mut postgres = Postgres::start().await.expect("PostgreSQL");
        let folder = postgres.folder();
        let (ours, others) = (Authority::new(folder, "ours"), Authority::new(folder, "others"));
        let (certificate, key) = ours.vouch("DNS:localhost");
        std::fs::write(postgres.data().join("pg_hba.conf"), RULES).expect("the server's rules");
        give_away(folder).expect("the server's files");
        let admin = postgres.session("postgres").await.expect("a session");
        let certificate = format!("ALTER SYSTEM SET ssl_cert_file = '{}'", certificate.display());
        let key = format!("ALTER SYSTEM SET ssl_key_file = '{}'", key.display());
        for statement in [USERS, &certificate, &key, "ALTER SYSTEM SET ssl = on"] {
            admin.batch_execute(statement).await.expect("users and options");
        }
        postgres.restart(Shutdown::Fast).await.expect("it starts again");
        Self { ours: ours.file(), others: others.file(), postgres }
    }

    fn url(&self, user: &str, host: &str, query: &str) -> String {
        let query = query.replace("OURS", &path(&self.ours)).replace("OTHERS", &path(&self.others));
        format!("postgres://{user}@{host}:{}/postgres?{query}", self.postgres.address().port())
    }

    /// How many sessions a store of that address has, with TLS and without.
    async fn sessions(&self, url: String) -> Result<(i64, i64), String> {
        let url = format!("{url}&application_name=a%20store");
        let store =
            Store::open(&options(Location::Postgres { url, direct_url: None })).await.map_err(reason)?;
        let mut heard = store.listen();
        assert_eq!(heard.recv().await, Some(ListenEvent::Connected));
        let admin = self.postgres.session("postgres").await.expect("a session");
        let count = "SELECT count(*) FILTER (WHERE ssl), count(*) FILTER (WHERE NOT ssl) FROM pg_stat_ssl \
                     JOIN pg_stat_activity USING (pid) WHERE application_name = 'a store'";
        let row = admin.query_one(count, &[]).await.expect("an answer");
        store.probe().await.expect("the store is open");
        drop(heard);
        Ok((row.get(0), row.get(1)))
    }
}

fn path(file: &Path) -> String {
    file.to_str().expect("a path").to_owned()
}

fn reason(error: OpenError) -> String {
    let OpenError::Unreachable(reason) = error else { panic!("{error}") };
    reason
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_believes_whom_its_address_says_and_nobody_else() {
    let server = Server::start().await;
    let encrypted = Ok((true, false));
    let plain = Ok((false, true));
    let unknown = Err("invalid peer certificate: UnknownIssuer");
    let other_name = Err("certificate not valid for name");
    let not_without = Err("no pg_hba.conf entry for host");
    for (user, host, query, expected) in [
        ("encrypted", "localhost", "sslmode=verify-full&sslrootcert=OURS", encrypted),
        ("encrypted", "localhost", "sslrootcert=OURS", encrypted),
        ("encrypted", "127.0.0.1", "sslmode=verify-full&sslrootcert=OURS", other_name),
        ("encrypted", "localhost", "sslmode=verify-full&sslrootcert=OTHERS", unknown),
        ("encrypted", "localhost", "sslmode=verify-full", unknown),
        ("encrypted", "127.0.0.1", "sslmode=verify-ca&sslrootcert=OURS", encrypted),
        ("encrypted", "127.0.0.1", "sslmode=require&sslrootcert=OURS", encrypted),
        ("encrypted", "localhost", "sslmode=verify-ca&sslrootcert=OTHERS", unknown),
        ("encrypted", "127.0.0.1", "sslmode=require", encrypted),
        ("encrypted", "127.0.0.1", "sslmode=prefer", encrypted),
        ("encrypted", "127.0.0.1", "sslmode=disable", not_without),
        ("plain", "127.0.0.1", "sslmode=disable", plain),
        ("plain", "127.0.0.1", "sslmode=prefer", plain),
        ("plain", "127.0.0.1", "sslmode=require", not_without),
        // With a password, the server proves that it is the one that the certificate speaks of.
        ("secret:knows%20it", "127.0.0.1", "sslmode=require&channel_binding=require", encrypted),
        ("secret:guesses", "127.0.0.1", "sslmode=require", Err("password authentication failed")),
    ] {
        let found = server.sessions(server.url(user, host, query)).await;
        match (&found, expected) {
            (Ok((with, without)), Ok((tls, none))) => {
                assert_eq!((*with > 0, *without > 0), (tls, none), "{user} {host} {query}: {found:?}");
            }
            (Err(text), Err(part)) => assert!(text.contains(part), "{user} {host} {query}: {text}"),
            _ => panic!("{user} {host} {query}: {found:?}, not {expected:?}"),
        }
    }
}
