//! What others see of a client on a channel.

use std::sync::Arc;

use uuid::Uuid;

use super::reply::ClientInfo;
use crate::domain::presence::{Member, PresenceInfo};
use crate::domain::principal::Principal;

/// ClientInfo as JSON: what others see of a client. `chan_info` comes from its subscription.
pub fn client_info(client: Uuid, principal: &Principal, chan_info: Option<&str>) -> Arc<str> {
    let (user, conn_info) = (&principal.user, principal.info.as_deref());
    ClientInfo { user, client: &client.to_string(), conn_info, chan_info }.to_json().into()
}

/// What others see of a client on a channel, as JSON.
pub fn info_of(one: &PresenceInfo) -> Arc<str> {
    client_info(one.client, &one.principal, one.chan_info.as_deref())
}

/// A client on a channel, as presence lists it.
pub fn member(one: &PresenceInfo) -> Member {
    Member { client: one.client, user: one.principal.user.as_str().into(), info: info_of(one) }
}
