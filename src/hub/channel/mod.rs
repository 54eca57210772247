//! The channel actor: one for each channel with subscribers on this node; for `repo:` it is the
//! repository's actor. Owns the channel's position, puts announcements in order, reads the log where one
//! is missing, and sends each event once to every subscribed worker thread. Never writes to a connection
//! and never decides who may subscribe.

mod beginning;
mod catch_up;
mod workers;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use actix::prelude::*;
use tokio::sync::{mpsc, oneshot};

use beginning::Beginning;
use workers::{Lag, WorkerFeed};

use super::fanout::{Batch, FanoutMessage};
use super::idle_channels::EndIdle;
use super::sequencer::{Delivered, Next, Sequencer};
use super::{Followed, Hub, SubscribeError, Worker};
use crate::bus::{Announcement, Content, PresenceChange};
use crate::domain::channel::ChannelName;
use crate::domain::event::Event;
use crate::domain::options::Retention;
use crate::domain::position::{Epoch, Position};
use crate::domain::presence::Member;
use crate::hub::metrics::{Metrics, Queue};
use crate::store::Store;
use crate::store::log::Bounds;

/// How long a gap waits for the announcement that is missing before the log is read.
const GAP_TIMEOUT: Duration = Duration::from_millis(10);
/// How long to wait before the log is read again after the store did not answer.
const RETRY_DELAY: Duration = Duration::from_millis(500);

type JoinResult = Result<Followed, SubscribeError>;

#[derive(Clone)]
pub(super) struct ChannelHandle {
    id: u64,
    name: ChannelName,
    addr: Addr<ChannelActor>,
    state: Arc<ChannelState>,
}

/// State that the actor shares with its handles.
#[derive(Default)]
struct ChannelState {
    /// An announcement was dropped: the log has to be read.
    behind: AtomicBool,
    position: Mutex<Option<Position>>,
}

/// Starts the actor of `name` on the thread of `arbiter`.
pub(super) fn start(hub: Hub, name: ChannelName, arbiter: &ArbiterHandle) -> ChannelHandle {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    let state = Arc::new(ChannelState::default());
    let actor = ChannelActor {
        id,
        retention: hub.0.options.namespaces.load().retention_of(&name),
        deltas: deltas_of(&hub, &name),
        hub,
        name: name.clone(),
        bus_ready: false,
        sequencer: None,
        beginning: Beginning::default(),
        disputed: None,
        previous: None,
        joining: Vec::new(),
        workers: HashMap::new(),
        reading: false,
        gap_timer: None,
        linger: None,
        state: state.clone(),
    };
    let mailbox = actor.hub.0.options.mailbox;
    let addr = ChannelActor::start_in_arbiter(arbiter, move |ctx| {
        ctx.set_mailbox_capacity(mailbox);
        actor
    });
    ChannelHandle { id, name, addr, state }
}

impl ChannelHandle {
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn name(&self) -> &ChannelName {
        &self.name
    }

    pub(super) fn position(&self) -> Option<Position> {
        self.state.position.lock().expect("the position is only copied under its lock").clone()
    }

    /// `None`: the actor has ended.
    pub(super) async fn join(&self, worker: Worker) -> Option<JoinResult> {
        let (reply, answer) = oneshot::channel();
        self.addr.do_send(Join { worker, reply });
        answer.await.ok()
    }

    pub(super) fn leave(&self, worker: usize) {
        self.addr.do_send(Leave { worker });
    }

    pub(super) fn send_presence(&self, change: PresenceChange) {
        self.addr.do_send(PresenceChanged(change));
    }

    /// `None`: the actor has stopped, and nobody is there.
    pub(super) async fn members(&self) -> Option<Vec<Member>> {
        let (reply, answer) = oneshot::channel();
        self.addr.do_send(ListMembers { reply });
        answer.await.ok()
    }

    /// Hands over an announcement, or marks the channel behind when too many wait. At most one
    /// `CatchUp` goes beyond the bound.
    pub(super) fn announce(&self, announcement: Announcement, metrics: &Metrics) {
        if let Err(SendError::Full(_)) = self.addr.try_send(Announced(announcement)) {
            metrics.queue_overflows.inc(Queue::Channel);
            if !self.state.behind.swap(true, Ordering::SeqCst) {
                self.addr.do_send(CatchUp);
            }
        }
    }

