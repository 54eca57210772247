//! The channel actor: one for each channel that somebody on this node follows; for `repo:` it is
//! the repository's actor. Owns the channel's position, puts announcements in order, reads the
//! log where one is missing, and sends each event once to every worker thread that follows.
//! Never writes to a connection and never decides who may subscribe.

mod followers;
mod reading;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use actix::prelude::*;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use followers::{Behind, Follower};

use super::fanout::{Batch, Parcel};
use super::order::{Order, Step};
use super::presence::Member;
use super::{CannotFollow, Hub, Worker};
use crate::bus::{Announcement, Content, Movement};
use crate::domain::channel::ChannelName;
use crate::domain::event::Event;
use crate::domain::options::Retention;
use crate::domain::position::{Epoch, Position};
use crate::store::Store;
use crate::store::log::Bounds;
use crate::telemetry::{Metrics, count};

/// How long a gap waits for the announcement that is missing before the log is read.
const GAP_PATIENCE: Duration = Duration::from_millis(10);
/// How long to wait before the log is read again after the store did not answer.
const RETRY: Duration = Duration::from_millis(500);

type Joined = Result<Option<Position>, CannotFollow>;

/// How others speak to the actor.
#[derive(Clone)]
pub(super) struct ChannelHandle {
    id: u64,
    name: ChannelName,
    addr: Addr<ChannelActor>,
    shared: Arc<Shared>,
}

/// What the actor and its handles both see.
#[derive(Default)]
struct Shared {
    /// An announcement was dropped: the log has to be read.
    behind: AtomicBool,
    position: Mutex<Option<Position>>,
}

/// Starts the actor of `name` on the thread of `arbiter`.
pub(super) fn start(hub: Hub, name: ChannelName, arbiter: &ArbiterHandle) -> ChannelHandle {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    let shared = Arc::new(Shared::default());
    let actor = ChannelActor {
        id,
        retention: hub.0.options.namespaces.load().retention_of(&name),
        deltas: deltas_of(&hub, &name),
        hub,
        name: name.clone(),
        heard: false,
        order: None,
        last: None,
        previous: None,
        joining: Vec::new(),
        followers: HashMap::new(),
        reading: false,
        gap_timer: None,
        linger: None,
        shared: shared.clone(),
    };
    let mailbox = actor.hub.0.options.mailbox;
    let addr = ChannelActor::start_in_arbiter(arbiter, move |ctx| {
        ctx.set_mailbox_capacity(mailbox);
        actor
    });
    ChannelHandle { id, name, addr, shared }
}

impl ChannelHandle {
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn name(&self) -> &ChannelName {
        &self.name
    }

    pub(super) fn position(&self) -> Option<Position> {
        self.shared.position.lock().expect("the position is only copied under its lock").clone()
    }

    /// `None`: the actor has ended.
    pub(super) async fn join(&self, worker: Worker) -> Option<Joined> {
        let (reply, answer) = oneshot::channel();
        self.addr.do_send(Join { worker, reply });
        answer.await.ok()
    }

    pub(super) fn leave(&self, worker: usize) {
        self.addr.do_send(Leave { worker });
    }

    pub(super) fn tell(&self, movement: Movement) {
        self.addr.do_send(Moved(movement));
    }

    /// `None`: the actor has ended, and nobody is there.
    pub(super) async fn members(&self) -> Option<Vec<Member>> {
        let (reply, answer) = oneshot::channel();
        self.addr.do_send(Who { reply });
        answer.await.ok()
    }

    /// Hands over an announcement, or marks the channel behind when too many wait. At most one
    /// `CatchUp` goes beyond the bound.
    pub(super) fn announce(&self, announcement: Announcement, metrics: &Metrics) {
        if let Err(SendError::Full(_)) = self.addr.try_send(Announced(announcement)) {
            count(&metrics.behind, "channel");
            if !self.shared.behind.swap(true, Ordering::SeqCst) {
                self.addr.do_send(CatchUp);
            }
        }
    }

