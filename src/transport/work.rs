//! What a connection waits for: a channel to be joined, an event to be committed, the log to be
//! read. Each ends with an outcome whatever happens; the store's deadlines see to that.

use std::rc::Rc;

use super::websocket::Sockets;
use crate::connection::Connection;
use crate::connection::clients::Target;
use crate::connection::effect::{Join, Joined, LookedUp, Published, ReadHistory, Replay, Since, Stored};
use crate::connection::replay::{self, RecoveryLimit};
use crate::domain::channel::ChannelName;
use crate::domain::event::NewEvent;
use crate::domain::options::{ChannelOptions, Retention};
use crate::domain::position::Position;
use crate::hub::fanout::{Framing, Subscription, Tailor, Visitor};
use crate::hub::outbox::Outbox;
use crate::protocol::code::DisconnectCode;
use crate::publish::{Publisher, UnitOfWork};
use crate::store::{Store, history, items};

/// The recovery limit of built-in channels (design §5).
const BUILT_IN_LIMIT: RecoveryLimit = RecoveryLimit { events: 10_000, bytes: 4 << 20 };
/// Bytes of data after which an answer to `history` ends; the client asks for the next page.
const HISTORY_BYTES: usize = 4 << 20;

/// A subscription and what its keeper knows of it.
pub(super) struct Follow {
    pub(super) subscription: Subscription,
    pub(super) positioned: bool,
}

impl Follow {
    pub(super) fn channel(&self) -> &ChannelName {
        self.subscription.entry().channel()
    }
}

/// Looks up what stands behind a channel.
pub(super) async fn look_up(store: Store, channel: ChannelName) -> (ChannelName, LookedUp) {
    let found = items::behind(&store, &channel).await.map(LookedUp::Found).unwrap_or_else(|error| {
        tracing::warn!(%channel, %error, "what stands behind a channel cannot be looked up");
        LookedUp::NotNow
    });
    (channel, found)
}

/// Puts an entry on hold, then finds where the channel is, then reads what was missed: in this
/// order nothing can fall in between.
pub(super) async fn join_channel(
    all: Rc<Sockets>,
    (outbox, framing): (Rc<Outbox>, Framing),
    join: Join,
) -> (ChannelName, Option<(Follow, Joined)>) {
    let Join { channel, recover, positioned, attendance, hears_others, delta, filter } = join;
    let visitor = Visitor { attendance, hears_others, tailor: Tailor::of(delta, filter) };
    let (kept, cache) = {
        let namespaces = all.rules.namespaces.load();
        let cache = namespaces.options_of(&channel).is_some_and(ChannelOptions::is_cache);
        (namespaces.retention_of(&channel), cache)
    };
    let subscribed = all.fanout.subscribe(channel.clone(), outbox.clone(), framing, visitor).await;
    let (subscription, mut position) = match subscribed {
        Ok(subscribed) => subscribed,
        Err(error) => {
            tracing::warn!(%channel, %error, "a client cannot subscribe");
            return (channel, None);
        }
    };
    let channel = subscription.entry().channel().clone();
    let replay = match (recover, kept) {
        (None, _) => Replay::NotAsked,
        (Some(_), None) => Replay::Lost,
        (Some(since), Some(retention)) => {
            // One replay at a time lies unsent.
            outbox.room().await;
            let limit = if channel.is_built_in() { BUILT_IN_LIMIT } else { all.options.recovery };
            let missed = Missed { channel: channel.clone(), retention, since, limit, cache };
            let store = all.store.clone();
            let Some((replay, head)) =
                all.missed.ask(missed, move |missed| missed.read(store.clone())).await.flatten()
            else {
                return (channel, None);
            };
            if replay == Replay::Lost {
                // Whoever begins anew does so in the history that the log has now.
                position = Some(head);
            }
            replay
        }
    };
    (channel, Some((Follow { subscription, positioned }, Joined { position, replay })))
}

/// What a client may have missed: the same for all that come back to the same place.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Missed {
    channel: ChannelName,
    retention: Retention,
    since: Since,
    limit: RecoveryLimit,
    /// Only the latest publication counts.
    cache: bool,
}

impl Missed {
    async fn read(self, store: Store) -> Option<(Replay, Position)> {
        let Self { channel, retention, since, limit, cache } = self;
        let found = match cache {
            true => replay::recover_latest(&store, &channel, retention, since).await,
            false => replay::recover(&store, &channel, retention, since, limit).await,
        };
        found.inspect_err(|error| tracing::warn!(%channel, %error, "clients cannot recover")).ok()
    }
}

/// Reads stored events.
pub(super) async fn read_history(all: Rc<Sockets>, wish: ReadHistory) -> Stored {
    let ReadHistory { channel, since, limit, reverse } = wish;
    let Some(retention) = all.rules.namespaces.load().retention_of(&channel) else { return Stored::NotNow };
    let store = all.store.clone();
    let read = all.store.read(move |conn| {
        Box::pin(async move {
            let (generation, now) = (store.generation(), store.timestamp());
            let since = since.as_ref().map(|since| (since.epoch.as_str(), since.offset));
            let wish = history::Wish { since, limit, reverse, bytes: HISTORY_BYTES };
            history::read(conn, &generation, &channel, retention, now, wish).await
        })
    });
    match read.await {
        Ok(history::History::Events { events, head }) => Stored::Events(events, head),
        Ok(history::History::OtherEpoch(_)) => Stored::OtherEpoch,
        Err(error) => {
            tracing::warn!(%error, "a client cannot read the history");
            Stored::NotNow
        }
    }
}

/// Commits a client's event.
pub(super) async fn publish(publisher: Publisher, event: NewEvent) -> Published {
    match publisher.commit(UnitOfWork::of(vec![event])).await {
        Ok(_) => Published::Done,
        Err(error) => {
            tracing::warn!(%error, "a client's event was not published");
            Published::NotNow
        }
    }
}

/// Ends the older connections of a session's user. It goes on even if this one is gone by then.
pub(super) fn end_older(all: &Sockets, session: &Connection) {
    let cluster = all.cluster.clone();
    let older = Target::Older { user: session.user().to_owned(), than: session.id() };
    actix_rt::spawn(async move {
        if let Err(error) = cluster.dismiss(older, &DisconnectCode::ConnectionLimit.into()).await {
            tracing::warn!(%error, "older connections of a user may go on elsewhere");
        }
    });
}
