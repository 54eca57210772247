//! `GET /api/dashboard/activity`: the newest events of all that the caller may see, newest first.
//! Read from the ends of a few channels' logs, so its cost does not grow with them; 304 when no
//! end has moved.

use std::collections::{BTreeSet, HashSet};

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::access::{self, Caller};
use super::error::ApiResult;
use super::poll::matches_tag;
use crate::domain::access::{default_channels, is_admin};
use crate::domain::channel::{ChannelKind, ChannelName};
use crate::domain::event::Event;
use crate::domain::options::Retention;
use crate::store::{self, ReadTx, Store, log};

const DEFAULT_LIMIT: u32 = 20;
const MAX_LIMIT: u32 = 100;

/// The query string.
#[derive(Debug, Deserialize)]
pub struct Query {
    limit: Option<String>,
}

/// Answers `{"events":[…]}`, each event as it stands in its channel.
pub async fn activity(
    request: HttpRequest,
    Caller(principal): Caller,
    query: web::Query<Query>,
    store: web::Data<Store>,
) -> ApiResult {
    let limit = super::parse_limit(query.limit.as_deref(), DEFAULT_LIMIT, MAX_LIMIT)?;
    let admin = is_admin(&principal);
    let named: BTreeSet<ChannelName> = default_channels(&principal)
        .into_iter()
        .filter(|channel| matches!(channel.kind(), ChannelKind::Org { .. } | ChannelKind::Repo { .. }))
        .collect();
    let namespaces = access::of(&request).namespaces.load_full();
    let org = ChannelName::org("any").ok().and_then(|channel| namespaces.retention_of(&channel));
    let Some(retention) = org else {
        return Ok(HttpResponse::Ok().json(serde_json::json!({ "events": [] })));
    };
    let known =
        request.headers().get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let read = store
        .read(move |tx| {
            Box::pin(async move {
                let channels = if admin {
                    // An event among the newest `limit` is on one of the `limit` channels that moved last.
                    log::recent_channels(tx, "org:", limit).await?
                } else {
                    named.into_iter().collect()
                };
                let heads = tx.heads(&channels).await?;
                let mut ends: Vec<String> =
                    heads.iter().map(|(name, head)| format!("{name} {head}")).collect();
                ends.sort();
                let digest = Sha256::digest(format!("{limit}\n{}", ends.join("\n")).as_bytes());
                let tag = format!("\"{}\"", hex::encode(&digest[..12]));
                if known.is_some_and(|known| matches_tag(&known, &tag)) {
                    return store::Result::Ok((tag, None));
                }
                let live: Vec<ChannelName> =
                    channels.into_iter().filter(|channel| heads.contains_key(channel.as_str())).collect();
                let newest = newest(tx, &live, retention, limit).await?;
                Ok((tag, Some(newest)))
            })
        })
        .await?;
    let (tag, newest) = read;
    let mut answer = if newest.is_some() { HttpResponse::Ok() } else { HttpResponse::NotModified() };
    answer.insert_header((header::ETAG, tag));
    answer.insert_header((header::CACHE_CONTROL, "private, max-age=0"));
    answer.insert_header((header::VARY, "Authorization, Cookie"));
    let Some(newest) = newest else { return Ok(answer.finish()) };
    let texts: Vec<&str> = newest.iter().map(|event| event.data.as_ref()).collect();
    Ok(answer.content_type("application/json").body(format!("{{\"events\":[{}]}}", texts.join(","))))
}

/// Ids are UUID v7: their order is that of their making, and the same fact has the same id on
/// `repo:` and on `org:`.
async fn newest(
    tx: &mut ReadTx<'_>,
    channels: &[ChannelName],
    retention: Retention,
    limit: u32,
) -> store::Result<Vec<Event>> {
    let mut all = Vec::new();
    for channel in channels {
        all.extend(tx.latest(channel, retention, limit).await?);
    }
    all.sort_by_key(|event| std::cmp::Reverse(event.id));
    let mut seen = HashSet::new();
    all.retain(|event| seen.insert(event.id));
    all.truncate(limit as usize);
    Ok(all)
}
