//! Clients as an operator handles them: who is connected, what they are subscribed to, ending
//! connections (protocol §12.2), and what keeps somebody out: revoked tokens and blocked users. The
//! last ones, and the list, are additions to the protocol, named as in the reference's own
//! extensions.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{Api, Called, Failure, channel_of, done};
use crate::auth::revocations::{Revocation, Subject};
use crate::auth::sub_claim;
use crate::cluster::{Cluster, Unanswered};
use crate::connection::clients::{Connected, Target};
use crate::domain::directive::{Admission, Directive, Life};
use crate::domain::event::Time;
use crate::protocol::code::{Disconnect, DisconnectCode, ErrorCode};
use crate::tasks::revocations::Revoker;

/// Clients in one answer, unless fewer are asked for.
const LISTED: usize = 100;
/// The most that can be asked for.
const MOST_LISTED: usize = 5_000;
/// The longest user id or `jti` that can be kept out, in bytes.
const LONGEST: usize = 1_024;

#[derive(Deserialize)]
pub(super) struct Connections {
    user: Option<String>,
    limit: Option<usize>,
}

/// `POST /api/connections`: the newest clients, of one user or of all.
pub(super) async fn connections(api: &Api, asked: Connections) -> Called {
    let limit = asked.limit.unwrap_or(LISTED);
    if limit > MOST_LISTED {
        return Err(ErrorCode::BadRequest.into());
    }
    let found = api.part::<Cluster>().connected(asked.user.as_deref(), limit).await;
    let found: Map<String, Value> =
        found.iter().map(|client| (client.client.to_string(), described(client))).collect();
    Ok(json!({ "connections": found }).to_string())
}

fn described(client: &Connected) -> Value {
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

/// It was done, unless a node has not answered: then the caller may try again.
fn told<T>(done_by_all: Result<T, Unanswered>) -> Called {
    done_by_all.map_err(|error| {
        tracing::warn!(%error, "the clients of other nodes may not have heard");
        ErrorCode::Internal
    })?;
    done()
}

/// Whose connections are meant.
fn target(user: String, client: &str, session: String, whitelist: &[String]) -> Target {
    let id = |text: &str| Uuid::parse_str(text).ok();
    Target::User {
        user,
        // What is no id of ours names no connection.
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

/// `POST /api/subscribe`: who is subscribed already stays it. `body` has what a token would say
/// about the subscription, in the same words.
pub(super) async fn subscribe(api: &Api, asked: Subscribe, body: &[u8]) -> Called {
    let (channel, _) = channel_of(&api.access().namespaces.load(), &asked.channel)?;
    let claim = sub_claim(body).map_err(|_| ErrorCode::BadRequest)?;
    let admission = Admission {
        channel,
        claim,
        expires_at: until(asked.expire_at).ok_or(ErrorCode::Expired)?,
        since: asked.recover_since.map(|since| (since.epoch, since.offset)),
    };
    let meant = target(asked.user, &asked.client, asked.session, &[]);
    told(api.part::<Cluster>().direct(meant, Directive::Subscribe(Box::new(admission))).await)
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
pub(super) async fn unsubscribe(api: &Api, asked: Unsubscribe) -> Called {
    let channel = match asked.channel.as_str() {
        "" => None,
        name => Some(channel_of(&api.access().namespaces.load(), name)?.0),
    };
    let meant = target(asked.user, &asked.client, asked.session, &[]);
    told(api.part::<Cluster>().direct(meant, Directive::Unsubscribe(channel)).await)
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
pub(super) async fn refresh(api: &Api, asked: Refresh, body: &[u8]) -> Called {
    let life = match until(asked.expire_at) {
        _ if asked.expired => Life::Over,
        None => Life::Over,
        Some(None) => Life::Endless,
        Some(Some(end)) => Life::Until(end),
    };
    let info = sub_claim(body).map_err(|_| ErrorCode::BadRequest)?.info;
    let meant = target(asked.user, &asked.client, asked.session, &[]);
    told(api.part::<Cluster>().direct(meant, Directive::Refresh { life, info }).await)
}

#[derive(Deserialize)]
pub(super) struct Dismissal {
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
pub(super) async fn disconnect(api: &Api, asked: Dismissal) -> Called {
    let disconnect = match asked.disconnect {
        None => DisconnectCode::ForceDisconnect.into(),
        Some(Words { code, reason }) => Disconnect::custom(code, &reason).ok_or(ErrorCode::BadRequest)?,
    };
    let meant = target(asked.user, &asked.client, asked.session, &asked.whitelist);
    told(api.part::<Cluster>().dismiss(meant, &disconnect).await)
}

#[derive(Deserialize)]
pub(super) struct RevokeToken {
    uid: String,
    #[serde(default)]
    expire_at: i64,
}

/// `POST /api/revoke_token`: the token whose `jti` is `uid` is refused from now on, and its
/// connections end.
pub(super) async fn revoke_token(api: &Api, asked: RevokeToken) -> Called {
    keep_out(api, Subject::Token(asked.uid), asked.expire_at).await
}

#[derive(Deserialize)]
pub(super) struct BlockUser {
    user: String,
    #[serde(default)]
    expire_at: i64,
}

/// `POST /api/block_user`: whatever the user shows is refused from now on, and its connections end.
pub(super) async fn block_user(api: &Api, asked: BlockUser) -> Called {
    keep_out(api, Subject::User(asked.user), asked.expire_at).await
}

#[derive(Deserialize)]
pub(super) struct UnblockUser {
    user: String,
}

/// `POST /api/unblock_user`.
pub(super) async fn unblock_user(api: &Api, asked: UnblockUser) -> Called {
    if !is_name(&asked.user) {
        return Err(ErrorCode::BadRequest.into());
    }
    let restored = api.part::<Revoker>().restore(Subject::User(asked.user)).await;
    restored.map_err(|error| Failure::Refused(error.into()))?;
    done()
}

/// `expire_at` is in seconds since 1970; 0 is never.
async fn keep_out(api: &Api, subject: Subject, expire_at: i64) -> Called {
    let (Subject::Token(name) | Subject::User(name)) = &subject;
    let named = is_name(name);
    let until = until(expire_at).filter(|_| named).ok_or(ErrorCode::BadRequest)?;
    let revoked = api.part::<Revoker>().revoke(Revocation { subject, until }).await;
    match revoked.map_err(|error| Failure::Refused(error.into()))? {
        true => done(),
        false => Err(ErrorCode::LimitExceeded.into()),
    }
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
        at if at > Utc::now().timestamp() => Some(DateTime::from_timestamp(at, 0)),
        _ => None,
    }
}