    /// Reads the log on from the channel's position, and looks whether it is the one it knows.
    pub(super) fn look(&self) {
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
    /// `None`: the channel keeps nothing, its events pass through.
    retention: Option<Retention>,
    /// Whether data may come as differences, and then whether of all events.
    deltas: Option<bool>,
    /// What other nodes announce reaches this one, or will be looked for.
    heard: bool,
    /// `None` until the head has been read.
    order: Option<Order>,
    /// The event at the order's position, if it passed here: by it the log is known again.
    last: Option<Uuid>,
    /// The same event whole, where data may come as differences.
    previous: Option<Event>,
    joining: Vec<(Worker, oneshot::Sender<Joined>)>,
    followers: HashMap<usize, Follower>,
    /// A read of the log is under way; there is never more than one. Who wants another one marks
    /// the channel behind, because what it looks for may be younger than the one under way.
    reading: bool,
    gap_timer: Option<SpawnHandle>,
    linger: Option<SpawnHandle>,
    shared: Arc<Shared>,
}

#[derive(Message)]
#[rtype(result = "()")]
struct Announced(Announcement);

#[derive(Message)]
#[rtype(result = "()")]
struct Join {
    worker: Worker,
    reply: oneshot::Sender<Joined>,
}

#[derive(Message)]
#[rtype(result = "()")]
struct Leave {
    worker: usize,
}

#[derive(Message)]
#[rtype(result = "()")]
struct Moved(Movement);

#[derive(Message)]
#[rtype(result = "()")]
struct Who {
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
        self.rest(ctx);
        // The head counts only if whatever follows it will be announced.
        match self.hub.0.bus.follow(&self.name) {
            None => self.begin(ctx),
            Some(following) => {
                ctx.spawn(following.into_actor(self).map(|(), actor, ctx| actor.begin(ctx)));
            }
        }
    }
}

impl Handler<Announced> for ChannelActor {
    type Result = ();

    fn handle(&mut self, Announced(announcement): Announced, ctx: &mut Context<Self>) {
        let accepted = announcement.accepted;
        match (announcement.content, &mut self.order) {
            (Content::Ephemeral(events), _) => self.send(None, events, accepted, ctx),
            // A reload has turned the history on: who came before goes on without positions.
            (Content::Logged { events, .. }, None) if self.retention.is_none() => {
                self.send(None, events, accepted, ctx);
                self.take_retention(ctx);
            }
            // The head is being read; whether it has these already is not known, so look again.
            (Content::Logged { .. }, None) => self.shared.behind.store(true, Ordering::SeqCst),
            (Content::Logged { epoch, events }, Some(order)) => match order.accept(&epoch, events) {
                Step::Deliver(events) => {
                    self.send(Some(epoch), events, accepted, ctx);
                    self.wait_for_gap(ctx);
                }
                Step::Wait => self.wait_for_gap(ctx),
                Step::Nothing => {}
                Step::OtherEpoch => self.read_log(ctx),
            },
        }
    }
}

impl Handler<Join> for ChannelActor {
    type Result = ();

    fn handle(&mut self, Join { worker, reply }: Join, ctx: &mut Context<Self>) {
        if let Some(linger) = self.linger.take() {
            ctx.cancel_future(linger);
        }
        self.take_retention(ctx);
        if self.heard && (self.retention.is_none() || self.order.is_some()) {
            self.admit(worker, reply);
        } else {
            self.joining.push((worker, reply));
        }
    }
}

impl Handler<Leave> for ChannelActor {
    type Result = ();

    fn handle(&mut self, Leave { worker }: Leave, ctx: &mut Context<Self>) {
        self.followers.remove(&worker);
        self.joining.retain(|(joining, _)| joining.id != worker);
        self.rest(ctx);
    }
}

impl Handler<Moved> for ChannelActor {
    type Result = ();

    /// Best effort, as the protocol has it: a worker without room does not hear of it.
    fn handle(&mut self, Moved(movement): Moved, ctx: &mut Context<Self>) {
        self.hand_out(&Parcel::Moved(self.name.clone(), movement), None, ctx);
    }
}

impl Handler<Who> for ChannelActor {
    type Result = ();

