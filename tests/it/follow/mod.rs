//! The way of an event from its commit to a reader's outbox, with a real store and a bus that
//! loses, repeats and reorders: who follows a channel gets every event once and in order, or is
//! told where it stands.

use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use campanile::bus::{Announcement, Bus, Content, HubEvent};
use campanile::domain::channel::ChannelName;
use campanile::domain::event::NewEvent;
use campanile::domain::options::{ChannelOptions, Namespaces, Retention};
use campanile::domain::position::Position;
use campanile::domain::units::Span;
use campanile::hub::fanout::{Fanout, FanoutMessage, SubscriberOptions, SubscriptionGuard};
use campanile::hub::metrics::{Metrics, Queue};
use campanile::hub::outbox::{ConnectionEvents, EndReason, Outbox};
use campanile::hub::{Hub, HubOptions, Worker};
use campanile::protocol::code::Disconnect;
use campanile::protocol::encoding::Framing;
use campanile::publish::{Committed, Publisher, UnitOfWork};
use campanile::recovery;
use campanile::store::Store;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::{Notify, mpsc, watch};

use crate::support::store::*;

mod lost_history;
mod workers;

use lost_history::{
    a_history_that_lost_events_is_told_to_every_follower,
    a_history_with_another_event_at_a_known_place_is_told,
    an_invented_event_does_not_displace_the_one_that_was_committed,
    announced_events_that_the_log_lost_are_a_new_history_and_not_a_busy_loop, lose_after,
};

on_both![
    whatever_the_bus_does_every_reader_gets_every_event_once_and_in_order,
    a_lost_last_announcement_is_found_by_the_position_check,
    an_event_that_is_not_kept_passes_without_a_place,
    a_reader_that_comes_back_gets_what_it_missed,
    a_channel_ends_after_its_last_follower_and_begins_again,
    a_history_that_lost_events_is_told_to_every_follower,
    a_history_with_another_event_at_a_known_place_is_told,
    announced_events_that_the_log_lost_are_a_new_history_and_not_a_busy_loop,
    an_invented_event_does_not_displace_the_one_that_was_committed,
    a_gap_that_was_trimmed_is_told,
    a_commit_that_nobody_confirmed_is_looked_for_at_once,
];

/// A hub with its thread, a publisher, and a bus that does to each event what it is told.
struct Node {
    store: Store,
    hub: Hub,
    publisher: Publisher,
    metrics: Arc<Metrics>,
    thread: actix::Arbiter,
    kept: Retention,
}

type Faults = Arc<dyn Fn(HubEvent) -> Vec<HubEvent> + Send + Sync>;

/// Runs `story` on an actix thread with a node whose bus has `faults`.
async fn on_node<S>(store: TestStore, options: HubOptions, faults: Faults, story: S)
where
    S: AsyncFnOnce(&Node, &TestStore) + Send + 'static,
{
    let core = tokio::runtime::Handle::current();
    let run = move || {
        actix::System::new().block_on(async move {
            let node = Node::start(&store, options, faults, &core);
            story(&node, &store).await;
            node.thread.stop();
        });
    };
    tokio::task::spawn_blocking(run).await.unwrap();
}

impl Node {
    fn start(store: &TestStore, options: HubOptions, faults: Faults, core: &tokio::runtime::Handle) -> Self {
        let (thread, metrics) = (actix::Arbiter::new(), Arc::<Metrics>::default());
        let kept = options.namespaces.load().retention_of(&channel("news")).expect("its events are kept");
        let store_handle = store.store.clone();
        let bus = Bus::local(uuid::Uuid::nil());
        let hub = Hub::new(store_handle.clone(), bus.clone(), options, metrics.clone(), thread.handle());
        let receiver = hub.clone();
        let deliver = move |event| faults(event).into_iter().for_each(|event| receiver.deliver(event));
        let deliver = Arc::new(deliver);
        let (publisher, work) =
            Publisher::new(store_handle.clone(), bus, deliver, Vec::new(), Arc::default());
        core.spawn(work);
        Self { store: store_handle, hub, publisher, metrics, thread, kept }
    }

    fn fanout(&self) -> Rc<Fanout> {
        Fanout::start(self.hub.clone(), self.metrics.clone())
    }

    async fn publish(&self, channel: &ChannelName, data: &str) -> Position {
        match self.publisher.commit(unit(channel, data)).await {
            Ok(Committed::Done(positions)) => positions[0].clone(),
            other => panic!("{other:?}"),
        }
    }

    fn overflows(&self, queue: Queue) -> u64 {
        self.metrics.queue_overflows.with(queue).get()
    }
}

fn options() -> HubOptions {
    hub_options(100_000)
}

