//! Builds: `POST /api/builds/{buildId}/events` tells of one, `GET /api/build-events/{buildId}` reads
//! what was told. The first event makes the build, and whoever sent it its owner; what a caller
//! may not see does not exist for it.
//! Must hold: nobody adds to somebody else's build, also when both make it in the same moment.

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
use super::limit::{Budget, RateLimit, with_rate};
use super::poll::{self, PollDoor};
use crate::domain::access::may_tell_of_build;
use crate::domain::channel::{ChannelKind, ChannelName, is_owner};
use crate::domain::event::{NewEvent, envelope};
use crate::domain::principal::Principal;
use crate::publish::{Apply, Committed, Once, Publisher, UnitOfWork, Verdict};
use crate::store::builds::{self, Build};
use crate::store::log::IdempotencyKey;
use crate::store::{self, Store, Transaction};
use crate::telemetry::Metrics;

/// How long an idempotency key is known, as in the server API.
const KEY_WINDOW: Duration = Duration::from_secs(300);
const MAX_KEY: usize = 255;
/// The longest type of an event.
const MAX_KIND: usize = 64;
/// What a body may have beside its data.
const BESIDE_DATA: u64 = 1024;

/// What the door knows.
pub struct BuildDoor {
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
struct Told<'a> {
    #[serde(rename = "type")]
    kind: String,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(default)]
    org: Option<String>,
}

/// `POST /api/builds/{buildId}/events`: 201 when committed, 200 for a key that is known.
pub async fn tell(
    request: HttpRequest,
    Caller(principal): Caller,
    id: web::Path<String>,
    body: web::Payload,
    door: web::Data<BuildDoor>,
    (publisher, store): (web::Data<Publisher>, web::Data<Store>),
) -> ApiResult {
    let accepted = Instant::now();
    let (id, channel) = build_of(&id)?;
    if principal.is_anonymous() || principal.user.contains('\0') {
        return Err(ApiError::forbidden("a build has an owner: this needs a token with `sub`"));
    }
    let decision = door.rate.check(&access::of(&request).rate_key(&request, &principal)).await;
    if !decision.allowed {
        let message = "too many events of builds: wait, or tell more at once";
        let error = ApiError::too_many("rate_limited", message, decision.retry_secs());
        return Err(with_rate(error, &decision));
    }
    let key = idempotency_key(&request, &principal)?;
    let mut reserved = door.in_flight.reserve();
    let bounds = body::Bounds { bytes: door.max_publication as u64 + BESIDE_DATA, time: door.body_timeout };
    let body = body::read(request.headers(), body, bounds, &mut reserved, |_| {}).await?;
    let told = parse(&body, door.max_publication)?;
    let build = whose(&store, &principal, id, told.org).await?;

    let event_id = Uuid::now_v7();
    let data = envelope(event_id, &told.kind, store.now(), None, told.data.unwrap_or(RawValue::NULL));
    let event = NewEvent::new(channel.clone(), event_id, &told.kind, data);
    let once = key.map_or(Once::Always, |key| {
        let expires_at = store.timestamp().plus(KEY_WINDOW);
        Once::Key(IdempotencyKey { channel: channel.clone(), key, expires_at })
    });
    let apply: Box<dyn Apply> = Box::new(Touch { id, build });
    let unit = UnitOfWork { once, apply: Some(apply), accepted, ..UnitOfWork::of(vec![event]) };
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
        // Somebody else made it meanwhile.
        Committed::Refused => Err(missing()),
    }
}

/// `GET /api/build-events/{buildId}`: the poll of `GET /api/events` on the build's channel.
pub async fn events(
    request: HttpRequest,
    caller: Caller,
    id: web::Path<String>,
    query: web::Query<poll::Place>,
    door: web::Data<PollDoor>,
    (store, metrics): (web::Data<Store>, web::Data<Metrics>),
) -> ApiResult {
    let channel = build_of(&id).map(|(_, channel)| channel);
    let hidden = |error: ApiError| if error.code() == "forbidden" { missing() } else { error };
    poll::limited(&request, &caller, &door, &metrics, async {
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
        ApiError::bad_request("bad_build", "a build's id is a UUID in lower case, with its hyphens")
    })
}

fn missing() -> ApiError {
    ApiError::not_found("build")
}

fn parse(body: &[u8], max_data: usize) -> Result<Told<'_>, ApiError> {
    let bad = |message: &str| ApiError::bad_request("bad_event", message);
    // A derived reader would also take a list, by place.
    let object = body.trim_ascii_start().starts_with(b"{");
    let told: Told<'_> = serde_json::from_slice(body)
        .ok()
        .filter(|_| object)
        .ok_or_else(|| bad("the body must be JSON such as {\"type\":\"build:started\",\"data\":{}}"))?;
    let plain = |kind: &str| {
        kind.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b':' | b'-' | b'_' | b'.'))
    };
    let name = told.kind.strip_prefix("build:").filter(|name| !name.is_empty());
    if told.kind.len() > MAX_KIND || !name.is_some_and(plain) {
        return Err(bad("`type` must be `build:` and a name of letters, digits, `:`, `-`, `_` and `.`"));
    }
    if told.data.is_some_and(|data| data.get().len() > max_data) {
        return Err(body::too_large(max_data as u64));
    }
    Ok(told)
}

/// A user's key is that user's own: it says nothing about the keys of others.
fn idempotency_key(request: &HttpRequest, principal: &Principal) -> Result<Option<String>, ApiError> {
    let Some(key) = request.headers().get("idempotency-key") else { return Ok(None) };
    if key.is_empty() || key.len() > MAX_KEY {
        let message = format!("Idempotency-Key must have 1 to {MAX_KEY} bytes");
        return Err(ApiError::bad_request("bad_key", message));
    }
    let digest = Sha256::new().chain_update(&principal.user).chain_update([0]).chain_update(key.as_bytes());
    Ok(Some(hex::encode(digest.finalize())))
}

/// The build that the caller tells of: the one that is there, or the one that this would make.
async fn whose(
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
            let message = "the build of this id is over and forgotten: choose another id";
            Err(ApiError::new(StatusCode::GONE, "build_over", message))
        }
        None => Ok(Build { owner: principal.user.clone(), org }),
        Some(build) if may_tell_of_build(principal, &build.owner) => {
            if org.is_some() && org != build.org {
                let message = "a build's org is that of its first event: leave it out, or repeat it";
                return Err(ApiError::new(StatusCode::CONFLICT, "build_org", message));
            }
            Ok(build)
        }
        // Members of its account know that it is there.
        Some(build) if build.org.as_ref().is_some_and(|org| principal.orgs.contains(org)) => {
            Err(ApiError::forbidden("only its owner tells of a build"))
        }
        Some(_) => Err(missing()),
    }
}

/// Makes the build, or notes that it goes on.
struct Touch {
    id: Uuid,
    build: Build,
}

impl Apply for Touch {
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
