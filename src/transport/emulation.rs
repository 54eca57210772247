//! The other half of a stream: what its client says comes as requests of their own, on any
//! connection and so on any worker thread (protocol §3.5). Here sessions are found by their
//! unguessable names, and what waits for one is bounded; the connection itself stays on the thread
//! that carries its stream. Another node's sessions are not known here: what is for them goes by
//! `cluster`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use actix::{Message, Recipient};
use bytestring::ByteString;
use uuid::Uuid;

/// What a frame weighs beside its bytes.
const FRAME: usize = 256;
/// Random bytes in the name of a session.
const NAME: usize = 16;

/// What comes for a connection from elsewhere.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) enum Posted {
    /// The client says this.
    Frame(ByteString),
    /// The client said more than may wait; some of it is lost.
    TooMuch,
}

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// The connection has it, or is over, which its client hears elsewhere.
    Done,
    /// More waits for the connection than may: it ends.
    TooMuch,
    /// The session is on another node, or nowhere.
    OtherNode,
}

/// The open sessions of this node; cheap to clone, and all clones are one.
#[derive(Clone)]
pub struct Sessions(Arc<Inner>);

struct Inner {
    node: Arc<str>,
    /// Bytes that may wait for one connection.
    most: usize,
    open: Mutex<HashMap<Arc<str>, Mailbox>>,
}

struct Mailbox {
    to: Recipient<Posted>,
    waiting: Arc<AtomicUsize>,
}

impl Sessions {
    /// None yet. At most `most` bytes wait for one connection.
    pub fn new(node: Uuid, most: usize) -> Self {
        Self(Arc::new(Inner { node: node.to_string().into(), most, open: Mutex::default() }))
    }

    /// The node's id, which clients send back.
    pub fn node(&self) -> &Arc<str> {
        &self.0.node
    }

    /// Opens a session for whoever reads `to`; a frame of `first` bytes is being handled.
    pub(super) fn open(&self, to: Recipient<Posted>, first: usize) -> Session {
        let name = new_name();
        let waiting = Arc::new(AtomicUsize::new(first + FRAME));
        self.table().insert(name.clone(), Mailbox { to, waiting: waiting.clone() });
        Session { sessions: self.clone(), name, waiting }
    }

    /// Hands a frame to the connection that has the session. Never waits.
    pub fn deliver(&self, node: &str, session: &str, frame: ByteString) -> Delivery {
        if *node != *self.0.node {
            return Delivery::OtherNode;
        }
        self.deliver_here(session, frame)
    }

    /// The same for a session that is here, or over.
    pub fn deliver_here(&self, session: &str, frame: ByteString) -> Delivery {
        let mut table = self.table();
        let Some(mailbox) = table.get(session) else { return Delivery::Done };
        let weight = frame.len() + FRAME;
        let before = mailbox.waiting.fetch_add(weight, Ordering::Relaxed);
        if before > 0 && before + weight > self.0.most {
            // No second one says so.
            if let Some(mailbox) = table.remove(session) {
                mailbox.to.do_send(Posted::TooMuch);
            }
            return Delivery::TooMuch;
        }
        mailbox.to.do_send(Posted::Frame(frame));
        Delivery::Done
    }

    fn table(&self) -> MutexGuard<'_, HashMap<Arc<str>, Mailbox>> {
        self.0.open.lock().expect("nobody panics with the table of sessions in hand")
    }
}

/// An unguessable name for a connection, from the generator that the operating system seeds.
pub(super) fn new_name() -> Arc<str> {
    hex::encode(rand::random::<[u8; NAME]>()).into()
}

/// A session that is open as long as this is.
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
