//! The clients that are connected to this node. Each worker thread keeps a list of its own, and
//! [`ClientRegistry`] reaches all of them from any thread. Disconnecting a client, or sending it a
//! server command, passes a message to its connection; permissions are checked by the caller.

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
use crate::domain::event::Time;
use crate::domain::principal::Principal;
use crate::domain::server_command::ServerCommand;
use crate::hub::fanout::Fanout;
use crate::hub::outbox::Outbox;
use crate::protocol::code::Disconnect;
use crate::supervision;

/// Commands that may be queued for one worker thread; a sender waits while the queue is full.
const COMMANDS: usize = 64;

/// The clients of one worker thread, by connection id.
#[derive(Default)]
pub struct WorkerClients(RefCell<HashMap<Uuid, Client>>);

struct Client {
    outbox: Rc<Outbox>,
    transport: &'static str,
    /// The secret session id, if the transport assigns one; boxed, because few have one.
    session: Option<Box<Arc<str>>>,
    /// Anonymous until the client has connected.
    principal: Rc<Principal>,
    /// Whether subscription tokens that can be revoked have been used on it.
    uses_subscription_tokens: bool,
}

impl WorkerClients {
    /// Registers a client that is written to through `outbox`. It stays registered until the returned
    /// value is dropped. `transport` is the transport's name in the configuration; `session` is the
    /// session id that the client was given for emulation requests.
    pub fn add(
        self: &Rc<Self>,
        outbox: Rc<Outbox>,
        principal: Rc<Principal>,
        transport: &'static str,
        session: Option<Arc<str>>,
    ) -> Registration {
        // The id contains the time of the connection and nothing else.
        let id = Uuid::now_v7();
        let session = session.map(Box::new);
        let client = Client { outbox, transport, session, principal, uses_subscription_tokens: false };
        self.0.borrow_mut().insert(id, client);
        Registration { clients: self.clone(), id }
    }

    /// The outboxes of all clients.
    pub fn outboxes(&self) -> Vec<Rc<Outbox>> {
        self.0.borrow().values().map(|client| client.outbox.clone()).collect()
    }

    /// The outboxes of the matching clients. A client may unregister itself as soon as it is sent
    /// something, so the list must not be borrowed any more when that happens.
    fn matching(&self, target: &Target) -> Vec<Rc<Outbox>> {
        let clients = self.0.borrow();
        let matching = clients.iter().filter(|(id, client)| target.matches(**id, client));
        matching.map(|(_, client)| client.outbox.clone()).collect()
    }

    fn disconnect(&self, target: &Target, disconnect: &Disconnect) -> usize {
        let matching = self.matching(target);
        matching.iter().for_each(|outbox| outbox.disconnect(disconnect));
        matching.len()
    }

    fn send_command(&self, target: &Target, server_command: &Arc<ServerCommand>) {
        self.matching(target).iter().for_each(|outbox| outbox.send_command(server_command));
    }

    fn counts(&self) -> ClientCounts {
        let clients = self.0.borrow();
        let users = clients.values().map(|client| client.principal.user.clone()).collect();
        ClientCounts { clients: clients.len(), users }
    }

    /// Up to `limit` connections, the newest first.
    fn list(&self, user: Option<&str>, limit: usize) -> Vec<ConnectionInfo> {
        let clients = self.0.borrow();
        let matching = clients.iter().filter(|(_, one)| user.is_none_or(|user| one.principal.user == user));
        let mut matching: Vec<_> = matching.collect();
        matching.sort_unstable_by_key(|(id, _)| std::cmp::Reverse(**id));
        matching.into_iter().take(limit).map(|(id, client)| client.describe(*id)).collect()
    }
}

impl Client {
    fn is_session(&self, id: Uuid, name: &str) -> bool {
        match &self.session {
            Some(own) => ***own == *name,
            None => Uuid::parse_str(name) == Ok(id),
        }
    }

    fn describe(&self, id: Uuid) -> ConnectionInfo {
        ConnectionInfo {
            client: id,
            user: self.principal.user.clone(),
            transport: self.transport.into(),
            since: time_of(id),
            jti: self.principal.jti.as_deref().map(str::to_owned),
        }
    }
}

/// Keeps a client registered; dropping it unregisters the client.
pub struct Registration {
    clients: Rc<WorkerClients>,
    id: Uuid,
}

impl Registration {
    /// The connection's id.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Subscription tokens that can be revoked are used on it.
    pub fn uses_subscription_tokens(&self) {
        if let Some(client) = self.clients.0.borrow_mut().get_mut(&self.id) {
            client.uses_subscription_tokens = true;
        }
    }

    /// Sets or replaces the principal of the client.
    pub fn identify(&self, principal: Rc<Principal>) {
        if let Some(client) = self.clients.0.borrow_mut().get_mut(&self.id) {
            client.principal = principal;
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.clients.0.borrow_mut().remove(&self.id);
    }
}

fn time_of(id: Uuid) -> Time {
    let stamp = id.get_timestamp().map(|stamp| stamp.to_unix());
    stamp.and_then(|(seconds, nanos)| DateTime::from_timestamp(seconds as i64, nanos)).unwrap_or_default()
}

/// Selects connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The connections of a user; the empty string stands for anonymous users.
    User {
        /// The user.
        user: String,
        /// Only the connection with this id.
        client: Option<Uuid>,
        /// Only the connection with this session id. Where the transport assigns none, this is the
        /// connection's id.
        session: Option<String>,
        /// Connections to leave out.
        but: Vec<Uuid>,
    },
    /// The connections of a user that are older than the given one.
    Older {
        /// The user.
        user: String,
        /// The newer connection.
        than: Uuid,
    },
    /// The connections that were opened or last refreshed with the token that has this `jti`.
    Token(String),
    /// The connections on which subscription tokens that can be revoked were used.
    WithSubscriptionTokens,
}

