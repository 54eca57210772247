//! WebSocket on sockets that were upgraded out of the HTTP dispatcher: the connection actor, which
//! carries a [`Connection`] over frames. Frames come in through the library's context; everything
//! that goes out goes through the outbox, beside which the fan-out writes, so that the order of a
//! turn is the order on the wire. The only file that names actix-web-actors.

mod incoming;

use std::cell::RefCell;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;
use actix_http::ws::{CloseCode, Codec, Message, ProtocolError};
use actix_rt::net::TcpStream;
use actix_web_actors::ws::WebsocketContext;
use bytes::Bytes;
use bytestring::ByteString;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::watch;
use uuid::Uuid;

use crate::connection::effect::{Effect, Join, Joined, Outcome, Published, ReadHistory, Replay, Stored};
use crate::connection::replay::{self, RecoveryLimit};
use crate::connection::{Connection, Moment, Rules};
use crate::domain::channel::ChannelName;
use crate::domain::position::Position;
use crate::hub::Hub;
use crate::hub::fanout::{Fanout, Framing, Release, Subscription, Visitor};
use crate::hub::outbox::{Ended, Keeper, Outbox, SocketOptions, Wire};
use crate::hub::presence::{Attendance, Member};
use crate::protocol::code::{Disconnect, DisconnectCode};
use crate::protocol::frames::Frames;
use crate::protocol::websocket as wire;
use crate::publish::{Publisher, UnitOfWork};
use crate::store::{Store, history};
use crate::telemetry::{Code, Metrics, count, level};
use incoming::{BadMessage, Credit, Fragments, Incoming};

/// The recovery limit of built-in channels (design §5).
const BUILT_IN_LIMIT: RecoveryLimit = RecoveryLimit { events: 10_000, bytes: 4 << 20 };
/// Bytes of data after which an answer to `history` ends; the client asks for the next page.
const HISTORY_BYTES: usize = 4 << 20;
/// How long the peer may take to close after we have.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How sockets behave.
#[derive(Debug, Clone)]
pub struct WebsocketOptions {
    /// The largest message of a client, in bytes.
    pub message_size: usize,
    /// Bytes that may wait for one connection.
    pub queue: usize,
    /// How long a reader may take nothing although something waits.
    pub write_timeout: Duration,
    /// What is replayed at most in configured namespaces.
    pub recovery: RecoveryLimit,
}

/// All connections of one worker thread and what they share.
pub struct Sockets {
    /// What connections go by.
    pub rules: Arc<Rules>,
    /// The fan-out of this thread.
    pub fanout: Rc<Fanout>,
    /// For presence.
    pub hub: Hub,
    /// For replays and history.
    pub store: Store,
    /// For clients that publish.
    pub publisher: Publisher,
    /// For counting.
    pub metrics: Arc<Metrics>,
    options: WebsocketOptions,
    outbox: Rc<SocketOptions>,
    open: RefCell<HashMap<Uuid, Addr<Socket>>>,
    stopping: watch::Receiver<Option<Duration>>,
}

impl Sockets {
    /// No connection yet. `stopping` becomes `Some(spread)` when the process stops: then all are
    /// told to go elsewhere, spread over this time.
    pub fn start(
        rules: Arc<Rules>,
        fanout: Rc<Fanout>,
        services: (Hub, Store, Publisher, Arc<Metrics>),
        options: WebsocketOptions,
        stopping: watch::Receiver<Option<Duration>>,
    ) -> Rc<Self> {
        let (hub, store, publisher, metrics) = services;
        let outbox = Rc::new(SocketOptions {
            limit: options.queue,
            write_timeout: options.write_timeout,
            close_timeout: CLOSE_TIMEOUT,
            slow: wire::close(&DisconnectCode::Slow.into()),
        });
        let (open, mut told) = (RefCell::default(), stopping.clone());
        let sockets =
            Rc::new(Self { rules, fanout, hub, store, publisher, metrics, options, outbox, open, stopping });
        let all = Rc::downgrade(&sockets);
        actix_rt::spawn(async move {
            let spread = told.wait_for(Option::is_some).await.ok().and_then(|spread| *spread);
            let Some(sockets) = all.upgrade() else { return };
            let open: Vec<Addr<Socket>> = sockets.open.borrow().values().cloned().collect();
            let pause = spread.unwrap_or_default() / u32::try_from(open.len().max(1)).unwrap_or(u32::MAX);
            let begun = tokio::time::Instant::now();
            for (socket, i) in open.iter().zip(0..) {
                tokio::time::sleep_until(begun + pause * i).await;
                socket.do_send(End(DisconnectCode::Shutdown));
            }
        });
        sockets
    }