    fn handle(&mut self, Who { reply }: Who, _: &mut Context<Self>) {
        let asked: Vec<_> = self.followers.values().map(|follower| follower.inbox.clone()).collect();
        let name = self.name.clone();
        actix_rt::spawn(async move {
            let (answer, mut answers) = mpsc::channel(asked.len().max(1));
            for inbox in asked {
                // A worker that has ended has nobody.
                let _ = inbox.send(Parcel::Who(name.clone(), answer.clone())).await;
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
        if self.order.is_some() && !self.reading {
            self.shared.behind.store(false, Ordering::SeqCst);
            self.read_log(ctx);
        }
    }
}

impl Handler<Compare> for ChannelActor {
    type Result = ();

    fn handle(&mut self, Compare { head, known }: Compare, ctx: &mut Context<Self>) {
        let Some(order) = &self.order else { return };
        let same = head.epoch == order.position().epoch;
        match known {
            Some(known) if same && known.epoch == head.epoch && head.offset < known.offset => {
                self.history_lost(known.offset, ctx);
            }
            _ if !same || head.offset > order.position().offset => self.read_log(ctx),
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

    /// The bus brings what other nodes announce.
    fn begin(&mut self, ctx: &mut Context<Self>) {
        self.heard = true;
        if self.retention.is_some() {
            self.find_head(ctx);
        } else {
            let joining = std::mem::take(&mut self.joining);
            joining.into_iter().for_each(|(worker, reply)| self.admit(worker, reply));
        }
    }

    /// Goes by what the namespace keeps now. Where a reload has turned the history on, the channel
    /// begins to know its position; where off, it keeps the one it has.
    fn take_retention(&mut self, ctx: &mut Context<Self>) {
        let retention = self.hub.0.options.namespaces.load().retention_of(&self.name);
        let begins = self.retention.is_none() && retention.is_some();
        self.retention = retention.or(self.retention);
        self.deltas = deltas_of(&self.hub, &self.name);
        if begins && self.heard {
            self.find_head(ctx);
        }
    }

    fn admit(&mut self, worker: Worker, reply: oneshot::Sender<Joined>) {
        let position = self.order.as_ref().map(|order| order.position().clone());
        // A worker that follows already keeps its state: it may be behind.
        self.followers.entry(worker.id).or_insert(Follower { inbox: worker.inbox, behind: None });
        let _ = reply.send(Ok(position));
    }

    /// Publishes the position for handles to see.
    fn move_to(&mut self, order: Order) {
        let position = order.position().clone();
        self.order = Some(order);
        *self.shared.position.lock().expect("the position is only copied under its lock") = Some(position);
    }

    fn share_position(&mut self) {
        if let Some(order) = self.order.take() {
            self.move_to(order);
        }
    }

    /// Sends `events` (contiguous, the last one at the order's position) to all followers.
    fn send(
        &mut self,
        epoch: Option<Epoch>,
        events: Vec<Event>,
        accepted: Option<Instant>,
        ctx: &mut Context<Self>,
    ) {
        self.share_position();
        if !self.order.as_ref().is_some_and(Order::has_gap)
            && let Some(timer) = self.gap_timer.take()
        {
            ctx.cancel_future(timer);
        }
        let Some(first) = events.first().map(|event| event.offset) else { return };
        if epoch.is_some() {
            self.last = events.last().map(|event| event.id);
        }
        let before = epoch.clone().map(|epoch| Position::new(epoch, first.saturating_sub(1)));
        let batch = self.batch(epoch, events, accepted);
        self.hand_out(&Parcel::Events(Arc::new(batch)), before.map(Behind::After), ctx);
    }

    /// A batch that knows what came before it, where data may come as differences.
    fn batch(&mut self, epoch: Option<Epoch>, events: Vec<Event>, accepted: Option<Instant>) -> Batch {
        let (Some(all), Some(first), true) = (self.deltas, events.first(), epoch.is_some()) else {
            return Batch::new(self.name.clone(), epoch, events, accepted);
        };
        let before = self.previous.take().filter(|previous| previous.offset + 1 == first.offset);
        self.previous = events.last().cloned();
        Batch::new(self.name.clone(), epoch, events, accepted).behind(before, all)
    }

    fn wait_for_gap(&mut self, ctx: &mut Context<Self>) {
        let gap = self.order.as_ref().is_some_and(Order::has_gap);
        if gap && self.gap_timer.is_none() && !self.reading {
            self.gap_timer = Some(ctx.run_later(GAP_PATIENCE, |actor, ctx| {
                actor.gap_timer = None;
                actor.metrics().gaps_healed.inc();
                actor.read_log(ctx);
            }));
        }
    }

    /// Goes on behind the head, and says so to everybody.
    fn reset(&mut self, bounds: Bounds, ctx: &mut Context<Self>) {
        self.metrics().resets.inc();
        let Some(mut order) = self.order.take() else { return };
        (self.last, self.previous) = (None, None);
        let ready = order.reset(bounds.head.clone());
        self.move_to(order);
        let reset = Behind::Reset(bounds.clone());
        for behind in self.followers.values_mut().filter_map(|follower| follower.behind.as_mut()) {
            behind.clone_from(&reset);
        }
        self.hand_out(&Parcel::Reset(self.name.clone(), bounds.clone()), Some(reset), ctx);
        self.send(Some(bounds.head.epoch), ready, None, ctx);
    }

    /// Without followers the channel ends after a while.
    fn rest(&mut self, ctx: &mut Context<Self>) {
        if self.followers.is_empty() && self.joining.is_empty() && self.linger.is_none() {
            let linger = self.hub.0.options.linger;
            self.linger = Some(ctx.run_later(linger, |actor, ctx| {
                actor.linger = None;
                if actor.followers.is_empty() && actor.joining.is_empty() {
                    actor.end(ctx);
                }
            }));
        }
    }

    fn end(&mut self, ctx: &mut Context<Self>) {
        self.hub.forget(&self.name, self.id);
        self.hub.0.bus.leave(&self.name);
        ctx.stop();
    }
}
