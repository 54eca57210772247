//! The server API (protocol §12): trusted callers with the API key. Always 200 with `result` or
//! `error`, unless the key is missing or the body cannot be read.

use std::collections::BTreeMap;
use std::sync::Arc;

use actix_web::http::{StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::access::{self, Access};
use super::error::{ApiError, ApiResult};
use crate::auth::same_secret;
use crate::domain::channel::{ChannelKind, ChannelName};
use crate::domain::event::{NewEvent, Time, envelope};
use crate::publish::{Committed, Once, PublishError, Publisher, UnitOfWork};
use crate::store::Store;
use crate::store::log::IdempotencyKey;

/// How long an idempotency key is known (protocol §13).
const KEY_WINDOW: std::time::Duration = std::time::Duration::from_secs(300);
const MAX_KEY: usize = 255;
/// The largest body, in bytes.
const MAX_BODY: usize = 4 << 20;

/// What the door knows.
pub struct ServerApiDoor {
    /// The largest event, in bytes of its data.
    pub max_publication: usize,
}

/// An error in the answer's body (protocol §6.1).
struct Code(u16, &'static str);

const INTERNAL: Code = Code(100, "internal server error");
const UNKNOWN_CHANNEL: Code = Code(102, "unknown channel");
const BAD_REQUEST: Code = Code(107, "bad request");

#[derive(Deserialize)]
struct Publish<'a> {
    #[serde(default)]
    channel: String,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(default)]
    skip_history: bool,
    #[serde(default)]
    tags: Option<BTreeMap<String, String>>,
    #[serde(default)]
    idempotency_key: Option<String>,
}

/// `POST /api/publish`.
pub async fn publish(
    request: HttpRequest,
    body: web::Payload,
    door: web::Data<ServerApiDoor>,
    publisher: web::Data<Publisher>,
    store: web::Data<Store>,
) -> ApiResult {
    let access = access::of(&request);
    // Before the body is read: strangers get no memory.
    authorise(&request, access)?;
    let body = whole(body).await?;
    let malformed =
        || ApiError::bad_request("bad_request", "the body is not the JSON object that `publish` takes");
    // A derived reader would also take a list, by place.
    let object = body.trim_ascii_start().starts_with(b"{");
    let asked: Publish<'_> = serde_json::from_slice(&body).ok().filter(|_| object).ok_or_else(malformed)?;
    let answer = match unit(access, &door, asked, &store) {
        Err(code) => Err(code),
        Ok(unit) => match publisher.commit(unit).await {
            Ok(Committed::Done(positions)) => Ok(positions.into_iter().next()),
            Ok(Committed::Duplicate(position)) => Ok(position),
            Ok(Committed::Refused) => Err(INTERNAL),
            Err(error @ (PublishError::Busy | PublishError::Unconfirmed(_))) => return Err(error.into()),
            Err(PublishError::Failed(_)) => Err(INTERNAL),
        },
    };
    Ok(HttpResponse::Ok().json(match answer {
        Ok(Some(position)) => {
            json!({ "result": { "offset": position.offset, "epoch": position.epoch.as_str() } })
        }
        Ok(None) => json!({ "result": {} }),
        Err(Code(code, message)) => json!({ "error": { "code": code, "message": message } }),
    }))
}

async fn whole(body: web::Payload) -> Result<web::Bytes, ApiError> {
    let too_large = |_| {
        let message = format!("the body is larger than {MAX_BODY} bytes");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    };
    let broken = |_| ApiError::bad_request("body_broken", "the body ended early");
    body.to_bytes_limited(MAX_BODY).await.map_err(too_large)?.map_err(broken)
}

/// The key in any of the places where the protocol allows it. In a query it would end up in other
/// people's logs and pages, so it is refused there when a browser asks.
fn authorise(request: &HttpRequest, access: &Access) -> Result<(), ApiError> {
    let headers = request.headers();
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let in_header = text("x-api-key").or_else(|| {
        let (scheme, key) = text(header::AUTHORIZATION.as_str())?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("apikey").then(|| key.trim())
    });
    let in_query = || {
        let query = web::Query::<BTreeMap<String, String>>::from_query(request.query_string()).ok()?;
        (!headers.contains_key(header::ORIGIN)).then(|| query.into_inner().remove("api_key"))?
    };
    let given = in_header.map(str::to_owned).or_else(in_query).unwrap_or_default();
    if same_secret(&given, access.api_key.expose()) {
        return Ok(());
    }
    let message = "send the API key: X-API-Key: … (or Authorization: apikey …)";
    Err(ApiError::new(StatusCode::UNAUTHORIZED, "api_key", message))
}

fn unit(
    access: &Access,
    door: &ServerApiDoor,
    asked: Publish<'_>,
    store: &Store,
) -> Result<UnitOfWork, Code> {
    let channel = ChannelName::parse(&asked.channel).map_err(|_| BAD_REQUEST)?;
    if !channel.is_built_in() && access.namespaces.options_of(&channel).is_none() {
        return Err(UNKNOWN_CHANNEL);
    }
    let data = asked.data.ok_or(BAD_REQUEST)?;
    if data.get().len() > door.max_publication {
        return Err(BAD_REQUEST);
    }
    let kept = access.namespaces.retention_of(&channel).is_some() && !asked.skip_history;
    let once = match asked.idempotency_key.filter(|key| !key.is_empty()) {
        Some(key) if key.len() > MAX_KEY || key.contains('\0') => return Err(BAD_REQUEST),
        Some(key) if kept => Once::Key(IdempotencyKey {
            channel: channel.clone(),
            key,
            expires_at: store.timestamp().plus(KEY_WINDOW),
        }),
        _ => Once::Always,
    };
    let tags = asked.tags.filter(|tags| !tags.is_empty());
    let tags = tags.map(|tags| serde_json::to_string(&tags)).transpose().map_err(|_| BAD_REQUEST)?;
    let mut event = if channel.is_built_in() {
        enveloped(channel, data, store.now())?
    } else {
        // A line feed would end the frame; outside of strings JSON does not need it, inside it is escaped.
        let text: Arc<str> = data.get().replace(['\n', '\r'], "").into();
        NewEvent::new(channel, Uuid::now_v7(), "message", text)
    };
    event.tags = tags.map(Arc::from);
    event.kept = kept;
    Ok(UnitOfWork { once, ..UnitOfWork::of(vec![event]) })
}

/// Built-in channels carry envelopes: the caller gives `type` and `data`, the rest is made here.
fn enveloped(channel: ChannelName, data: &RawValue, now: Time) -> Result<NewEvent, Code> {
    #[derive(Deserialize)]
    struct Given<'a> {
        #[serde(rename = "type")]
        kind: String,
        #[serde(borrow)]
        data: Option<&'a RawValue>,
        repo: Option<String>,
    }
    let given: Given<'_> =
        serde_json::from_str(data.get()).ok().filter(|_| data.get().starts_with('{')).ok_or(BAD_REQUEST)?;
    let plain =
        given.kind.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b':' | b'-' | b'_' | b'.'));
    // `stream:` names what a stream says of itself.
    if given.kind.is_empty() || given.kind.len() > 64 || !plain || given.kind.starts_with("stream:") {
        return Err(BAD_REQUEST);
    }
    let repo = match channel.kind() {
        ChannelKind::Repo { owner, name } => Some(format!("{owner}/{name}")),
        _ => given.repo,
    };
    let id = Uuid::now_v7();
    let inner = given.data.unwrap_or(RawValue::NULL);
    let text = envelope(id, &given.kind, now, repo.as_deref(), inner);
    Ok(NewEvent::new(channel, id, &given.kind, text))
}
