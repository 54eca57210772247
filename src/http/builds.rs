//! Builds: `POST /api/builds/{buildId}/events` appends an event to one, `GET /api/build-events/{buildId}`
//! reads its events. The first event creates the build and makes its sender the owner; a build that a
//! caller may not see does not exist for it.
//! Must hold: nobody can append to somebody else's build, also when two callers create it at the same
//! time.

use std::time::{Duration, Instant};

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use futures_util::future::BoxFuture;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::access::{self, Caller};
use super::body;
use super::error::{ApiError, ApiResult};
use super::poll::{self, PollEndpoint};
use super::rate_headers::with_rate;
use crate::domain::access::may_append_to_build;
use crate::domain::channel::{ChannelKind, ChannelName, is_owner};
use crate::domain::event::{NewEvent, envelope};
use crate::domain::principal::Principal;
use crate::http::Metrics;
use crate::limits::budget::Budget;
use crate::limits::rate_limit::RateLimit;
use crate::publish::{Apply, Committed, Dedup, Publisher, UnitOfWork, Verdict};
use crate::store::builds::{self, Build};
use crate::store::log::IdempotencyKey;
use crate::store::{self, Store, Transaction};

/// How long an idempotency key is remembered, as in the server API.
const KEY_WINDOW: Duration = Duration::from_secs(300);
const MAX_KEY: usize = 255;
/// The longest type of an event.
const MAX_KIND: usize = 64;
/// What a body may contain beside its data, in bytes.
const ENVELOPE_ALLOWANCE: u64 = 1024;

/// What the endpoint needs.
pub struct BuildEndpoint {
    /// The largest event, in bytes of its data.
    pub max_publication: usize,
    /// How long a body may take to arrive.
    pub body_timeout: Duration,
    /// Bodies in memory at once.
    pub in_flight: Budget,
    /// Events by user.
    pub rate: RateLimit,
}

#[derive(Deserialize)]
struct BuildEventBody<'a> {
    #[serde(rename = "type")]
    kind: String,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(default)]
    org: Option<String>,
}

/// `POST /api/builds/{buildId}/events`: 201 when committed, 200 for an idempotency key that was used before.
pub async fn append(
    request: HttpRequest,
    Caller(principal): Caller,
    id: web::Path<String>,
    body: web::Payload,
    endpoint: web::Data<BuildEndpoint>,
    (publisher, store): (web::Data<Publisher>, web::Data<Store>),
) -> ApiResult {
    let accepted = Instant::now();
    let (id, channel) = build_of(&id)?;
    if principal.is_anonymous() || principal.user.contains('\0') {
        return Err(ApiError::forbidden("a build has an owner: send a token with a `sub` claim"));
    }
    let decision = endpoint.rate.check(&access::of(&request).rate_key(&request, &principal)).await;
    if !decision.allowed {
        let message = "too many build events: wait, or put more into one event";
        let error = ApiError::too_many("rate_limited", message, decision.retry_secs());
        return Err(with_rate(error, &decision));
    }
    let key = idempotency_key(&request, &principal)?;
    let mut reserved = endpoint.in_flight.reserve();
    let bounds = body::Bounds {
        bytes: endpoint.max_publication as u64 + ENVELOPE_ALLOWANCE,
        time: endpoint.body_timeout,
    };
    let body = body::read(request.headers(), body, bounds, &mut reserved, |_| {}).await?;
    let input = parse(&body, endpoint.max_publication)?;
    let build = resolve_build(&store, &principal, id, input.org).await?;

    let event_id = Uuid::now_v7();
    let data = envelope(event_id, &input.kind, store.now(), None, input.data.unwrap_or(RawValue::NULL));
    let event = NewEvent::new(channel.clone(), event_id, &input.kind, data);
    let dedup = key.map_or(Dedup::None, |key| {
        let expires_at = store.timestamp().plus(KEY_WINDOW);
        Dedup::Key(IdempotencyKey { channel: channel.clone(), key, expires_at })
    });
    let apply: Box<dyn Apply> = Box::new(UpsertBuild { id, build });
    let unit = UnitOfWork { dedup, apply: Some(apply), accepted, ..UnitOfWork::of(vec![event]) };
    let cursor = |position: Option<_>| position.as_ref().map(ToString::to_string);
    match publisher.commit(unit).await? {
        Committed::Done(positions) => Ok(HttpResponse::Created().json(json!({
            "id": event_id,
            "buildId": id,
            "channel": channel,
            "cursor": cursor(positions.into_iter().next()),
        }))),
        Committed::Duplicate(position) => Ok(HttpResponse::Ok().json(json!({
            "buildId": id,
            "channel": channel,
            "cursor": cursor(position),
            "duplicate": true,
        }))),
        // Somebody else has created it meanwhile.
        Committed::Refused => Err(missing()),
    }
}