    /// Makes the channel read the log from its position, and check that it is still the log it knows.
    pub(super) fn recheck(&self) {
        self.addr.do_send(CatchUp);
    }

    /// Compares with a head that was read after the actor was at `known`.
    pub(super) fn compare(&self, head: Position, known: Option<Position>) {
        self.addr.do_send(Compare { head, known });
    }
}

fn deltas_of(hub: &Hub, name: &ChannelName) -> Option<bool> {
    let namespaces = hub.0.options.namespaces.load();
    let options = namespaces.options_of(name).filter(|options| options.has_deltas())?;
    Some(options.delta_publish)
}

struct ChannelActor {
    id: u64,
    hub: Hub,
    name: ChannelName,
    /// `None`: the channel keeps no history, its events pass through.
    retention: Option<Retention>,
    /// Whether data may be sent as deltas, and then whether of all events.
    deltas: Option<bool>,
    /// The bus delivers what other nodes announce on this channel, so nothing after the head is missed.
    bus_ready: bool,
    /// `None` until the head has been read.
    sequencer: Option<Sequencer>,
    beginning: Beginning,
    /// An event that was delivered and is perhaps not the one in the log.
    disputed: Option<Delivered>,
    /// The event at the sequencer's position in full, where data may be sent as deltas.
    previous: Option<Event>,
    joining: Vec<(Worker, oneshot::Sender<JoinResult>)>,
    workers: HashMap<usize, WorkerFeed>,
    /// A read of the log is under way; there is never more than one. Whoever wants another one marks the
    /// channel behind, because the event it looks for may be newer than the read under way.
    reading: bool,
    gap_timer: Option<SpawnHandle>,
    /// The end of the wait for subscribers, and its place among those of other channels.
    linger: Option<(SpawnHandle, u64)>,
    state: Arc<ChannelState>,
}

#[derive(Message)]
#[rtype(result = "()")]
struct Announced(Announcement);

#[derive(Message)]
#[rtype(result = "()")]
struct Join {
    worker: Worker,
    reply: oneshot::Sender<JoinResult>,
}

#[derive(Message)]
#[rtype(result = "()")]
struct Leave {
    worker: usize,
}

#[derive(Message)]
#[rtype(result = "()")]
struct PresenceChanged(PresenceChange);

#[derive(Message)]
#[rtype(result = "()")]
struct ListMembers {
    reply: oneshot::Sender<Vec<Member>>,
}

#[derive(Message)]
#[rtype(result = "()")]
struct CatchUp;

#[derive(Message)]
#[rtype(result = "()")]
struct Compare {
    head: Position,
    known: Option<Position>,
}

impl Actor for ChannelActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        self.start_linger(ctx);
        // The head counts only if whatever follows it will be announced.
        match self.hub.0.bus.follow(&self.name) {
            None => self.on_bus_ready(ctx),
            Some(following) => {
                ctx.spawn(following.into_actor(self).map(|(), actor, ctx| actor.on_bus_ready(ctx)));
            }
        }
    }
}

impl Handler<Announced> for ChannelActor {
    type Result = ();

    fn handle(&mut self, Announced(announcement): Announced, ctx: &mut Context<Self>) {
        self.announced(announcement, ctx);
    }
}

impl Handler<Join> for ChannelActor {
    type Result = ();

    fn handle(&mut self, Join { worker, reply }: Join, ctx: &mut Context<Self>) {
        if let Some((linger, place)) = self.linger.take() {
            ctx.cancel_future(linger);
            self.hub.0.idle.end(place);
        }
        self.refresh_options(ctx);
        if self.bus_ready && (self.retention.is_none() || self.sequencer.is_some()) {
            self.add_worker(worker, reply);
        } else {
            self.joining.push((worker, reply));
        }
    }
}

impl Handler<Leave> for ChannelActor {
    type Result = ();

    fn handle(&mut self, Leave { worker }: Leave, ctx: &mut Context<Self>) {
        self.workers.remove(&worker);
        self.joining.retain(|(joining, _)| joining.id != worker);
        self.start_linger(ctx);
    }
}

impl Handler<EndIdle> for ChannelActor {
    type Result = ();

    fn handle(&mut self, _: EndIdle, ctx: &mut Context<Self>) {
        // A subscriber may have come meanwhile.
        self.end_if_lonely(ctx);
    }
}