    /// Carries a connection over `stream` until it is over. `first` came with the request; `held`
    /// is kept as long as the socket is open.
    pub async fn carry(self: Rc<Self>, stream: TcpStream, first: Bytes, held: impl Sized) {
        level(&self.metrics.connections, "websocket").inc();
        let stream = Rc::new(stream);
        let outbox = Rc::new(Outbox::socket(Wire::Plain(stream.clone()), self.outbox.clone()));
        let credit = Credit::new(self.options.message_size);
        let incoming = Incoming::new(stream.clone(), first, credit.clone(), self.options.message_size);
        let codec = Codec::new().max_size(self.options.message_size);
        let socket = Socket::new(self.clone(), outbox.clone(), credit);
        let mut frames = Box::pin(WebsocketContext::with_codec(socket, incoming, codec));
        // The context itself says nothing: it is polled so that the actor lives.
        let live = AssertUnwindSafe(async { while frames.next().await.is_some() {} });
        if live.catch_unwind().await.is_err() {
            outbox.end_with(wire::close(&DisconnectCode::Internal.into()));
        }
        drop(frames);
        Box::pin(linger(&stream)).await;
        outbox.give_up();
        level(&self.metrics.connections, "websocket").dec();
        drop(held);
    }
}

/// Reads what the peer still sends, until it closes: a socket that is closed with bytes unread
/// resets the connection, and our last words would be lost.
async fn linger(stream: &TcpStream) {
    let mut rest = [0; 1024];
    let until_end = async {
        while stream.readable().await.is_ok() {
            match stream.try_read(&mut rest) {
                Ok(0) => return,
                Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => return,
                // A peer that sends on and on must not keep this thread.
                _ => tokio::task::yield_now().await,
            }
        }
    };
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, until_end).await;
}

/// A subscription and what its keeper knows of it.
struct Follow {
    subscription: Subscription,
    positioned: bool,
}

impl Follow {
    fn channel(&self) -> &ChannelName {
        self.subscription.entry().channel()
    }
}

/// The connection actor.
struct Socket {
    all: Rc<Sockets>,
    session: Connection,
    outbox: Rc<Outbox>,
    credit: Rc<Credit>,
    /// By channel, in order.
    follows: Vec<Follow>,
    fragments: Fragments,
    /// When the timer goes off, if one is set.
    timer: Option<(Instant, SpawnHandle)>,
}

#[derive(Message)]
#[rtype(result = "()")]
struct FellBehind(ChannelName);

#[derive(Message)]
#[rtype(result = "()")]
struct Lost(ChannelName, Position);

#[derive(Message)]
#[rtype(result = "()")]
struct Over(Ended);

#[derive(Message)]
#[rtype(result = "()")]
struct End(DisconnectCode);

impl Keeper for Addr<Socket> {
    fn fell_behind(&self, channel: &ChannelName) {
        self.do_send(FellBehind(channel.clone()));
    }

    fn lost(&self, channel: &ChannelName, head: &Position) {
        self.do_send(Lost(channel.clone(), head.clone()));
    }

    fn ended(&self, why: Ended) {
        self.do_send(Over(why));
    }
}

impl Actor for Socket {
    type Context = WebsocketContext<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.outbox.kept_by(ctx.address());
        self.all.open.borrow_mut().insert(self.session.id(), ctx.address());
        // It was let in just before, and nobody else would tell it.
        if self.all.stopping.borrow().is_some() {
            ctx.notify(End(DisconnectCode::Shutdown));
        }
        self.arm(ctx);
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.all.open.borrow_mut().remove(&self.session.id());
    }
}

