//! What a channel still holds, and letting go of it. The limit for clients does not count here; how
//! large one answer may be is bounded by the store.

use serde::Deserialize;

use super::{Api, MethodResult, empty_result};
use crate::domain::channel::ChannelName;
use crate::domain::options::Retention;
use crate::history::{self, History as Found, Wanted};
use crate::protocol::code::ErrorCode;
use crate::protocol::reply::Reply;

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
    let wanted = Wanted {
        since: asked.since.map(|since| (since.epoch, since.offset)),
        // All of it, if the number is negative.
        limit: u32::try_from(asked.limit.unwrap_or(0)).unwrap_or(u32::MAX),
        reverse: asked.reverse == Some(true),
    };
    match history::read(&api.state().store, channel, retention, wanted).await? {
        Found::Events { events, head } => {
            Ok(Reply::History { publications: &events, position: &head }.result())
        }
        Found::OtherEpoch(_) => Err(ErrorCode::UnrecoverablePosition.into()),
    }
}

/// A channel that has a history.
fn readable(api: &Api, name: &str) -> Result<(ChannelName, Retention), ErrorCode> {
    let namespaces = api.state().access.namespaces.load();
    let (channel, _) = namespaces.find(name)?;
    let retention = namespaces.retention_of(&channel).ok_or(ErrorCode::NotAvailable)?;
    Ok((channel, retention))
}

#[derive(Deserialize)]
pub(super) struct HistoryRemove {
    #[serde(default)]
    channel: String,
}

/// `POST /api/history_remove`: what is kept goes, the position stays.
pub(super) async fn remove(api: &Api, asked: HistoryRemove) -> MethodResult {
    let (channel, _) = readable(api, &asked.channel)?;
    history::remove(&api.state().store, channel).await?;
    empty_result()
}
