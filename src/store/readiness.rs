//! Whether the store can keep what comes: by writes that took place lately, or else by one of our own. A
//! store that answers and cannot write is not ready, and a failure is forgotten only by a write of our own that
//! needs all that events need.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel::sql_types::Text;
use futures_util::FutureExt as _;
use tokio::sync::watch;
use uuid::Uuid;

use super::conn::Conn;
use super::error::{Result, StoreError};
use super::schema::meta;
use super::types::Ts;
use super::{Store, generation, log, migrate};
use crate::domain::channel::ChannelName;
use crate::domain::event::NewEvent;

/// How long it counts that a write took place, or did not.
const LATELY: Duration = Duration::from_secs(1);
/// The row that probes write.
const WRITTEN: &str = "written";
/// The channel to which probes append after a failure; nobody can name it.
const PROBED: &str = "ops:readiness";
/// What a probe writes, in bytes, while it is not known whether there is room again. A small one may find
/// room that a webhook would not.
const LARGE: usize = 64 * 1024;

pub(super) struct Readiness {
    healthy: watch::Sender<bool>,
    /// When it was last found out.
    found: Mutex<Option<Instant>>,
    /// Whoever probes has it.
    turn: tokio::sync::Mutex<()>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self {
            healthy: watch::Sender::new(true),
            found: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        }
    }
}

impl Readiness {
    pub(super) fn health(&self) -> watch::Receiver<bool> {
        self.healthy.subscribe()
    }

    /// A write took place. After a failure that says nothing: it may have needed less than what failed, and a
    /// probe has the word.
    pub(super) fn wrote(&self) {
        if *self.healthy.borrow() {
            *self.found() = Some(Instant::now());
        }
    }

    /// A call did not reach the store, or the store cannot do what it is for.
    pub(super) fn failed(&self) {
        if self.healthy.send_if_modified(|healthy| std::mem::replace(healthy, false)) {
            // It may have been that one connection.
            *self.found() = None;
        }
    }

    fn conclude(&self, healthy: bool) {
        self.healthy.send_if_modified(|known| std::mem::replace(known, healthy) != healthy);
        *self.found() = Some(Instant::now());
    }

    fn is_known(&self) -> bool {
        self.found().is_some_and(|at| at.elapsed() < LATELY)
    }

    fn found(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Whether a write was possible within the last second. However many ask, one write at a time finds
    /// that out, and none while others are written.
    pub async fn ready(&self) -> bool {
        let readiness = &self.state.readiness;
        if !readiness.is_known() {
            let _turn = readiness.turn.lock().await;
            if !readiness.is_known() {
                // It has concluded.
                let _ = self.probe_in_turn().await;
            }
        }
        *readiness.healthy.borrow()
    }

    /// Writes, and reads the generation and the clock of the store.
    pub async fn probe(&self) -> Result<()> {
        let _turn = self.state.readiness.turn.lock().await;
        self.probe_in_turn().await
    }

    async fn probe_in_turn(&self) -> Result<()> {
        let done = match self.look().await {
            Ok(()) => self.write_something().await,
            failed => failed,
        };
        self.state.readiness.conclude(done.is_ok());
        done
    }

    /// Reads the generation and the clock of the store.
    pub(super) async fn look(&self) -> Result<()> {
        let sent = Ts::from(chrono::Utc::now());
        let probe = self.read(|conn| generation::probe(conn).boxed()).await?;
        self.state.learn(&probe, sent);
        Ok(())
    }

    async fn write_something(&self) -> Result<()> {
        let value = if *self.state.readiness.healthy.borrow() {
            self.timestamp().0.to_string()
        } else {
            // Random, so that it is not stored in less.
            hex::encode(rand::random_iter().take(LARGE / 2).collect::<Vec<u8>>())
        };
        let healthy = *self.state.readiness.healthy.borrow();
        self.write(|conn| write(conn, value).boxed()).await?;
        if healthy { Ok(()) } else { self.append_something().await }
    }

    /// What events need: after a failure it counts whether that is possible, and not whether something else is.
    async fn append_something(&self) -> Result<()> {
        let channel = ChannelName::parse(PROBED).map_err(|error| StoreError::Failed(error.into()))?;
        self.write_log(move |mut tx| {
            async move {
                if tx.conn.is_postgres() {
                    check_rights(tx.conn).await?;
                }
                let event = NewEvent::new(channel.clone(), Uuid::now_v7(), "probe", "{}".into());
                let append = log::Append { events: &[&event], key: None, version: None };
                log::append(&mut tx, &[append]).await?;
                log::clear(&mut tx, &channel).await.map(drop)
            }
            .boxed()
        })
        .await
    }
}

/// Whether this user may still do what it will have to.
async fn check_rights(conn: &mut Conn) -> Result<()> {
    let query = diesel::select(migrate::missing_rights());
    let (user, tables) = conn.load::<(String, String)>(query).await?.pop().unwrap_or_default();
    if tables.is_empty() {
        return Ok(());
    }
    Err(StoreError::Unavailable(format!("the user {user} may not read and write {tables}")))
}

async fn write(conn: &mut Conn, value: String) -> Result<()> {
    if conn.is_postgres() {
        // Another node that stands still in the middle of its probe holds up nobody.
        let update = "UPDATE meta SET value = $1 WHERE key = \
                      (SELECT key FROM meta WHERE key = $2 FOR UPDATE SKIP LOCKED)";
        let update = diesel::sql_query(update).bind::<Text, _>(value).bind::<Text, _>(WRITTEN);
        if conn.execute(update).await? == 1 {
            return Ok(());
        }
        let first = (meta::key.eq(WRITTEN), meta::value.eq(""));
        conn.execute(diesel::insert_into(meta::table).values(first).on_conflict_do_nothing()).await?;
        return Ok(());
    }
    let upsert = diesel::sql_query("REPLACE INTO meta (key, value) VALUES (?, ?)")
        .bind::<Text, _>(WRITTEN)
        .bind::<Text, _>(value);
    conn.execute(upsert).await.map(drop)
}