impl StreamHandler<Result<Message, ProtocolError>> for Socket {
    fn handle(&mut self, message: Result<Message, ProtocolError>, ctx: &mut Self::Context) {
        match message {
            Ok(Message::Text(text)) => {
                self.credit.give_header(text.len());
                self.take(text, ctx);
            }
            Ok(Message::Continuation(item)) => {
                use actix_http::ws::Item::{Continue, FirstBinary, FirstText, Last};
                let (FirstText(bytes) | FirstBinary(bytes) | Continue(bytes) | Last(bytes)) = &item;
                self.credit.give_header(bytes.len());
                match self.fragments.add(item, self.all.options.message_size) {
                    Ok(Some(text)) => self.take(text, ctx),
                    Ok(None) => {}
                    Err(bad) => self.refuse(bad, ctx),
                }
            }
            Ok(Message::Binary(_)) => self.refuse(BadMessage::Binary, ctx),
            Ok(Message::Ping(payload)) => {
                self.credit.give_header(payload.len());
                self.credit.give(payload.len());
                // A refusal ends the connection by itself.
                let _ = self.outbox.push(wire::pong(&payload), None);
            }
            Ok(Message::Pong(payload)) => {
                self.credit.give_header(payload.len());
                self.credit.give(payload.len());
            }
            Ok(Message::Close(_)) => {
                self.end_with(DisconnectCode::Closed.code(), wire::close_with(CloseCode::Normal, ""), ctx);
            }
            Ok(Message::Nop) => {}
            Err(ProtocolError::Overflow) => self.refuse(BadMessage::TooLong, ctx),
            // The stream of bytes never fails, so this is text that is none; or reserved bits.
            Err(ProtocolError::Io(error)) if error.kind() != std::io::ErrorKind::InvalidData => {
                self.refuse(BadMessage::NotText, ctx);
            }
            Err(_) => {
                let frame = wire::close_with(CloseCode::Protocol, "not a frame of WebSocket");
                self.end_with(CloseCode::Protocol.into(), frame, ctx);
            }
        }
    }

    /// The peer is gone without a word.
    fn finished(&mut self, ctx: &mut Self::Context) {
        self.outbox.close();
        self.over(DisconnectCode::Closed.code(), ctx);
    }
}

impl Socket {
    fn new(all: Rc<Sockets>, outbox: Rc<Outbox>, credit: Rc<Credit>) -> Self {
        let session = Connection::new(all.rules.clone(), Uuid::new_v4(), now(), rand::random());
        let (follows, fragments) = (Vec::new(), Fragments::default());
        Self { all, session, outbox, credit, follows, fragments, timer: None }
    }

    fn take(&mut self, text: ByteString, ctx: &mut WebsocketContext<Self>) {
        self.step(ctx, |session, effects| session.on_frame(text, now(), effects));
    }

    /// Lets the session do something, and does what it asks for.
    fn step(
        &mut self,
        ctx: &mut WebsocketContext<Self>,
        act: impl FnOnce(&mut Connection, &mut Vec<Effect>),
    ) {
        let mut effects = Vec::new();
        act(&mut self.session, &mut effects);
        let mut said = Frames::new();
        for effect in effects {
            match effect {
                Effect::Say(message) => {
                    said.add(|out| out.push_str(&message));
                    continue;
                }
                Effect::Handled(bytes) => {
                    self.credit.give(bytes);
                    continue;
                }
                _ => self.say(&mut said),
            }
            self.perform(effect, ctx);
        }
        self.say(&mut said);
        self.arm(ctx);
    }

    fn say(&self, said: &mut Frames) {
        for frame in said.take() {
            // A refusal ends the connection by itself.
            let _ = self.outbox.push(wire::text(&frame), None);
        }
    }

    fn perform(&mut self, effect: Effect, ctx: &mut WebsocketContext<Self>) {
        match effect {
            Effect::Say(_) | Effect::Handled(_) => {}
            Effect::SayReplay(message) => {
                let _ = self.outbox.push_replay(wire::text(&message));
            }
            Effect::Join(join) => {
                let (client, user) = (self.session.id(), self.session.user().into());
                let joining = join_channel(self.all.clone(), self.outbox.clone(), (client, user), join);
                ctx.spawn(joining.into_actor(self).map(|(channel, found), actor, ctx| {
                    let joined = found.map(|(follow, joined)| {
                        let place = actor.follows.partition_point(|other| *other.channel() < channel);
                        actor.follows.insert(place, follow);
                        joined
                    });
                    actor.hear(Outcome::Joined(channel, joined), ctx);
                }));
            }
            Effect::Live(channel, position) => {
                let Some(follow) = self.follow(&channel) else { return };
                let entry = follow.subscription.entry();
                if entry.release(position.clone()) == Release::Missed {
                    let from = entry.take_resume_position().or(position);
                    self.catch_up(&channel, from, ctx);
                }
            }
            Effect::Leave(channel) => self.follows.retain(|follow| *follow.channel() != channel),
            Effect::Publish(event) => {
                let publisher = self.all.publisher.clone();
                let published = async move {
                    match publisher.commit(UnitOfWork::of(vec![event])).await {
                        Ok(_) => Published::Done,
                        Err(error) => {
                            tracing::warn!(%error, "a client's event was not published");
                            Published::NotNow
                        }
                    }
                };
                ctx.spawn(published.into_actor(self).map(|published, actor, ctx| {
                    actor.hear(Outcome::Published(published), ctx);
                }));
            }
            Effect::ReadHistory(wish) => {
                let read = read_history(self.all.clone(), wish);
                ctx.spawn(read.into_actor(self).map(|stored, actor, ctx| {
                    actor.hear(Outcome::History(stored), ctx);
                }));
            }
            Effect::ReadPresence(channel) => {
                let hub = self.all.hub.clone();
                let members = async move { hub.members(&channel).await };
                ctx.spawn(members.into_actor(self).map(|members, actor, ctx| {
                    actor.hear(Outcome::Presence(members), ctx);
                }));
            }
            Effect::Close(disconnect) => {
                self.end_with(disconnect.code(), wire::close(&disconnect), ctx);
            }
        }
    }

