//! Emulation of a bidirectional connection (protocol §3.5): the client receives a stream and sends its
//! commands in requests of their own, which arrive on any connection and so on any worker thread. This
//! is the table of sessions by their secret ids, with a bound on what is queued for each; the session
//! itself stays on the thread of its stream. Requests for sessions of other nodes go through `cluster`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use actix::{Message, Recipient};
use bytestring::ByteString;
use uuid::Uuid;

/// The assumed overhead of a queued frame, in bytes.
const FRAME: usize = 256;
/// Random bytes in a session id.
const NAME: usize = 16;

/// What an emulation request delivers to a connection actor.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) enum SessionInput {
    /// A frame of the client.
    Frame(ByteString),
    /// The queue limit was exceeded and frames were lost.
    Overflow,
}

/// What became of a frame for a session of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalPostOutcome {
    /// The frame was queued, or the connection has ended, which the client learns from its stream.
    Accepted,
    /// Too much is queued for the connection, which is closed.
    QueueFull,
    /// The frame is addressed to another node.
    OtherNode,
}

/// The open sessions of this node. It is cheap to clone, and all clones share the table.
#[derive(Clone)]
pub struct Sessions(Arc<Inner>);

struct Inner {
    node: Arc<str>,
    /// Bytes that may be queued for one connection.
    max_bytes: usize,
    open: Mutex<HashMap<Arc<str>, Mailbox>>,
}

struct Mailbox {
    to: Recipient<SessionInput>,
    waiting: Arc<AtomicUsize>,
}

impl Sessions {
    /// An empty table; at most `max_bytes` may be queued for one connection.
    pub fn new(node: Uuid, max_bytes: usize) -> Self {
        Self(Arc::new(Inner { node: node.to_string().into(), max_bytes, open: Mutex::default() }))
    }

    /// The node's id, which clients send back.
    pub fn node(&self) -> &Arc<str> {
        &self.0.node
    }

    /// Opens a session whose frames are sent to `to`; a frame of `first` bytes is already being handled.
    pub(super) fn open(&self, to: Recipient<SessionInput>, first: usize) -> Session {
        let name = new_name();
        let waiting = Arc::new(AtomicUsize::new(first + FRAME));
        self.table().insert(name.clone(), Mailbox { to, waiting: waiting.clone() });
        Session { sessions: self.clone(), name, waiting }
    }

    /// Queues a frame for the session's connection. Never waits.
    pub fn deliver(&self, node: &str, session: &str, frame: ByteString) -> LocalPostOutcome {
        if *node != *self.0.node {
            return LocalPostOutcome::OtherNode;
        }
        self.deliver_local(session, frame)
    }

    /// Queues a frame for a session of this node. If there is none, the session has ended.
    pub fn deliver_local(&self, session: &str, frame: ByteString) -> LocalPostOutcome {
        let mut table = self.table();
        let Some(mailbox) = table.get(session) else { return LocalPostOutcome::Accepted };
        let weight = frame.len() + FRAME;
        let before = mailbox.waiting.fetch_add(weight, Ordering::Relaxed);
        if before > 0 && before + weight > self.0.max_bytes {
            // The overflow is reported once.
            if let Some(mailbox) = table.remove(session) {
                mailbox.to.do_send(SessionInput::Overflow);
            }
            return LocalPostOutcome::QueueFull;
        }
        mailbox.to.do_send(SessionInput::Frame(frame));
        LocalPostOutcome::Accepted
    }

    fn table(&self) -> MutexGuard<'_, HashMap<Arc<str>, Mailbox>> {
        self.0.open.lock().expect("the table of sessions is not poisoned")
    }
}

/// A secret session id, from a generator that the operating system seeds.
pub(super) fn new_name() -> Arc<str> {
    hex::encode(rand::random::<[u8; NAME]>()).into()
}

/// Whether `text` has the form of a session id.
pub fn is_session(text: &str) -> bool {
    text.len() == 2 * NAME && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Keeps a session open until it is dropped.
pub(super) struct Session {
    sessions: Sessions,
    name: Arc<str>,
    waiting: Arc<AtomicUsize>,
}

impl Session {
    pub(super) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// A frame of so many bytes was handled.
    pub(super) fn handled(&self, bytes: usize) {
        self.waiting.fetch_sub(bytes + FRAME, Ordering::Relaxed);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.sessions.table().remove(&self.name);
    }
}
