//! Polls of several channels: one page, one cursor and one tag for all of them.

use std::collections::BTreeMap;

use actix_web::HttpRequest;
use actix_web::http::StatusCode;
use serde_json::{Value, json};

use super::{DEFAULT_LIMIT, MAX_LIMIT, retention_for};
use crate::domain::channel::ChannelName;
use crate::domain::cursor::Cursor;
use crate::domain::position::Position;
use crate::domain::principal::Principal;
use crate::history::{self, Asked, Bounds, FoundSeveral, Part};
use crate::http::error::{ApiError, ApiResult};
use crate::http::{HttpState, PageQuery, channel_list, etag};
use crate::protocol::polled;
use crate::resources;

/// One page of `names`, the value of `channels=`.
pub(super) async fn page(
    request: &HttpRequest,
    principal: &Principal,
    names: &str,
    query: &PageQuery,
    state: &HttpState,
) -> ApiResult {
    let channels = channel_list::parse(names)?;
    channel_list::check_number(&channels, state.polls.max_channels)?;
    let mut asked = Vec::with_capacity(channels.len());
    for channel in &channels {
        let resource = resources::lookup(&state.store, channel).await?;
        let retention = retention_for(&state.access, principal, channel, &resource)
            .map_err(|error| error.details(json!({ "channel": channel })))?;
        asked.push(Asked { channel: channel.clone(), retention, from: None });
    }
    let limit = crate::http::parse_limit(query.limit.as_deref(), DEFAULT_LIMIT, MAX_LIMIT)?;
    if let Some(cursor) = &query.cursor {
        let mut positions = channel_list::positions(cursor, &channels)?;
        for asked in &mut asked {
            asked.from = positions.remove(&asked.channel);
        }
    }
    let known = etag::known(request.headers());
    if let Some(tag) = known.and_then(|known| etag_at_end(state, &asked, limit, known)) {
        return Ok(etag::not_modified(&tag));
    }
    read_page(asked, limit, known.map(str::to_owned), state).await
}

/// The tag for a reader at the end of all channels, if it has sent that tag and no database is needed to say so.
fn etag_at_end(state: &HttpState, asked: &[Asked], limit: u32, known: &str) -> Option<String> {
    let bounds = asked.iter().map(|Asked { channel, from, .. }| {
        let head = from.clone().filter(|from| history::is_at_end(&state.store, channel, from))?;
        Some(Bounds { before_oldest: head.offset, head })
    });
    let tag = etag_of(asked, limit, &bounds.collect::<Option<Vec<_>>>()?);
    etag::matches(known, &tag).then_some(tag)
}

async fn read_page(asked: Vec<Asked>, limit: u32, known: Option<String>, state: &HttpState) -> ApiResult {
    let tagger = asked.clone();
    let is_known = move |bounds: &[Bounds]| {
        known.is_some_and(|known| etag::matches(&known, &etag_of(&tagger, limit, bounds)))
    };
    match history::several(&state.store, asked.clone(), limit, is_known).await? {
        FoundSeveral::Known(bounds) => Ok(etag::not_modified(&etag_of(&asked, limit, &bounds))),
        FoundSeveral::Lost(lost) => Err(cursor_lost(asked, &lost)),
        FoundSeveral::Page(parts) => {
            let bounds: Vec<Bounds> = parts.iter().map(|part| part.bounds.clone()).collect();
            Ok(etag::json(&etag_of(&asked, limit, &bounds), body(parts)))
        }
    }
}

fn body(parts: Vec<Part>) -> String {
    let mut body = String::from("{\"events\":[");
    let mut has_next = false;
    let mut positions = BTreeMap::new();
    for Part { channel, bounds, at, events } in parts {
        for event in &events {
            if !body.ends_with('[') {
                body.push(',');
            }
            polled::write_with_channel(&mut body, &channel, event);
        }
        has_next |= at < bounds.head.offset;
        positions.insert(channel, Position::new(bounds.head.epoch, at));
    }
    let cursor = cursor_of(positions).map_or_else(String::new, |cursor| cursor.to_string());
    body.push_str(&format!("],\"cursor\":\"{cursor}\",\"hasNext\":{has_next}}}"));
    body
}

/// As the event stream writes it: of one channel it is that channel's own.
fn cursor_of(mut positions: BTreeMap<ChannelName, Position>) -> Option<Cursor> {
    match positions.len() {
        0 => None,
        1 => positions.pop_first().map(|(_, only)| Cursor::One(only)),
        _ => Some(Cursor::Many(positions)),
    }
}

/// 410: says which places are gone, and the cursor with which the other channels go on. A channel that it
/// does not name begins with its oldest event.
fn cursor_lost(asked: Vec<Asked>, lost: &[(ChannelName, Bounds)]) -> ApiError {
    let is_lost = |channel: &ChannelName| lost.iter().any(|(lost, _)| lost == channel);
    let kept = asked.into_iter().filter_map(|asked| Some((asked.channel, asked.from?)));
    let kept: BTreeMap<_, _> = kept.filter(|(channel, _)| !is_lost(channel)).collect();
    let lost: Vec<Value> = lost
        .iter()
        .map(|(channel, bounds)| {
            let (oldest, head) = (bounds.oldest().to_string(), bounds.head.to_string());
            json!({ "channel": channel, "oldest": oldest, "head": head })
        })
        .collect();
    let mut details = json!({ "lost": lost });
    let message = if kept.is_empty() {
        "the positions of the cursor are no longer retained: continue without one"
    } else {
        // Of several channels even if it names one: the request is for all of them.
        details["cursor"] = json!(Cursor::Many(kept).to_string());
        "the positions of the channels in `lost` are no longer retained: continue with `cursor`"
    };
    ApiError::new(StatusCode::GONE, "cursor_lost", message).details(details)
}

/// A hash of everything the answer depends on.
fn etag_of(asked: &[Asked], limit: u32, bounds: &[Bounds]) -> String {
    let channels: Vec<_> = asked
        .iter()
        .zip(bounds)
        .map(|(asked, bounds)| {
            (&asked.channel, asked.from.as_ref().ok_or(bounds.before_oldest), &bounds.head)
        })
        .collect();
    etag::of(&("several", channels, limit))
}
