//! Who is on a channel.

use actix_web::{HttpRequest, web};
use serde::Deserialize;
use uuid::Uuid;

use super::{KeyHolder, answer, channel_of, parse, whole};
use crate::domain::channel::ChannelName;
use crate::http::access::{self, Access};
use crate::http::error::{ApiError, ApiResult};
use crate::hub::Hub;
use crate::hub::presence::{Member, counts};
use crate::protocol::code::ErrorCode;
use crate::protocol::reply::Reply;

#[derive(Deserialize)]
struct Presence {
    #[serde(default)]
    channel: String,
}

/// `POST /api/presence`.
pub async fn presence(
    _: KeyHolder,
    request: HttpRequest,
    body: web::Payload,
    hub: web::Data<Hub>,
) -> ApiResult {
    let members = who_is_on(&request, "presence", body, &hub).await?;
    Ok(answer(&request, members.map(|members| listed(&members))))
}

/// `POST /api/presence_stats`.
pub async fn presence_stats(
    _: KeyHolder,
    request: HttpRequest,
    body: web::Payload,
    hub: web::Data<Hub>,
) -> ApiResult {
    let members = who_is_on(&request, "presence_stats", body, &hub).await?;
    Ok(answer(&request, members.map(|members| counted(&members))))
}

async fn who_is_on(
    request: &HttpRequest,
    method: &str,
    body: web::Payload,
    hub: &Hub,
) -> Result<Result<Vec<Member>, ErrorCode>, ApiError> {
    let body = whole(body).await?;
    let asked: Presence = parse(method, &body)?;
    Ok(match watched(access::of(request), &asked) {
        Ok(channel) => Ok(hub.members(&channel).await),
        Err(code) => Err(code),
    })
}

/// The channel, if it is one whose presence is kept.
fn watched(access: &Access, asked: &Presence) -> Result<ChannelName, ErrorCode> {
    let (channel, options) = channel_of(access, &asked.channel)?;
    let kept = options.is_some_and(|options| options.presence);
    if kept { Ok(channel) } else { Err(ErrorCode::NotAvailable) }
}

fn listed(members: &[Member]) -> String {
    let clients: Vec<(Uuid, &str)> = members.iter().map(|member| (member.client, &*member.info)).collect();
    Reply::Presence(&clients).result()
}

fn counted(members: &[Member]) -> String {
    let (clients, users) = counts(members);
    Reply::PresenceStats { clients, users }.result()
}
