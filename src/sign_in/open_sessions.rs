//! Watches the sessions of open streams. One task reads all that are watched in one query: at once when a
//! session may have ended, and every two seconds.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::store::sessions::{self, SecretHash};
use crate::store::{self, Store};

/// How often the sessions are read when nobody says that one has ended.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// Watches sessions; cheap to clone.
#[derive(Clone)]
pub struct OpenSessions(Arc<Inner>);

struct Inner {
    store: Store,
    /// A session is over when its sender is dropped.
    watched: Mutex<HashMap<SecretHash, watch::Sender<()>>>,
    check: Notify,
    /// Notifies the other nodes that a session has ended.
    notify_peers: Box<dyn Fn() + Send + Sync>,
}

impl OpenSessions {
    /// Watches the sessions in `store`; `notify_peers` makes the other nodes call [`Self::check_soon`].
    pub fn new(store: Store, notify_peers: impl Fn() + Send + Sync + 'static) -> Self {
        let notify_peers = Box::new(notify_peers);
        Self(Arc::new(Inner { store, watched: Mutex::default(), check: Notify::new(), notify_peers }))
    }

    /// Resolves when the session is over: at once if it is ended on any node, soon if a message is lost.
    /// While the store does not answer, it does not resolve. A session that is over already is noticed too.
    pub fn ended(&self, session: SecretHash) -> impl Future<Output = ()> + Send + use<> {
        let mut receiver =
            self.watched().entry(session).or_insert_with(|| watch::Sender::new(())).subscribe();
        self.check_soon();
        async move { while receiver.changed().await.is_ok() {} }
    }

    /// Ends a session.
    pub async fn end(&self, session: SecretHash) -> store::Result<()> {
        let ending =
            self.0.store.write(move |conn| Box::pin(async move { sessions::end(conn, session).await }));
        ending.await?;
        self.watched().remove(&session);
        (self.0.notify_peers)();
        Ok(())
    }

    /// Some session may have ended: all that are watched are read again.
    pub fn check_soon(&self) {
        self.0.check.notify_one();
    }

    /// Checks the sessions whenever one may have ended. Never returns.
    pub async fn run(self) {
        loop {
            let _ = tokio::time::timeout(CHECK_INTERVAL, self.0.check.notified()).await;
            if let Err(error) = self.check().await {
                tracing::debug!(%error, "the sessions cannot be read: streams end only when their session expires");
            }
        }
    }

    async fn check(&self) -> store::Result<()> {
        let watched: Vec<SecretHash> = {
            let mut watched = self.watched();
            watched.retain(|_, sender| sender.receiver_count() > 0);
            watched.keys().copied().collect()
        };
        if watched.is_empty() {
            return Ok(());
        }
        let now = self.0.store.timestamp();
        let asked = watched.clone();
        let reading = self.0.store.read(move |conn| Box::pin(sessions::open_among(conn, asked, now)));
        let open = reading.await?;
        let mut all = self.watched();
        watched
            .iter()
            .filter(|session| !open.contains(session))
            .for_each(|session| drop(all.remove(session)));
        Ok(())
    }

    fn watched(&self) -> MutexGuard<'_, HashMap<SecretHash, watch::Sender<()>>> {
        self.0.watched.lock().expect("no thread panics while holding this lock")
    }
}
