//! What stands behind the channels whose access the claims alone do not decide. Knows where each
//! kind is kept; decides nothing.

use super::error::Result;
use super::{Store, builds};
use crate::domain::access::KnownItem;
use crate::domain::channel::{ChannelKind, ChannelName};

/// What stands behind `channel`, unless the store has to be asked for it.
pub fn unless_asked(channel: &ChannelName) -> Option<KnownItem> {
    match channel.kind() {
        ChannelKind::Build(_) => None,
        // Nothing makes jobs yet, so no id is known.
        ChannelKind::Job(_) => Some(KnownItem::Unknown),
        _ => Some(KnownItem::NotNeeded),
    }
}

/// What stands behind `channel`. Asks the store only where there may be something.
pub async fn behind(store: &Store, channel: &ChannelName) -> Result<KnownItem> {
    if let Some(item) = unless_asked(channel) {
        return Ok(item);
    }
    let ChannelKind::Build(id) = channel.kind() else { return Ok(KnownItem::Unknown) };
    let found = store.read(move |conn| Box::pin(async move { builds::get(conn, id).await })).await?;
    Ok(found.map_or(KnownItem::Unknown, |build| KnownItem::Build { user: build.owner, org: build.org }))
}
