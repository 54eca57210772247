//! What may change while a node runs: keys, namespaces, retention, and how much of addresses the log shows.
//! Everything is read and checked before anything is swapped, so a mistake leaves the node as it was.
//! Connections go on; what they ask for from then on is judged by the new ones.

use std::sync::Arc;

use super::Node;
use crate::config::{Config, ConfigError};
use crate::http::auth::Signing;

impl Node {
    /// Takes all that may change from `new`, the configuration as it reads now. Fails without having
    /// changed anything.
    pub async fn reload(&self, new: &Config) -> Result<(), ConfigError> {
        // Generated secrets stay where they are until the next start.
        let mut found = new.clone();
        (found.server, found.store) = (self.config.server.clone(), self.config.store.clone());
        let secrets = found.read_secrets()?;
        let jwt = secrets.jwt()?;
        let keys = new.token_keys(Some(jwt))?;
        self.core.keys.replace(keys);
        let signing = Signing::new(&new.client.token, jwt);
        self.server.state().sign_in.signing.store(Arc::new(signing));
        let namespaces = new.namespaces();
        self.server.hub().prepare(&namespaces).await;
        self.core.namespaces.store(namespaces.into());
        self.server.hub().take_options();
        self.server.state().access.log_addresses.store(Arc::new(new.telemetry.log_addresses));
        self.core.key_set.send_replace(new.jwks_endpoint().cloned());
        Ok(())
    }
}

/// Does what SIGHUP asks for, and says in the log what came of it.
pub(super) async fn reload(node: &Node, loaded: Result<Config, ConfigError>) {
    let reloaded = async {
        let new = loaded?;
        node.reload(&new).await?;
        Ok(new)
    };
    match reloaded.await {
        Ok(new) => {
            new.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
            for option in node.config.needing_restart(&new) {
                tracing::warn!(option, "this option has changed and takes effect at the next start");
            }
            // The last word: whoever waits for it has read the rest.
            let namespaces = new.channel.namespaces.len();
            tracing::info!(namespaces, "keys, namespaces and retention were reloaded");
        }
        Err::<_, ConfigError>(error) => {
            for problem in error.problems() {
                tracing::error!(%problem, "the reload failed: nothing has changed");
            }
        }
    }
}
