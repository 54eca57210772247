//! How a connection speaks where commands and replies do not simply go over one line: what the
//! client says comes by other requests, or it says nothing but who it is (protocol §3.5, §3.6).
//! Owns what that changes in words; what commands mean stays the session's.

use std::sync::Arc;

use bytestring::ByteString;

use super::session::Connection;
use super::state::Phase;
use crate::protocol::command::{BadFrame, Command, Connect, Method, commands};
use crate::protocol::push::Push;
use crate::protocol::reply::{ConnectResult, Reply};

/// See the module. Most connections have none of this.
#[derive(Debug, Clone, Default)]
pub struct Manner {
    /// The client only listens: one connect without an id, then bare pushes.
    pub uni: bool,
    /// The unguessable name of the connection; whoever knows it can speak for the client.
    pub session: Arc<str>,
    /// The node to which the client's requests go; empty if it makes none.
    pub node: Arc<str>,
}

impl Connection {
    /// The same, speaking in this manner.
    pub fn speaking(mut self, manner: Manner) -> Self {
        self.manner = Some(Box::new(manner));
        self
    }

    /// Whether the client only listens.
    pub(super) fn is_uni(&self) -> bool {
        self.manner.as_deref().is_some_and(|manner| manner.uni)
    }

    pub(super) fn session_and_node(&self) -> (&str, &str) {
        self.manner.as_deref().map_or(("", ""), |manner| (&*manner.session, &*manner.node))
    }

    /// The command of `frame` that begins at `start`, and where the next one does. A client that
    /// only listens is heard once: the whole frame is its connect.
    pub(super) fn command_at<'f>(
        &self,
        frame: &'f ByteString,
        start: usize,
    ) -> (Result<Command<'f>, BadFrame>, Option<usize>) {
        if self.is_uni() {
            let connect = Connect::parse(frame);
            return (connect.map(|connect| Command { id: 0, method: Method::Connect(connect) }), None);
        }
        let next = frame[start..].find('\n').map(|end| start + end + 1).filter(|next| *next < frame.len());
        (commands(&frame[start..]).next().unwrap_or(Err(BadFrame)), next)
    }

    /// Whether what the client says goes unheard.
    pub(super) fn is_deaf(&self) -> bool {
        self.is_uni() && self.phase == Phase::Open
    }

    /// A push as the client reads it.
    pub(super) fn push(&self, push: &Push<'_>) -> String {
        let mut text = String::new();
        if self.is_uni() {
            push.write_uni(&mut text)
        } else {
            push.write(&mut text)
        }
        text
    }

    /// The connection is open: a reply, or the first push.
    pub(super) fn write_connected(&self, id: u32, result: &ConnectResult<'_>) -> String {
        let mut text = String::new();
        if self.is_uni() {
            Push::Connect(result).write_uni(&mut text);
        } else {
            Reply::Connect(result).write(&mut text, id);
        }
        text
    }
}
