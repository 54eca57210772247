//! The newest events of all that a caller may see. Read from the ends of a few channels' logs, so its
//! cost does not grow with them.

use std::collections::{BTreeSet, HashSet};

use crate::domain::access::{default_channels, is_admin};
use crate::domain::channel::{ChannelKind, ChannelName};
use crate::domain::event::Event;
use crate::domain::options::{Namespaces, Retention};
use crate::domain::principal::Principal;
use crate::store::{self, ReadTx, Store, log};

/// The newest events.
#[derive(Debug, Default)]
pub struct Activity {
    /// Where the channels end; the events are the same as long as this is.
    pub version: String,
    /// Newest first; `None` if the caller knows this version.
    pub events: Option<Vec<Event>>,
}

/// The newest `limit` events that `principal` may see, unless `is_known` says of their version that the
/// caller has them. `None` if events of accounts are not kept.
pub async fn activity(
    store: &Store,
    namespaces: &Namespaces,
    principal: &Principal,
    limit: u32,
    is_known: impl FnOnce(&str) -> bool + Send + 'static,
) -> store::Result<Option<Activity>> {
    let org = ChannelName::org("any").ok().and_then(|channel| namespaces.retention_of(&channel));
    let Some(retention) = org else { return Ok(None) };
    let admin = is_admin(principal);
    let named: BTreeSet<ChannelName> = default_channels(principal)
        .into_iter()
        .filter(|channel| matches!(channel.kind(), ChannelKind::Org { .. } | ChannelKind::Repo { .. }))
        .collect();
    let read = store.read(move |tx| {
        Box::pin(async move {
            let channels = if admin {
                // An event among the newest `limit` is on one of the `limit` channels that moved last.
                log::recent_channels(tx, "org:", limit).await?
            } else {
                named.into_iter().collect()
            };
            let heads = tx.heads(&channels).await?;
            let mut ends: Vec<String> = heads.iter().map(|(name, head)| format!("{name} {head}")).collect();
            ends.sort();
            let version = ends.join("\n");
            if is_known(&version) {
                return Ok(Some(Activity { version, events: None }));
            }
            let live: Vec<ChannelName> =
                channels.into_iter().filter(|channel| heads.contains_key(channel.as_str())).collect();
            let events = newest(tx, &live, retention, limit).await?;
            Ok(Some(Activity { version, events: Some(events) }))
        })
    });
    read.await
}

/// Ids are UUID v7: their order is that of their making, and the same fact has the same id on
/// `repo:` and on `org:`.
async fn newest(
    tx: &mut ReadTx<'_>,
    channels: &[ChannelName],
    retention: Retention,
    limit: u32,
) -> store::Result<Vec<Event>> {
    let mut all = Vec::new();
    for channel in channels {
        all.extend(tx.latest(channel, retention, limit).await?);
    }
    all.sort_by_key(|event| std::cmp::Reverse(event.id));
    let mut seen = HashSet::new();
    all.retain(|event| seen.insert(event.id));
    all.truncate(limit as usize);
    Ok(all)
}
