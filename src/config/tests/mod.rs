//! The configuration as operators meet it: what they write, and what they are told.

use std::time::Duration;

use super::schema::{OptionPath, at, every_path, schema, shape};
use super::*;
use crate::domain::channel::ChannelName;
use crate::domain::units::Size;

mod refusals;
mod secrets;

const EXAMPLE: &str = include_str!("../../../campanile.example.toml");
const NONE: [(&str, &str); 0] = [];

fn file(text: &str) -> Result<Config, ConfigError> {
    Loader::new().text("campanile.toml", text).load()
}

fn environment<const N: usize>(variables: [(&str, &str); N]) -> Result<Config, ConfigError> {
    Loader::new().environment(variables).load()
}

#[test]
fn nothing_at_all_is_a_good_configuration() {
    let config = Loader::new().load().unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.backend(), Backend::Sqlite { path: "./data/campanile.db".into() });
    assert_eq!(config.bus_backend(), BusBackend::InProcess);
    assert!(config.warnings().is_empty());
}

#[test]
fn flags_win_over_the_environment_and_that_wins_over_the_file() {
    let loader = Loader::new()
        .text("campanile.toml", "[server]\nlisten = \"127.0.0.1:1\"\ndata_dir = \"a\"\n[store]\nreaders = 2")
        .environment([("CAMPANILE_LISTEN", "127.0.0.1:2"), ("CAMPANILE_DATA_DIR", "b")])
        .flag("--listen", "server.listen", Some("127.0.0.1:3"))
        .flag("--data-dir", "server.data_dir", None::<String>);
    let config = loader.load().unwrap();
    assert_eq!(config.server.listen.port(), 3);
    assert_eq!(config.server.data_dir, PathBuf::from("b"));
    assert_eq!(config.store.readers, 2);
}

#[test]
fn a_named_file_must_exist_but_the_usual_one_need_not() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("other.toml");
    let error = Loader::new().file(Some(missing.clone())).load().unwrap_err().to_string();
    assert!(error.contains("other.toml: the file cannot be read"), "{error}");
    assert_eq!(Loader::new().file_if_exists(&missing).load().unwrap(), Config::default());
    std::fs::write(&missing, "[store]\nreaders = 9").unwrap();
    for loader in [Loader::new().file_if_exists(&missing), Loader::new().file(Some(missing))] {
        assert_eq!(loader.load().unwrap().store.readers, 9);
    }
}

#[test]
fn personal_channels_keep_a_history_unless_there_is_another() {
    let channel = ChannelName::parse("#42").unwrap();
    let size = |options: &str| {
        let config = file(&format!("[channel.without_namespace]\n{options}")).unwrap();
        let declared = config.namespaces();
        let options = declared.options_of(&channel).unwrap();
        assert!(options.has_history() && options.presence == config.channel.without_namespace.presence);
        options.history_size
    };
    assert_eq!(size(""), 100);
    assert_eq!(size("presence = true"), 100);
    assert_eq!(size("history_size = 5\nhistory_ttl = \"1m\""), 5);
}

#[test]
fn each_option_of_retention_is_about_what_it_names_alone() {
    let id = "0195d3a0-0000-4000-8000-000000000001";
    let (build, job) = (format!("build:{id}"), format!("job:{id}"));
    let channels = [
        ("repo", "repo:acme/api"),
        ("org", "org:acme"),
        ("build", &build),
        ("job", &job),
        ("personal", "#42"),
        ("rows", "db:users"),
    ];
    let kept = |options: &str, channel: &str| {
        let namespaces = file(&format!("[retention]\n{options}")).unwrap().namespaces();
        namespaces.retention_of(&ChannelName::parse(channel).unwrap()).unwrap()
    };
    for (kind, _) in channels {
        for (other, channel) in channels {
            let changed = kept(&format!("{kind}_events = 7\n{kind}_age = \"45m\""), channel);
            let is_ours = (changed.events, changed.age) == (7, Duration::from_secs(45 * 60));
            assert_eq!(is_ours, kind == other, "{kind} for {channel}: {changed:?}");
            assert!(is_ours || changed == kept("", channel), "{kind} for {channel}: {changed:?}");
        }
    }
    let text = "[retention]\ndelivery_ids = \"50m\"\ndelivery_payloads = \"40m\"\nsessions = \"35m\"";
    let kept = file(text).unwrap().namespaces().kept;
    let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
    assert_eq!((kept.delivery_ids, kept.delivery_payloads), (minutes(50), minutes(40)));
    assert_eq!(kept.sessions, Some(minutes(35)));
}

