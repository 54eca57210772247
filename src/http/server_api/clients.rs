//! Managing clients: listing connections, subscribing and unsubscribing them, disconnecting them (protocol
//! §12.2), and revoking tokens and blocking users. The last two and the list are additions to the
//! protocol, named as in the extensions of the reference implementation.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{Api, Failure, MethodResult, empty_result};
use crate::auth::revocations::{Revocation, Subject, can_be_named};
use crate::auth::sub_claim;
use crate::clients::{ConnectionInfo, Target};
use crate::cluster::Incomplete;
use crate::domain::event::Time;
use crate::domain::server_command::{Admission, Expiry, ServerCommand};
use crate::protocol::code::{Disconnect, DisconnectCode, ErrorCode};

/// Clients in one answer, unless fewer are asked for.
const LISTED: usize = 100;
/// The most that can be asked for.
const MAX_LISTED: usize = 5_000;

#[derive(Deserialize)]
pub(super) struct Connections {
    user: Option<String>,
    limit: Option<usize>,
}

/// `POST /api/connections`: the newest clients, of one user or of all.
pub(super) async fn connections(api: &Api, asked: Connections) -> MethodResult {
    let limit = asked.limit.unwrap_or(LISTED);
    if limit > MAX_LISTED {
        return Err(ErrorCode::BadRequest.into());
    }
    let found = api.state().cluster.connected(asked.user.as_deref(), limit).await;
    let found: Map<String, Value> =
        found.iter().map(|client| (client.client.to_string(), described(client))).collect();
    Ok(json!({ "connections": found }).to_string())
}

fn described(client: &ConnectionInfo) -> Value {
    let since = client.since.to_rfc3339_opts(SecondsFormat::Millis, true);
    let mut object = json!({
        "user": client.user,
        "transport": client.transport,
        "protocol": "json",
        "connected_at": since,
    });
    if let Some(jti) = &client.jti {
        object["token_uid"] = jti.as_str().into();
    }
    object
}

/// Success if all nodes have answered; otherwise an error, and the caller may try again.
fn from_all_nodes<T>(result: Result<T, Incomplete>) -> MethodResult {
    result.map_err(|error| {
        tracing::warn!(%error, "the clients of other nodes may not have been reached");
        ErrorCode::Internal
    })?;
    empty_result()
}

async fn command(api: &Api, target: Target, command: ServerCommand) -> MethodResult {
    from_all_nodes(api.state().cluster.send_command(target, command).await)
}

/// Selects the connections of a request.
fn target(user: String, client: &str, session: String, whitelist: &[String]) -> Target {
    let id = |text: &str| Uuid::parse_str(text).ok();
    Target::User {
        user,
        // A malformed id matches no connection.
        client: (!client.is_empty()).then(|| id(client).unwrap_or(Uuid::nil())),
        session: Some(session).filter(|session| !session.is_empty()),
        but: whitelist.iter().filter_map(|text| id(text)).collect(),
    }
}

#[derive(Deserialize)]
pub(super) struct Subscribe {
    user: String,
    #[serde(default)]
    channel: String,
    #[serde(default)]
    client: String,
    #[serde(default)]
    session: String,
    #[serde(default)]
    expire_at: i64,
    #[serde(default)]
    recover_since: Option<Since>,
}

#[derive(Deserialize)]
struct Since {
    #[serde(default)]
    offset: u64,
    #[serde(default)]
    epoch: String,
}

/// `POST /api/subscribe`: connections that are subscribed already stay subscribed. `body` has the same
/// fields as a subscription token.
pub(super) async fn subscribe(api: &Api, asked: Subscribe, body: &[u8]) -> MethodResult {
    let (channel, _) = api.state().access.namespaces.load().find(&asked.channel)?;
    let claim = sub_claim(body).map_err(|_| ErrorCode::BadRequest)?;
    let admission = Admission {
        channel,
        claim,
        expires_at: until(asked.expire_at).ok_or(ErrorCode::Expired)?,
        since: asked.recover_since.map(|since| (since.epoch, since.offset)),
    };
    let target = target(asked.user, &asked.client, asked.session, &[]);
    command(api, target, ServerCommand::Subscribe(Box::new(admission))).await
}

#[derive(Deserialize)]
pub(super) struct Unsubscribe {
    user: String,
    #[serde(default)]
    channel: String,
    #[serde(default)]
    client: String,
    #[serde(default)]
    session: String,
}

