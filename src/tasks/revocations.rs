//! Revoked tokens and blocked users: a revocation is written to the store first, and every node
//! copies the list from there; clients that are new on it are disconnected at once. Other nodes are
//! notified to read the store, and also read it periodically.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;

use crate::auth::revocations::{Revocation, Revocations, Subject};
use crate::clients::{ClientRegistry, Target};
use crate::domain::server_command::ServerCommand;
use crate::protocol::code::{Disconnect, DisconnectCode};
use crate::store::{self, Store, revocations as rows};

/// Between two reads of the store.
const SYNC_INTERVAL: Duration = Duration::from_secs(5);

/// Revokes tokens and users, and applies the list of the store on this node.
#[derive(Clone)]
pub struct Revoker {
    store: Store,
    list: Revocations,
    client_registry: ClientRegistry,
    /// Notifies the other nodes of a change.
    notify_peers: Arc<dyn Fn() + Send + Sync>,
    /// Held while the list is copied: of two concurrent copies, the older one could finish last and
    /// undo the newer one.
    syncing: Arc<Mutex<()>>,
}

impl Revoker {
    /// Keeps `list` up to date and disconnects clients through `client_registry`; `notify_peers` notifies the
    /// other nodes.
    pub fn new(
        store: Store,
        list: Revocations,
        client_registry: ClientRegistry,
        notify_peers: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        Self { store, list, client_registry, notify_peers: Arc::new(notify_peers), syncing: Arc::default() }
    }

    /// Revokes, and returns when this node has applied it. `false` if there is no room for another one.
    pub async fn revoke(&self, revocation: Revocation) -> store::Result<bool> {
        let now = self.store.timestamp();
        let stored =
            self.store.write(move |conn| Box::pin(async move { rows::put(conn, &revocation, now).await }));
        let stored = stored.await?;
        (self.notify_peers)();
        self.sync().await?;
        Ok(stored)
    }

    /// Removes a revocation.
    pub async fn restore(&self, subject: Subject) -> store::Result<()> {
        self.store.write(move |conn| Box::pin(async move { rows::remove(conn, &subject).await })).await?;
        (self.notify_peers)();
        self.sync().await
    }

    /// Copies the list from the store, and disconnects clients that are new on it.
    pub async fn sync(&self) -> store::Result<()> {
        let _alone = self.syncing.lock().await;
        let now = self.store.timestamp();
        let all = self.store.read(move |conn| Box::pin(rows::all(conn, now))).await?;
        for subject in self.list.replace(all) {
            let (target, code) = match subject {
                Subject::Token(jti) => {
                    let revoke = ServerCommand::RevokeToken(jti.clone());
                    self.client_registry.send_command(Target::WithSubscriptionTokens, revoke).await;
                    (Target::Token(jti), DisconnectCode::InvalidToken)
                }
                Subject::User(user) => (Target::all_of(user), DisconnectCode::PermissionDenied),
            };
            self.client_registry.disconnect(target, &Disconnect::from(code)).await;
        }
        Ok(())
    }

    /// Copies the list where nobody waits for it: a failure is logged.
    pub async fn sync_or_warn(&self) {
        if let Err(error) = self.sync().await {
            tracing::warn!(%error, "the revocations could not be read");
        }
    }

    /// Synchronizes periodically. Never returns.
    pub async fn run(self) {
        loop {
            tokio::time::sleep(SYNC_INTERVAL).await;
            self.sync_or_warn().await;
        }
    }
}
