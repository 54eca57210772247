//! Everything that can happen to one subscription, in every order, up to a bound: events are
//! published, announced, lost, announced twice and trimmed, the channel reads its log, and a client
//! subscribes, leaves and comes back from where it was, with its reads anywhere in between. The
//! connection, the channel's order and the subscriber are the real ones; log, bus and inbox are lists.
//! States that were seen are not explored again, so the search is whole up to its bounds.

mod reader;

use std::cell::Cell;
use std::collections::{HashSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::task::noop_waker_ref;

use self::reader::{Reader, messages};
use super::support::{Client, channel, context, event, position};
use crate::domain::channel::ChannelName;
use crate::domain::event::Event;
use crate::domain::position::Position;
use crate::hub::fanout::{Batch, Resume, Subscriber};
use crate::hub::outbox::{ConnectionEvents, EndReason, Outbox};
use crate::hub::sequencer::{Next, Sequencer};
use crate::protocol::code::Disconnect;
use crate::session::effect::{Effect, Join, Joined, Outcome, Replay};
use crate::session::{ConnectionOptions, SessionContext};
use crate::store::log::Bounds;

/// What may happen how often.
#[derive(Debug, Clone, Copy)]
struct Bound {
    publish: u32,
    lose: u32,
    repeat: u32,
    trim: u32,
    /// Commands of the client: subscribe, unsubscribe, subscribe …
    commands: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Act {
    Publish,
    Announce,
    Lose,
    Repeat,
    Trim,
    ChannelReads,
    WorkerTakesOne,
    WorkerTakesAll,
    Command,
    Hold,
    Recover,
    CatchUp,
}

const ACTS: [Act; 12] = [
    Act::Publish,
    Act::Announce,
    Act::Lose,
    Act::Repeat,
    Act::Trim,
    Act::ChannelReads,
    Act::WorkerTakesOne,
    Act::WorkerTakesAll,
    Act::Command,
    Act::Hold,
    Act::Recover,
    Act::CatchUp,
];

enum FanoutMessage {
    Events(Arc<Batch>),
    Reset(Bounds),
}

/// How far a subscribe has come outside of the connection.
enum Joining {
    Asked(Join),
    /// The subscriber is paused, and the channel was here.
    Held(Join, Position),
}

#[derive(Default)]
struct Notes {
    behind: Cell<bool>,
    lost: Cell<bool>,
}

struct Note(Rc<Notes>);

impl ConnectionEvents for Note {
    fn on_lag(&self, _: &ChannelName) {
        self.0.behind.set(true);
    }

    fn on_position_lost(&self, _: &ChannelName, _: &Position) {
        self.0.lost.set(true);
    }

    fn on_disconnect(&self, _: &Disconnect) {
        panic!("nobody dismisses this");
    }

    fn on_end(&self, why: EndReason) {
        panic!("nobody ends this: {why:?}");
    }
}

struct World {
    left: Bound,
    head: u64,
    trimmed: u64,
    bus: VecDeque<u64>,
    sequencer: Sequencer,
    following: bool,
    inbox: VecDeque<FanoutMessage>,
    client: Client,
    joining: Option<Joining>,
    outbox: Rc<Outbox>,
    subscriber: Option<Rc<Subscriber>>,
    notes: Rc<Notes>,
    reader: Reader,
}

impl World {
    fn new(context: &Arc<SessionContext>, left: Bound) -> Self {
        let mut client = Client::of(context.clone());
        client.frame(r#"{"id":1,"connect":{}}"#);
        client.effects.clear();
        let outbox = Rc::new(Outbox::new(usize::MAX, || panic!("nobody is too slow here")));
        let notes = Rc::new(Notes::default());
        outbox.set_listener(Note(notes.clone()));
        Self {
            left,
            head: 0,
            trimmed: 0,
            bus: VecDeque::new(),
            sequencer: Sequencer::at(position(0)),
            following: false,
            inbox: VecDeque::new(),
            client,
            joining: None,
            outbox,
            subscriber: None,
            notes,
            reader: Reader { subscribed: false, at: 0, asked: None, signals: 0 },
        }
    }

    fn bounds(&self) -> Bounds {
        Bounds { head: position(self.head), before_oldest: self.trimmed }
    }

    fn log_after(&self, after: u64) -> Vec<Event> {
        (after + 1..=self.head).map(event).collect()
    }

    fn can(&self, act: Act) -> bool {
        match act {
            Act::Publish => self.left.publish > 0,
            Act::Announce => !self.bus.is_empty(),
            Act::Lose => self.left.lose > 0 && !self.bus.is_empty(),
            Act::Repeat => self.left.repeat > 0 && !self.bus.is_empty(),
            Act::Trim => self.left.trim > 0 && self.trimmed < self.head,
            Act::ChannelReads => self.sequencer.position().offset < self.head,
            Act::WorkerTakesOne => !self.inbox.is_empty(),
            Act::WorkerTakesAll => self.inbox.len() > 1,
            Act::Command => self.left.commands > 0 && self.joining.is_none(),
            Act::Hold => matches!(self.joining, Some(Joining::Asked(_))),
            Act::Recover => matches!(self.joining, Some(Joining::Held(..))),
            Act::CatchUp => self.notes.behind.get() || self.notes.lost.get(),
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Publish => {
                self.left.publish -= 1;
                self.head += 1;
                self.bus.push_back(self.head);
            }
            Act::Announce | Act::Repeat => {
                let offset = self.bus[0];
                if act == Act::Announce {
                    self.bus.pop_front();
                } else {
                    self.left.repeat -= 1;
                }
                let epoch = self.sequencer.position().epoch.clone();
                if let Next::Deliver(events) = self.sequencer.accept(&epoch, vec![event(offset)]) {
                    self.send(events);
                }
            }
            Act::Lose => {
                self.left.lose -= 1;
                self.bus.pop_front();
            }
            Act::Trim => {
                self.left.trim -= 1;
                self.trimmed = self.head;
            }
            Act::ChannelReads => {
                let from = self.sequencer.position().clone();
                if self.bounds().covers(&from) {
                    let events = self.sequencer.fill(self.log_after(from.offset));
                    self.send(events);
                } else {
                    let ready = self.sequencer.reset(position(self.head));
                    if self.following {
                        self.inbox.push_back(FanoutMessage::Reset(self.bounds()));
                    }
                    self.send(ready);
                }
            }
            Act::WorkerTakesOne => {
                let message = self.inbox.pop_front();
                self.deliver(message.into_iter().collect());
            }
            Act::WorkerTakesAll => {
                let messages = self.inbox.drain(..).collect();
                self.deliver(messages);
            }
            Act::Command => {
                self.left.commands -= 1;
                self.command();
            }
            Act::Hold => {
                let Some(Joining::Asked(join)) = self.joining.take() else { return };
                self.subscriber = Some(Subscriber::for_test(join.channel.clone(), self.outbox.clone()));
                self.following = true;
                self.joining = Some(Joining::Held(join, self.sequencer.position().clone()));
            }
            Act::Recover => {
                let Some(Joining::Held(join, joined)) = self.joining.take() else { return };
                let replay = match join.recover {
                    None => Replay::NotAsked,
                    Some(since) if self.bounds().covers(&position(since.offset)) => {
                        Replay::Found(position(since.offset), self.log_after(since.offset))
                    }
                    Some(_) => Replay::Lost,
                };
                let joined = Joined { position: Some(joined), replay };
                self.client.outcome(Outcome::Joined(join.channel, Some(joined)));
                self.perform();
            }
            Act::CatchUp => self.catch_up(),
        }
        self.listen();
    }

    fn send(&mut self, events: Vec<Event>) {
        if self.following && !events.is_empty() {
            let epoch = Some(self.sequencer.position().epoch.clone());
            let batch = Batch::new(channel("kept:a"), epoch, events, None);
            self.inbox.push_back(FanoutMessage::Events(Arc::new(batch)));
        }
    }

    fn deliver(&self, messages: Vec<FanoutMessage>) {
        let Some(subscriber) = &self.subscriber else { return };
        let mut run = Vec::new();
        for message in messages {
            match message {
                FanoutMessage::Events(batch) => run.push(batch),
                FanoutMessage::Reset(bounds) => {
                    subscriber.feed(&std::mem::take(&mut run));
                    subscriber.feed_reset(&bounds);
                }
            }
        }
        subscriber.feed(&run);
    }

    /// Subscribes from where the client was, or leaves.
    fn command(&mut self) {
        let id = 100 - self.left.commands;
        if self.reader.subscribed {
            self.client.frame(&format!(r#"{{"id":{id},"unsubscribe":{{"channel":"kept:a"}}}}"#));
        } else {
            let at = self.reader.at;
            self.reader.asked = Some(at);
            let subscribe = format!(
                r#"{{"id":{id},"subscribe":{{"channel":"kept:a","recover":true,"epoch":"e1","offset":{at}}}}}"#
            );
            self.client.frame(&subscribe);
        }
        self.perform();
    }

    /// As the transport does it: in order, within the turn.
    fn perform(&mut self) {
        for effect in std::mem::take(&mut self.client.effects) {
            match effect {
                Effect::Send(text) => drop(self.outbox.push(text.into(), None)),
                Effect::SendReplay(text) => drop(self.outbox.push_replay(text.into())),
                Effect::Join(join) => self.joining = Some(Joining::Asked(join)),
                Effect::GoLive(_, position) => {
                    let subscriber = self.subscriber.clone().expect("a joined subscriber");
                    if subscriber.resume(position.clone()) == Resume::Gap {
                        self.read_on(&subscriber, subscriber.take_resume_position().or(position));
                    }
                }
                Effect::Leave(_) => {
                    if let Some(subscriber) = self.subscriber.take() {
                        subscriber.end();
                    }
                    self.following = false;
                    self.notes.behind.set(false);
                    self.notes.lost.set(false);
                }
                Effect::Handled(_) => {}
                other => panic!("{other:?}"),
            }
            self.listen();
        }
    }

    fn catch_up(&mut self) {
        let Some(subscriber) = self.subscriber.clone() else { return };
        if self.notes.lost.take() {
            self.client.connection.on_lost(&channel("kept:a"), self.client.now, &mut self.client.effects);
            return self.perform();
        }
        self.notes.behind.set(false);
        self.read_on(&subscriber, subscriber.take_resume_position());
    }

    /// `connection::replay::catch_up` without the waiting.
    fn read_on(&mut self, subscriber: &Rc<Subscriber>, from: Option<Position>) {
        let Some(mut at) = from else { return };
        loop {
            if !self.bounds().covers(&at) {
                let _ = subscriber.push_reset(&self.bounds());
                return;
            }
            let events = self.log_after(at.offset);
            let _ = subscriber.replay(&at.epoch, events);
            at = position(self.head);
            if subscriber.resume(Some(at.clone())) == Resume::Live {
                return;
            }
            at = subscriber.take_resume_position().unwrap_or(at);
        }
    }

    /// Reads what was said, as a client does, and holds it against the promise.
    fn listen(&mut self) {
        let mut context = Context::from_waker(noop_waker_ref());
        while let Poll::Ready(Some(chunk)) = self.outbox.poll_chunk(&mut context) {
            for message in messages(&chunk.bytes) {
                self.reader.hear(&message);
            }
        }
    }

    /// All that decides what can happen next.
    fn state(&self) -> String {
        let joining = match &self.joining {
            None => "no".to_owned(),
            Some(Joining::Asked(join)) => format!("asked {:?}", join.recover),
            Some(Joining::Held(join, at)) => format!("held {:?} {at}", join.recover),
        };
        let inbox: Vec<String> = self
            .inbox
            .iter()
            .map(|message| match message {
                FanoutMessage::Events(batch) => format!("{:?}", offsets(batch)),
                FanoutMessage::Reset(bounds) => format!("reset {}", bounds.head),
            })
            .collect();
        format!(
            "{:?} {} {} {:?} {:?} {} {inbox:?} {joining} {:?} {} {} {} {} {:?}",
            self.left,
            self.head,
            self.trimmed,
            self.bus,
            self.sequencer,
            self.following,
            self.subscriber.as_ref().map(|subscriber| subscriber.state_summary()),
            self.notes.behind.get(),
            self.notes.lost.get(),
            self.reader.subscribed,
            self.reader.at,
            self.reader.asked,
        )
    }

    /// Everything that is under way comes to its end.
    fn settle(&mut self) {
        let order = [
            Act::Hold,
            Act::Recover,
            Act::CatchUp,
            Act::Announce,
            Act::ChannelReads,
            Act::WorkerTakesAll,
            Act::WorkerTakesOne,
        ];
        while let Some(act) = order.into_iter().find(|act| self.can(*act)) {
            self.act(act);
        }
    }
}

fn offsets(batch: &Batch) -> Vec<u64> {
    batch.events().iter().map(|event| event.offset).collect()
}

/// Explores every order; answers how many states there are, how many ends, and how many of these
/// had a signal.
fn explore(bound: Bound) -> (usize, u32, u32) {
    let options = ConnectionOptions {
        insecure: true,
        allow_anonymous_connect_without_token: true,
        ..ConnectionOptions::default()
    };
    let context = context(options);
    let (mut seen, mut paths) = (HashSet::new(), vec![Vec::new()]);
    let (mut ends, mut signalled) = (0, 0);
    while let Some(path) = paths.pop() {
        let mut world = World::new(&context, bound);
        for act in &path {
            world.act(*act);
        }
        if !seen.insert(world.state()) {
            continue;
        }
        for act in ACTS.into_iter().filter(|act| world.can(*act)) {
            paths.push(path.iter().copied().chain([act]).collect());
        }
        // Whatever happened, when all is quiet a subscriber is at the head.
        world.settle();
        if world.reader.subscribed {
            assert_eq!(world.reader.at, world.head, "behind for good after {path:?}");
        }
        ends += 1;
        signalled += u32::from(world.reader.signals > 0);
    }
    (seen.len(), ends, signalled)
}

#[test]
fn whatever_the_order_nothing_is_missed_repeated_or_out_of_place() {
    let nothing = Bound { publish: 0, lose: 0, repeat: 0, trim: 0, commands: 0 };
    let (states, ends, signalled) = explore(Bound { publish: 3, lose: 1, repeat: 1, commands: 3, ..nothing });
    assert!(states > 1_000 && ends > 1_000, "{states} states, {ends} ends");
    assert_eq!(signalled, 0, "nothing was trimmed, so nothing is lost");
}

#[test]
fn what_was_trimmed_is_signalled_whatever_the_order() {
    let bound = Bound { publish: 2, lose: 1, repeat: 0, trim: 1, commands: 3 };
    let (states, _, signalled) = explore(bound);
    assert!(states > 1_000 && signalled > 10, "{states} states, {signalled} with a signal");
}
