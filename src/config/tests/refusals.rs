//! Mistakes that operators make, and what they are told about each.

use serde_json::Value;

use super::*;

/// A file, and what its refusal says.
const BAD_FILES: &[(&str, &[&str])] = &[
    (
        "[server]\nlisen = \"x\"",
        &["campanile.toml:2: server.lisen", "no such option", "mean `server.listen`?"],
    ),
    ("[server]\npool_size = 3", &["server.pool_size", "did you mean `store.pool_size`?"]),
    ("[sever]\n", &["campanile.toml:1: sever", "did you mean `server`?"]),
    ("[jobs]\nx = 1", &["jobs: there is no such option", "the sections are bus, channel, client"]),
    ("server = 3", &["campanile.toml:1: server: this holds options", "write it as a table, `[server]`"]),
    (
        "[server]\nlisten = \"localhost\"",
        &[":2: server.listen: `localhost` is not an address with a port", "127.0.0.1:8080"],
    ),
    (
        "[server]\nlisten = \"127.0.0.1:9000\"\ninternal_listen = \"0.0.0.0:9000\"",
        &[":3: server.internal_listen: server.listen has that port already: 127.0.0.1:9000"],
    ),
    ("[limits]\nbody_min_rate = \"2MiB\"", &["limits.body_min_rate: hardly any body comes so fast"]),
    ("[server]\nlisten = 8080", &["server.listen", "8080", "an example is \"127.0.0.1:8080\""]),
    (
        "[server]\ntrusted_proxies = [\"10.0.0.0/8\", \"proxy\"]",
        &["server.trusted_proxies: `proxy` is not a network"],
    ),
    ("[server]\ntrusted_proxies = \"10.0.0.0/8\"", &["this is not a list", "as JSON in the environment"]),
    (
        "[client.token]\nrsa_public_key = \"hunter2\"",
        &["campanile.toml:2: client.token.rsa_public_key: this is not PEM; write the public key", "-pubout"],
    ),
    (
        "[client.token]\necdsa_public_key = \"\"\"\n-----BEGIN PRIVATE KEY-----\nhunter2\n\"\"\"",
        &["client.token.ecdsa_public_key: this is a private key", "where tokens are signed"],
    ),
    (
        "[client.token]\ned25519_public_key = \"-----BEGIN PUBLIC KEY-----\\nhunter2\"",
        &["client.token.ed25519_public_key: this is not a key of this kind, or it is damaged"],
    ),
    (
        "[client.token]\njwks_public_endpoint = \"login.example.com\"",
        &["client.token.jwks_public_endpoint: this is not an absolute URL", "an example is \"https://login"],
    ),
    (
        "[client.token]\njwks_public_endpoint = \"file:///etc/jwks.json\"",
        &["client.token.jwks_public_endpoint: only https URLs are supported"],
    ),
    (
        "[client.token]\njwks_public_endpoint = \"https://me:hunter2@login.example.com\"",
        &["client.token.jwks_public_endpoint: the URL must not contain credentials"],
    ),
    (
        "[client.token]\njwks_public_endpoint = \"http://login.example.com/jwks\"",
        &[
            "client.token.jwks_public_endpoint: a key set that is fetched without TLS",
            "client.token.jwks_allow_http",
        ],
    ),
    (
        "[client.token]\nleeway = \"6m\"",
        &["client.token.leeway: clocks that are set do not differ so much; write at most \"5m\""],
    ),
    (
        "[server]\npublic_url = \"live.example.com\"",
        &["server.public_url", "is not an origin", "SCHEME://HOST"],
    ),
    ("[server]\npublic_url = \"ftp://live.example.com\"", &["server.public_url", "by http or https"]),
    (
        "[server]\ndrain_timeout = \"25q\"",
        &["server.drain_timeout: `25q` is not a duration", "an example is \"30s\""],
    ),
    ("[server]\ndrain_timeout = \"9999999d\"", &["server.drain_timeout", "longer than ten years"]),
    ("[server]\nworkers = 0", &["server.workers: 0 is not allowed here"]),
    ("[server]\nworkers = 5000", &["server.workers: more than 1024"]),
    ("[server]\nworkers = nan", &["server.workers: `\"nan\"` is not a whole number"]),
    ("[server]\ndata_dir = \"\"", &["server.data_dir: the path is empty"]),
    ("[store]\npool_size = \"many\"", &["store.pool_size: `\"many\"` is not a whole number from 0 to"]),
    ("[store]\npool_size = -1", &["store.pool_size: `-1` is not a whole number"]),
    ("[store]\nreaders = 0", &["campanile.toml:2: store.readers: 0 is not allowed here; write more than 0"]),
    ("[store]\ndeadline = 0", &["store.deadline: 0 is not allowed"]),
    ("[store]\nallow_data_loss = \"yes\"", &["store.allow_data_loss: `\"yes\"` is neither true nor false"]),
    ("[store]\nurl = \"mysql://u:hunter2@h/d\"", &["store.url", "no", "write postgres://… or sqlite:PATH"]),
    ("[store]\nurl = \"sqlite::memory:\"", &["store.url: a database in memory would lose every event"]),
    (
        "[store]\ndirect_url = \"postgres://u:hunter2@h/d\"",
        &["store.direct_url: a direct address", "DATABASE_URL"],
    ),
    ("[store]\ndirect_url = \"hunter2\"", &["store.direct_url: this is not an address of Postgres"]),
    ("[bus]\nurl = \"redis://:hunter2@h\"", &["campanile.toml:2: bus.url", "cannot share a SQLite store"]),
    ("[bus]\nurl = \"http://hunter2\"", &["bus.url: this is not an address of Redis"]),
    ("[bus]\nprefix = \"a b\"", &["bus.prefix: the prefix is invalid"]),
    (
        "[client]\nallowed_origins = [\"https://a.example\", \"b\"]",
        &["client.allowed_origins[1]", "`b` is not a pattern"],
    ),
    ("[client]\nqueue_max_size = 1", &["client.queue_max_size: 1B does not hold one event", "256KiB"]),
    ("[client]\nunsafe = true", &["client.unsafe: there is no such option"]),
    ("[client]\nchannel_limit = 0", &["client.channel_limit: 0 is not allowed here"]),
    (
        "[client]\nhistory_max_publication_limit = 10001",
        &["client.history_max_publication_limit: this is more than can be read", "at most 10000"],
    ),
    (
        "[client]\nrecovery_max_publication_limit = 0",
        &["client.recovery_max_publication_limit: 0 is not allowed"],
    ),
    ("[client]\nping_interval = 0", &["client.ping_interval: 0 is not allowed"]),
    (
        "[client]\nping_interval = \"900ms\"\npong_timeout = \"1ms\"",
        &["client.ping_interval: clients are told the interval in whole seconds", "\"1s\" or more"],
    ),
    ("[client]\npong_timeout = 25", &["client.pong_timeout: 25s is not below client.ping_interval, 25s"]),
    ("[client]\nping_interval = 8", &["client.pong_timeout: 8s is not below client.ping_interval, 8s"]),
    ("[client]\nstale_close_delay = 0", &["client.stale_close_delay: 0 is not allowed"]),
    ("[client]\nexpired_close_delay = \"9999999d\"", &["client.expired_close_delay", "ten years"]),
    ("[websocket]\nmessage_size_limit = 0", &["websocket.message_size_limit: 0 is not allowed"]),
    ("[websocket]\nmessage_size_limit = \"65MiB\"", &["held in memory; write at most \"64MiB\""]),
    (
        "[channel.without_namespace]\nforce_recovery = true",
        &[
            "campanile.toml:2: channel.without_namespace.force_recovery: there are no positions",
            "history_size",
        ],
    ),
    (
        "[[channel.namespaces]]\nname = \"aa\"\nhistory_size = 9\nallow_positioning = true",
        &["campanile.toml:4: channel.namespaces[0].allow_positioning: there are no positions"],
    ),
    (
        "[client.token]\nhmac_secret_key = 31337",
        &["client.token.hmac_secret_key: this is not text in quotes"],
    ),
    ("[client.token]\nhmac_secret_key = \" \"", &["hmac_secret_key: a secret cannot be empty"]),
    ("[channel.without_namespace]\nforce_recovry = true", &["channel.without_namespace.force_recovry"]),
    ("[channel]\nnamespaces = 1", &["this is a list of tables", "`[[channel.namespaces]]`"]),
    ("[[channel.namespaces]]", &["channel.namespaces[0]: missing field `name`"]),
    (
        "[[channel.namespaces]]\npresence = true",
        &["campanile.toml:2: channel.namespaces[0]: missing field `name`"],
    ),
    (
        "[[channel.namespaces]]\nname = \"repo\"",
        &["campanile.toml:2: channel.namespaces[0].name", "fills itself"],
    ),
    ("[[channel.namespaces]]\nname = \"rows\"", &["channel.namespaces[0].name: `rows` is a namespace that"]),
    ("[[channel.namespaces]]\nname = \"ops\"", &["channel.namespaces[0].name: `ops` is a namespace that"]),
    (
        "[[channel.namespaces]]\nname = \"features\"",
        &["channel.namespaces[0].name: `features` is a namespace that Campanile fills itself, now or later"],
    ),
    (
        "[retention]\nrepo_age = \"29m\"",
        &["retention.repo_age: it must be from half an hour", "write \"30m\" or more"],
    ),
    ("[retention]\nsessions = \"1m\"", &["retention.sessions", "write \"30m\" or more"]),
    ("[retention]\norg_age = \"4000d\"", &["retention.org_age", "at most \"3650d\""]),
    ("[retention]\nbuild_events = 0", &["retention.build_events: a channel keeps one event or more"]),
    ("[retention]\nrows_events = 10000001", &["retention.rows_events", "from 1 to 10000000"]),
    (
        "[retention]\ndelivery_ids = \"7d\"",
        &["retention.delivery_payloads: a payload is kept with its delivery", "raise retention.delivery_ids"],
    ),
    (
        "[server]\nforwarded_header = \"X-Real-IP\"",
        &["server.forwarded_header", "`X-Real-IP`", "write x-forwarded-for or forwarded"],
    ),
    ("[telemetry]\nlog_addresses = \"some\"", &["telemetry.log_addresses", "write full, short or none"]),
    (
        "[[channel.namespaces]]\nname = \"a:b\"",
        &["channel.namespaces[0].name", "is not a valid name for a namespace"],
    ),
    (
        "[[channel.namespaces]]\nname = \"aa\"\n[[channel.namespaces]]\nname = \"aa\"",
        &["campanile.toml:4: channel.namespaces[1].name: the namespace `aa` is declared twice"],
    ),
    (
        "[[channel.namespaces]]\nname = \"aa\"\n[[channel.namespaces]]\nname = \"bb\"\nhistory_ttl = \"x\"",
        &["campanile.toml:5: channel.namespaces[1].history_ttl: `x` is not a duration"],
    ),
    ("[github]\nwebhook_secrets = \"hunter2\"", &["github.webhook_secrets: this is not a list"]),
    ("[github]\nwebhook_secrets = [31337]", &["github.webhook_secrets[0]: this is not text in quotes"]),
    ("[github.repos]\nacme = {}", &["campanile.toml:2: github.repos.acme: `acme` is not a repository"]),
    ("[github.repos]\n\"acme/api\" = true", &["github.repos.\"acme/api\"", "this holds options"]),
    ("[github.repos]\n\"acme/api\" = { nam = \"x\" }", &["did you mean `github.repos.\"acme/api\".name`?"]),
    (
        "[github.repos]\n\"a/b\" = { name = \"c/d\", ignore = true }",
        &["github.repos.\"a/b\"", "needs no name"],
    ),
    (
        "[github.repos]\n\"a/b\" = {}\n\"a/c\" = { name = \"a/b\" }",
        &["github.repos.\"a/c\"", "under the same name"],
    ),
    ("[limits]\nwebhook_in_flight = \"1MiB\"", &["limits.webhook_in_flight: 1MiB does not hold one webhook"]),
    (
        "[limits]\nbuild_events_in_flight = \"300KiB\"",
        &["limits.build_events_in_flight: 300KiB does not hold two events of channel.max_publication_size"],
    ),
    ("[limits]\nwebhook_body = \"1MB\"", &["limits.webhook_body: `1MB` is not a size"]),
    ("[telemetry]\nlog = \"info,a=b=c\"", &["telemetry.log: `info,a=b=c` is not a log filter"]),
    ("[telemetry]\nlog_format = \"xml\"", &["telemetry.log_format", "`xml`", "write text, json or auto"]),
    ("[server]\n\n[server]\n", &["campanile.toml:3: this is not TOML", "duplicate key"]),
    ("\n[http_api]\nkey = \"hunter2", &["campanile.toml:3: this is not TOML"]),
];

