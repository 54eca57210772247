//! The resources behind channels whose access is not decided by the claims alone. Knows where each
//! kind is stored; decides nothing.

use uuid::Uuid;

use crate::domain::access::ResourceInfo;
use crate::domain::channel::{ChannelKind, ChannelName};
use crate::store::{self, Store, builds};

/// The resource behind `channel`, or the id of the build that has to be read from the store.
pub fn lookup_local(channel: &ChannelName) -> Result<ResourceInfo, Uuid> {
    match channel.kind() {
        ChannelKind::Build(id) => Err(id),
        // Nothing creates jobs yet, so no id is known.
        ChannelKind::Job(_) => Ok(ResourceInfo::Unknown),
        _ => Ok(ResourceInfo::NotNeeded),
    }
}

/// The resource behind `channel`. Reads the store only where there may be one.
pub async fn lookup(store: &Store, channel: &ChannelName) -> store::Result<ResourceInfo> {
    let id = match lookup_local(channel) {
        Ok(resource) => return Ok(resource),
        Err(id) => id,
    };
    let found = store.read(move |conn| Box::pin(async move { builds::get(conn, id).await })).await?;
    Ok(found.map_or(ResourceInfo::Unknown, |build| ResourceInfo::Build { user: build.owner, org: build.org }))
}
