//! What a node is and carries: its name, its numbers, its channels. Of this process alone as long
//! as nodes do not hear of each other.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Api, Called, ServerApiDoor};
use crate::connection::clients::Control;
use crate::domain::pattern::Glob;
use crate::protocol::code::ErrorCode;

/// Channels in one answer; where more fit the pattern it is error 106.
const MOST_CHANNELS: usize = 100_000;

/// Which node this is.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Another one after each start.
    pub uid: Uuid,
    /// For people.
    pub name: String,
    /// When it started.
    pub since: Instant,
}

/// A request whose fields do not matter.
#[derive(Deserialize)]
pub(super) struct Nothing {}

#[derive(Deserialize)]
pub(super) struct Channels {
    pattern: Option<String>,
}

/// `POST /api/channels`: those that have subscribers.
pub(super) async fn channels(api: &Api, asked: Channels) -> Called {
    let pattern = asked.pattern.filter(|pattern| !pattern.is_empty());
    let pattern = pattern.map(|text| Glob::parse(&text).ok_or(ErrorCode::BadRequest)).transpose()?;
    let mut active = api.part::<Control>().channels().await;
    active.retain(|channel, _| pattern.as_ref().is_none_or(|pattern| pattern.matches(channel.as_str())));
    if active.len() > MOST_CHANNELS {
        return Err(ErrorCode::LimitExceeded.into());
    }
    let active: BTreeMap<&str, Value> = active
        .iter()
        .map(|(channel, clients)| (channel.as_str(), json!({ "num_clients": clients })))
        .collect();
    Ok(json!({ "channels": active }).to_string())
}

/// `POST /api/info`
pub(super) async fn info(api: &Api) -> Called {
    let (control, node) = (api.part::<Control>(), &api.part::<ServerApiDoor>().node);
    let (census, channels) = (control.census().await, control.channels().await);
    let node = json!({
        "uid": node.uid,
        "name": node.name,
        "version": env!("CARGO_PKG_VERSION"),
        "num_clients": census.clients,
        "num_users": census.users.len(),
        "num_channels": channels.len(),
        "num_subs": channels.values().sum::<usize>(),
        "uptime": node.since.elapsed().as_secs(),
    });
    Ok(json!({ "nodes": [node] }).to_string())
}
