//! What a channel still holds. The limit for clients does not count here; how large one answer
//! may be is bounded by the store.

use actix_web::{HttpRequest, web};
use futures_util::FutureExt as _;
use serde::Deserialize;

use super::{KeyHolder, answer, channel_of, parse, whole};
use crate::domain::channel::ChannelName;
use crate::domain::options::Retention;
use crate::http::access::{self, Access};
use crate::http::error::ApiResult;
use crate::protocol::code::ErrorCode;
use crate::protocol::reply::Reply;
use crate::store::history::{self as stored, Wish};
use crate::store::{Store, StoreError};

#[derive(Deserialize)]
struct History {
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
pub async fn history(
    _: KeyHolder,
    request: HttpRequest,
    body: web::Payload,
    store: web::Data<Store>,
) -> ApiResult {
    let body = whole(body).await?;
    let asked: History = parse("history", &body)?;
    let found = match readable(access::of(&request), &asked) {
        Err(code) => Err(code),
        Ok((channel, retention)) => match read(&store, channel, retention, asked).await {
            Ok(stored::History::Events { events, head }) => {
                Ok(Reply::History { publications: &events, position: &head }.result())
            }
            Ok(stored::History::OtherEpoch(_)) => Err(ErrorCode::UnrecoverablePosition),
            Err(error @ StoreError::Failed(_)) => {
                tracing::error!(%error, "a history cannot be read");
                Err(ErrorCode::Internal)
            }
            Err(error) => return Err(error.into()),
        },
    };
    Ok(answer(&request, found))
}

fn readable(access: &Access, asked: &History) -> Result<(ChannelName, Retention), ErrorCode> {
    let (channel, _) = channel_of(access, &asked.channel)?;
    let retention = access.namespaces.load().retention_of(&channel).ok_or(ErrorCode::NotAvailable)?;
    // Nothing lies before the first event.
    if asked.reverse == Some(true) && asked.since.as_ref().is_some_and(|since| since.offset == 0) {
        return Err(ErrorCode::BadRequest);
    }
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
