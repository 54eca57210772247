//! Sessions whose commands and replies do not share one connection: commands arrive in requests of
//! their own (emulation), or the client is unidirectional and sends only its connect (protocol §3.5,
//! §3.6). Only the encoding differs; the meaning of commands does not.

use bytestring::ByteString;

use super::connection::Connection;
use super::state::{Phase, SessionMode};
use crate::protocol::command::{BadFrame, Command, Connect, Method, commands};
use crate::protocol::push::Push;
use crate::protocol::reply::{ConnectResult, Reply};

impl Connection {
    /// Sets the mode of the session.
    pub fn with_mode(mut self, mode: SessionMode) -> Self {
        self.mode = Some(Box::new(mode));
        self
    }

    /// Whether the client is unidirectional.
    pub(super) fn is_uni(&self) -> bool {
        self.mode.as_deref().is_some_and(|mode| mode.uni)
    }

    pub(super) fn session_and_node(&self) -> (&str, &str) {
        self.mode.as_deref().map_or(("", ""), |mode| (&*mode.session, &*mode.node))
    }

    /// The command of `frame` that begins at `start`, and the start of the next one. The only frame of
    /// a unidirectional client is its connect.
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

    /// Whether further input of the client is ignored.
    pub(super) fn ignores_input(&self) -> bool {
        self.is_uni() && self.phase == Phase::Open
    }

    /// A push, encoded for the client.
    pub(super) fn push(&self, push: &Push<'_>) -> String {
        let mut text = String::new();
        if self.is_uni() {
            push.write_uni(&mut text)
        } else {
            push.write(&mut text)
        }
        text
    }

    /// The result of the connect, encoded as a reply or, for a unidirectional client, as a push.
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
