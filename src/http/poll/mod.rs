//! `GET /api/events`: reads a channel, or several, page by page with the cursor that SSE and WebSocket use.
//! Nothing new costs one look at the head: the answer is 304.

mod not_modified_fast_path;
mod several;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, get, web};
use serde::Deserialize;
use serde_json::json;
use utoipa::IntoParams;

use super::access::Access;
use super::error::{ApiError, ApiResult};
use super::etag;
use super::extract::Caller;
use super::rate_headers::{add_rate, with_rate};
use super::{HttpState, PageQuery, State};
use crate::domain::access::{Action, Denied, ResourceInfo};
use crate::domain::channel::ChannelName;
use crate::domain::cursor::Cursor;
use crate::domain::options::Retention;
use crate::domain::position::Position;
use crate::domain::principal::Principal;
use crate::history::{self, Bounds, Found, Page, PageRequest};
use crate::http::metrics::PollOutcome;
use crate::limits::rate_limit::RateLimit;
use crate::protocol::polled;
use crate::resources;

pub use not_modified_fast_path::NotModifiedFastPath;

/// Where it is, as the route of [`list_events`] says.
pub const PATH: &str = "/api/events";
const DEFAULT_LIMIT: u32 = 50;
const MAX_LIMIT: u32 = 100;

/// What the endpoint needs.
pub struct PollEndpoint {
    /// Polls by user.
    pub rate: RateLimit,
    /// Channels of one poll.
    pub max_channels: usize,
}

/// The query string.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct Query {
    #[param(value_type = String, min_length = 1, max_length = 255, example = "repo:acme/api")]
    channel: Option<String>,
    /// Instead of `channel`: up to 32, with commas between.
    #[param(example = "org:acme,repo:acme/api")]
    channels: Option<String>,
    /// The `cursor` of an earlier response.
    cursor: Option<String>,
    #[param(value_type = Option<u32>, minimum = 1, maximum = 100, default = 50)]
    limit: Option<String>,
}

/// A page of events after a cursor, of one channel or of several.
///
/// Without a cursor it begins with the oldest event that is retained. With `channels` each event comes with
/// its channel and offset; the cursor is for all of them, and a channel that it does not name begins with its
/// oldest event.
#[utoipa::path(
    params(Query),
    responses(
        (status = 200, description = "#Page"), (status = 304), (status = 404),
        (status = 410, description = "#CursorsLost"), (status = 429),
    ),
)]
#[get("/api/events")]
pub async fn list_events(
    request: HttpRequest,
    caller: Caller,
    query: web::Query<Query>,
    state: State,
) -> ApiResult {
    let Query { channel, channels, cursor, limit } = query.into_inner();
    let query = PageQuery { cursor, limit };
    rate_limited(&request, &caller, &state, async {
        if let Some(channels) = channels {
            if channel.is_some() {
                let message = "name the channels by `channel` or by `channels`, not by both";
                return Err(ApiError::bad_request("bad_channel", message));
            }
            return Box::pin(several::page(&request, &caller.0, &channels, &query, &state)).await;
        }
        let channel = ChannelName::parse(channel.as_deref().unwrap_or_default())
            .map_err(|error| ApiError::bad_request("bad_channel", error.to_string()))?;
        page(&request, &caller, channel, &query, &state, |error| error).await
    })
    .await
}

/// Runs a poll if the caller is within its rate limit, and counts its outcome.
pub(super) async fn rate_limited(
    request: &HttpRequest,
    Caller(principal): &Caller,
    HttpState { access, polls, metrics, .. }: &HttpState,
    poll: impl Future<Output = ApiResult>,
) -> ApiResult {
    let decision = polls.rate.check(&access.rate_key(request, principal)).await;
    if !decision.allowed {
        metrics.polls.inc(PollOutcome("limited"));
        let message = "too many polls: wait, or use the event stream";
        let error = ApiError::too_many("rate_limited", message, decision.retry_secs());
        return Err(with_rate(error, &decision));
    }
    let done = poll.await;
    metrics.polls.inc(PollOutcome(match &done {
        Ok(answer) if answer.status() == StatusCode::NOT_MODIFIED => "not_modified",
        Ok(_) => "ok",
        Err(error) => error.code(),
    }));
    match done {
        Ok(mut answer) => {
            add_rate(answer.headers_mut(), &decision);
            Ok(answer)
        }
        Err(error) => Err(with_rate(error, &decision)),
    }
}

/// A poll that its caller may make.
struct Judged {
    retention: Retention,
    limit: u32,
    /// Where the page begins.
    from: Option<Position>,
}

/// Decides whether `principal` may make this poll, on a channel that stands for `resource`. The route and
/// [`NotModifiedFastPath`] both ask here, so a check that is added here holds for both. Before it they
/// authenticate, and beside it they count the poll.
fn judge_poll(
    access: &Access,
    principal: &Principal,
    channel: &ChannelName,
    resource: &ResourceInfo,
    query: &PageQuery,
) -> Result<Judged, ApiError> {
    let retention = retention_for(access, principal, channel, resource)?;
    let limit = super::parse_limit(query.limit.as_deref(), DEFAULT_LIMIT, MAX_LIMIT)?;
    let from = query.cursor.as_deref().map(|cursor| parse_cursor(cursor, channel)).transpose()?;
    Ok(Judged { retention, limit, from })
}