/// Channels without a namespace keep so many events.
fn hub_options(events: u32) -> HubOptions {
    let kept =
        ChannelOptions { history_size: events, history_ttl: Span::secs(3600), ..ChannelOptions::default() };
    let namespaces = Namespaces { without: Some(kept), ..Namespaces::default() };
    HubOptions { namespaces: namespaces.shared(), ..HubOptions::default() }
}

fn no_faults() -> Faults {
    Arc::new(|event| vec![event])
}

fn nothing_arrives() -> Faults {
    Arc::new(|_| Vec::new())
}

/// A connection: follows one channel, and what it pushes is read at once.
struct Reader {
    seen: watch::Receiver<Seen>,
    tasks: [actix_rt::task::JoinHandle<()>; 2],
    /// Where it began.
    begin: Position,
}

/// What a reader has got so far.
#[derive(Debug, Clone)]
struct Seen {
    at: Position,
    events: u64,
    resets: u64,
    passing: u64,
}

impl Reader {
    /// Follows `channel` from `from`, or from now on.
    async fn follow(node: &Node, fanout: &Rc<Fanout>, channel: &ChannelName, from: Option<Position>) -> Self {
        let outbox = Rc::new(Outbox::new(usize::MAX, || panic!("nobody is too slow here")));
        let subscribed = fanout
            .subscribe(channel.clone(), outbox.clone(), Framing::Sse, SubscriberOptions::default())
            .await;
        let (subscription, joined) = subscribed.expect("the channel can be followed");
        let begin = from.or_else(|| joined.clone()).expect("the channel keeps its events");
        let seen = Seen { at: begin.clone(), events: 0, resets: 0, passing: 0 };
        let (tell, seen) = watch::channel(seen);
        let behind = Rc::new(Notify::new());
        outbox.set_listener(Rings(behind.clone()));
        let begins = (begin.clone(), joined);
        let fed = actix_rt::spawn(feed(node.store.clone(), subscription, node.kept, begins, behind));
        let reads = actix_rt::spawn(read(outbox, tell));
        Self { seen, tasks: [fed, reads], begin }
    }

    fn now(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// Waits until the reader stands at `position`.
    async fn reaches(&mut self, position: &Position) -> Seen {
        let mut seen = self.seen.clone();
        let waited = seen.wait_for(|seen| seen.at == *position);
        match tokio::time::timeout(Duration::from_secs(15), waited).await {
            Ok(seen) => seen.expect("its reader lives").clone(),
            Err(_) => panic!("it should reach {position} and is at {:?}", self.now()),
        }
    }

    /// Leaves, and says where it was.
    async fn leave(self) -> Position {
        self.tasks.iter().for_each(actix_rt::task::JoinHandle::abort);
        let [fed, reads] = self.tasks;
        let _ = (fed.await, reads.await);
        self.seen.borrow().at.clone()
    }
}

/// Tells the connection that it fell behind.
struct Rings(Rc<Notify>);

impl ConnectionEvents for Rings {
    fn on_lag(&self, _: &ChannelName) {
        self.0.notify_one();
    }

    fn on_position_lost(&self, channel: &ChannelName, _: &Position) {
        panic!("a stream says itself what is lost on {channel}");
    }

    fn on_disconnect(&self, _: &Disconnect) {
        panic!("nobody dismisses this");
    }

