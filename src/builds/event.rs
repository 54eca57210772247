//! What a sender says about a build: the body of an event, and the key that recognises a repetition.

use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;

use super::BuildError;
use crate::domain::event::is_event_type;
use crate::domain::principal::Principal;
use crate::publish::MAX_KEY;

/// A valid event of a build.
pub struct BuildEvent<'a> {
    /// `build:` and a name.
    pub(super) kind: String,
    pub(super) data: &'a RawValue,
    /// The account whose members may see the build too.
    pub(super) org: Option<String>,
}

/// An event as its sender writes it.
#[derive(Deserialize, ToSchema)]
pub struct Body<'a> {
    #[serde(rename = "type")]
    #[schema(pattern = "^build:[0-9A-Za-z:_.-]{1,58}$")]
    kind: String,
    /// Any JSON; null if absent.
    #[serde(borrow, default)]
    #[schema(value_type = Value)]
    data: Option<&'a RawValue>,
    /// Whose members may hear of the build: one of the token's `orgs`.
    #[serde(default)]
    org: Option<String>,
}

impl<'a> BuildEvent<'a> {
    /// Reads `{"type":"build:…","data":…,"org":…}`, whose data may have `max_data` bytes.
    pub fn parse(body: &'a [u8], max_data: usize) -> Result<Self, BuildError> {
        // A derived deserializer would also accept an array, by position.
        let object = body.trim_ascii_start().starts_with(b"{");
        let Body { kind, data, org } = serde_json::from_slice(body).ok().filter(|_| object).ok_or(
            BuildError::BadEvent("the body must be JSON such as {\"type\":\"build:started\",\"data\":{}}"),
        )?;
        let name = kind.strip_prefix("build:").unwrap_or_default();
        if name.is_empty() || !is_event_type(&kind) {
            return Err(BuildError::BadEvent(
                "`type` must be `build:` and a name of letters, digits, `:`, `-`, `_` and `.`",
            ));
        }
        if data.is_some_and(|data| data.get().len() > max_data) {
            return Err(BuildError::TooLarge(max_data));
        }
        Ok(Self { kind, data: data.unwrap_or(RawValue::NULL), org })
    }
}

/// The idempotency key that `principal` gave, scoped to its user: the same key of another user is a
/// different one.
pub fn user_key(principal: &Principal, key: &[u8]) -> Result<String, BuildError> {
    if key.is_empty() || key.len() > MAX_KEY {
        return Err(BuildError::BadKey);
    }
    let digest = Sha256::new().chain_update(&principal.user).chain_update([0]).chain_update(key);
    Ok(hex::encode(digest.finalize()))
}
