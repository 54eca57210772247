//! Clients as an operator handles them: who is connected, ending connections (protocol §12.2), and
//! what keeps somebody out: revoked tokens and blocked users. The last four are additions to the
//! protocol, named as in the reference's own extensions.

use actix_web::{HttpRequest, web};
use chrono::{DateTime, SecondsFormat};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{KeyHolder, answer, parse, whole};
use crate::auth::revocations::{Revocation, Subject};
use crate::connection::clients::{Connected, Control, Target};
use crate::domain::event::Time;
use crate::http::error::ApiResult;
use crate::protocol::code::{Disconnect, DisconnectCode, ErrorCode};
use crate::tasks::revocations::Revoker;

/// Clients in one answer, unless fewer are asked for.
const LISTED: usize = 100;
/// The most that can be asked for.
const MOST_LISTED: usize = 5_000;
/// The longest user id or `jti` that can be kept out, in bytes.
const LONGEST: usize = 1_024;

#[derive(Deserialize)]
struct Connections {
    user: Option<String>,
    limit: Option<usize>,
}

/// `POST /api/connections`: the newest clients of this node, of one user or of all.
pub async fn connections(
    _: KeyHolder,
    request: HttpRequest,
    body: web::Payload,
    control: web::Data<Control>,
) -> ApiResult {
    let body = whole(body).await?;
    let asked: Connections = parse("connections", &body)?;
    let limit = asked.limit.unwrap_or(LISTED);
    if limit > MOST_LISTED {
        return Ok(answer(&request, Err(ErrorCode::BadRequest)));
    }
    let found = control.connected(asked.user.as_deref(), limit).await;
    let found: Map<String, Value> =
        found.iter().map(|client| (client.client.to_string(), described(client))).collect();
    Ok(answer(&request, Ok(json!({ "connections": found }).to_string())))
}

fn described(client: &Connected) -> Value {
    let since = client.since.to_rfc3339_opts(SecondsFormat::Millis, true);
    let mut object = json!({ "user": client.user, "transport": client.transport, "connected_at": since });
    if let Some(jti) = &client.jti {
        object["token_uid"] = jti.as_str().into();
    }
    object
}

#[derive(Deserialize)]
struct Dismissal {
    user: String,
    #[serde(default)]
    client: String,
    #[serde(default)]
    session: String,
    #[serde(default)]
    whitelist: Vec<String>,
    disconnect: Option<Words>,
}

#[derive(Deserialize)]
struct Words {
    #[serde(default)]
    code: u32,
    #[serde(default)]
    reason: String,
}

/// `POST /api/disconnect`: ends the connections of a user; they may come back at once unless the
/// code forbids it.
pub async fn disconnect(
    _: KeyHolder,
    request: HttpRequest,
    body: web::Payload,
    control: web::Data<Control>,
) -> ApiResult {
    let body = whole(body).await?;
    let asked: Dismissal = parse("disconnect", &body)?;
    let done = match asked.read() {
        Err(code) => Err(code),
        Ok((target, disconnect)) => {
            control.dismiss(target, &disconnect).await;
            Ok("{}".to_owned())
        }
    };
    Ok(answer(&request, done))
}

impl Dismissal {
    fn read(self) -> Result<(Target, Disconnect), ErrorCode> {
        let disconnect = match self.disconnect {
            None => DisconnectCode::ForceDisconnect.into(),
            Some(Words { code, reason }) => Disconnect::custom(code, &reason).ok_or(ErrorCode::BadRequest)?,
        };
        let id = |text: &str| Uuid::parse_str(text).ok();
        // Sessions belong to transports of one way. What is no id of ours names no connection.
        let only = [&self.client, &self.session].into_iter().find(|text| !text.is_empty());
        let only = only.map(|text| id(text).unwrap_or(Uuid::nil()));
        let but = self.whitelist.iter().filter_map(|text| id(text)).collect();
        Ok((Target::User { user: self.user, only, but }, disconnect))
    }
}

#[derive(Deserialize)]
struct RevokeToken {
    uid: String,
    #[serde(default)]
    expire_at: i64,
}

/// `POST /api/revoke_token`: the token whose `jti` is `uid` is refused from now on, and its
/// connections end.
pub async fn revoke_token(
    _: KeyHolder,
    request: HttpRequest,
    body: web::Payload,
    revoker: web::Data<Revoker>,
) -> ApiResult {
    let body = whole(body).await?;
    let asked: RevokeToken = parse("revoke_token", &body)?;
    keep_out(&request, &revoker, Subject::Token(asked.uid), asked.expire_at).await
}

#[derive(Deserialize)]
struct BlockUser {
    user: String,
    #[serde(default)]
    expire_at: i64,
}

/// `POST /api/block_user`: whatever the user shows is refused from now on, and its connections end.
pub async fn block_user(
    _: KeyHolder,
    request: HttpRequest,
    body: web::Payload,
    revoker: web::Data<Revoker>,
) -> ApiResult {
    let body = whole(body).await?;
    let asked: BlockUser = parse("block_user", &body)?;
    keep_out(&request, &revoker, Subject::User(asked.user), asked.expire_at).await
}

/// `POST /api/unblock_user`.
pub async fn unblock_user(
    _: KeyHolder,
    request: HttpRequest,
    body: web::Payload,
    revoker: web::Data<Revoker>,
) -> ApiResult {
    #[derive(Deserialize)]
    struct UnblockUser {
        user: String,
    }
    let body = whole(body).await?;
    let asked: UnblockUser = parse("unblock_user", &body)?;
    if !is_name(&asked.user) {
        return Ok(answer(&request, Err(ErrorCode::BadRequest)));
    }
    revoker.restore(Subject::User(asked.user)).await?;
    Ok(answer(&request, Ok("{}".to_owned())))
}

/// `expire_at` is in seconds since 1970; 0 is never.
async fn keep_out(request: &HttpRequest, revoker: &Revoker, subject: Subject, expire_at: i64) -> ApiResult {
    let (Subject::Token(name) | Subject::User(name)) = &subject;
    let named = is_name(name);
    let done = match until(expire_at) {
        Some(until) if named => match revoker.revoke(Revocation { subject, until }).await? {
            true => Ok("{}".to_owned()),
            false => Err(ErrorCode::LimitExceeded),
        },
        _ => Err(ErrorCode::BadRequest),
    };
    Ok(answer(request, done))
}

/// Whether somebody or something of this name can be kept out. Postgres has no text with NUL.
fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= LONGEST && !name.contains('\0')
}

/// Until when; `None` for what is over already.
fn until(expire_at: i64) -> Option<Option<Time>> {
    match expire_at {
        0 => Some(None),
        // What lies behind the last day of the calendar is never.
        at if at > chrono::Utc::now().timestamp() => Some(DateTime::from_timestamp(at, 0)),
        _ => None,
    }
}