/// `POST /api/unsubscribe`: from one channel, or from all if none is named.
pub(super) async fn unsubscribe(api: &Api, asked: Unsubscribe) -> MethodResult {
    let channel = match asked.channel.as_str() {
        "" => None,
        name => Some(api.state().access.namespaces.load().find(name)?.0),
    };
    let target = target(asked.user, &asked.client, asked.session, &[]);
    command(api, target, ServerCommand::Unsubscribe(channel)).await
}

#[derive(Deserialize)]
pub(super) struct Refresh {
    user: String,
    #[serde(default)]
    client: String,
    #[serde(default)]
    session: String,
    #[serde(default)]
    expired: bool,
    #[serde(default)]
    expire_at: i64,
}

/// `POST /api/refresh`: connections live longer, shorter, or not at all.
pub(super) async fn refresh(api: &Api, asked: Refresh, body: &[u8]) -> MethodResult {
    let expiry = match until(asked.expire_at) {
        _ if asked.expired => Expiry::Expired,
        None => Expiry::Expired,
        Some(None) => Expiry::Never,
        Some(Some(end)) => Expiry::At(end),
    };
    let info = sub_claim(body).map_err(|_| ErrorCode::BadRequest)?.info;
    let target = target(asked.user, &asked.client, asked.session, &[]);
    command(api, target, ServerCommand::Refresh { expiry, info }).await
}

#[derive(Deserialize)]
pub(super) struct DisconnectRequest {
    user: String,
    #[serde(default)]
    client: String,
    #[serde(default)]
    session: String,
    #[serde(default)]
    whitelist: Vec<String>,
    disconnect: Option<DisconnectReason>,
}

#[derive(Deserialize)]
struct DisconnectReason {
    #[serde(default)]
    code: u32,
    #[serde(default)]
    reason: String,
}

/// `POST /api/disconnect`: ends the connections of a user; they may come back at once unless the
/// code forbids it.
pub(super) async fn disconnect(api: &Api, asked: DisconnectRequest) -> MethodResult {
    let disconnect = match asked.disconnect {
        None => DisconnectCode::ForceDisconnect.into(),
        Some(DisconnectReason { code, reason }) => {
            Disconnect::custom(code, &reason).ok_or(ErrorCode::BadRequest)?
        }
    };
    let target = target(asked.user, &asked.client, asked.session, &asked.whitelist);
    from_all_nodes(api.state().cluster.disconnect(target, &disconnect).await)
}

#[derive(Deserialize)]
pub(super) struct RevokeToken {
    uid: String,
    #[serde(default)]
    expire_at: i64,
}

/// `POST /api/revoke_token`: the token whose `jti` is `uid` is refused from now on, and its
/// connections end.
pub(super) async fn revoke_token(api: &Api, asked: RevokeToken) -> MethodResult {
    revoke_subject(api, Subject::Token(asked.uid), asked.expire_at).await
}

#[derive(Deserialize)]
pub(super) struct BlockUser {
    user: String,
    #[serde(default)]
    expire_at: i64,
}

/// `POST /api/block_user`: whatever the user shows is refused from now on, and its connections end.
pub(super) async fn block_user(api: &Api, asked: BlockUser) -> MethodResult {
    revoke_subject(api, Subject::User(asked.user), asked.expire_at).await
}

#[derive(Deserialize)]
pub(super) struct UnblockUser {
    user: String,
}

/// `POST /api/unblock_user`.
pub(super) async fn unblock_user(api: &Api, asked: UnblockUser) -> MethodResult {
    if asked.user.is_empty() || !can_be_named(&asked.user) {
        return Err(ErrorCode::BadRequest.into());
    }
    let restored = api.state().revoker.restore(Subject::User(asked.user)).await;
    restored.map_err(|error| Failure::Refused(error.into()))?;
    empty_result()
}

/// `expire_at` is in seconds since 1970; 0 is never.
async fn revoke_subject(api: &Api, subject: Subject, expire_at: i64) -> MethodResult {
    let (Subject::Token(name) | Subject::User(name)) = &subject;
    let named = !name.is_empty() && can_be_named(name);
    let until = until(expire_at).filter(|_| named).ok_or(ErrorCode::BadRequest)?;
    let revoked = api.state().revoker.revoke(Revocation { subject, until }).await;
    match revoked.map_err(|error| Failure::Refused(error.into()))? {
        true => empty_result(),
        false => Err(ErrorCode::LimitExceeded.into()),
    }
}

/// When it ends; the outer `None` if that time has passed already.
fn until(expire_at: i64) -> Option<Option<Time>> {
    match expire_at {
        0 => Some(None),
        // What lies behind the last day of the calendar is never.
        at if at > Utc::now().timestamp() => Some(DateTime::from_timestamp(at, 0)),
        _ => None,
    }
}
