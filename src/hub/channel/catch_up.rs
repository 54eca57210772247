//! How a channel reads the log: what follows its position when something that was announced is missing,
//! and what to do when the log has lost what it had confirmed.

use std::sync::atomic::Ordering;

use actix::prelude::*;

use super::{ChannelActor, RETRY_DELAY};
use crate::domain::channel::ChannelName;
use crate::domain::options::Retention;
use crate::domain::position::{Epoch, Position};
use crate::hub::sequencer::{Delivered, Sequencer};
use crate::store::log::{self, Page, PageRequest};
use crate::store::{self, Store};

/// Events in one read.
const PAGE: u32 = 256;

impl ChannelActor {
    /// Reads what follows the position, page by page, until the head is reached.
    pub(super) fn read_log(&mut self, ctx: &mut Context<Self>) {
        let (Some(sequencer), Some(retention)) = (&self.sequencer, self.retention) else { return };
        if std::mem::replace(&mut self.reading, true) {
            self.state.behind.store(true, Ordering::SeqCst);
            return;
        }
        let (from, announced) = (sequencer.position().clone(), sequencer.announced());
        let known = self.disputed.take().or_else(|| sequencer.last());
        let (store, name) = (self.store().clone(), self.name.clone());
        let start = from.clone();
        let read = async move {
            let replaced = is_replaced(&store, &name, known).await?;
            Ok((read_page(store, name, retention, start, None).await?, replaced))
        };
        ctx.spawn(read.into_actor(self).map(move |read, actor, ctx| {
            match read {
                // The page itself shows when the epoch has changed already.
                Ok((page, true)) if epoch_of(&page) == &from.epoch => {
                    actor.reading = false;
                    actor.history_replaced(from, ctx);
                }
                read => actor.read(from, announced, read.map(|(page, _)| page), ctx),
            }
        }));
    }

    /// Takes what was read after `from`, when the log was known to reach at least to `announced`.
    fn read(&mut self, from: Position, announced: u64, page: store::Result<Page>, ctx: &mut Context<Self>) {
        self.reading = false;
        let Some(sequencer) = &mut self.sequencer else { return };
        let bounds = match &page {
            Ok(Page::Events { bounds, .. } | Page::Lost(bounds)) => bounds.clone(),
            Err(error) => {
                tracing::warn!(channel = %self.name, %error, "the log could not be read; retrying");
                ctx.run_later(RETRY_DELAY, |actor, ctx| actor.read_log(ctx));
                return;
            }
        };
        if bounds.head.epoch == from.epoch && bounds.head.offset < announced {
            return self.history_lost(announced, ctx);
        }
        match page {
            Ok(Page::Events { events, .. }) => {
                let ready = sequencer.fill(events);
                if !ready.is_empty() {
                    self.send(Some(bounds.head.epoch.clone()), ready, None, ctx);
                }
            }
            // Unless announcements have closed the gap in the meantime.
            _ if *sequencer.position() == from => self.reset(bounds.clone(), ctx),
            _ => {}
        }
        let behind = self.state.behind.swap(false, Ordering::SeqCst);
        let short =
            |sequencer: &Sequencer| sequencer.has_gap() || sequencer.position().offset < bounds.head.offset;
        if behind || self.sequencer.as_ref().is_some_and(short) {
            self.read_log(ctx);
        }
    }

    /// The log ends before an event that was announced on this channel: accepted events are gone. The
    /// history gets a new epoch before it continues; the next read finds it and tells the workers.
    pub(super) fn history_lost(&mut self, known: u64, ctx: &mut Context<Self>) {
        tracing::error!(channel = %self.name, known, "the log has lost events; the channel gets a new epoch");
        let (store, name) = (self.store().clone(), self.name.clone());
        let part = new_part();
        self.renew(ctx, async move {
            store
                .write_log(move |mut conn| {
                    Box::pin(async move { log::renew_epoch(&mut conn, &name, known, &part).await })
                })
                .await
        });
    }

    /// The log holds another event where this channel has delivered one: it was restored and continued
    /// differently. As above, the history gets a new epoch.
    fn history_replaced(&mut self, from: Position, ctx: &mut Context<Self>) {
        tracing::error!(channel = %self.name, position = %from, "the log has been replaced; the channel gets a new epoch");
        let (store, name, part) = (self.store().clone(), self.name.clone(), new_part());
        self.renew(ctx, async move {
            store
                .write_log(move |mut conn| {
                    Box::pin(async move { log::leave_epoch(&mut conn, &name, &from.epoch, &part).await })
                })
                .await
        });
    }

    fn renew(&mut self, ctx: &mut Context<Self>, renewal: impl Future<Output = store::Result<()>> + 'static) {
        if std::mem::replace(&mut self.reading, true) {
            return;
        }
        ctx.spawn(renewal.into_actor(self).map(|renewed, actor, ctx| {
            actor.reading = false;
            match renewed {
                Ok(()) => actor.read_log(ctx),
                Err(error) => {
                    tracing::warn!(channel = %actor.name, %error, "the epoch could not be changed; retrying");
                    ctx.run_later(RETRY_DELAY, |actor, ctx| actor.read_log(ctx));
                }
            }
        }));
    }
}

/// The channel's own part of a new epoch.
fn new_part() -> String {
    format!("{:08x}", rand::random::<u32>())
}

fn epoch_of(page: &Page) -> &Epoch {
    let (Page::Events { bounds, .. } | Page::Lost(bounds)) = page;
    &bounds.head.epoch
}

/// Whether the log holds another event where the `known` one was delivered.
async fn is_replaced(store: &Store, name: &ChannelName, known: Option<Delivered>) -> store::Result<bool> {
    let Some(Delivered { offset, id }) = known else { return Ok(false) };
    let name = name.clone();
    let stored =
        store.read(move |conn| Box::pin(async move { log::event_id_at(conn, &name, offset).await })).await?;
    Ok(stored.is_some_and(|stored| stored != id))
}

pub(super) async fn read_page(
    store: Store,
    name: ChannelName,
    retention: Retention,
    from: Position,
    until: Option<u64>,
) -> store::Result<Page> {
    store
        .read(move |tx| {
            Box::pin(async move {
                let asked = PageRequest { from: Some(&from), until, limit: PAGE, bytes: None };
                tx.page(&name, retention, asked).await
            })
        })
        .await
}