#[test]
fn a_bad_file_is_refused_with_place_option_and_remedy() {
    for (text, expected) in BAD_FILES {
        let error = file(text).expect_err(text).to_string();
        for part in *expected {
            assert!(error.contains(part), "{text}\n  should say: {part}\n  but says: {error}");
        }
        assert!(!error.contains("hunter2") && !error.contains("31337"), "a secret is shown: {error}");
        assert!(error.starts_with("the configuration has an error"), "one mistake, one error: {error}");
    }
}

/// A variable, and what its refusal says.
const BAD_VARIABLES: &[(&str, &str, &[&str])] = &[
    (
        "CAMPANILE_LISTN",
        "x",
        &["CAMPANILE_LISTN: there is no such variable", "did you mean CAMPANILE_LISTEN?"],
    ),
    ("CAMPANILE_STORE__POOLSIZE", "1", &["did you mean CAMPANILE_STORE__POOL_SIZE?"]),
    ("CAMPANILE_FOO", "1", &["CAMPANILE_FOO", "CAMPANILE_<SECTION>__<OPTION>"]),
    ("CAMPANILE_STORE", "{}", &["CAMPANILE_STORE: there is no such variable"]),
    ("CAMPANILE_PORT", "8080", &["CAMPANILE_PORT: there is no such variable"]),
    (
        "CAMPANILE_STORE__POOL_SIZE",
        "many",
        &["CAMPANILE_STORE__POOL_SIZE: store.pool_size: `\"many\"` is not a whole"],
    ),
    ("CAMPANILE_SSE__ENABLED", "1", &["sse.enabled: `1` is neither true nor false"]),
    (
        "CAMPANILE_GITHUB__REPOS",
        "acme/api",
        &["github.repos: this is not JSON", "as JSON in the environment"],
    ),
    (
        "CAMPANILE_GITHUB__REPOS",
        r#"{"a/b":{"nam":1}}"#,
        &["CAMPANILE_GITHUB__REPOS", "github.repos.\"a/b\".nam"],
    ),
    ("CAMPANILE_GITHUB__REPOS", r#"["a/b"]"#, &["github.repos: this is a table of entries"]),
    (
        "CAMPANILE_CHANNEL__NAMESPACES",
        r#"[{"name":"x"}]"#,
        &["channel.namespaces[0].name: `x` is not a valid name"],
    ),
    ("DATABASE_URL", "hunter2", &["DATABASE_URL: store.url", "write postgres://… or sqlite:PATH"]),
    (
        "DATABASE_URL",
        "postgres://u:hunter2@db/c?sslmode=allow",
        &["DATABASE_URL: store.url: sslmode is one of", "sslmode=verify-full"],
    ),
    ("CAMPANILE_STORE__CA_FILE", "ca.pem", &["store.ca_file: a certificate authority has no use"]),
    ("CAMPANILE_BUS__CA_FILE", "ca.pem", &["bus.ca_file: a certificate authority has no use without TLS"]),
    ("REDIS_URL", "redis://hunter2", &["REDIS_URL: bus.url", "cannot share a SQLite store"]),
    ("CAMPANILE_LOG_FORMAT", "yaml", &["CAMPANILE_LOG_FORMAT: telemetry.log_format", "text, json or auto"]),
];

#[test]
fn a_bad_variable_is_refused_with_its_name_option_and_remedy() {
    for (name, value, expected) in BAD_VARIABLES {
        let error = environment([(*name, *value)]).expect_err(name).to_string();
        for part in *expected {
            assert!(error.contains(part), "{name}={value}\n  should say: {part}\n  but says: {error}");
        }
        assert!(!error.contains("hunter2"), "a secret is shown: {error}");
        assert!(error.starts_with("the configuration has an error"), "one mistake, one error: {error}");
    }
}

/// Numbers, sizes and durations for which 0 has a meaning.
const MAY_BE_ZERO: [&str; 11] = [
    "channel.linger",
    "channel.without_namespace.history_size",
    "channel.without_namespace.history_ttl",
    "client.connection_limit",
    "client.expired_close_delay",
    "client.expired_sub_close_delay",
    "client.token.leeway",
    "client.user_connection_limit",
    "limits.connections",
    "limits.connections_per_address",
    "server.drain_timeout",
];

#[test]
fn zero_is_refused_where_it_means_nothing() {
    let options = schema();
    let is_quantity = |path: &OptionPath| match at(&options, path) {
        Some(Value::Number(_)) => true,
        Some(Value::String(text)) => text.starts_with(|first: char| first.is_ascii_digit()),
        _ => false,
    };
    let quantities = every_path(&options).into_iter().filter(is_quantity);
    let accepted = quantities.filter(|path| environment([(path.variable().as_str(), "0")]).is_ok());
    assert_eq!(accepted.map(|path| path.to_string()).collect::<Vec<_>>(), MAY_BE_ZERO);
}
