//! Who is on a channel.

use serde::Deserialize;
use uuid::Uuid;

use super::{Api, MethodResult};
use crate::domain::presence::{Member, counts};
use crate::protocol::code::ErrorCode;
use crate::protocol::reply::Reply;

#[derive(Deserialize)]
pub(super) struct Presence {
    #[serde(default)]
    channel: String,
}

/// `POST /api/presence`.
pub(super) async fn presence(api: &Api, asked: Presence) -> MethodResult {
    let members = members_of(api, &asked).await?;
    let clients: Vec<(Uuid, &str)> = members.iter().map(|member| (member.client, &*member.info)).collect();
    Ok(Reply::Presence(&clients).result())
}

/// `POST /api/presence_stats`.
pub(super) async fn presence_stats(api: &Api, asked: Presence) -> MethodResult {
    let (clients, users) = counts(&members_of(api, &asked).await?);
    Ok(Reply::PresenceStats { clients, users }.result())
}

/// Of a channel whose presence is kept.
async fn members_of(api: &Api, asked: &Presence) -> Result<Vec<Member>, ErrorCode> {
    let channel = {
        let namespaces = api.state().access.namespaces.load();
        let (channel, options) = namespaces.find(&asked.channel)?;
        if !options.is_some_and(|options| options.presence) {
            return Err(ErrorCode::NotAvailable);
        }
        channel
    };
    Ok(api.state().cluster.members(&channel).await)
}
