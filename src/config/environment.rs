//! The environment: a short name for what nearly everybody sets, and
//! `CAMPANILE_<SECTION>__<OPTION>` for every option. Empty variables count as unset, because
//! that is what compose files make of missing ones. Unknown `CAMPANILE_…` names are refused.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use super::error::{Problem, Source};
use super::schema::{self, OptionPath};
use super::settings::{Settings, nearest};

/// The short names, and the options they set.
const SHORT: [(&str, &str, &str); 10] = [
    ("CAMPANILE_LISTEN", "server", "listen"),
    ("CAMPANILE_DATA_DIR", "server", "data_dir"),
    ("DATABASE_URL", "store", "url"),
    ("DATABASE_URL_DIRECT", "store", "direct_url"),
    ("REDIS_URL", "bus", "url"),
    ("CAMPANILE_JWT_SECRET", "client.token", "hmac_secret_key"),
    ("CAMPANILE_API_KEY", "http_api", "key"),
    ("GITHUB_WEBHOOK_SECRET", "github", "webhook_secrets"),
    ("CAMPANILE_LOG", "telemetry", "log"),
    ("CAMPANILE_LOG_FORMAT", "telemetry", "log_format"),
];

/// What the commands that talk to a running gateway take from the environment. They set no option.
const CLIENT: [&str; 2] = ["CAMPANILE_URL", "CAMPANILE_TOKEN"];

/// Its value is a list separated by commas; all others are used as they are.
const WITH_COMMAS: &str = "GITHUB_WEBHOOK_SECRET";

/// Every variable that sets something, with what it sets.
fn known(settings: &Settings) -> BTreeMap<String, OptionPath> {
    let long = schema::every_path(settings.schema()).into_iter().map(|path| (path.variable(), path));
    let short = SHORT.iter().map(|(name, table, key)| {
        let table = table.split('.').fold(OptionPath::default(), |path, key| path.key(key));
        ((*name).to_owned(), table.key(key))
    });
    long.chain(short).collect()
}

/// Adds the variables of the environment. Names are read in their order, so that
/// `CAMPANILE_CHANNEL__WITHOUT_NAMESPACE__PRESENCE` refines `CAMPANILE_CHANNEL__WITHOUT_NAMESPACE`.
pub(super) fn apply(settings: &mut Settings, environment: Vec<(OsString, OsString)>) {
    let known = known(settings);
    let mut seen: BTreeMap<OptionPath, (String, String)> = BTreeMap::new();
    for (name, value) in environment.into_iter().collect::<BTreeMap<_, _>>() {
        let Some(name) = name.to_str() else { continue };
        let Some(path) = known.get(name) else {
            let ours = name.starts_with("CAMPANILE_") && !CLIENT.contains(&name);
            if ours && !is_service_link(name, &value) {
                settings.report(unknown(name, known.keys().map(String::as_str).chain(CLIENT)));
            }
            continue;
        };
        let source = Source::Variable(name.to_owned());
        let Some(value) = value.to_str() else {
            let (wrong, remedy) = ("this is not UTF-8", "set it to plain text");
            settings.report(Problem::new(source, path.to_string(), wrong, remedy));
            continue;
        };
        if value.is_empty() {
            continue;
        }
        if value.trim().is_empty() {
            let (wrong, remedy) = ("this is nothing but white space", "set it to something, or unset it");
            settings.report(Problem::new(source, path.to_string(), wrong, remedy));
            continue;
        }
        if let Some((other, said)) = seen.insert(path.clone(), (name.to_owned(), value.to_owned()))
            && said != value
        {
            let wrong = format!("{other} sets the same option to something else");
            settings.report(Problem::new(source, path.to_string(), wrong, "keep one of the two"));
        } else if name == WITH_COMMAS {
            settings.set_items(path.clone(), value, source);
        } else {
            settings.set_text(path.clone(), value, source);
        }
    }
}

fn unknown<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Problem {
    // Without the prefix, which would make any two names look alike.
    let own = |name: &'a str| name.strip_prefix("CAMPANILE_");
    let near = nearest(name.trim_start_matches("CAMPANILE_"), known.filter_map(own));
    let remedy = match near {
        Some(near) => format!("did you mean CAMPANILE_{near}?"),
        None => "options are CAMPANILE_<SECTION>__<OPTION>; campanile.example.toml has them all".to_owned(),
    };
    Problem::new(Source::Variable(name.to_owned()), "", "there is no such variable", remedy)
}

/// Kubernetes tells every pod about a service named `campanile` (or `campanile-db`) in variables
/// that only look like ours. If they were refused, the gateway would not start because of a name that nobody wrote.
fn is_service_link(name: &str, value: &OsStr) -> bool {
    let value = value.to_string_lossy();
    let is_address = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    let after_port = || {
        let (_, rest) = name.rsplit_once("_PORT_")?;
        rest.split_once('_').map(|(number, rest)| (number.parse::<u16>().is_ok(), rest))
    };
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || (name.ends_with("_PORT") && is_address)
        || after_port().is_some_and(|(is_port, rest)| {
            is_port && ["TCP", "UDP", "SCTP"].iter().any(|protocol| rest.starts_with(protocol))
        })
}
