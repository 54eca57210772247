//! What a reload can change: keys, namespaces and retention are replaced in a running node; every other option takes
//! effect at the next start.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Config;
use super::schema::{OptionPath, plain};

/// What a reload replaces: these options, and all below them.
const RELOADED: [&str; 5] = [
    "client.token",
    "channel.namespaces",
    "channel.without_namespace",
    "retention",
    "telemetry.log_addresses",
];

impl Config {
    /// The options in which `new` differs and that take effect only at the next start, in order.
    pub fn needing_restart(&self, new: &Self) -> Vec<String> {
        let mut changed = BTreeSet::new();
        collect(&OptionPath::default(), &plain(self), &plain(new), &mut changed);
        // Secrets look alike in there.
        let secrets = [
            ("store.url", self.store.url != new.store.url),
            ("store.direct_url", self.store.direct_url != new.store.direct_url),
            ("bus.url", self.bus.url != new.bus.url),
            ("bus.secrets", self.bus.secrets != new.bus.secrets),
            ("http_api.key", self.http_api.key != new.http_api.key),
            ("github.webhook_secrets", self.github.webhook_secrets != new.github.webhook_secrets),
        ];
        changed.extend(secrets.iter().filter(|(_, differs)| *differs).map(|(path, _)| (*path).to_owned()));
        changed.into_iter().collect()
    }
}

fn collect(path: &OptionPath, old: &Value, new: &Value, changed: &mut BTreeSet<String>) {
    let name = path.to_string();
    match (old, new) {
        _ if old == new || RELOADED.contains(&name.as_str()) => {}
        (Value::Object(old), Value::Object(new)) => {
            for key in old.keys().chain(new.keys()).collect::<BTreeSet<_>>() {
                let value =
                    |table: &serde_json::Map<String, Value>| table.get(key).cloned().unwrap_or_default();
                collect(&path.key(key), &value(old), &value(new), changed);
            }
        }
        _ => {
            changed.insert(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Loader, schema};

    fn config(text: &str) -> Config {
        Loader::new().text("campanile.toml", text).load().unwrap()
    }

    #[test]
    fn options_that_a_reload_leaves_alone_are_named() {
        let old = config("[http_api]\nkey = \"one key of many\"\n[github.repos.\"acme/api\"]\nignore = true");
        let new = "[http_api]\nkey = \"another key\"\n[server]\nlisten = \"127.0.0.1:1\"\n[client]\n\
                   channel_limit = 3\n[client.token]\naudience = \"us\"\nhmac_secret_key = \"new\"\n\
                   [channel]\nlinger = \"1s\"\n[channel.without_namespace]\npresence = true\n\
                   [[channel.namespaces]]\nname = \"chat\"";
        let changed = old.needing_restart(&config(new));
        assert_eq!(
            changed,
            [
                "channel.linger",
                "client.channel_limit",
                "github.repos.\"acme/api\"",
                "http_api.key",
                "server.listen"
            ]
        );
        assert!(old.needing_restart(&old).is_empty());
    }

    #[test]
    fn no_secret_is_forgotten() {
        let all = schema::schema();
        for path in schema::every_path(&all) {
            let name = path.to_string();
            let secret = schema::at(&all, &path).is_some_and(schema::is_secret);
            if !secret || RELOADED.iter().any(|table| name.starts_with(table)) {
                continue;
            }
            let variable = |value: &str| {
                let text = match name.as_str() {
                    "store.url" | "store.direct_url" => format!("postgres://{value}"),
                    "bus.url" => format!("redis://{value}"),
                    "github.webhook_secrets" | "bus.secrets" => format!("[\"{value}\"]"),
                    _ => value.to_owned(),
                };
                let others = [("CAMPANILE_STORE__URL", "postgres://db"), (path.variable().as_str(), &text)]
                    .map(|(name, value)| (name.to_owned(), value.to_owned()));
                Loader::new()
                    .environment(others.into_iter().collect::<std::collections::BTreeMap<_, _>>())
                    .load()
            };
            let (old, new) = (variable("a").unwrap(), variable("b").unwrap());
            assert_eq!(old.needing_restart(&new), [name.as_str()], "{name}");
        }
    }
}
