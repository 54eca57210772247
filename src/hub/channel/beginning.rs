//! How a channel finds its position: when it starts, and when a reload turns its history on while it has
//! followers. Until the head of the log is known, what is announced is held. A channel with followers never
//! ends for want of the store: it goes on trying, and followers without positions lose nothing meanwhile.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use actix::prelude::*;
use tokio::sync::oneshot;

use super::{ChannelActor, ChannelHandle, RETRY_DELAY, deltas_of};
use crate::bus::Announcement;
use crate::domain::event::Event;
use crate::domain::options::Retention;
use crate::domain::position::{Epoch, Position};
use crate::hub::SubscribeError;
use crate::hub::fanout::{Batch, FanoutMessage};
use crate::hub::sequencer::Sequencer;
use crate::store;

/// What a channel knows about the beginning of its history.
#[derive(Default)]
pub(super) struct Beginning {
    /// The head is being read, or will be read again after the store did not answer.
    finding_head: bool,
    /// What was announced meanwhile.
    held: Vec<Announcement>,
    /// Where the history began under followers, who have no position. An event up to here that is announced
    /// later was on its way then, and they have not had it yet.
    began_at: u64,
    /// Who waits until the channel knows its position.
    waiting: Vec<oneshot::Sender<()>>,
}

impl Beginning {
    /// The history was replaced: what is announced from now on is counted anew.
    pub(super) fn forget_position(&mut self) {
        self.began_at = 0;
    }
}

#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct BeginHistory {
    retention: Retention,
    done: oneshot::Sender<()>,
}

#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct TakeOptions;

impl ChannelHandle {
    /// Lets the channel, which is about to keep `retention`, find its position. Completes when it has, or
    /// when the store has not answered, after which the channel goes on trying.
    pub(in crate::hub) async fn begin_history(&self, retention: Retention) {
        let (done, begun) = oneshot::channel();
        self.addr.do_send(BeginHistory { retention, done });
        // An actor that has ended has no followers.
        let _ = begun.await;
    }

    /// The options of the namespace have changed.
    pub(in crate::hub) fn take_options(&self) {
        self.addr.do_send(TakeOptions);
    }
}

impl Handler<BeginHistory> for ChannelActor {
    type Result = ();

    fn handle(&mut self, BeginHistory { retention, done }: BeginHistory, ctx: &mut Context<Self>) {
        self.retention = Some(retention);
        if self.sequencer.is_none() {
            self.beginning.waiting.push(done);
            self.find_head(ctx);
        }
    }
}

impl Handler<TakeOptions> for ChannelActor {
    type Result = ();

    fn handle(&mut self, _: TakeOptions, ctx: &mut Context<Self>) {
        self.refresh_options(ctx);
    }
}

impl ChannelActor {
    /// Applies the options of the namespace as they are now. Where a reload has turned history on, the
    /// channel starts to track its position; where off, it keeps the one it has.
    pub(super) fn refresh_options(&mut self, ctx: &mut Context<Self>) {
        let retention = self.hub.0.options.namespaces.load().retention_of(&self.name);
        self.retention = retention.or(self.retention);
        self.deltas = deltas_of(&self.hub, &self.name);
        if self.retention.is_some() {
            self.find_head(ctx);
        }
    }

    /// Reads the head, unless it is known or being read. It counts only once the bus announces what
    /// follows it.
    pub(super) fn find_head(&mut self, ctx: &mut Context<Self>) {
        if self.sequencer.is_none() && self.bus_ready && !self.beginning.finding_head {
            self.beginning.finding_head = true;
            self.read_head(ctx);
        }
    }

    fn read_head(&self, ctx: &mut Context<Self>) {
        let (store, name) = (self.store().clone(), self.name.clone());
        let head = async move { store.read(move |tx| Box::pin(async move { tx.head(&name).await })).await };
        ctx.spawn(head.into_actor(self).map(Self::on_head));
    }

    fn on_head(head: store::Result<Position>, actor: &mut Self, ctx: &mut Context<Self>) {
        let joining = std::mem::take(&mut actor.joining);
        actor.beginning.waiting.clear();
        match head {
            Ok(position) => {
                actor.beginning.finding_head = false;
                actor.beginning.began_at = if actor.workers.is_empty() { 0 } else { position.offset };
                actor.set_sequencer(Sequencer::at(position));
                joining.into_iter().for_each(|(worker, reply)| actor.add_worker(worker, reply));
                for announcement in std::mem::take(&mut actor.beginning.held) {
                    actor.announced(announcement, ctx);
                }
                if actor.state.behind.swap(false, Ordering::SeqCst) {
                    actor.read_log(ctx);
                }
                actor.start_linger(ctx);
            }
            Err(error) => {
                for (_, reply) in joining {
                    let _ = reply.send(Err(SubscribeError(error.to_string())));
                }
                if actor.workers.is_empty() {
                    return actor.end(ctx);
                }
                tracing::warn!(channel = %actor.name, %error, "the history cannot begin without the store; retrying");
                ctx.run_later(RETRY_DELAY, |actor, ctx| actor.read_head(ctx));
            }
        }
    }

    /// Keeps what is announced while the head is being read: whether the head includes it is not known.
    /// What finds no room is read from the log; followers without a position miss it.
    pub(super) fn hold(&mut self, announcement: Announcement) {
        if self.beginning.held.len() < self.hub.0.options.mailbox {
            self.beginning.held.push(announcement);
        } else {
            self.state.behind.store(true, Ordering::SeqCst);
        }
    }

    /// Sends what was on its way when the history began under followers. Those with a position know it
    /// already and skip it.
    pub(super) fn send_late(&mut self, epoch: &Epoch, events: &[Event], ctx: &mut Context<Self>) {
        let began_at = self.beginning.began_at;
        let late: Vec<Event> = events.iter().take_while(|event| event.offset <= began_at).cloned().collect();
        if !late.is_empty() && self.sequencer.as_ref().is_some_and(|known| known.position().epoch == *epoch) {
            let batch = Batch::new(self.name.clone(), Some(epoch.clone()), late, None);
            self.broadcast(&FanoutMessage::Events(Arc::new(batch)), None, ctx);
        }
    }
}
