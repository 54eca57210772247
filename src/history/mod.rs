//! What a channel still holds, for everybody who reads it outside a connection: pages for polls, pieces
//! for the server API, and letting go of it. Who may read is decided before.

mod several;

use crate::domain::channel::ChannelName;
use crate::domain::options::Retention;
use crate::domain::position::Position;
use crate::store::history::Wish;
use crate::store::{self, Store, StoreError, log};

pub use crate::store::history::History;
pub use crate::store::log::{Bounds, Page};
pub use several::{Asked, FoundSeveral, Part, several};

/// A page ends after so many bytes of data, if it has an event; the rest is on the next one.
const PAGE_BYTES: usize = 1 << 20;

/// Which page of a channel is wanted.
#[derive(Debug, Clone)]
pub struct PageRequest {
    pub channel: ChannelName,
    pub retention: Retention,
    /// Where the page begins; `None` for the oldest event that is retained.
    pub from: Option<Position>,
    /// How many events it may have.
    pub limit: u32,
}

/// What was found.
pub enum Found {
    /// The caller knows what a channel with these bounds answers.
    Known(Bounds),
    Page(Page),
}

/// Whether `from` is the end of `channel`, as far as this process knows without asking the database.
pub fn is_at_end(store: &Store, channel: &ChannelName, from: &Position) -> bool {
    store.heads().and_then(|heads| heads.of(channel)).is_some_and(|head| head == *from)
}

/// Reads a page, unless nothing is lost and `is_known` says of the channel's bounds that the caller has it.
pub async fn page(
    store: &Store,
    request: PageRequest,
    is_known: impl FnOnce(&Bounds) -> bool + Send + 'static,
) -> store::Result<Found> {
    let cache = store.clone();
    let read = store.read(move |tx| {
        Box::pin(async move {
            let PageRequest { channel, retention, from, limit } = request;
            let heads = cache.heads().map(|heads| (heads, heads.version()));
            let bounds = tx.bounds(&channel, retention).await?;
            if let Some((heads, since)) = heads {
                heads.learn(since, &channel, &bounds.head);
            }
            let lost = from.as_ref().is_some_and(|from| !bounds.covers(from));
            if !lost && is_known(&bounds) {
                return Ok(Found::Known(bounds));
            }
            let asked = log::PageRequest { from: from.as_ref(), until: None, limit, bytes: Some(PAGE_BYTES) };
            Ok(Found::Page(tx.page(&channel, retention, asked).await?))
        })
    });
    read.await
}

/// Which events of a channel are wanted, and in which order.
#[derive(Debug, Default)]
pub struct Wanted {
    /// Only those on the far side of this epoch and offset; an empty epoch fits any.
    pub since: Option<(String, u64)>,
    /// At most so many; 0 for the head alone.
    pub limit: u32,
    /// The newest first.
    pub reverse: bool,
}

/// Reads what is wanted of `channel`, as far as `retention` covers it.
pub async fn read(
    store: &Store,
    channel: ChannelName,
    retention: Retention,
    wanted: Wanted,
) -> store::Result<History> {
    let read = store.read(move |tx| {
        Box::pin(async move {
            let Wanted { since, limit, reverse } = wanted;
            let since = since.as_ref().map(|(epoch, offset)| (epoch.as_str(), *offset));
            let wish = Wish { since, limit, reverse, bytes: usize::MAX };
            tx.history(&channel, retention, wish).await
        })
    });
    read.await
}

/// Removes what `channel` holds; its position stays.
pub async fn remove(store: &Store, channel: ChannelName) -> Result<(), StoreError> {
    store::retry_conflicts(|| {
        let channel = channel.clone();
        store.write_log(move |mut tx| Box::pin(async move { log::clear(&mut tx, &channel).await.map(drop) }))
    })
    .await
}
