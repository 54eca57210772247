//! LISTEN and NOTIFY between nodes that share a PostgreSQL. Notifications are not stored, and nothing
//! depends on their delivery: a listener learns when it may have missed some, and reads the tables.
//! SQLite has one node, so there are no notifications.

use std::time::Duration;

use diesel::sql_types::{Array, Text};
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection as _};
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::conn::Conn;
use super::error::{Result, StoreError};
use super::postgres::connect_as;
use super::{Backend, Store};
use crate::supervision::critical;

/// The most notifications queued for a listener; more are dropped, and the listener learns of it.
const QUEUE: usize = 1024;
/// Between two checks that the server answers, and how long each may take.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Timeout of opening the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause after a connection was lost; doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// PostgreSQL refuses a notification of this length or longer.
pub const MAX_LENGTH: usize = 8_000;

/// What a listener receives. It receives no notifications before the first
/// [`ListenEvent::Connected`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenEvent {
    /// The listener is connected. Earlier notifications may have been missed.
    Connected,
    /// A notification of any node, this one included.
    Notification(String),
    /// The connection is lost, or too slow: notifications are missed from now on.
    Lost,
}

#[derive(Clone)]
pub(super) struct ListenConnector {
    url: String,
    /// The store's id, which separates it from other databases and schemas of the server.
    id: String,
    /// The store's runtime, which owns the connection.
    runtime: Handle,
}

impl ListenConnector {
    /// For the store with that id; must be called on its runtime.
    pub(super) fn new(url: &str, id: String) -> Self {
        Self { url: url.to_owned(), id, runtime: Handle::current() }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    fn channel(&self) -> String {
        format!("campanile_{}", self.id)
    }
}

impl Store {
    /// Listens until the receiver is dropped. On SQLite nothing is ever received.
    pub fn listen(&self) -> mpsc::Receiver<ListenEvent> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        match &self.state.listen_connector {
            Some(connector) => drop(connector.runtime.spawn(critical(listen(connector.clone(), sender)))),
            None => drop(tokio::spawn(async move { sender.closed().await })),
        }
        receiver
    }

    /// Notifies all listeners of each text, or of none. Equal texts are delivered once.
    pub async fn notify(&self, texts: Vec<String>) -> Result<()> {
        if texts.iter().any(|text| text.len() >= MAX_LENGTH) {
            return Err(StoreError::Failed("a notification is too long".into()));
        }
        let (Backend::Pg(_), Some(connector)) = (&self.backend, &self.state.listen_connector) else {
            return Ok(());
        };
        let channel = connector.channel();
        self.read(move |conn| notify(conn, channel, texts).boxed()).await
    }
}

async fn notify(conn: &mut Conn, channel: String, texts: Vec<String>) -> Result<()> {
    let Conn::Pg(conn) = conn else { return Ok(()) };
    let notify = diesel::sql_query("SELECT pg_notify($1, text) FROM unnest($2) AS text")
        .bind::<Text, _>(channel)
        .bind::<Array<Text>, _>(texts);
    diesel_async::RunQueryDsl::execute(notify, &mut **conn).await?;
    Ok(())
}

async fn listen(connector: ListenConnector, sender: mpsc::Sender<ListenEvent>) {
    let mut pause = FIRST_PAUSE;
    while !sender.is_closed() {
        match connect(&connector).await {
            Ok(mut conn) => {
                pause = FIRST_PAUSE;
                if sender.send(ListenEvent::Connected).await.is_ok()
                    && let Err(error) = forward(&mut conn, &sender).await
                {
                    tracing::warn!(%error, "notifications of other nodes are missed");
                    // Fails only if the listener is gone.
                    let _ = sender.send(ListenEvent::Lost).await;
                }
            }
            Err(error) => tracing::debug!(%error, "cannot listen for notifications"),
        }
        tokio::select! {
            () = sleep(pause) => pause = (2 * pause).min(LONGEST_PAUSE),
            () = sender.closed() => {}
        }
    }
}

async fn connect(connector: &ListenConnector) -> Result<AsyncPgConnection> {
    let opened = async {
        let mut conn: AsyncPgConnection = connect_as(&connector.url).await?;
        conn.batch_execute(&format!("LISTEN {}", connector.channel())).await?;
        Ok(conn)
    };
    timeout(CONNECT_TIMEOUT, opened).await.unwrap_or_else(|_| Err(no_answer()))
}

/// Forwards notifications until the connection is lost, or the receiver is dropped.
async fn forward(conn: &mut AsyncPgConnection, sender: &mpsc::Sender<ListenEvent>) -> Result<()> {
    let mut missed = false;
    while !sender.is_closed() {
        forward_until(conn, sender, Instant::now() + PROBE_INTERVAL, &mut missed).await?;
        timeout(PROBE_INTERVAL, conn.batch_execute("")).await.map_err(|_| no_answer())??;
    }
    Ok(())
}

async fn forward_until(
    conn: &mut AsyncPgConnection,
    sender: &mpsc::Sender<ListenEvent>,
    until: Instant,
    missed: &mut bool,
) -> Result<()> {
    let mut notifications = std::pin::pin!(conn.notifications_stream());
    loop {
        tokio::select! {
            notification = notifications.next() => {
                let notification = notification.ok_or_else(|| StoreError::Unavailable("the connection ended".into()))??;
                *missed = *missed || sender.try_send(ListenEvent::Notification(notification.payload)).is_err();
            }
            // The listener has caught up.
            Ok(permits) = sender.reserve_many(2), if *missed => {
                *missed = false;
                permits.zip([ListenEvent::Lost, ListenEvent::Connected]).for_each(|(permit, event)| permit.send(event));
            }
            () = sleep_until(until) => return Ok(()),
            () = sender.closed() => return Ok(()),
        }
    }
}

fn no_answer() -> StoreError {
    StoreError::Unavailable("the server does not answer".into())
}
