//! `GET /api/events`: reads a channel page by page with the cursor that SSE and WebSocket use.
//! Nothing new costs one look at the head: the answer is 304.

mod not_modified_fast_path;

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderMap, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Deserialize;
use serde_json::json;

use super::access::{self, Caller};
use super::error::{ApiError, ApiResult};
use super::limit::{RateLimit, add_rate, with_rate};
use crate::domain::access::{Action, Denied};
use crate::domain::channel::ChannelName;
use crate::domain::cursor::Cursor;
use crate::domain::options::Retention;
use crate::domain::position::Position;
use crate::protocol::polled;
use crate::store::log::{Bounds, Page, PageRequest};
use crate::store::{self, Heads, Store};
use crate::telemetry::{Metrics, count};

pub use not_modified_fast_path::NotModifiedFastPath;

/// Where it is.
pub const PATH: &str = "/api/events";
const DEFAULT_LIMIT: u32 = 50;
const MAX_LIMIT: u32 = 100;

/// What the endpoint needs.
pub struct PollEndpoint {
    /// Polls by user.
    pub rate: RateLimit,
}

/// The query string.
#[derive(Debug, Deserialize)]
pub struct Query {
    channel: Option<String>,
    cursor: Option<String>,
    limit: Option<String>,
}

/// Where a page begins, and how many events it may have.
#[derive(Debug, Deserialize)]
pub struct PageQuery {
    cursor: Option<String>,
    limit: Option<String>,
}

/// Answers up to `limit` events after `cursor`, or from the oldest retained.
pub async fn events(
    request: HttpRequest,
    caller: Caller,
    query: web::Query<Query>,
    endpoint: web::Data<PollEndpoint>,
    store: web::Data<Store>,
    metrics: web::Data<Metrics>,
) -> ApiResult {
    let Query { channel, cursor, limit } = query.into_inner();
    let query = PageQuery { cursor, limit };
    rate_limited(&request, &caller, &endpoint, &metrics, async {
        let channel = ChannelName::parse(channel.as_deref().unwrap_or_default())
            .map_err(|error| ApiError::bad_request("bad_channel", error.to_string()))?;
        page(&request, &caller, channel, &query, &store, |error| error).await
    })
    .await
}

/// Runs a poll if the caller is within its rate limit, and counts its outcome.
pub(super) async fn rate_limited(
    request: &HttpRequest,
    Caller(principal): &Caller,
    endpoint: &PollEndpoint,
    metrics: &Metrics,
    poll: impl Future<Output = ApiResult>,
) -> ApiResult {
    let decision = endpoint.rate.check(&access::of(request).rate_key(request, principal)).await;
    if !decision.allowed {
        count(&metrics.polls, "limited");
        let message = "too many polls: wait, or use the event stream";
        let error = ApiError::too_many("rate_limited", message, decision.retry_secs());
        return Err(with_rate(error, &decision));
    }
    let done = poll.await;
    count(
        &metrics.polls,
        match &done {
            Ok(answer) if answer.status() == StatusCode::NOT_MODIFIED => "not_modified",
            Ok(_) => "ok",
            Err(error) => error.code(),
        },
    );
    match done {
        Ok(mut answer) => {
            add_rate(answer.headers_mut(), &decision);
            Ok(answer)
        }
        Err(error) => Err(with_rate(error, &decision)),
    }
}

/// The tag of `channel` for a reader at its end, if `from` is the end and the reader has sent that tag.
fn etag_at_end(
    heads: &Heads,
    channel: &ChannelName,
    from: &Position,
    limit: u32,
    known: &str,
) -> Option<String> {
    if heads.of(channel)? != *from {
        return None;
    }
    let bounds = Bounds { head: from.clone(), before_oldest: from.offset };
    let tag = etag(channel, Some(from), limit, &bounds);
    matches_tag(known, &tag).then_some(tag)
}

enum Found {
    NotModified(String),
    Page(Page),
}