    fn hear(&mut self, outcome: Outcome, ctx: &mut WebsocketContext<Self>) {
        self.step(ctx, |session, effects| session.on_outcome(outcome, now(), effects));
    }

    fn follow(&self, channel: &ChannelName) -> Option<&Follow> {
        let place = self.follows.binary_search_by(|follow| follow.channel().cmp(channel)).ok()?;
        self.follows.get(place)
    }

    /// Brings an entry that is on hold back to the head.
    fn catch_up(&self, channel: &ChannelName, from: Option<Position>, ctx: &mut WebsocketContext<Self>) {
        let (Some(follow), Some(from)) = (self.follow(channel), from) else { return };
        let Some(retention) = self.all.rules.namespaces.retention_of(channel) else { return };
        let (store, entry) = (self.all.store.clone(), follow.subscription.entry().clone());
        let fed = async move {
            // Refused means that the connection is over, which is noticed elsewhere.
            let _ = replay::catch_up(&store, &entry, retention, from).await;
        };
        ctx.spawn(fed.into_actor(self));
    }

    /// Sets the timer for the session's next moment. One that goes off too early sets it again.
    fn arm(&mut self, ctx: &mut WebsocketContext<Self>) {
        let Some(deadline) = self.session.deadline() else { return };
        if self.timer.is_some_and(|(set, _)| set <= deadline) {
            return;
        }
        if let Some((_, timer)) = self.timer.take() {
            ctx.cancel_future(timer);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let timer = ctx.run_later(left, |actor, ctx| {
            actor.timer = None;
            actor.step(ctx, |session, effects| session.on_time(now(), effects));
        });
        self.timer = Some((deadline, timer));
    }

    fn refuse(&mut self, bad: BadMessage, ctx: &mut WebsocketContext<Self>) {
        match bad {
            BadMessage::TooLong => {
                let frame = wire::close_with(CloseCode::Size, "the message is too long");
                self.end_with(CloseCode::Size.into(), frame, ctx);
            }
            BadMessage::NotText => {
                let frame = wire::close_with(CloseCode::Invalid, "the text is not UTF-8");
                self.end_with(CloseCode::Invalid.into(), frame, ctx);
            }
            BadMessage::Binary => {
                let disconnect = Disconnect::from(DisconnectCode::InappropriateProtocol);
                self.end_with(disconnect.code(), wire::close(&disconnect), ctx);
            }
        }
    }

    fn end_with(&mut self, code: u16, frame: Bytes, ctx: &mut WebsocketContext<Self>) {
        self.outbox.end_with(frame);
        self.over(code, ctx);
    }

    /// The connection is over: whatever it follows ends now, the socket a little later.
    fn over(&mut self, code: u16, ctx: &mut WebsocketContext<Self>) {
        self.follows.clear();
        self.all.metrics.disconnects.get_or_create(&Code { code: code.into() }).inc();
        tracing::debug!(connection = %self.session.id(), code, "a connection is over");
        ctx.stop();
    }
}

impl Handler<FellBehind> for Socket {
    type Result = ();

