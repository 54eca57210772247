//! The nodes as one: who else is there, and what concerns clients wherever they are connected. What
//! clients are doing is known only where they are: nothing of it is kept elsewhere, so nothing of it
//! can be stale. Whoever must know all of it asks all nodes, and each answers for its own; a single
//! node asks nobody.
//!
//! Nodes know of each other by a sign of life each second. Who has been silent for [`PATIENCE`] of
//! them is not asked any more, and its clients are gone with it.

mod ask;
mod message;
mod registry;

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, watch};
use tokio::time::MissedTickBehavior;
use uuid::Uuid;

pub use ask::Unanswered;
pub use message::NodeInfo;
pub use registry::PATIENCE;

use crate::bus::Bus;
use crate::connection::clients::{Connected, Control, Target};
use crate::domain::channel::ChannelName;
use crate::domain::directive::Directive;
use crate::domain::pattern::Glob;
use crate::hub::Hub;
use crate::hub::presence::Member;
use crate::protocol::code::Disconnect;
use crate::telemetry::Metrics;
use ask::Asked;
use message::{Alive, Answer, Message, Question};
use registry::Registry;

/// Between two signs of life.
const SIGN: Duration = Duration::from_secs(1);
/// How long a node that starts waits for the bus, and for others to answer its first sign.
const SETTLING: Duration = Duration::from_secs(2);
const FIRST_ANSWERS: Duration = Duration::from_millis(50);
/// Questions of other nodes that are worked on at once, and that wait for it. More get no answer.
const AT_ONCE: usize = 64;
const WAITING: usize = 8_192;
/// Channels in one answer, and one more to say that there are more.
pub const MOST_CHANNELS: usize = 100_000;

/// Which node this is.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Another one after each start.
    pub uid: Uuid,
    /// For people.
    pub name: String,
    /// When it started.
    pub since: Instant,
}

/// What became of a client's frame for another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Posted {
    /// The connection has it, or is over.
    Done,
    /// More waits for the connection than may: it ends.
    TooMuch,
    /// There is no such node.
    NoNode,
    /// The node does not answer now, or it is not known yet whether it is there.
    NoAnswer,
}

/// Takes a frame for a session of this node; `false` if too much waits for it.
type Post = Box<dyn Fn(&str, String) -> bool + Send + Sync>;
/// How many connections a user has on this node.
type Count = Box<dyn Fn(&str) -> u32 + Send + Sync>;
/// To be called when something was revoked elsewhere.
type Look = Box<dyn Fn() + Send + Sync>;

/// A handle on all nodes; cheap to clone.
#[derive(Clone)]
pub struct Cluster(Arc<Inner>);

/// A handle that does not keep the cluster alive.
#[derive(Clone)]
pub struct WeakCluster(Weak<Inner>);

impl WeakCluster {
    /// The cluster, if anybody still has it.
    pub fn upgrade(&self) -> Option<Cluster> {
        self.0.upgrade().map(Cluster)
    }
}

struct Inner {
    me: Identity,
    bus: Bus,
    hub: Hub,
    control: Control,
    registry: Registry,
    asked: Asked,
    room: Arc<Semaphore>,
    answering: Arc<Semaphore>,
    post: OnceLock<Post>,
    count: OnceLock<Count>,
    look: OnceLock<Look>,
    metrics: Arc<Metrics>,
}

impl Cluster {
    /// This node among the others on `bus`; its own clients are behind `control` and `hub`.
    pub fn new(me: Identity, bus: Bus, hub: Hub, control: Control, metrics: Arc<Metrics>) -> Self {
        let cluster = Self(Arc::new(Inner {
            me,
            bus: bus.clone(),
            hub,
            control,
            registry: Registry::default(),
            asked: Asked::default(),
            room: Arc::new(Semaphore::new(WAITING)),
            answering: Arc::new(Semaphore::new(AT_ONCE)),
            post: OnceLock::new(),
            count: OnceLock::new(),
            look: OnceLock::new(),
            metrics,
        }));
        cluster.0.metrics.nodes.set(1);
        if bus.is_shared() {
            let hears = cluster.weak();
            bus.heard_by(Arc::new(move |from, text| _ = hears.upgrade().inspect(|all| all.hear(from, text))));
        }
        cluster
    }

    /// For those whom the cluster knows, too.
    pub fn weak(&self) -> WeakCluster {
        WeakCluster(Arc::downgrade(&self.0))
    }

    /// Where posts for sessions of this node go. To be called once.
    pub fn posts_go_to(&self, post: impl Fn(&str, String) -> bool + Send + Sync + 'static) {
        let _ = self.0.post.set(Box::new(post));
    }

    /// Who counts the connections of a user on this node. To be called once.
    pub fn users_are_counted_by(&self, count: impl Fn(&str) -> u32 + Send + Sync + 'static) {
        let _ = self.0.count.set(Box::new(count));
    }

    /// What to do when another node has revoked something. To be called once.
    pub fn on_revocation(&self, look: impl Fn() + Send + Sync + 'static) {
        let _ = self.0.look.set(Box::new(look));
    }

