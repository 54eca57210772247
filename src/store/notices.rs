//! What nodes on one Postgres call out to each other past the tables: LISTEN and NOTIFY. Nothing
//! of it is kept, and nothing depends on its being heard: whoever listens is told when something
//! may have been missed, and looks for itself. SQLite has one node, so nobody ever calls there.

use std::time::Duration;

use diesel::sql_types::{Array, Text};
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection as _};
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::conn::Conn;
use super::error::{Result, StoreError};
use super::{Backend, Store};

/// What may wait for the listener; more is dropped, and it is told so.
const QUEUE: usize = 1024;
/// Between two proofs that the server is there, and how long each may take.
const PROOF: Duration = Duration::from_secs(1);
/// To open the connection.
const CONNECT: Duration = Duration::from_secs(5);
/// After a connection was lost; doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// The server takes nothing of this length or longer.
pub const TOO_LONG: usize = 8_000;

/// What a listener hears. Before the first [`Heard::Listening`] it is deaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// From now on everything is heard. What was said before may have been missed.
    Listening,
    /// Somebody said this; it may have been this node.
    Said(String),
    /// From now on things are missed.
    Deaf,
}

/// The way to the server for listening.
#[derive(Clone)]
pub(super) struct Line {
    url: String,
    /// Whose notices: those of other databases and schemas of the server are not ours.
    id: String,
    /// Connections live on the store's own.
    runtime: Handle,
}

impl Line {
    /// For the store of that id; must be called on its runtime.
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
    /// Listens, for as long as the answer is there. On SQLite nothing ever comes.
    pub fn listen(&self) -> mpsc::Receiver<Heard> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        match &self.state.line {
            Some(line) => drop(line.runtime.spawn(listen(line.clone(), sender))),
            None => drop(tokio::spawn(async move { sender.closed().await })),
        }
        receiver
    }

    /// Says each text to all who listen, or none. Of equal texts one is heard.
    pub async fn notify(&self, texts: Vec<String>) -> Result<()> {
        if texts.iter().any(|text| text.len() >= TOO_LONG) {
            return Err(StoreError::Failed("a notice is too long".into()));
        }
        let (Backend::Pg(_), Some(line)) = (&self.backend, &self.state.line) else { return Ok(()) };
        let channel = line.channel();
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

async fn listen(line: Line, sender: mpsc::Sender<Heard>) {
    let mut pause = FIRST_PAUSE;
    while !sender.is_closed() {
        match connect(&line).await {
            Ok(mut conn) => {
                pause = FIRST_PAUSE;
                if sender.send(Heard::Listening).await.is_ok()
                    && let Err(error) = hear(&mut conn, &sender).await
                {
                    tracing::warn!(%error, "notices of other nodes are missed");
                    // Nobody needs to know if nobody listens.
                    let _ = sender.send(Heard::Deaf).await;
                }
            }
            Err(error) => tracing::debug!(%error, "the notices cannot be listened to"),
        }
        tokio::select! {
            () = sleep(pause) => pause = (2 * pause).min(LONGEST_PAUSE),
            () = sender.closed() => {}
        }
    }
}

async fn connect(line: &Line) -> Result<AsyncPgConnection> {
    let opened = async {
        let mut conn = super::connect::connect(&line.url).await?;
        conn.batch_execute(&format!("LISTEN {}", line.channel())).await?;
        Ok(conn)
    };
    timeout(CONNECT, opened).await.unwrap_or_else(|_| Err(silent()))
}

/// Passes on what is said until the connection is lost, or nobody listens any more.
async fn hear(conn: &mut AsyncPgConnection, sender: &mpsc::Sender<Heard>) -> Result<()> {
    let mut missed = false;
    while !sender.is_closed() {
        pass_on(conn, sender, Instant::now() + PROOF, &mut missed).await?;
        timeout(PROOF, conn.batch_execute("")).await.map_err(|_| silent())??;
    }
    Ok(())
}

async fn pass_on(
    conn: &mut AsyncPgConnection,
    sender: &mpsc::Sender<Heard>,
    until: Instant,
    missed: &mut bool,
) -> Result<()> {
    let mut notices = std::pin::pin!(conn.notifications_stream());
    loop {
        tokio::select! {
            notice = notices.next() => {
                let notice = notice.ok_or_else(|| StoreError::Unavailable("the connection ended".into()))??;
                *missed = *missed || sender.try_send(Heard::Said(notice.payload)).is_err();
            }
            // The listener has caught up.
            Ok(room) = sender.reserve_many(2), if *missed => {
                *missed = false;
                room.zip([Heard::Deaf, Heard::Listening]).for_each(|(room, heard)| room.send(heard));
            }
            () = sleep_until(until) => return Ok(()),
            () = sender.closed() => return Ok(()),
        }
    }
}

fn silent() -> StoreError {
    StoreError::Unavailable("the server is silent".into())
}