/// One page of `channel`. `hidden` may replace a refusal of the access rule by another error.
pub(super) async fn page(
    request: &HttpRequest,
    Caller(principal): &Caller,
    channel: ChannelName,
    query: &PageQuery,
    store: &Store,
    hidden: impl FnOnce(ApiError) -> ApiError,
) -> ApiResult {
    // Whatever is checked here must be checked by `NotModifiedFastPath::answer` too.
    let access = access::of(request);
    access.permit(store, principal, Action::History, &channel).await.map_err(hidden)?;
    let retention = access.namespaces.load().retention_of(&channel).ok_or(Denied::NotAvailable)?;
    let limit = super::parse_limit(query.limit.as_deref(), DEFAULT_LIMIT, MAX_LIMIT)?;
    let from = query.cursor.as_deref().map(|cursor| parse_cursor(cursor, &channel)).transpose()?;

    let known =
        request.headers().get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok()).map(str::to_owned);
    // The reader is at the end and has the current tag: the database has nothing to add.
    if let (Some(heads), Some(from), Some(known)) = (store.heads(), &from, &known)
        && let Some(tag) = etag_at_end(heads, &channel, from, limit, known)
    {
        return Ok(not_modified(tag));
    }
    // On the heap, so that the future of a reader at the end stays small.
    Box::pin(read_page(channel, from, limit, known, retention, store)).await
}

/// Answers from the store.
async fn read_page(
    channel: ChannelName,
    from: Option<Position>,
    limit: u32,
    known: Option<String>,
    retention: Retention,
    store: &Store,
) -> ApiResult {
    let since = store.heads().map(Heads::version);
    let asked = store.clone();
    let tag_of = {
        let (channel, from) = (channel.clone(), from.clone());
        move |bounds: &Bounds| etag(&channel, from.as_ref(), limit, bounds)
    };
    let (tagger, start, wanted) = (tag_of.clone(), from.clone(), channel.clone());
    let found = store
        .read(move |tx| {
            Box::pin(async move {
                let bounds = tx.bounds(&wanted, retention).await?;
                if let (Some(heads), Some(since)) = (asked.heads(), since) {
                    heads.learn(since, &wanted, &bounds.head);
                }
                let lost = start.as_ref().is_some_and(|from| !bounds.covers(from));
                let tag = tagger(&bounds);
                if !lost && known.is_some_and(|known| matches_tag(&known, &tag)) {
                    return store::Result::Ok(Found::NotModified(tag));
                }
                let asked = PageRequest { from: start.as_ref(), until: None, limit };
                Ok(Found::Page(tx.page(&wanted, retention, asked).await?))
            })
        })
        .await?;
    match found {
        Found::NotModified(tag) => Ok(not_modified(tag)),
        Found::Page(Page::Lost(bounds)) => Err(cursor_lost(&bounds)),
        Found::Page(Page::Events { events, bounds }) => {
            let at = events.last().map(|event| event.offset);
            let at = at.or(from.as_ref().map(|from| from.offset)).unwrap_or(bounds.before_oldest);
            let mut body = String::from("{\"events\":[");
            for (i, event) in events.iter().enumerate() {
                if i > 0 {
                    body.push(',');
                }
                polled::write(&mut body, channel.is_built_in(), event);
            }
            let cursor = Position::new(bounds.head.epoch.clone(), at);
            let has_next = at < bounds.head.offset;
            body.push_str(&format!("],\"cursor\":\"{cursor}\",\"hasNext\":{has_next}}}"));
            let mut answer = HttpResponse::Ok().content_type("application/json").body(body);
            cacheable(answer.headers_mut(), &tag_of(&bounds));
            Ok(answer)
        }
    }
}

fn not_modified(tag: String) -> HttpResponse {
    let mut answer = HttpResponse::new(StatusCode::NOT_MODIFIED);
    cacheable(answer.headers_mut(), &tag);
    answer
}

fn cacheable(headers: &mut HeaderMap, tag: &str) {
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, max-age=0"));
    headers.insert(header::VARY, HeaderValue::from_static("Authorization, Cookie"));
    headers.insert(header::ETAG, HeaderValue::from_str(tag).expect("digits and quotes"));
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

/// A hash of everything the answer depends on. It is no secret: a forged tag deceives only its forger.
fn etag(channel: &ChannelName, from: Option<&Position>, limit: u32, bounds: &Bounds) -> String {
    let start = from.ok_or(bounds.before_oldest);
    let mut hasher = DefaultHasher::new();
    (channel, start, limit, &bounds.head).hash(&mut hasher);
    let mut tag = [b'"'; 18];
    hex::encode_to_slice(hasher.finish().to_be_bytes(), &mut tag[1..17]).expect("two digits a byte");
    str::from_utf8(&tag).expect("digits and quotes").to_owned()
}

/// `If-None-Match` (RFC 9110, section 13.1.2): a list of tags, perhaps weak, or `*`.
pub fn matches_tag(header: &str, tag: &str) -> bool {
    let matches = |known: &str| known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag;
    // The usual form first.
    header == tag || header.split(',').map(str::trim).any(matches)
}
