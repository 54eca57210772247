//! The asynchronous effects of a session: joining a channel, committing an event, reading the log.
//! Each ends with an outcome in all cases, because the store has deadlines.

use std::rc::Rc;

use super::worker::WorkerContext;
use crate::clients::Target;
use crate::domain::channel::ChannelName;
use crate::domain::event::{Event, NewEvent};
use crate::domain::options::ChannelOptions;
use crate::domain::position::Position;
use crate::hub::fanout::{PerSubscriber, SubscriberOptions, SubscriptionGuard};
use crate::hub::outbox::Outbox;
use crate::limits::replies::{Full, SMALL, Share};
use crate::protocol::code::DisconnectCode;
use crate::protocol::encoding::Framing;
use crate::publish::{Publisher, UnitOfWork};
use crate::recovery::{Recovered, RecoveryLimit, RecoveryRequest};
use crate::resources;
use crate::session::Connection;
use crate::session::effect::{Join, Joined, LookedUp, Published, ReadHistory, Replay, Stored};
use crate::store::{Store, history};

/// The recovery limit of built-in channels (design §5).
const BUILT_IN_LIMIT: RecoveryLimit = RecoveryLimit { events: 10_000, bytes: 4 << 20 };
/// Bytes of data after which an answer to `history` ends; the client asks for the next page.
const HISTORY_BYTES: usize = 4 << 20;

/// A channel that a connection follows.
pub(super) struct Follow {
    pub(super) subscription: SubscriptionGuard,
    pub(super) positioned: bool,
}

impl Follow {
    pub(super) fn channel(&self) -> &ChannelName {
        self.subscription.subscriber().channel()
    }
}

/// Looks up the resource that a channel belongs to.
pub(super) async fn look_up(store: Store, channel: ChannelName) -> (ChannelName, LookedUp) {
    let found = resources::lookup(&store, &channel).await.map(LookedUp::Found).unwrap_or_else(|error| {
        tracing::warn!(%channel, %error, "the resource of a channel cannot be looked up");
        LookedUp::Unavailable
    });
    (channel, found)
}

/// Puts a paused subscriber, then finds the position of the channel, then reads the events that the
/// client missed, with a `share` of the room for that. In this order no event can be lost in between.
pub(super) async fn join_channel(
    worker: Rc<WorkerContext>,
    (outbox, framing): (Rc<Outbox>, Framing),
    share: Option<(Rc<Share>, String)>,
    join: Join,
) -> (ChannelName, Option<(Follow, Joined)>) {
    let Join { channel, recover, recoverable, positioned, presence_info, receives_join_leave, delta, filter } =
        join;
    let options = SubscriberOptions {
        presence_info,
        receives_join_leave,
        per_subscriber: PerSubscriber::of(delta, filter),
    };
    let (kept, cache) = {
        let namespaces = worker.session_context.namespaces.load();
        let cache = namespaces.options_of(&channel).is_some_and(ChannelOptions::is_cache);
        (namespaces.retention_of(&channel).filter(|_| recoverable), cache)
    };
    let subscribed = worker.fanout.subscribe(channel.clone(), outbox.clone(), framing, options).await;
    let (subscription, mut position) = match subscribed {
        Ok(subscribed) => subscribed,
        Err(error) => {
            tracing::warn!(%channel, %error, "a client cannot subscribe");
            return (channel, None);
        }
    };
    let channel = subscription.subscriber().channel().clone();
    let replay = match (recover.zip(share), kept) {
        (None, _) => Replay::NotAsked,
        (Some(_), None) => Replay::Lost,
        (Some((since, (share, user))), Some(retention)) => {
            // At most one unsent replay is kept in memory.
            outbox.wait_for_capacity().await;
            let limit = if channel.is_built_in() { BUILT_IN_LIMIT } else { worker.options.recovery };
            let request =
                RecoveryRequest { channel: channel.clone(), retention, since, limit, room: SMALL, cache };
            let Some((replay, head)) = recover_within(&worker, request, (&share, &user)).await else {
                return (channel, None);
            };
            if replay == Replay::Lost {
                // A client that starts over does so in the current epoch of the log.
                position = Some(head);
            }
            replay
        }
    };
    (channel, Some((Follow { subscription, positioned }, Joined { position, replay })))
}

/// Reads what a client missed; first whether it is little, which needs no room.
async fn recover_within(
    worker: &WorkerContext,
    mut request: RecoveryRequest,
    (share, user): (&Share, &str),
) -> Option<(Replay, Position)> {
    let read = async |request| {
        let store = worker.store.clone();
        worker.recoveries.run(request, move |request| request.read(store.clone())).await.flatten()
    };
    if let Recovered::Whole(replay, head) = read(request.clone()).await? {
        return Some((replay, head));
    }
    let turn = share.turn(&worker.limits.replies, user).await.ok()?;
    request.room = usize::MAX;
    request.limit.bytes = request.limit.bytes.min(turn.left());
    match read(request).await? {
        Recovered::Whole(replay, head) => {
            if let Replay::Found(_, events) = &replay {
                turn.use_up(length(events));
            }
            Some((replay, head))
        }
        Recovered::NeedsRoom => None,
    }
}

pub(super) async fn read_history(
    worker: Rc<WorkerContext>,
    (share, user): (Rc<Share>, String),
    request: ReadHistory,
) -> Stored {
    let little = read_some(&worker, request.clone(), SMALL).await;
    if !matches!(&little, Stored::Events(events, _) if length(events) >= SMALL) {
        return little;
    }
    match share.turn(&worker.limits.replies, &user).await {
        Ok(turn) => read_some(&worker, request, HISTORY_BYTES.min(turn.left())).await,
        Err(Full) => Stored::Unavailable,
    }
}

fn length(events: &[Event]) -> usize {
    events.iter().map(|event| event.data.len()).sum()
}

async fn read_some(worker: &WorkerContext, request: ReadHistory, bytes: usize) -> Stored {
    let ReadHistory { channel, since, limit, reverse } = request;
    let Some(retention) = worker.session_context.namespaces.load().retention_of(&channel) else {
        return Stored::Unavailable;
    };
    let read = worker.store.read(move |tx| {
        Box::pin(async move {
            let since = since.as_ref().map(|since| (since.epoch.as_str(), since.offset));
            let wish = history::Wish { since, limit, reverse, bytes };
            tx.history(&channel, retention, wish).await
        })
    });
    match read.await {
        Ok(history::History::Events { events, head }) => Stored::Events(events, head),
        Ok(history::History::OtherEpoch(_)) => Stored::OtherEpoch,
        Err(error) => {
            tracing::warn!(%error, "a client cannot read the history");
            Stored::Unavailable
        }
    }
}

pub(super) async fn publish(publisher: Publisher, event: NewEvent) -> Published {
    match publisher.commit(UnitOfWork::of(vec![event])).await {
        Ok(_) => Published::Done,
        Err(error) => {
            tracing::warn!(%error, "a client's event was not published");
            Published::Unavailable
        }
    }
}

/// Disconnects the older connections of a session's user, even if this one has ended by then.
pub(super) fn disconnect_older(worker: &WorkerContext, session: &Connection) {
    let cluster = worker.cluster.clone();
    let older = Target::Older { user: session.user().to_owned(), than: session.id() };
    actix_rt::spawn(async move {
        if let Err(error) = cluster.disconnect(older, &DisconnectCode::ConnectionLimit.into()).await {
            tracing::warn!(%error, "older connections of a user may still be open on other nodes");
        }
    });
}
