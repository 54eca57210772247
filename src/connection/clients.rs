//! The clients of this node: each worker thread knows its own, and [`Control`] reaches all of them
//! from anywhere in the process. To end a connection, or to have it do something, is to tell whoever
//! keeps it; nothing here decides who may.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use chrono::DateTime;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use crate::domain::channel::ChannelName;
use crate::domain::directive::Directive;
use crate::domain::event::Time;
use crate::domain::principal::Principal;
use crate::hub::fanout::Fanout;
use crate::hub::outbox::Outbox;
use crate::protocol::code::Disconnect;
use crate::vital;

/// Orders that may wait for one worker thread; who gives one more waits.
const ORDERS: usize = 64;

/// The clients of one worker thread, by connection id.
#[derive(Default)]
pub struct Clients(RefCell<HashMap<Uuid, Client>>);

struct Client {
    outbox: Rc<Outbox>,
    transport: &'static str,
    /// Its unguessable name, if its transport gives it one.
    session: Option<Arc<str>>,
    /// Nobody before the connect.
    principal: Rc<Principal>,
}

impl Clients {
    /// Somebody came, over `outbox`, and is among the clients as long as the answer lives.
    /// `transport` is what carries it, by its name in the config; `session` is the name under which
    /// the client was told that others may speak for it.
    pub fn add(
        self: &Rc<Self>,
        outbox: Rc<Outbox>,
        principal: Rc<Principal>,
        transport: &'static str,
        session: Option<Arc<str>>,
    ) -> Listed {
        // The id tells when it came, and otherwise nothing.
        let id = Uuid::now_v7();
        self.0.borrow_mut().insert(id, Client { outbox, transport, session, principal });
        Listed { clients: self.clone(), id }
    }

    /// What all are written to.
    pub fn outboxes(&self) -> Vec<Rc<Outbox>> {
        self.0.borrow().values().map(|client| client.outbox.clone()).collect()
    }

    /// Those that are meant. Whoever is told something may leave in the same breath, so they are
    /// told after the list is closed.
    fn meant(&self, target: &Target) -> Vec<Rc<Outbox>> {
        let clients = self.0.borrow();
        let meant = clients.iter().filter(|(id, client)| target.means(**id, client));
        meant.map(|(_, client)| client.outbox.clone()).collect()
    }

    fn dismiss(&self, target: &Target, disconnect: &Disconnect) -> usize {
        let meant = self.meant(target);
        meant.iter().for_each(|outbox| outbox.dismiss(disconnect));
        meant.len()
    }

    fn direct(&self, target: &Target, directive: &Arc<Directive>) {
        self.meant(target).iter().for_each(|outbox| outbox.direct(directive));
    }

    fn census(&self) -> Census {
        let clients = self.0.borrow();
        let users = clients.values().map(|client| client.principal.user.clone()).collect();
        Census { clients: clients.len(), users }
    }

    /// The newest first.
    fn list(&self, user: Option<&str>, limit: usize) -> Vec<Connected> {
        let clients = self.0.borrow();
        let meant = clients.iter().filter(|(_, one)| user.is_none_or(|user| one.principal.user == user));
        let mut meant: Vec<_> = meant.collect();
        meant.sort_unstable_by_key(|(id, _)| std::cmp::Reverse(**id));
        meant.into_iter().take(limit).map(|(id, client)| client.describe(*id)).collect()
    }
}

impl Client {
    fn is_session(&self, id: Uuid, name: &str) -> bool {
        match &self.session {
            Some(own) => **own == *name,
            None => Uuid::parse_str(name) == Ok(id),
        }
    }

    fn describe(&self, id: Uuid) -> Connected {
        Connected {
            client: id,
            user: self.principal.user.clone(),
            transport: self.transport.into(),
            since: time_of(id),
            jti: self.principal.jti.as_deref().map(str::to_owned),
        }
    }
}

/// A place among the clients.
pub struct Listed {
    clients: Rc<Clients>,
    id: Uuid,
}

impl Listed {
    /// The connection's id.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Who it is has become known, or has changed.
    pub fn identify(&self, principal: Rc<Principal>) {
        if let Some(client) = self.clients.0.borrow_mut().get_mut(&self.id) {
            client.principal = principal;
        }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.clients.0.borrow_mut().remove(&self.id);
    }
}

fn time_of(id: Uuid) -> Time {
    let stamp = id.get_timestamp().map(|stamp| stamp.to_unix());
    stamp.and_then(|(seconds, nanos)| DateTime::from_timestamp(seconds as i64, nanos)).unwrap_or_default()
}

/// Which connections are meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Those of a user; the empty one is anonymous.
    User {
        /// Whose.
        user: String,
        /// Only this one of them.
        client: Option<Uuid>,
        /// Only the one of this session. A connection whose transport gives it no name of its own
        /// goes by its id.
        session: Option<String>,
        /// None of these.
        but: Vec<Uuid>,
    },
    /// Those of a user that came before this one.
    Older {
        /// Whose.
        user: String,
        /// The newer one.
        than: Uuid,
    },
    /// Those that were opened, or last renewed, with the token that has this `jti`.
    Token(String),
}

