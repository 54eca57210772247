//! What a channel still holds, and letting go of it. The limit for clients does not count here; how
//! large one answer may be is bounded by the store.

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde::Deserialize;

use super::{Api, Failure, MethodResult, channel_of, empty_result};
use crate::domain::channel::ChannelName;
use crate::domain::options::Retention;
use crate::protocol::code::ErrorCode;
use crate::protocol::reply::Reply;
use crate::publish::{Apply, Publisher, UnitOfWork, Verdict};
use crate::store::history::{self as stored, Wish};
use crate::store::{self, Store, StoreError, Transaction, log};

#[derive(Deserialize)]
pub(super) struct History {
    #[serde(default)]
    channel: String,
    #[serde(default)]
    limit: Option<i32>,
    #[serde(default)]
    since: Option<Since>,
    #[serde(default)]
    reverse: Option<bool>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Since {
    offset: u64,
    epoch: String,
}

/// `POST /api/history`.
pub(super) async fn history(api: &Api, asked: History) -> MethodResult {
    let (channel, retention) = readable(api, &asked.channel)?;
    // Nothing lies before the first event.
    if asked.reverse == Some(true) && asked.since.as_ref().is_some_and(|since| since.offset == 0) {
        return Err(ErrorCode::BadRequest.into());
    }
    match read(api.state(), channel, retention, asked).await? {
        stored::History::Events { events, head } => {
            Ok(Reply::History { publications: &events, position: &head }.result())
        }
        stored::History::OtherEpoch(_) => Err(ErrorCode::UnrecoverablePosition.into()),
    }
}

/// A channel that has a history.
fn readable(api: &Api, name: &str) -> Result<(ChannelName, Retention), ErrorCode> {
    let namespaces = api.access().namespaces.load();
    let (channel, _) = channel_of(&namespaces, name)?;
    let retention = namespaces.retention_of(&channel).ok_or(ErrorCode::NotAvailable)?;
    Ok((channel, retention))
}

async fn read(
    store: &Store,
    channel: ChannelName,
    retention: Retention,
    asked: History,
) -> Result<stored::History, StoreError> {
    let (generation, now) = (store.generation(), store.timestamp());
    // All of it, if the number is negative.
    let limit = u32::try_from(asked.limit.unwrap_or(0)).unwrap_or(u32::MAX);
    store
        .read(move |conn| {
            async move {
                let since = asked.since.as_ref().map(|since| (since.epoch.as_str(), since.offset));
                let wish = Wish { since, limit, reverse: asked.reverse == Some(true), bytes: usize::MAX };
                stored::read(conn, &generation, &channel, retention, now, wish).await
            }
            .boxed()
        })
        .await
}

#[derive(Deserialize)]
pub(super) struct HistoryRemove {
    #[serde(default)]
    channel: String,
}

/// `POST /api/history_remove`: what is kept goes, the position stays.
pub(super) async fn remove(api: &Api, asked: HistoryRemove) -> MethodResult {
    let (channel, _) = readable(api, &asked.channel)?;
    let unit = UnitOfWork { apply: Some(Box::new(Remove(channel))), ..UnitOfWork::of(Vec::new()) };
    api.state::<Publisher>().commit(unit).await.map_err(|error| Failure::Refused(error.into()))?;
    empty_result()
}

struct Remove(ChannelName);

impl Apply for Remove {
    /// No other unit locks a channel's stored events.
    fn order(&self) -> i64 {
        i64::MAX
    }

    fn apply<'a>(&'a self, tx: &'a mut Transaction<'_>) -> BoxFuture<'a, store::Result<Verdict>> {
        Box::pin(async move {
            log::clear(tx.conn, &self.0).await?;
            Ok(Verdict::Proceed)
        })
    }
}
