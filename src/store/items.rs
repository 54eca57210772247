//! What stands behind the channels whose access the claims alone do not decide. Knows where each
//! kind is kept; decides nothing.

use uuid::Uuid;

use super::error::Result;
use super::{Store, builds};
use crate::domain::access::KnownItem;
use crate::domain::channel::{ChannelKind, ChannelName};

/// What stands behind `channel`, or else the id of the build that the store has to be asked for.
pub fn unless_asked(channel: &ChannelName) -> std::result::Result<KnownItem, Uuid> {
    match channel.kind() {
        ChannelKind::Build(id) => Err(id),
        // Nothing makes jobs yet, so no id is known.
        ChannelKind::Job(_) => Ok(KnownItem::Unknown),
        _ => Ok(KnownItem::NotNeeded),
    }
}

/// What stands behind `channel`. Asks the store only where there may be something.
pub async fn behind(store: &Store, channel: &ChannelName) -> Result<KnownItem> {
    let id = match unless_asked(channel) {
        Ok(item) => return Ok(item),
        Err(id) => id,
    };
    let found = store.read(move |conn| Box::pin(async move { builds::get(conn, id).await })).await?;
    Ok(found.map_or(KnownItem::Unknown, |build| KnownItem::Build { user: build.owner, org: build.org }))
}
