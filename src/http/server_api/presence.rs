//! Who is on a channel.

use std::collections::{BTreeMap, HashSet};

use actix_web::{HttpRequest, web};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{KeyHolder, answer, channel_of, parse, whole};
use crate::connection::effect::Member;
use crate::domain::channel::ChannelName;
use crate::http::access::{self, Access};
use crate::http::error::{ApiError, ApiResult};
use crate::hub::Hub;
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
        Ok(channel) => Ok(members(hub, &channel).await),
        Err(code) => Err(code),
    })
}

/// The channel, if it is one whose presence is kept.
fn watched(access: &Access, asked: &Presence) -> Result<ChannelName, ErrorCode> {
    let (channel, options) = channel_of(access, &asked.channel)?;
    let kept = options.is_some_and(|options| options.presence);
    if kept { Ok(channel) } else { Err(ErrorCode::NotAvailable) }
}

/// Who is on `channel`. NOT CONNECTED YET: the hub keeps no presence, so nobody is.
#[expect(clippy::unused_async, reason = "the hub will have to be waited for")]
async fn members(_hub: &Hub, _channel: &ChannelName) -> Vec<Member> {
    Vec::new()
}

fn listed(members: &[Member]) -> String {
    #[derive(Serialize)]
    struct Listed<'m> {
        presence: BTreeMap<&'m str, &'m RawValue>,
    }
    let one = |member| {
        let Member { client, info, .. }: &Member = member;
        Some((client.as_str(), serde_json::from_str(info).ok()?))
    };
    let listed = Listed { presence: members.iter().filter_map(one).collect() };
    serde_json::to_string(&listed).expect("texts and JSON are always JSON")
}

/// All connections without a user count as one.
fn counted(members: &[Member]) -> String {
    let users: HashSet<&str> = members.iter().map(|member| member.user.as_str()).collect();
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    Reply::PresenceStats { clients: number(members.len()), users: number(users.len()) }.result()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(client: &str, user: &str) -> Member {
        let info = format!("{{\"user\":\"{user}\",\"client\":\"{client}\",\"conn_info\":{{\"n\":1}}}}");
        Member { client: client.into(), user: user.into(), info: info.into() }
    }

    #[test]
    fn members_are_listed_by_client_and_counted_by_user() {
        let members = [member("b", "ana"), member("a", "ana"), member("c", ""), member("d", "")];
        assert_eq!(
            listed(&members[..2]),
            "{\"presence\":{\"a\":{\"user\":\"ana\",\"client\":\"a\",\"conn_info\":{\"n\":1}},\
             \"b\":{\"user\":\"ana\",\"client\":\"b\",\"conn_info\":{\"n\":1}}}}"
        );
        assert_eq!(counted(&members), "{\"num_clients\":4,\"num_users\":2}");
    }

    #[test]
    fn nobody_is_a_number_and_a_list_too() {
        assert_eq!(listed(&[]), "{\"presence\":{}}");
        assert_eq!(counted(&[]), "{\"num_clients\":0,\"num_users\":0}");
    }
}