    fn on_end(&self, why: EndReason) {
        panic!("nobody ends this: {why:?}");
    }
}

async fn feed(
    store: Store,
    subscription: SubscriptionGuard,
    kept: Retention,
    (begin, joined): (Position, Option<Position>),
    behind: Rc<Notify>,
) {
    let subscriber = subscription.subscriber();
    let mut fed = recovery::begin(&store, subscriber, Some(kept), Some(begin), joined.as_ref()).await;
    while fed.is_ok() {
        behind.notified().await;
        if let Some(position) = subscriber.resume_position() {
            fed = recovery::catch_up(&store, subscriber, kept, position).await;
        }
    }
}

/// Reads frames and checks that each event follows the one before, or a reset.
async fn read(outbox: Rc<Outbox>, tell: watch::Sender<Seen>) {
    while let Some(chunk) = std::future::poll_fn(|cx| outbox.poll_chunk(cx)).await {
        let text = String::from_utf8(chunk.bytes.to_vec()).expect("frames are text");
        for frame in text.split_terminator("\n\n") {
            let field = |name: &str| frame.lines().find_map(|line| line.strip_prefix(name));
            let id = field("id: ").map(|id| Position::parse(id).expect("an id is a position"));
            tell.send_modify(|seen| match (field("event: "), id) {
                (Some("stream:reset"), Some(id)) => {
                    seen.at = id;
                    seen.resets += 1;
                }
                (Some("message"), Some(id)) => {
                    assert_eq!(id, Position::new(seen.at.epoch.clone(), seen.at.offset + 1), "{frame}");
                    seen.at = id;
                    seen.events += 1;
                }
                (Some("message"), None) => seen.passing += 1,
                other => panic!("{other:?}: {frame}"),
            });
        }
    }
}

/// By seed: drops, repeats and holds back single announcements; what was held back comes later.
fn unreliable(seed: u64) -> Faults {
    let state = Mutex::new((StdRng::seed_from_u64(seed), Vec::<Announcement>::new()));
    Arc::new(move |event| {
        let HubEvent::Appended(announcements) = event else { return vec![event] };
        let (random, late) = &mut *state.lock().unwrap();
        let mut told = Vec::new();
        for announcement in announcements {
            match random.random_range(0..10) {
                0 | 1 => {}
                2 => told.extend([announcement.clone(), announcement]),
                3 | 4 => late.push(announcement),
                _ => told.push(announcement),
            }
            if late.len() > 3 {
                told.push(late.swap_remove(random.random_range(0..late.len())));
            }
        }
        vec![HubEvent::Appended(told)]
    })
}

async fn whatever_the_bus_does_every_reader_gets_every_event_once_and_in_order(store: TestStore) {
    const EVENTS: u64 = 400;
    let tiny = HubOptions { mailbox: 1, inbox: 1, ..options() };
    on_node(store, tiny, unreliable(7), async |node, store| {
        let names = ["news", "sport", "weather"].map(channel);
        for name in &names {
            store.fill(name, 5).await;
        }
        let base = store.store.generation();
        let fanouts = [node.fanout(), node.fanout()];
        let mut readers = Vec::new();
        for (i, name) in (0..).zip(names.iter().cycle().take(12)) {
            // Some from the beginning, some from the middle, some from now on.
            let from = [Some(0), Some(3), None][i / 3 % 3].map(|offset| Position::new(base.clone(), offset));
            readers.push((name, Reader::follow(node, &fanouts[i % 2], name, from).await));
        }
        let writers = (0..4).map(|task| {
            let (publisher, names) = (node.publisher.clone(), names.clone());
            actix_rt::spawn(async move {
                for n in 0..EVENTS / 4 {
                    let events = names.iter().map(|name| event(name, &format!("[{task},{n}]"))).collect();
                    publisher.commit(UnitOfWork::of(events)).await.unwrap();
                }
            })
        });
        let written = futures_util::future::try_join_all(writers);
        // Meanwhile one reader comes and goes, with its position in hand.
        let restless = async {
            let (mut from, mut seen) = (None, 0);
            for i in 0..20 {
                let mut reader = Reader::follow(node, &fanouts[i % 2], &names[0], from.clone()).await;
                let next = Position::new(base.clone(), reader.begin.offset + 5);
                if next.offset <= EVENTS {
                    seen += reader.reaches_beyond(&next).await;
                }
                from = Some(reader.leave().await);
            }
            (from, seen)
        };
        let (written, (from, _)) = tokio::join!(written, restless);
        written.unwrap();

        node.hub.check_all().await;
        let head = Position::new(base, EVENTS + 5);
        for (name, mut reader) in readers {
            let seen = reader.reaches(&head).await;
            assert_eq!((seen.events, seen.resets), (head.offset - reader.begin.offset, 0), "{name}");
        }
        let mut last = Reader::follow(node, &fanouts[0], &names[0], from).await;
        assert_eq!(last.reaches(&head).await.resets, 0);
        assert!(node.overflows(Queue::Channel) > 0, "the mailbox was full at times");
        assert!(node.overflows(Queue::Worker) > 0, "the inbox was full at times");
        assert_eq!(node.metrics.channel_resets.get(), 0);
    })
    .await;
}

impl Reader {
    /// Waits until the reader has passed `position`; answers how many events that took.
    async fn reaches_beyond(&mut self, position: &Position) -> u64 {
        let waited = self.seen.wait_for(|seen| seen.at >= *position);
        let seen = tokio::time::timeout(Duration::from_secs(15), waited).await;
        seen.expect("it gets there").expect("its reader lives").events
    }
}

async fn a_lost_last_announcement_is_found_by_the_position_check(store: TestStore) {
    on_node(store, options(), nothing_arrives(), async |node, _| {
        let (news, fanout) = (channel("news"), node.fanout());
        let mut reader = Reader::follow(node, &fanout, &news, None).await;
        let last = node.publish(&news, "1").await;
        node.hub.check_all().await;
        assert_eq!(reader.reaches(&last).await.events, 1);

        // The same for a channel that has no row yet, and for one named by an event.
        let (fresh, named) = (channel("fresh"), channel("named"));
        let mut readers = [
            Reader::follow(node, &fanout, &fresh, None).await,
            Reader::follow(node, &fanout, &named, None).await,
        ];
        assert_eq!(readers[0].begin.offset, 0);
        let last = [node.publish(&fresh, "1").await, node.publish(&named, "1").await];
        node.hub.deliver(HubEvent::Check(vec![named, channel("nobody-follows-this")]));
        readers[1].reaches(&last[1]).await;
        assert_eq!(readers[0].now().events, 0, "only what was named is checked");
        node.hub.check_all().await;
        readers[0].reaches(&last[0]).await;
    })
    .await;
}

async fn an_event_that_is_not_kept_passes_without_a_place(store: TestStore) {
    on_node(store, options(), no_faults(), async |node, _| {
        let (news, fanout) = (channel("news"), node.fanout());
        let mut reader = Reader::follow(node, &fanout, &news, None).await;
        let passing = NewEvent { kept: false, ..event(&news, "\"now\"") };
        for _ in 0..3 {
            node.publisher.commit(UnitOfWork::of(vec![passing.clone()])).await.unwrap();
            let last = node.publish(&news, "1").await;
            reader.reaches(&last).await;
        }
        let seen = reader.now();
        assert_eq!((seen.events, seen.passing, seen.resets), (3, 3, 0));
    })
    .await;
}

async fn a_reader_that_comes_back_gets_what_it_missed(store: TestStore) {
    on_node(store, options(), no_faults(), async |node, _| {
        let (news, fanout) = (channel("news"), node.fanout());
        let mut from = None;
        for round in 0..10 {
            let mut reader = Reader::follow(node, &fanout, &news, from).await;
            for n in 0..3 {
                node.publish(&news, &format!("[{round},{n}]")).await;
            }
            let last = node.publish(&news, "\"last\"").await;
            // The first of a round were published while nobody was there.
            let missed = if round == 0 { 0 } else { 2 };
            assert_eq!(reader.reaches(&last).await.events, 4 + missed);
            from = Some(reader.leave().await);
            node.publish(&news, "\"missed\"").await;
            node.publish(&news, "\"missed\"").await;
        }
    })
    .await;
}

async fn a_channel_ends_after_its_last_follower_and_begins_again(store: TestStore) {
    let short = HubOptions { linger: Duration::from_millis(1), ..options() };
    on_node(store, short, no_faults(), async |node, _| {
        let (news, fanouts) = (channel("news"), [node.fanout(), node.fanout()]);
        for round in 0..50 {
            let mut first = Reader::follow(node, &fanouts[0], &news, None).await;
            let mut second = Reader::follow(node, &fanouts[round % 2], &news, None).await;
            let last = node.publish(&news, "1").await;
            first.reaches(&last).await;
            first.leave().await;
            second.reaches(&last).await;
            let last = node.publish(&news, "1").await;
            second.reaches(&last).await;
            second.leave().await;
            // Every other time the next one comes while the channel may be ending.
            if round % 2 == 0 {
                eventually("the channel ends", async || node.hub.active_channels() == 0).await;
            }
        }
        eventually("the channel ends", async || node.hub.active_channels() == 0).await;
        assert_eq!((node.metrics.subscriptions.get(), node.metrics.channels.get()), (0, 0));
    })
    .await;
}

async fn a_gap_that_was_trimmed_is_told(store: TestStore) {
    on_node(store, hub_options(5), nothing_arrives(), async |node, store| {
        let (news, fanout) = (channel("news"), node.fanout());
        let first = node.publish(&news, "1").await;
        let mut reader = Reader::follow(node, &fanout, &news, Some(first.clone())).await;
        for n in 2..=20 {
            node.publish(&news, &n.to_string()).await;
        }
        node.hub.check_all().await;
        let head = store.head(&news).await;
        let seen = reader.reaches(&head).await;
        assert_eq!((seen.events, seen.resets, head.offset), (0, 1, 20));
        // Within what is kept there is nothing to tell.
        for n in 21..=24 {
            node.publish(&news, &n.to_string()).await;
        }
        node.hub.check_all().await;
        let seen = reader.reaches(&Position::new(head.epoch, 24)).await;
        assert_eq!((seen.events, seen.resets), (4, 1));
    })
    .await;
}

async fn a_commit_that_nobody_confirmed_is_looked_for_at_once(store: TestStore) {
    // What was committed is not announced but to be checked, as after an answer that was lost.
    let faults: Faults = Arc::new(|event| match event {
        HubEvent::Appended(all) => vec![HubEvent::Check(all.into_iter().map(|one| one.channel).collect())],
        check => vec![check],
    });
    on_node(store, options(), faults, async |node, _| {
        let (news, fanout) = (channel("news"), node.fanout());
        let mut reader = Reader::follow(node, &fanout, &news, None).await;
        for n in 1..=5 {
            let last = node.publish(&news, &n.to_string()).await;
            assert_eq!(reader.reaches(&last).await.events, n);
        }
    })
    .await;
}