#[test]
fn every_kind_of_option_can_be_set_in_the_environment() {
    let config = environment([
        ("CAMPANILE_STORE__POOL_SIZE", "3"),
        ("CAMPANILE_SSE__ENABLED", "false"),
        ("CAMPANILE_SSE__PING_INTERVAL", "20"),
        ("CAMPANILE_LIMITS__WEBHOOK_BODY", "1MiB"),
        ("CAMPANILE_SERVER__TRUSTED_PROXIES", r#"["10.0.0.0/8", "::1"]"#),
        ("CAMPANILE_CLIENT__TOKEN__AUDIENCE", "123"),
        ("CAMPANILE_CHANNEL__WITHOUT_NAMESPACE", r#"{"presence":true,"history_size":5}"#),
        ("CAMPANILE_CHANNEL__WITHOUT_NAMESPACE__HISTORY_SIZE", "7"),
        ("CAMPANILE_CHANNEL__NAMESPACES", r#"[{"name":"chat","history_ttl":"1h"}]"#),
        ("CAMPANILE_GITHUB__REPOS", r#"{"acme/api":{"name":"acme/gateway"},"acme/site":{}}"#),
        ("GITHUB_WEBHOOK_SECRET", "first-of-two-secrets, second-of-two-secrets"),
    ])
    .unwrap();
    assert_eq!(config.store.pool_size, 3);
    assert!(!config.sse.enabled);
    assert_eq!(config.sse.ping_interval.0, Duration::from_secs(20));
    assert_eq!(config.limits.webhook_body, Size(1 << 20));
    assert_eq!(config.server.trusted_proxies[1].to_string(), "::1/128");
    assert_eq!(config.client.token.audience.as_deref(), Some("123"));
    assert!(config.channel.without_namespace.presence);
    assert_eq!(config.channel.without_namespace.history_size, 7);
    assert_eq!(config.channel.namespaces[0].options.history_ttl.0, Duration::from_secs(3600));
    let rules: Vec<_> =
        config.github.repos.iter().map(|(from, rule)| (from.as_str(), rule.name.as_ref())).collect();
    assert!(
        matches!(rules[..], [("acme/api", Some(to)), ("acme/site", None)] if to.as_str() == "acme/gateway")
    );
    assert_eq!(config.github.webhook_secrets[1].expose(), "second-of-two-secrets");
}

#[test]
fn a_map_or_list_in_the_environment_replaces_that_of_the_file() {
    let text = "[github.repos]\n\"acme/old\" = {}\n[[channel.namespaces]]\nname = \"old\"\npresence = true";
    let config = Loader::new()
        .text("campanile.toml", text)
        .environment([
            ("CAMPANILE_GITHUB__REPOS", r#"{"acme/new":{}}"#),
            ("CAMPANILE_CHANNEL__NAMESPACES", r#"[{"name":"new"}]"#),
        ])
        .load()
        .unwrap();
    assert_eq!(config.github.repos.keys().map(|name| name.as_str()).collect::<Vec<_>>(), ["acme/new"]);
    assert_eq!(config.channel.namespaces.len(), 1);
    assert!(!config.channel.namespaces[0].options.presence);
}

#[test]
fn empty_variables_and_those_of_others_do_not_count() {
    let config = environment([
        ("REDIS_URL", ""),
        ("CAMPANILE_API_KEY", ""),
        ("PATH", "/bin"),
        ("CAMPANILE_URL", "https://live.example.com"),
        ("CAMPANILE_TOKEN", "a.b.c"),
        ("CAMPANILE_SERVICE_HOST", "10.0.0.1"),
        ("CAMPANILE_SERVICE_PORT_HTTP", "80"),
        ("CAMPANILE_PORT", "tcp://10.0.0.1:80"),
        ("CAMPANILE_PORT_80_TCP_PORT", "80"),
        ("CAMPANILE_DB_PORT_5432_TCP_ADDR", "10.0.0.2"),
    ]);
    assert_eq!(environment(NONE), config);
}

#[test]
fn a_variable_of_white_space_is_a_mistake() {
    for name in ["CAMPANILE_JWT_SECRET", "GITHUB_WEBHOOK_SECRET", "REDIS_URL"] {
        let error = Loader::new().environment([(name, "\n")]).load().unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("white space"), "{error}");
    }
}

#[test]
fn sdk_users_find_their_options() {
    let text = "[client]\ninsecure = true\nchannel_limit = 3\nping_interval = \"2s\"\npong_timeout = 1\n\
                [channel.without_namespace]\npresence = true\nhistory_size = 100\nhistory_ttl = \"300s\"\n\
                force_recovery = true\njoin_leave = true\n[websocket]\nmessage_size_limit = 65536";
    let config = file(text).unwrap();
    assert!(config.client.insecure && config.channel.without_namespace.force_recovery);
    assert_eq!((config.client.channel_limit, config.client.ping_interval.0), (3, Duration::from_secs(2)));
    assert_eq!(config.websocket, WebsocketConfig::default());
}

#[test]
fn postgres_makes_a_cluster_and_redis_joins_it() {
    let url = "postgresql://u:pw@db/campanile";
    let config = environment([("DATABASE_URL", url)]).unwrap();
    assert_eq!(config.backend(), Backend::Postgres { url: Secret::new(url), direct_url: None });
    assert_eq!(config.bus_backend(), BusBackend::Postgres);
    let config = environment([("DATABASE_URL", url), ("REDIS_URL", "redis://bus")]).unwrap();
    let (url, prefix) = (Secret::new("redis://bus"), "campanile".to_owned());
    let redis = BusBackend::Redis { url, ca_file: None, prefix };
    assert_eq!(config.bus_backend(), redis);
}

#[test]
fn addresses_of_postgres_take_the_authorities_that_they_do_not_name() {
    let config = environment([
        ("DATABASE_URL", "postgres://db/c?sslrootcert=other.pem"),
        ("DATABASE_URL_DIRECT", "postgres://direct/c"),
        ("CAMPANILE_STORE__CA_FILE", "our.pem"),
    ]);
    let direct_url = Some(Secret::new("postgres://direct/c?sslrootcert=our.pem"));
    let url = Secret::new("postgres://db/c?sslrootcert=other.pem");
    assert_eq!(config.unwrap().backend(), Backend::Postgres { url, direct_url });
}

#[test]
fn a_sqlite_url_names_a_relative_or_an_absolute_path() {
    for (url, path) in [("sqlite:a/b.db", "a/b.db"), ("sqlite:///a.db", "/a.db"), ("sqlite:/a.db", "/a.db")] {
        let config = environment([("DATABASE_URL", url)]).unwrap();
        assert_eq!(config.backend(), Backend::Sqlite { path: path.into() });
    }
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_not_text_is_refused_only_if_it_is_ours() {
    use std::os::unix::ffi::OsStringExt;
    let broken = || std::ffi::OsString::from_vec(vec![b'a', 0xff]);
    assert!(Loader::new().environment([("LS_COLORS", broken())]).load().is_ok());
    let error = Loader::new().environment([("CAMPANILE_API_KEY", broken())]).load().unwrap_err();
    assert!(error.to_string().contains("CAMPANILE_API_KEY: http_api.key: this is not UTF-8"));
}

#[test]
fn a_flag_is_named_in_its_error() {
    let error = Loader::new().flag("--listen", "server.listen", Some("here")).load().unwrap_err();
    assert!(error.to_string().contains("--listen: server.listen: `here` is not an address"), "{error}");
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let error = Loader::new()
        .text("campanile.toml", "[server]\nlisten = 1\nlisen = 2\n[store]\nreaders = 0\npool_size = \"x\"")
        .environment([("CAMPANILE_FOO", "1"), ("CAMPANILE_SSE__ENABLED", "maybe")])
        .load()
        .unwrap_err();
    let options: Vec<&str> = error.problems().iter().map(|problem| problem.option.as_str()).collect();
    assert_eq!(
        options,
        ["server.lisen", "", "server.listen", "sse.enabled", "store.pool_size", "store.readers"]
    );
    assert!(
        error.to_string().starts_with("the configuration has 6 errors:\n  campanile.toml:3: server.lisen")
    );
}

#[test]
fn two_variables_for_one_option_must_agree() {
    let both = |other| environment([("CAMPANILE_STORE__URL", "sqlite:a.db"), ("DATABASE_URL", other)]);
    assert!(both("sqlite:a.db").is_ok());
    let error = both("sqlite:b.db").unwrap_err().to_string();
    assert!(error.contains("DATABASE_URL: store.url: CAMPANILE_STORE__URL sets the same option"), "{error}");
}

#[test]
fn what_is_hardly_meant_is_a_warning() {
    let text = "[client]\ninsecure = true\nallowed_origins = [\"*\"]\n[client.token]\nhmac_secret_key = \"hunter2\"\n\
                [channel.without_namespace]\nhistory_size = 5\nallow_publish_for_anonymous = true\n\
                force_push_join_leave = true\n";
    let warnings = file(text).unwrap().warnings().join("\n");
    for part in [
        "client.token.hmac_secret_key has 7 bytes",
        "client.insecure is on: ANYBODY may connect",
        "every web site may connect",
        "force_push_join_leave does nothing without join_leave",
        "channel.without_namespace keeps no history",
        "allow_publish_for_anonymous does nothing without allow_publish_for_client",
    ] {
        assert!(warnings.contains(part), "{part} is missing in\n{warnings}");
    }
    assert_eq!(warnings.lines().count(), 6);
    assert!(!warnings.contains("hunter2"));

    let config = environment([("DATABASE_URL", "postgres://u:hunter2@db/c?sslmode=require")]).unwrap();
    let [warning] = &config.warnings()[..] else { panic!("{:?}", config.warnings()) };
    assert!(warning.starts_with("store.url has sslmode=require: "), "{warning}");
}

#[test]
fn nothing_that_prints_shows_a_secret() {
    let config = Loader::new()
        .environment([
            ("DATABASE_URL", "postgres://u:hunter2@db/campanile"),
            ("DATABASE_URL_DIRECT", "postgres://u:hunter2@db/campanile"),
            ("REDIS_URL", "redis://:hunter2@bus"),
            ("CAMPANILE_JWT_SECRET", "hunter2"),
            ("CAMPANILE_API_KEY", "hunter2"),
            ("GITHUB_WEBHOOK_SECRET", "hunter2"),
        ])
        .load()
        .unwrap();
    let printed = [
        format!("{config:?}"),
        config.describe(),
        format!("{:?} {:?}", config.backend(), config.bus_backend()),
        format!("{:?}", config.resolve_secrets().unwrap()),
        format!("{0} {0:?}", Secret::new("hunter2")),
    ];
    for text in printed {
        assert!(text.contains("[secret]") && !text.contains("hunter2"), "{text}");
    }
}

#[test]
fn the_description_is_the_effective_configuration_with_its_sources() {
    let text = "[store]\nreaders = 2\n[github.repos.\"acme/api\"]\nname = \"acme/gateway\"\n\
                [[channel.namespaces]]\nname = \"chat\"\npresence = true\n";
    let loader = Loader::new().text("campanile.toml", text);
    let config = loader.environment([("CAMPANILE_LISTEN", "127.0.0.1:9")]).load().unwrap();
    let described = config.describe();
    for line in [
        "listen = \"127.0.0.1:9\"  # CAMPANILE_LISTEN",
        "readers = 2  # campanile.toml:2",
        "pool_size = 16",
        "# public_url is not set",
        "[github.repos.\"acme/api\"]",
        "name = \"acme/gateway\"  # campanile.toml:4",
        "[[channel.namespaces]]",
        "presence = true  # campanile.toml:7",
    ] {
        assert!(described.lines().any(|it| it == line), "{line} is missing in\n{described}");
    }
    let mut again = file(&described).unwrap();
    again.sources = config.sources.clone();
    assert_eq!(again, config);
}

#[test]
fn origins_match_label_by_label() {
    let pattern = |text: &str| OriginPattern::try_from(text.to_owned()).unwrap();
    let cases = [
        ("https://a.example.com", "HTTPS://A.example.com:443/", true),
        ("https://a.example.com", "http://a.example.com", false),
        ("https://a.example.com", "https://a.example.com:8443", false),
        ("https://*.example.com", "https://a.example.com", true),
        ("https://*.example.com", "https://a.b.example.com", false),
        ("https://*.example.com", "https://example.com", false),
        ("https://*.example.com", "https://a.example.com.evil.net", false),
        ("http://localhost:3000", "http://localhost:3000", true),
        ("http://[::1]:3000", "http://[::1]:3000", true),
        ("*", "https://anything.net", true),
        ("*", "null", true),
        ("*", "file://", true),
        ("null", "null", true),
        ("null", "file://", false),
        ("null", "https://null", false),
        ("file://", "file://", true),
        ("file://", "null", false),
        ("https://a.example.com", "null", false),
        ("https://a.example.com", "https://a.example.com/path", false),
    ];
    for (allowed, given, expected) in cases {
        assert_eq!(pattern(allowed).matches(given), expected, "{allowed} and {given}");
    }
    for bad in [
        "",
        "null",
        "https://",
        "https://a/b",
        "https://u@a",
        "https://a:x",
        "https://*.a",
        "//a",
        "https://a?b",
    ] {
        assert!(bad.parse::<Origin>().is_err(), "{bad}");
    }
}

/// The example with its options turned on; with `unset`, also the examples of options without a default.
fn uncommented(unset: bool) -> String {
    let is_option = |rest: &str| {
        let key = rest.split_once(" = ").map(|(key, _)| key.trim_matches('"'));
        let is_key = |key: &str| {
            key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_/".contains(&b))
        };
        rest.starts_with("[[") || key.is_some_and(is_key)
    };
    let line = |line: &'static str| match line.strip_prefix('#') {
        Some(rest) if is_option(rest) => rest,
        Some(rest) if unset && rest.strip_prefix(' ').is_some_and(is_option) => rest.trim_start(),
        _ => line,
    };
    EXAMPLE.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_example_file_shows_the_defaults() {
    assert_eq!(file(EXAMPLE).unwrap(), Config::default());
    let mut config = file(&uncommented(false)).unwrap();
    assert!(config.sources.len() > 40, "the options are not turned on");
    config.sources.clear();
    assert_eq!(config, Config::default());
}

#[test]
fn the_example_file_names_every_option() {
    let config = file(&uncommented(true)).unwrap();
    let schema = schema();
    let is_option = |path: &schema::OptionPath| {
        schema::at(&schema, path).is_some_and(|inner| !matches!(shape(inner), schema::Shape::Table(_)))
    };
    for path in every_path(&schema).into_iter().filter(is_option) {
        let said = config.sources.keys().any(|set| set.is_under(&path));
        assert!(said, "campanile.example.toml does not name {path}");
    }
    assert!(config.github.repos.iter().any(|(name, rule)| name.as_str() == "acme/old" && rule.ignore));
}

#[test]
fn a_secret_may_end_its_line_and_is_one_line() {
    let names = ["CAMPANILE_JWT_SECRET", "CAMPANILE_API_KEY", "GITHUB_WEBHOOK_SECRET"];
    let secret = "a secret that is long enough with spaces";
    for end in ["", "\n", "\r\n"] {
        let ended = format!("{secret}{end}");
        let config = environment(names.map(|name| (name, ended.as_str()))).unwrap();
        let secrets = config.resolve_secrets().unwrap();
        for found in [&secrets.jwt, &secrets.api_key, &secrets.github[0]] {
            assert_eq!(found.expose(), secret, "{end:?}");
        }
        let url = format!("postgres://u:hunter2@h/d{end}");
        let config =
            environment([("DATABASE_URL", &url), ("REDIS_URL", &format!("redis://h{end}"))]).unwrap();
        assert_eq!(config.store.url, Some(StoreUrl::Postgres(Secret::new("postgres://u:hunter2@h/d"))));
        assert_eq!(config.bus.url, Some(Secret::new("redis://h")));
    }
    for lines in
        ["two\nlines that are long enough for a secret", "ends twice, and is long enough for one\n\n"]
    {
        for name in &names[..2] {
            let error = environment([(*name, lines)]).unwrap_err().to_string();
            assert!(error.contains("a secret is one line") && !error.contains("enough"), "{error}");
        }
    }
}