impl Target {
    /// All connections of `user`.
    pub fn all_of(user: String) -> Self {
        Self::User { user, client: None, session: None, but: Vec::new() }
    }

    fn means(&self, id: Uuid, one: &Client) -> bool {
        let principal = &one.principal;
        match self {
            Self::User { user, client, session, but } => {
                principal.user == *user
                    && client.is_none_or(|client| client == id)
                    && session.as_deref().is_none_or(|session| one.is_session(id, session))
                    && !but.contains(&id)
            }
            // Ids grow with time.
            Self::Older { user, than } => principal.is_user(user) && id < *than,
            Self::Token(jti) => principal.jti.as_deref() == Some(jti),
        }
    }
}

/// A client as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connected {
    /// Its connection's id.
    pub client: Uuid,
    /// Whose it is; empty for anonymous, and before the connect.
    pub user: String,
    /// What carries it, by its name in the config.
    pub transport: Cow<'static, str>,
    /// When it came.
    pub since: Time,
    /// The id of its token.
    pub jti: Option<String>,
}

/// How many are connected.
#[derive(Debug, Default)]
pub struct Census {
    /// Connections.
    pub clients: usize,
    /// The users behind them; the empty one is anonymous.
    pub users: HashSet<String>,
}

enum Order {
    Dismiss(Arc<Target>, Disconnect, oneshot::Sender<usize>),
    Direct(Arc<Target>, Arc<Directive>, oneshot::Sender<()>),
    Census(oneshot::Sender<Census>),
    Channels(oneshot::Sender<Vec<(ChannelName, usize)>>),
    List(Option<Arc<str>>, usize, oneshot::Sender<Vec<Connected>>),
}

/// A handle on all clients of the node; cheap to clone, and all clones are one.
#[derive(Clone, Default)]
pub struct Control(Arc<Mutex<Vec<mpsc::Sender<Order>>>>);

impl Control {
    /// Makes the clients of the calling worker thread, and its subscribers, reachable.
    pub fn enlist(&self, clients: Rc<Clients>, fanout: Rc<Fanout>) {
        let (sender, mut orders) = mpsc::channel(ORDERS);
        self.0.lock().expect("nobody panics while listing").push(sender);
        actix_rt::spawn(vital::part(async move {
            while let Some(order) = orders.recv().await {
                // Who asked may have stopped waiting.
                match order {
                    Order::Dismiss(target, disconnect, told) => {
                        let _ = told.send(clients.dismiss(&target, &disconnect));
                    }
                    Order::Direct(target, directive, told) => {
                        clients.direct(&target, &directive);
                        let _ = told.send(());
                    }
                    Order::Census(told) => {
                        let _ = told.send(clients.census());
                    }
                    Order::Channels(told) => {
                        let _ = told.send(fanout.subscribers());
                    }
                    Order::List(user, limit, told) => {
                        let _ = told.send(clients.list(user.as_deref(), limit));
                    }
                }
            }
        }));
    }

    /// Ends the connections that are meant, and says how many they were.
    pub async fn dismiss(&self, target: Target, disconnect: &Disconnect) -> usize {
        let target = Arc::new(target);
        let order = |told| Order::Dismiss(target.clone(), disconnect.clone(), told);
        self.ask(order).await.into_iter().sum()
    }

    /// Has the connections that are meant do something. They do it soon after, each in its turn.
    pub async fn direct(&self, target: Target, directive: Directive) {
        let (target, directive) = (Arc::new(target), Arc::new(directive));
        self.ask(|told| Order::Direct(target.clone(), directive.clone(), told)).await;
    }

    /// How many are connected.
    pub async fn census(&self) -> Census {
        let mut all = Census::default();
        for census in self.ask(Order::Census).await {
            all.clients += census.clients;
            all.users.extend(census.users);
        }
        all
    }

    /// The channels that have subscribers, with their number.
    pub async fn channels(&self) -> BTreeMap<ChannelName, usize> {
        let mut all = BTreeMap::new();
        for (channel, subscribers) in self.ask(Order::Channels).await.into_iter().flatten() {
            *all.entry(channel).or_default() += subscribers;
        }
        all
    }

    /// Up to `limit` clients, of one user or of all, the newest first.
    pub async fn connected(&self, user: Option<&str>, limit: usize) -> Vec<Connected> {
        let user: Option<Arc<str>> = user.map(Arc::from);
        let found = self.ask(|told| Order::List(user.clone(), limit, told)).await;
        let mut found: Vec<Connected> = found.into_iter().flatten().collect();
        found.sort_by_key(|client| std::cmp::Reverse(client.client));
        found.truncate(limit);
        found
    }

    async fn ask<T>(&self, order: impl Fn(oneshot::Sender<T>) -> Order) -> Vec<T> {
        let workers = self.0.lock().expect("nobody panics while listing").clone();
        let mut answers = Vec::with_capacity(workers.len());
        for worker in workers {
            let (told, answer) = oneshot::channel();
            // A worker that has stopped has no clients.
            if worker.send(order(told)).await.is_ok() {
                answers.push(answer);
            }
        }
        futures_util::future::join_all(answers).await.into_iter().filter_map(Result::ok).collect()
    }
}