    /// Which node this is.
    pub fn me(&self) -> &Identity {
        &self.0.me
    }

    /// Whether other nodes are heard at once, and tells of each change.
    pub fn bus_live(&self) -> watch::Receiver<bool> {
        self.0.bus.live()
    }

    /// The nodes that are alive, without this one, and tells of each change.
    pub fn others(&self) -> watch::Receiver<Vec<Uuid>> {
        self.0.registry.others()
    }

    /// Gives signs of life, and notices where others end, for ever.
    pub async fn run(self) {
        if !self.0.bus.is_shared() {
            return;
        }
        let mut ticks = tokio::time::interval(SIGN);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut live = self.0.bus.live();
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    self.0.registry.round(*live.borrow());
                    self.sign(None, false);
                }
                // Who comes to be heard again says so at once.
                Ok(()) = live.changed() => self.sign(None, *live.borrow_and_update()),
            }
            self.take_stock();
        }
    }

    /// Does what follows from who is there.
    fn take_stock(&self) {
        self.0.bus.speak_up(self.0.registry.somebody_is_deaf());
        self.0.metrics.nodes.set(self.0.registry.others().borrow().len() as i64 + 1);
    }

    /// Waits until the others should be known, but not for long.
    pub async fn settle(&self) {
        let mut live = self.0.bus.live();
        if !self.0.bus.is_shared() {
            return;
        }
        if tokio::time::timeout(SETTLING, live.wait_for(|live| *live)).await.is_ok() {
            self.sign(None, true);
            tokio::time::sleep(FIRST_ANSWERS).await;
        }
    }

    /// Says goodbye: this node's clients go, and nobody needs to ask for them.
    pub fn leave(&self) {
        self.send(None, &Message::Gone {});
    }

    /// Waits until everything that was said is on its way.
    pub async fn flush(&self) {
        self.0.bus.flush().await;
    }

    fn sign(&self, to: Option<Uuid>, please_answer: bool) {
        let alive = Alive {
            name: self.0.me.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            hears: *self.0.bus.live().borrow(),
            please_answer,
        };
        self.send(to, &Message::Alive(alive));
    }

    fn send(&self, to: Option<Uuid>, message: &Message) {
        match serde_json::to_string(message) {
            Ok(text) => self.0.bus.say(to, &text),
            Err(error) => tracing::error!(%error, "a message to other nodes cannot be written"),
        }
    }

    /// Another node says something. Runs on the bus's runtime.
    fn hear(&self, from: Uuid, text: &str) {
        let message = match serde_json::from_str(text) {
            Ok(message) => message,
            Err(error) => {
                tracing::debug!(%error, "what another node says is not understood");
                return;
            }
        };
        match message {
            Message::Alive(alive) => {
                let asks = alive.please_answer;
                let new = self.0.registry.alive(from, &alive);
                self.take_stock();
                if new {
                    tracing::info!(node = %from, name = alive.name, version = alive.version, "another node is there");
                }
                if new || asks {
                    self.sign(Some(from), false);
                }
            }
            Message::Gone {} => {
                self.0.registry.gone(from);
                self.take_stock();
            }
            Message::Answer { id, answer } => self.0.asked.answered(id, from, answer),
            Message::Revoked {} => {
                if let Some(look) = self.0.look.get() {
                    look();
                }
            }
            Message::Ask { id, question } => {
                let Ok(room) = self.0.room.clone().try_acquire_owned() else {
                    tracing::warn!("other nodes ask more than can be answered");
                    return;
                };
                let cluster = self.clone();
                tokio::spawn(async move {
                    let turn = cluster.0.answering.acquire().await;
                    let answer = cluster.answer(question).await;
                    drop((turn, room));
                    cluster.send(Some(from), &Message::Answer { id, answer });
                });
            }
        }
    }

    /// What this node has to say by itself.
    async fn answer(&self, question: Question) -> Answer {
        let (hub, control) = (&self.0.hub, &self.0.control);
        match question {
            Question::Dismiss { target, disconnect } => {
                Answer::Dismissed(control.dismiss(target, &disconnect).await)
            }
            Question::Direct { target, directive } => {
                control.direct(target, directive).await;
                Answer::Done {}
            }
            Question::Info {} => Answer::Info(self.info().await),
            Question::Channels { pattern } => {
                Answer::Channels(self.own_channels(pattern.as_deref()).await.into_iter().collect())
            }
            Question::Connected { user, limit } => {
                Answer::Connected(control.connected(user.as_deref(), limit).await)
            }
            Question::Members { channel } => Answer::Members(hub.members(&channel).await),
            Question::Connections { user } => {
                Answer::Connections(self.0.count.get().map_or(0, |count| count(&user)))
            }
            Question::Post { session, frame } => {
                Answer::Posted(self.0.post.get().is_none_or(|post| post(&session, frame)))
            }
        }
    }

    async fn info(&self) -> NodeInfo {
        let (census, channels) = (self.0.control.census().await, self.0.control.channels().await);
        NodeInfo {
            uid: self.0.me.uid,
            name: self.0.me.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            num_clients: census.clients,
            num_users: census.users.len(),
            num_channels: channels.len(),
            num_subs: channels.values().sum(),
            uptime: self.0.me.since.elapsed().as_secs(),
        }
    }

    async fn own_channels(&self, pattern: Option<&str>) -> BTreeMap<ChannelName, usize> {
        let pattern = pattern.and_then(Glob::parse);
        let mut channels = self.0.control.channels().await;
        channels.retain(|channel, _| pattern.as_ref().is_none_or(|glob| glob.matches(channel.as_str())));
        while channels.len() > MOST_CHANNELS + 1 {
            channels.pop_last();
        }
        channels
    }

    // ---- what concerns all nodes

    /// Ends the connections that are meant, wherever they are, and says how many they were.
    pub async fn dismiss(&self, target: Target, disconnect: &Disconnect) -> Result<usize, Unanswered> {
        let answers = self.ask_all(Question::Dismiss { target, disconnect: disconnect.clone() }).await;
        let answers = answers.whole()?;
        Ok(answers.iter().map(|answer| if let Answer::Dismissed(count) = answer { *count } else { 0 }).sum())
    }

    /// Has the connections that are meant do something. They do it soon after, each in its turn.
    pub async fn direct(&self, target: Target, directive: Directive) -> Result<(), Unanswered> {
        self.ask_all(Question::Direct { target, directive }).await.whole().map(drop)
    }

    /// All nodes that answer, with their numbers.
    pub async fn nodes(&self) -> Vec<NodeInfo> {
        let answers = self.ask_all(Question::Info {}).await.answers;
        let infos = answers.into_iter().filter_map(|answer| match answer {
            Answer::Info(info) => Some(info),
            _ => None,
        });
        infos.collect()
    }

    /// The channels that fit `pattern` (a glob) and have subscribers, with their number. At most one
    /// more than [`MOST_CHANNELS`].
    pub async fn channels(&self, pattern: Option<&str>) -> BTreeMap<ChannelName, usize> {
        let answers = self.ask_all(Question::Channels { pattern: pattern.map(str::to_owned) }).await.answers;
        let mut all = BTreeMap::new();
        for answer in answers {
            let Answer::Channels(channels) = answer else { continue };
            channels.into_iter().for_each(|(channel, clients)| *all.entry(channel).or_default() += clients);
        }
        all
    }

    /// Up to `limit` clients, of one user or of all, the newest first.
    pub async fn connected(&self, user: Option<&str>, limit: usize) -> Vec<Connected> {
        let question = Question::Connected { user: user.map(str::to_owned), limit };
        let answers = self.ask_all(question).await.answers;
        let mut found: Vec<Connected> = answers
            .into_iter()
            .flat_map(|answer| if let Answer::Connected(some) = answer { some } else { Vec::new() })
            .collect();
        found.sort_by_key(|client| std::cmp::Reverse(client.client));
        found.truncate(limit);
        found
    }

    /// Who is on `channel` and may be found there.
    pub async fn members(&self, channel: &ChannelName) -> Vec<Member> {
        let answers = self.ask_all(Question::Members { channel: channel.clone() }).await.answers;
        let mut seen = HashSet::new();
        let members = answers
            .into_iter()
            .flat_map(|answer| if let Answer::Members(some) = answer { some } else { Vec::new() });
        members.filter(|member| seen.insert(member.client)).collect()
    }

    /// How many connections `user` has on each of `nodes`; `None` where that cannot be said.
    pub async fn connections_on(&self, nodes: &[Uuid], user: &str) -> Vec<(Uuid, Option<u32>)> {
        let question = Question::Connections { user: user.to_owned() };
        let (asked, _) = self.ask(nodes.to_vec(), question).await;
        let of = |node: &Uuid| {
            asked.iter().find_map(|(from, answer)| match answer {
                Answer::Connections(count) if from == node => Some(*count),
                _ => None,
            })
        };
        nodes.iter().map(|node| (*node, of(node))).collect()
    }

    /// Hands a client's frame to the node that has its session.
    pub async fn post(&self, node: &str, session: String, frame: String) -> Posted {
        let Ok(node) = Uuid::parse_str(node) else { return Posted::NoNode };
        if !self.0.registry.others().borrow().contains(&node) {
            let gone = self.0.registry.is_gone(node) || !self.0.bus.is_shared();
            return if gone { Posted::NoNode } else { Posted::NoAnswer };
        }
        let (answers, _) = self.ask(vec![node], Question::Post { session, frame }).await;
        match answers.first() {
            Some((_, Answer::Posted(true))) => Posted::Done,
            Some((_, Answer::Posted(false))) => Posted::TooMuch,
            _ => Posted::NoAnswer,
        }
    }

    /// The other nodes shall look at what is revoked.
    pub fn tell_revoked(&self) {
        self.send(None, &Message::Revoked {});
    }
}
