//! Several methods in one request (protocol §12.2), one after the other or side by side. Each
//! fails alone, always with a code in its own reply.

use std::collections::BTreeMap;

use futures_util::stream::{self, StreamExt as _};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Api, BATCH, METHODS, MethodResult, error_of};
use crate::protocol::code::ErrorCode;

/// Commands in one batch; more are error 106.
const MAX_COMMANDS: usize = 1_000;
/// Commands of a parallel batch that run at once.
const CONCURRENCY: usize = 64;

#[derive(Deserialize)]
pub(super) struct Batch<'a> {
    #[serde(borrow)]
    commands: Vec<Option<Command<'a>>>,
    #[serde(default)]
    parallel: bool,
}

/// A method's name and its request. Of several that are not `null` the first counts.
type Command<'a> = BTreeMap<&'a str, Option<&'a RawValue>>;

/// `POST /api/batch`.
pub(super) async fn batch(api: &Api, asked: Batch<'_>) -> MethodResult {
    if asked.commands.len() > MAX_COMMANDS {
        return Err(ErrorCode::LimitExceeded.into());
    }
    let concurrency = if asked.parallel { CONCURRENCY } else { 1 };
    let replies = asked.commands.iter().map(|command| reply(api, command.as_ref()));
    let replies: Vec<String> = stream::iter(replies).buffered(concurrency).collect().await;
    Ok(format!("{{\"replies\":[{}]}}", replies.join(",")))
}

async fn reply(api: &Api, command: Option<&Command<'_>>) -> String {
    match run(api, command).await {
        Ok((name, result)) => format!("{{\"{name}\":{result}}}"),
        Err(code) => {
            api.count(code);
            format!("{{\"error\":{}}}", error_of(code))
        }
    }
}

async fn run<'a>(api: &Api, command: Option<&Command<'a>>) -> Result<(&'a str, String), ErrorCode> {
    let command = command.ok_or(ErrorCode::BadRequest)?;
    let given = command.iter().find_map(|(name, body)| Some((*name, (*body)?)));
    let (name, body) = given.ok_or(ErrorCode::MethodNotFound)?;
    // A batch in a batch would take any depth.
    let method = METHODS.iter().find(|(known, _)| *known == name && name != BATCH);
    let (_, call) = method.ok_or(ErrorCode::MethodNotFound)?;
    let called = call(api, body.get().as_bytes()).await;
    called.map(|result| (name, result)).map_err(|failure| failure.code())
}
