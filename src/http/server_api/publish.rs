//! One event for one channel.

use std::collections::BTreeMap;
use std::sync::Arc;

use actix_web::{HttpRequest, web};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{KeyHolder, ServerApiDoor, answer, channel_of, parse, whole};
use crate::domain::channel::{ChannelKind, ChannelName};
use crate::domain::event::{NewEvent, Time, envelope};
use crate::http::access::{self, Access};
use crate::http::error::ApiResult;
use crate::protocol::code::ErrorCode;
use crate::publish::{Committed, Once, PublishError, Publisher, UnitOfWork};
use crate::store::Store;
use crate::store::log::IdempotencyKey;

/// How long an idempotency key is known (protocol §13).
const KEY_WINDOW: std::time::Duration = std::time::Duration::from_secs(300);
const MAX_KEY: usize = 255;

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
    _: KeyHolder,
    request: HttpRequest,
    body: web::Payload,
    door: web::Data<ServerApiDoor>,
    publisher: web::Data<Publisher>,
    store: web::Data<Store>,
) -> ApiResult {
    let body = whole(body).await?;
    let asked: Publish<'_> = parse("publish", &body)?;
    let position = match unit(access::of(&request), &door, asked, &store) {
        Err(code) => Err(code),
        Ok(unit) => match publisher.commit(unit).await {
            Ok(Committed::Done(positions)) => Ok(positions.into_iter().next()),
            Ok(Committed::Duplicate(position)) => Ok(position),
            Ok(Committed::Refused) => Err(ErrorCode::Internal),
            Err(error @ (PublishError::Busy | PublishError::Unconfirmed(_))) => return Err(error.into()),
            Err(PublishError::Failed(_)) => Err(ErrorCode::Internal),
        },
    };
    let result = position.map(|position| match position {
        Some(position) => json!({ "offset": position.offset, "epoch": position.epoch.as_str() }).to_string(),
        None => "{}".to_owned(),
    });
    Ok(answer(&request, result))
}

fn unit(
    access: &Access,
    door: &ServerApiDoor,
    asked: Publish<'_>,
    store: &Store,
) -> Result<UnitOfWork, ErrorCode> {
    let (channel, _) = channel_of(access, &asked.channel)?;
    let data = asked.data.ok_or(ErrorCode::BadRequest)?;
    if data.get().len() > door.max_publication {
        return Err(ErrorCode::BadRequest);
    }
    let kept = access.namespaces.load().retention_of(&channel).is_some() && !asked.skip_history;
    let once = match asked.idempotency_key.filter(|key| !key.is_empty()) {
        Some(key) if key.len() > MAX_KEY || key.contains('\0') => return Err(ErrorCode::BadRequest),
        Some(key) if kept => Once::Key(IdempotencyKey {
            channel: channel.clone(),
            key,
            expires_at: store.timestamp().plus(KEY_WINDOW),
        }),
        _ => Once::Always,
    };
    let tags = asked.tags.filter(|tags| !tags.is_empty());
    let tags =
        tags.map(|tags| serde_json::to_string(&tags)).transpose().map_err(|_| ErrorCode::BadRequest)?;
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
fn enveloped(channel: ChannelName, data: &RawValue, now: Time) -> Result<NewEvent, ErrorCode> {
    #[derive(Deserialize)]
    struct Given<'a> {
        #[serde(rename = "type")]
        kind: String,
        #[serde(borrow)]
        data: Option<&'a RawValue>,
        repo: Option<String>,
    }
    let given: Given<'_> = serde_json::from_str(data.get())
        .ok()
        .filter(|_| data.get().starts_with('{'))
        .ok_or(ErrorCode::BadRequest)?;
    let plain =
        given.kind.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b':' | b'-' | b'_' | b'.'));
    // `stream:` names what a stream says of itself.
    if given.kind.is_empty() || given.kind.len() > 64 || !plain || given.kind.starts_with("stream:") {
        return Err(ErrorCode::BadRequest);
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