/// What is kept of `channel`, if `principal` may read it.
fn retention_for(
    access: &Access,
    principal: &Principal,
    channel: &ChannelName,
    resource: &ResourceInfo,
) -> Result<Retention, ApiError> {
    access.check(principal, Action::History, channel, resource)?;
    Ok(access.namespaces.load().retention_of(channel).ok_or(Denied::NotAvailable)?)
}

/// The tag of `channel` for a reader at its end, if `from` is the end and the reader has sent that tag.
fn etag_at_end(
    state: &HttpState,
    channel: &ChannelName,
    from: &Position,
    limit: u32,
    known: &str,
) -> Option<String> {
    if !history::is_at_end(&state.store, channel, from) {
        return None;
    }
    let bounds = Bounds { head: from.clone(), before_oldest: from.offset };
    let tag = etag_of(channel, Some(from), limit, &bounds);
    etag::matches(known, &tag).then_some(tag)
}

/// One page of `channel`. `hidden` may replace a refusal by another error.
pub(super) async fn page(
    request: &HttpRequest,
    Caller(principal): &Caller,
    channel: ChannelName,
    query: &PageQuery,
    state: &HttpState,
    hidden: impl FnOnce(ApiError) -> ApiError,
) -> ApiResult {
    let resource = resources::lookup(&state.store, &channel).await?;
    let judged = judge_poll(&state.access, principal, &channel, &resource, query).map_err(hidden)?;
    let known = etag::known(request.headers());
    // The reader is at the end and has the current tag: the database has nothing to add.
    if let (Some(from), Some(known)) = (&judged.from, known)
        && let Some(tag) = etag_at_end(state, &channel, from, judged.limit, known)
    {
        return Ok(etag::not_modified(&tag));
    }
    // On the heap, so that the future of a reader at the end stays small.
    Box::pin(read_page(channel, judged, known.map(str::to_owned), state)).await
}

/// Answers from the store.
async fn read_page(
    channel: ChannelName,
    judged: Judged,
    known: Option<String>,
    state: &HttpState,
) -> ApiResult {
    let Judged { retention, limit, from } = judged;
    let tag_of = {
        let (channel, from) = (channel.clone(), from.clone());
        move |bounds: &Bounds| etag_of(&channel, from.as_ref(), limit, bounds)
    };
    let tagger = tag_of.clone();
    let is_known = move |bounds: &Bounds| known.is_some_and(|known| etag::matches(&known, &tagger(bounds)));
    let is_built_in = channel.is_built_in();
    let request = PageRequest { channel, retention, from: from.clone(), limit };
    match history::page(&state.store, request, is_known).await? {
        Found::Known(bounds) => Ok(etag::not_modified(&tag_of(&bounds))),
        Found::Page(Page::Lost(bounds)) => Err(cursor_lost(&bounds)),
        Found::Page(Page::Events { events, bounds }) => {
            let at = events.last().map(|event| event.offset);
            let at = at.or(from.map(|from| from.offset)).unwrap_or(bounds.before_oldest);
            let mut body = String::from("{\"events\":[");
            for (i, event) in events.iter().enumerate() {
                if i > 0 {
                    body.push(',');
                }
                polled::write(&mut body, is_built_in, event);
            }
            let cursor = Position::new(bounds.head.epoch.clone(), at);
            let has_next = at < bounds.head.offset;
            body.push_str(&format!("],\"cursor\":\"{cursor}\",\"hasNext\":{has_next}}}"));
            Ok(etag::json(&tag_of(&bounds), body))
        }
    }
}

/// The position of `cursor` on `channel`; a cursor of several channels must contain it.
fn parse_cursor(cursor: &str, channel: &ChannelName) -> Result<Position, ApiError> {
    let bad = |message: String| ApiError::bad_request("bad_cursor", message);
    match Cursor::parse(cursor).map_err(|error| bad(error.to_string()))? {
        Cursor::One(position) => Ok(position),
        Cursor::Many(mut positions) => {
            positions.remove(channel).ok_or_else(|| bad("the cursor belongs to other channels".into()))
        }
    }
}

/// 410: the reader's position is no longer retained; everything that is follows `details.oldest`.
fn cursor_lost(bounds: &Bounds) -> ApiError {
    let message = "the position of the cursor is no longer retained: continue from `oldest`";
    ApiError::new(StatusCode::GONE, "cursor_lost", message)
        .details(json!({ "oldest": bounds.oldest().to_string(), "head": bounds.head.to_string() }))
}

/// A hash of everything the answer depends on.
fn etag_of(channel: &ChannelName, from: Option<&Position>, limit: u32, bounds: &Bounds) -> String {
    etag::of(&(channel, from.ok_or(bounds.before_oldest), limit, &bounds.head))
}
