//! A webhook delivery: one attempt of a provider to deliver an event, identified by its id.

use std::sync::Arc;

use serde::Serialize;
use utoipa::ToSchema;

/// GitHub's `X-GitHub-Delivery`: 1 to 100 letters, digits and hyphens (in practice a UUID).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, derive_more::Display)]
pub struct DeliveryId(Arc<str>);

impl DeliveryId {
    /// Takes `text` as a delivery id, if it has the right characters.
    pub fn parse(text: &str) -> Option<Self> {
        let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        ((1..=100).contains(&text.len()) && plain).then(|| Self(text.into()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What became of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeliveryStatus {
    /// Understood, and done.
    Processed,
    /// Well-formed, but without meaning for us (or excluded by the repository map).
    Ignored,
    /// Could not be interpreted; the reason is kept, and it can be processed again.
    Failed,
}

impl DeliveryStatus {
    /// The word in the store and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Processed => "processed",
            Self::Ignored => "ignored",
            Self::Failed => "failed",
        }
    }

    /// The status that a stored word names.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Processed, Self::Ignored, Self::Failed].into_iter().find(|s| s.as_str() == word)
    }
}