    fn handle(&mut self, FellBehind(channel): FellBehind, ctx: &mut Self::Context) {
        let from =
            self.follow(&channel).and_then(|follow| follow.subscription.entry().take_resume_position());
        self.catch_up(&channel, from, ctx);
    }
}

impl Handler<Lost> for Socket {
    type Result = ();

    fn handle(&mut self, Lost(channel, head): Lost, ctx: &mut Self::Context) {
        let Some(follow) = self.follow(&channel) else { return };
        if follow.positioned {
            return self.step(ctx, |session, effects| session.on_lost(&channel, now(), effects));
        }
        // Nothing was promised here: it goes on with what comes.
        if follow.subscription.entry().release(Some(head.clone())) == Release::Missed {
            self.catch_up(&channel, Some(head), ctx);
        }
    }
}

impl Handler<Over> for Socket {
    type Result = ();

    fn handle(&mut self, Over(why): Over, ctx: &mut Self::Context) {
        let code = match why {
            Ended::Slow => {
                tracing::info!(connection = %self.session.id(), "a reader is too slow and was disconnected");
                count(&self.all.metrics.slow_disconnects, "queue");
                DisconnectCode::Slow
            }
            Ended::Stalled => {
                count(&self.all.metrics.slow_disconnects, "write_timeout");
                DisconnectCode::WriteError
            }
            Ended::Broken => DisconnectCode::Closed,
        };
        self.over(code.code(), ctx);
    }
}

impl Handler<End> for Socket {
    type Result = ();

    fn handle(&mut self, End(code): End, ctx: &mut Self::Context) {
        let disconnect = Disconnect::from(code);
        self.end_with(disconnect.code(), wire::close(&disconnect), ctx);
    }
}

fn now() -> Moment {
    Moment { wall: chrono::Utc::now(), mono: Instant::now() }
}

/// Puts an entry on hold, then finds where the channel is, then reads what was missed: in this
/// order nothing can fall in between.
async fn join_channel(
    all: Rc<Sockets>,
    outbox: Rc<Outbox>,
    (client, user): (Uuid, Arc<str>),
    join: Join,
) -> (ChannelName, Option<(Follow, Joined)>) {
    let Join { channel, recover, positioned, presence, announced, hears_others } = join;
    let (listed, told) = (presence.is_some(), announced.is_some());
    let attendance = presence.or(announced).map(|info| Attendance {
        member: Member { client, user, info },
        listed,
        announced: told,
    });
    let visitor = Visitor { attendance, hears_others };
    let kept = all.rules.namespaces.retention_of(&channel);
    let subscribed = all.fanout.subscribe(channel.clone(), outbox.clone(), Framing::WebSocket, visitor).await;
    let (subscription, position) = match subscribed {
        Ok(subscribed) => subscribed,
        Err(error) => {
            tracing::warn!(%channel, %error, "a client cannot subscribe");
            return (channel, None);
        }
    };
    let replay = match (recover, kept) {
        (None, _) => Replay::NotAsked,
        (Some(_), None) => Replay::Lost,
        (Some(since), Some(retention)) => {
            // One replay at a time lies unsent.
            outbox.room().await;
            let limit = if channel.is_built_in() { BUILT_IN_LIMIT } else { all.options.recovery };
            match replay::recover(&all.store, &channel, retention, since, limit).await {
                Ok(replay) => replay,
                Err(error) => {
                    tracing::warn!(%channel, %error, "a client cannot recover");
                    return (channel, None);
                }
            }
        }
    };
    (channel, Some((Follow { subscription, positioned }, Joined { position, replay })))
}

async fn read_history(all: Rc<Sockets>, wish: ReadHistory) -> Stored {
    let ReadHistory { channel, since, limit, reverse } = wish;
    let Some(retention) = all.rules.namespaces.retention_of(&channel) else { return Stored::NotNow };
    let store = all.store.clone();
    let read = all.store.read(move |conn| {
        Box::pin(async move {
            let (generation, now) = (store.generation(), store.timestamp());
            let since = since.as_ref().map(|since| (since.epoch.as_str(), since.offset));
            let wish = history::Wish { since, limit, reverse, bytes: HISTORY_BYTES };
            history::read(conn, &generation, &channel, retention, now, wish).await
        })
    });
    match read.await {
        Ok(history::History::Events { events, head }) => Stored::Events(events, head),
        Ok(history::History::OtherEpoch(_)) => Stored::OtherEpoch,
        Err(error) => {
            tracing::warn!(%error, "a client cannot read the history");
            Stored::NotNow
        }
    }
}
