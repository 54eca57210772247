//! Revoked tokens and blocked users: what is decided goes into the store first, and from there
//! into every node's list; whoever is new on it is disconnected at once. Other nodes are told to look
//! into the store, and look now and then anyhow.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;

use crate::auth::revocations::{Revocation, Revocations, Subject};
use crate::connection::clients::{Control, Target};
use crate::protocol::code::{Disconnect, DisconnectCode};
use crate::store::{self, Store, revocations as rows};

/// Between two looks into the store.
const LOOK: Duration = Duration::from_secs(5);

/// Decides and applies.
#[derive(Clone)]
pub struct Revoker {
    store: Store,
    list: Revocations,
    control: Control,
    /// Tells the other nodes to look.
    tell: Arc<dyn Fn() + Send + Sync>,
    /// Held while the list is made like the store: of two looks at once, the older one could come
    /// last and take back what the newer one found.
    looking: Arc<Mutex<()>>,
}

impl Revoker {
    /// For the doors that look into `list`, and the clients behind `control`; `tell` tells the other
    /// nodes to look.
    pub fn new(
        store: Store,
        list: Revocations,
        control: Control,
        tell: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        Self { store, list, control, tell: Arc::new(tell), looking: Arc::default() }
    }

    /// Revokes, and returns when this node follows. `false` if there is no room for another one.
    pub async fn revoke(&self, revocation: Revocation) -> store::Result<bool> {
        let now = self.store.timestamp();
        let stored =
            self.store.write(move |conn| Box::pin(async move { rows::put(conn, &revocation, now).await }));
        let stored = stored.await?;
        (self.tell)();
        self.look().await?;
        Ok(stored)
    }

    /// Takes a revocation back.
    pub async fn restore(&self, subject: Subject) -> store::Result<()> {
        self.store.write(move |conn| Box::pin(async move { rows::remove(conn, &subject).await })).await?;
        (self.tell)();
        self.look().await
    }

    /// Does what the store says.
    pub async fn look(&self) -> store::Result<()> {
        let _alone = self.looking.lock().await;
        let now = self.store.timestamp();
        let all = self.store.read(move |conn| Box::pin(rows::all(conn, now))).await?;
        for subject in self.list.replace(all) {
            let (target, code) = match subject {
                Subject::Token(jti) => (Target::Token(jti), DisconnectCode::InvalidToken),
                Subject::User(user) => (Target::all_of(user), DisconnectCode::PermissionDenied),
            };
            self.control.dismiss(target, &Disconnect::from(code)).await;
        }
        Ok(())
    }

    /// Looks now and then, for ever.
    pub async fn run(self) {
        loop {
            tokio::time::sleep(LOOK).await;
            if let Err(error) = self.look().await {
                tracing::warn!(%error, "cannot read what is revoked");
            }
        }
    }
}