impl Handler<PresenceChanged> for ChannelActor {
    type Result = ();

    /// Best effort, as the protocol says: a worker whose inbox is full misses it.
    fn handle(&mut self, PresenceChanged(change): PresenceChanged, ctx: &mut Context<Self>) {
        self.broadcast(&FanoutMessage::Presence(self.name.clone(), change), None, ctx);
    }
}

impl Handler<ListMembers> for ChannelActor {
    type Result = ();

    fn handle(&mut self, ListMembers { reply }: ListMembers, _: &mut Context<Self>) {
        let asked: Vec<_> = self.workers.values().map(|feed| feed.inbox.clone()).collect();
        let name = self.name.clone();
        actix_rt::spawn(async move {
            let (answer, mut answers) = mpsc::channel(asked.len().max(1));
            for inbox in asked {
                // A worker that has ended has nobody.
                let _ = inbox.send(FanoutMessage::ListMembers(name.clone(), answer.clone())).await;
            }
            drop(answer);
            let mut members = Vec::new();
            while let Some(some) = answers.recv().await {
                members.extend(some);
            }
            // Whoever asked may have left.
            let _ = reply.send(members);
        });
    }
}

impl Handler<CatchUp> for ChannelActor {
    type Result = ();

    fn handle(&mut self, _: CatchUp, ctx: &mut Context<Self>) {
        // While the log is being read the mark stays: that read ends with a look at it.
        if self.sequencer.is_some() && !self.reading {
            self.state.behind.store(false, Ordering::SeqCst);
            self.read_log(ctx);
        }
    }
}

impl Handler<Compare> for ChannelActor {
    type Result = ();

    fn handle(&mut self, Compare { head, known }: Compare, ctx: &mut Context<Self>) {
        let Some(sequencer) = &self.sequencer else { return };
        let same = head.epoch == sequencer.position().epoch;
        match known {
            Some(known) if same && known.epoch == head.epoch && head.offset < known.offset => {
                self.history_lost(known.offset, ctx);
            }
            _ if !same || head.offset > sequencer.position().offset => self.read_log(ctx),
            _ => {}
        }
    }
}

impl ChannelActor {
    fn store(&self) -> &Store {
        &self.hub.0.store
    }

    fn metrics(&self) -> &Metrics {
        &self.hub.0.metrics
    }

    /// The bus now delivers what other nodes announce.
    fn on_bus_ready(&mut self, ctx: &mut Context<Self>) {
        self.bus_ready = true;
        if self.retention.is_some() {
            self.find_head(ctx);
        } else {
            let joining = std::mem::take(&mut self.joining);
            joining.into_iter().for_each(|(worker, reply)| self.add_worker(worker, reply));
        }
    }

    fn add_worker(&mut self, worker: Worker, reply: oneshot::Sender<JoinResult>) {
        let position = self.sequencer.as_ref().map(|sequencer| sequencer.position().clone());
        // A worker that is subscribed already keeps its state: it may be behind.
        self.workers.entry(worker.id).or_insert(WorkerFeed { inbox: worker.inbox, lag: None });
        let _ = reply.send(Ok(Followed { actor: self.id, position }));
    }

    fn announced(&mut self, announcement: Announcement, ctx: &mut Context<Self>) {
        let accepted = announcement.accepted;
        match (announcement.content, &self.sequencer) {
            (Content::Ephemeral(events), _) => self.send(None, events, accepted, ctx),
            // Another node keeps a history already: here they pass as before, and this node looks whether
            // it should too.
            (Content::Logged { events, .. }, None) if self.retention.is_none() => {
                self.send(None, events, accepted, ctx);
                self.refresh_options(ctx);
            }
            (content @ Content::Logged { .. }, None) => self.hold(Announcement { content, ..announcement }),
            (Content::Logged { epoch, events }, Some(_)) => {
                self.send_late(&epoch, &events, ctx);
                self.sequence(epoch, events, accepted, ctx);
            }
        }
    }

    fn sequence(
        &mut self,
        epoch: Epoch,
        events: Vec<Event>,
        accepted: Option<Instant>,
        ctx: &mut Context<Self>,
    ) {
        let Some(sequencer) = &mut self.sequencer else { return };
        match sequencer.accept(&epoch, events) {
            Next::Deliver(events) => {
                self.send(Some(epoch), events, accepted, ctx);
                self.wait_for_gap(ctx);
            }
            Next::Wait => self.wait_for_gap(ctx),
            Next::Nothing => {}
            Next::OtherEpoch => self.read_log(ctx),
            Next::Disputed(known) => {
                self.disputed = Some(known);
                self.read_log(ctx);
            }
        }
    }