impl Target {
    /// All connections of `user`.
    pub fn all_of(user: String) -> Self {
        Self::User { user, client: None, session: None, but: Vec::new() }
    }

    fn matches(&self, id: Uuid, one: &Client) -> bool {
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
            Self::WithSubscriptionTokens => one.uses_subscription_tokens,
        }
    }
}

/// A connection as the server API describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionInfo {
    /// The connection's id.
    pub client: Uuid,
    /// The user; empty for anonymous users and before the client has connected.
    pub user: String,
    /// The transport, by its name in the configuration.
    pub transport: Cow<'static, str>,
    /// When the connection was opened.
    pub since: Time,
    /// The id of its token.
    pub jti: Option<String>,
}

/// How many clients and users are connected.
#[derive(Debug, Default)]
pub struct ClientCounts {
    /// The number of connections.
    pub clients: usize,
    /// Their users; the empty string stands for anonymous users.
    pub users: HashSet<String>,
}

enum Command {
    Disconnect(Arc<Target>, Disconnect, oneshot::Sender<usize>),
    Apply(Arc<Target>, Arc<ServerCommand>, oneshot::Sender<()>),
    Counts(oneshot::Sender<ClientCounts>),
    Channels(oneshot::Sender<Vec<(ChannelName, usize)>>),
    List(Option<Arc<str>>, usize, oneshot::Sender<Vec<ConnectionInfo>>),
}

/// A handle on all clients of the node. It is cheap to clone, and all clones share the same state.
#[derive(Clone, Default)]
pub struct ClientRegistry(Arc<Mutex<Vec<mpsc::Sender<Command>>>>);

impl ClientRegistry {
    /// Registers the calling worker thread: its clients and its subscribers can then be reached.
    pub fn register_worker(&self, clients: Rc<WorkerClients>, fanout: Rc<Fanout>) {
        let (sender, mut commands) = mpsc::channel(COMMANDS);
        self.0.lock().expect("the list of workers is not poisoned").push(sender);
        actix_rt::spawn(supervision::critical(async move {
            while let Some(command) = commands.recv().await {
                // The caller may have stopped waiting for the reply.
                match command {
                    Command::Disconnect(target, disconnect, reply) => {
                        let _ = reply.send(clients.disconnect(&target, &disconnect));
                    }
                    Command::Apply(target, server_command, reply) => {
                        clients.send_command(&target, &server_command);
                        let _ = reply.send(());
                    }
                    Command::Counts(reply) => {
                        let _ = reply.send(clients.counts());
                    }
                    Command::Channels(reply) => {
                        let _ = reply.send(fanout.subscribers());
                    }
                    Command::List(user, limit, reply) => {
                        let _ = reply.send(clients.list(user.as_deref(), limit));
                    }
                }
            }
        }));
    }

    /// Disconnects the matching clients and returns how many there were.
    pub async fn disconnect(&self, target: Target, disconnect: &Disconnect) -> usize {
        let target = Arc::new(target);
        let command = |reply| Command::Disconnect(target.clone(), disconnect.clone(), reply);
        self.query_workers(command).await.into_iter().sum()
    }

    /// Sends a command to the matching clients. Each applies it after the commands it already has.
    pub async fn send_command(&self, target: Target, server_command: ServerCommand) {
        let (target, server_command) = (Arc::new(target), Arc::new(server_command));
        self.query_workers(|reply| Command::Apply(target.clone(), server_command.clone(), reply)).await;
    }

    /// Counts the connected clients and users.
    pub async fn counts(&self) -> ClientCounts {
        let mut all = ClientCounts::default();
        for counts in self.query_workers(Command::Counts).await {
            all.clients += counts.clients;
            all.users.extend(counts.users);
        }
        all
    }

    /// The channels that have subscribers, with the number of subscribers.
    pub async fn channels(&self) -> BTreeMap<ChannelName, usize> {
        let mut all = BTreeMap::new();
        for (channel, subscribers) in self.query_workers(Command::Channels).await.into_iter().flatten() {
            *all.entry(channel).or_default() += subscribers;
        }
        all
    }

    /// Up to `limit` connections, of one user or of all users, the newest first.
    pub async fn connected(&self, user: Option<&str>, limit: usize) -> Vec<ConnectionInfo> {
        let user: Option<Arc<str>> = user.map(Arc::from);
        let found = self.query_workers(|reply| Command::List(user.clone(), limit, reply)).await;
        let mut found: Vec<ConnectionInfo> = found.into_iter().flatten().collect();
        found.sort_by_key(|client| std::cmp::Reverse(client.client));
        found.truncate(limit);
        found
    }

    async fn query_workers<T>(&self, command: impl Fn(oneshot::Sender<T>) -> Command) -> Vec<T> {
        let workers = self.0.lock().expect("the list of workers is not poisoned").clone();
        let mut answers = Vec::with_capacity(workers.len());
        for worker in workers {
            let (reply, answer) = oneshot::channel();
            // A worker that has stopped has no clients.
            if worker.send(command(reply)).await.is_ok() {
                answers.push(answer);
            }
        }
        futures_util::future::join_all(answers).await.into_iter().filter_map(Result::ok).collect()
    }
}
