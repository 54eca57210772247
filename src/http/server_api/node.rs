//! What the nodes are and carry: their names, their numbers, their channels.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Api, MethodResult};
use crate::cluster::MAX_CHANNELS;
use crate::domain::pattern::Glob;
use crate::protocol::code::ErrorCode;

/// The parameters of a method that has none; unknown fields are ignored.
#[derive(Deserialize)]
pub(super) struct NoParams {}

#[derive(Deserialize)]
pub(super) struct Channels {
    pattern: Option<String>,
}

/// `POST /api/channels`: those that have subscribers. Where too many fit the pattern it is error 106.
pub(super) async fn channels(api: &Api, asked: Channels) -> MethodResult {
    let pattern = asked.pattern.filter(|pattern| !pattern.is_empty());
    if pattern.as_deref().is_some_and(|text| Glob::parse(text).is_none()) {
        return Err(ErrorCode::BadRequest.into());
    }
    let active = api.state().cluster.channels(pattern.as_deref()).await;
    if active.len() > MAX_CHANNELS {
        return Err(ErrorCode::LimitExceeded.into());
    }
    let active: BTreeMap<&str, Value> = active
        .iter()
        .map(|(channel, clients)| (channel.as_str(), json!({ "num_clients": clients })))
        .collect();
    Ok(json!({ "channels": active }).to_string())
}

/// `POST /api/info`: all nodes that answer.
pub(super) async fn info(api: &Api) -> MethodResult {
    Ok(json!({ "nodes": api.state().cluster.nodes().await }).to_string())
}