/// `GET /api/build-events/{buildId}`: the poll of `GET /api/events` on the build's channel.
pub async fn events(
    request: HttpRequest,
    caller: Caller,
    id: web::Path<String>,
    query: web::Query<poll::PageQuery>,
    endpoint: web::Data<PollEndpoint>,
    (store, metrics): (web::Data<Store>, web::Data<Metrics>),
) -> ApiResult {
    let channel = build_of(&id).map(|(_, channel)| channel);
    let hidden = |error: ApiError| if error.code() == "forbidden" { missing() } else { error };
    poll::rate_limited(&request, &caller, &endpoint, &metrics, async {
        poll::page(&request, &caller, channel?, &query, &store, hidden).await
    })
    .await
}

/// One id has one spelling, as in the name of its channel.
fn build_of(id: &str) -> Result<(Uuid, ChannelName), ApiError> {
    let channel = ChannelName::parse(&format!("build:{id}")).ok();
    let named = channel.and_then(|channel| match channel.kind() {
        ChannelKind::Build(id) => Some((id, channel.clone())),
        _ => None,
    });
    named.ok_or_else(|| {
        ApiError::bad_request("bad_build", "the id of a build must be a lower-case UUID with hyphens")
    })
}

fn missing() -> ApiError {
    ApiError::not_found("build")
}

fn parse(body: &[u8], max_data: usize) -> Result<BuildEventBody<'_>, ApiError> {
    let bad = |message: &str| ApiError::bad_request("bad_event", message);
    // A derived deserializer would also accept an array, by position.
    let object = body.trim_ascii_start().starts_with(b"{");
    let input: BuildEventBody<'_> = serde_json::from_slice(body)
        .ok()
        .filter(|_| object)
        .ok_or_else(|| bad("the body must be JSON such as {\"type\":\"build:started\",\"data\":{}}"))?;
    let plain = |kind: &str| {
        kind.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b':' | b'-' | b'_' | b'.'))
    };
    let name = input.kind.strip_prefix("build:").filter(|name| !name.is_empty());
    if input.kind.len() > MAX_KIND || !name.is_some_and(plain) {
        return Err(bad("`type` must be `build:` and a name of letters, digits, `:`, `-`, `_` and `.`"));
    }
    if input.data.is_some_and(|data| data.get().len() > max_data) {
        return Err(body::too_large(max_data as u64));
    }
    Ok(input)
}

/// Keys are scoped to their user: the same key of another user is a different one.
fn idempotency_key(request: &HttpRequest, principal: &Principal) -> Result<Option<String>, ApiError> {
    let Some(key) = request.headers().get("idempotency-key") else { return Ok(None) };
    if key.is_empty() || key.len() > MAX_KEY {
        let message = format!("Idempotency-Key must have 1 to {MAX_KEY} bytes");
        return Err(ApiError::bad_request("bad_key", message));
    }
    let digest = Sha256::new().chain_update(&principal.user).chain_update([0]).chain_update(key.as_bytes());
    Ok(Some(hex::encode(digest.finalize())))
}

/// The build that the caller appends to: the existing one, or the one that this event would create.
async fn resolve_build(
    store: &Store,
    principal: &Principal,
    id: Uuid,
    org: Option<String>,
) -> Result<Build, ApiError> {
    if org.as_ref().is_some_and(|org| !is_owner(org) || !principal.orgs.contains(org)) {
        return Err(ApiError::forbidden("`org` must be one of the token's `orgs`"));
    }
    let (found, used_up) = store
        .read(move |conn| {
            Box::pin(async move {
                let found = builds::get(conn, id).await?;
                let used_up = found.is_none() && builds::is_used_up(conn, id).await?;
                store::Result::Ok((found, used_up))
            })
        })
        .await?;
    match found {
        None if used_up => {
            let message = "a build with this id existed and has expired: choose another id";
            Err(ApiError::new(StatusCode::GONE, "build_over", message))
        }
        None => Ok(Build { owner: principal.user.clone(), org }),
        Some(build) if may_append_to_build(principal, &build.owner) => {
            if org.is_some() && org != build.org {
                let message =
                    "`org` differs from that of the build's first event: leave it out or repeat the same one";
                return Err(ApiError::new(StatusCode::CONFLICT, "build_org", message));
            }
            Ok(build)
        }
        // Members of its organization may know that it exists.
        Some(build) if build.org.as_ref().is_some_and(|org| principal.orgs.contains(org)) => {
            Err(ApiError::forbidden("only the owner of a build may append events to it"))
        }
        Some(_) => Err(missing()),
    }
}

/// Creates the build, or records that it had another event.
struct UpsertBuild {
    id: Uuid,
    build: Build,
}

impl Apply for UpsertBuild {
    fn order(&self) -> i64 {
        let (_, low) = self.id.as_u64_pair();
        low as i64
    }

    fn apply<'a>(&'a self, tx: &'a mut Transaction<'_>) -> BoxFuture<'a, store::Result<Verdict>> {
        Box::pin(async move {
            let ours = builds::touch(tx.conn, self.id, &self.build, tx.now).await?;
            Ok(if ours { Verdict::Proceed } else { Verdict::Refuse })
        })
    }
}