    /// Publishes the position for handles to see.
    fn set_sequencer(&mut self, sequencer: Sequencer) {
        let position = sequencer.position().clone();
        self.sequencer = Some(sequencer);
        *self.state.position.lock().expect("the position is only copied under its lock") = Some(position);
    }

    fn share_position(&mut self) {
        if let Some(sequencer) = self.sequencer.take() {
            self.set_sequencer(sequencer);
        }
    }

    /// Sends `events` (contiguous, the last one at the sequencer's position) to all workers.
    fn send(
        &mut self,
        epoch: Option<Epoch>,
        events: Vec<Event>,
        accepted: Option<Instant>,
        ctx: &mut Context<Self>,
    ) {
        self.share_position();
        if !self.sequencer.as_ref().is_some_and(Sequencer::has_gap)
            && let Some(timer) = self.gap_timer.take()
        {
            ctx.cancel_future(timer);
        }
        let Some(first) = events.first().map(|event| event.offset) else { return };
        let before = epoch.clone().map(|epoch| Position::new(epoch, first.saturating_sub(1)));
        let batch = self.batch(epoch, events, accepted);
        self.broadcast(&FanoutMessage::Events(Arc::new(batch)), before.map(Lag::After), ctx);
    }

    /// A batch that knows the event before it, where data may be sent as deltas.
    fn batch(&mut self, epoch: Option<Epoch>, events: Vec<Event>, accepted: Option<Instant>) -> Batch {
        let (Some(all), Some(first), true) = (self.deltas, events.first(), epoch.is_some()) else {
            return Batch::new(self.name.clone(), epoch, events, accepted);
        };
        let before = self.previous.take().filter(|previous| previous.offset + 1 == first.offset);
        self.previous = events.last().cloned();
        Batch::new(self.name.clone(), epoch, events, accepted).with_previous(before, all)
    }

    fn wait_for_gap(&mut self, ctx: &mut Context<Self>) {
        let gap = self.sequencer.as_ref().is_some_and(Sequencer::has_gap);
        if gap && self.gap_timer.is_none() && !self.reading {
            self.gap_timer = Some(ctx.run_later(GAP_TIMEOUT, |actor, ctx| {
                actor.gap_timer = None;
                actor.metrics().gaps_filled.inc();
                actor.read_log(ctx);
            }));
        }
    }

    /// Continues after the head, and tells all workers.
    fn reset(&mut self, bounds: Bounds, ctx: &mut Context<Self>) {
        self.metrics().channel_resets.inc();
        let Some(mut sequencer) = self.sequencer.take() else { return };
        (self.disputed, self.previous) = (None, None);
        self.beginning.forget_position();
        let ready = sequencer.reset(bounds.head.clone());
        self.set_sequencer(sequencer);
        let reset = Lag::Reset(bounds.clone());
        for lag in self.workers.values_mut().filter_map(|feed| feed.lag.as_mut()) {
            lag.clone_from(&reset);
        }
        self.broadcast(&FanoutMessage::Reset(self.name.clone(), bounds.clone()), Some(reset), ctx);
        self.send(Some(bounds.head.epoch), ready, None, ctx);
    }

    /// Without workers the channel stops after a while.
    fn start_linger(&mut self, ctx: &mut Context<Self>) {
        if self.workers.is_empty() && self.joining.is_empty() && self.linger.is_none() {
            let linger = self.hub.0.options.linger;
            let place = self.hub.0.idle.begin(ctx.address().recipient());
            self.linger = Some((ctx.run_later(linger, Self::end_if_lonely), place));
        }
    }

    fn end_if_lonely(&mut self, ctx: &mut Context<Self>) {
        if self.workers.is_empty() && self.joining.is_empty() {
            self.end(ctx);
        }
    }

    fn end(&mut self, ctx: &mut Context<Self>) {
        if let Some((_, place)) = self.linger.take() {
            self.hub.0.idle.end(place);
        }
        self.hub.remove(&self.name, self.id);
        self.hub.0.bus.leave(&self.name);
        ctx.stop();
    }
}
