//! How events become bytes for a subscriber, by what its connection speaks: SSE with cursors, or a form of
//! the client protocol. Everything that a fan-out sends by itself is encoded here.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};

use super::form::Form;
use super::frames::Frames;
use super::push::{ChannelPush, Push, channel_json, write_publication_push, write_publication_uni};
use super::{sse, websocket};
use crate::domain::channel::ChannelName;
use crate::domain::cursor::Cursor;
use crate::domain::event::Event;
use crate::domain::position::{Epoch, Position};

/// How a subscriber's events become bytes.
#[derive(Clone)]
pub enum Framing {
    /// SSE of one channel: the cursor is the event's own position, so all share the bytes.
    Sse,
    /// SSE of several channels: the cursor holds the positions of all of them.
    SseMany(Rc<Cursors>),
    /// The client protocol in frames of WebSocket.
    WebSocket,
    /// The client protocol in another form.
    Form(Form),
}

/// The positions of a stream of several channels.
#[derive(Default)]
pub struct Cursors(RefCell<BTreeMap<ChannelName, Position>>);

impl Cursors {
    /// Moves one channel and answers the cursor of all.
    pub fn advance(&self, channel: &ChannelName, position: Position) -> String {
        let mut positions = self.0.borrow_mut();
        positions.insert(channel.clone(), position);
        Cursor::Many(positions.clone()).to_string()
    }
}

impl Framing {
    /// How many there are: [`Framing::index`] is below it.
    pub const COUNT: usize = 2 + Form::COUNT;

    /// Its place in a list of one thing for each. Both kinds of SSE have one place.
    pub const fn index(&self) -> usize {
        match self {
            Self::Sse | Self::SseMany(_) => 0,
            Self::WebSocket => 1,
            Self::Form(form) => 2 + form.index(),
        }
    }

    /// What metrics call each of them, in the order of [`Framing::index`].
    pub fn names() -> [&'static str; Self::COUNT] {
        std::array::from_fn(|index| match index {
            0 => "sse",
            1 => "websocket",
            _ => Form::ALL[index - 2].name(),
        })
    }

    /// Whether all subscribers of a channel get the same bytes.
    pub const fn is_shared(&self) -> bool {
        !matches!(self, Self::SseMany(_))
    }

    /// Whether it is written to a socket of its own, and not into the body of an answer.
    pub const fn is_socket(&self) -> bool {
        matches!(self, Self::WebSocket | Self::Form(Form::UniWebsocket))
    }

    /// Whether there is a session, which tells its client of a loss by itself.
    pub const fn has_session(&self) -> bool {
        matches!(self, Self::WebSocket | Self::Form(_))
    }

    /// The cursor after `position` on `channel`, as it is written into a frame.
    pub fn cursor(&self, channel: &ChannelName, position: &Position) -> String {
        match self {
            Self::Sse | Self::WebSocket | Self::Form(_) => position.to_string(),
            Self::SseMany(cursors) => cursors.advance(channel, position.clone()),
        }
    }

    /// Events of `channel`; `epoch` is `None` for events that are not kept.
    pub fn encode<'e>(
        &self,
        channel: &ChannelName,
        epoch: Option<&Epoch>,
        events: impl Iterator<Item = &'e Event>,
    ) -> Bytes {
        match self {
            Self::WebSocket => {
                let channel = channel_json(channel);
                let mut frames = Frames::new();
                events.for_each(|event| frames.add(|out| write_publication_push(out, &channel, event)));
                let mut bytes = BytesMut::new();
                frames.take().iter().for_each(|frame| websocket::push_text(&mut bytes, frame));
                bytes.freeze()
            }
            Self::Form(form) => {
                let channel = channel_json(channel);
                let (mut text, mut bytes) = (String::new(), BytesMut::new());
                for event in events {
                    text.clear();
                    if form.is_uni() {
                        write_publication_uni(&mut text, &channel, event);
                    } else {
                        write_publication_push(&mut text, &channel, event);
                    }
                    form.add(&mut bytes, &text);
                }
                bytes.freeze()
            }
            Self::Sse | Self::SseMany(_) => {
                let (mut text, built_in) = (String::new(), channel.is_built_in());
                for event in events {
                    let position = epoch.map(|epoch| Position::new(epoch.clone(), event.offset));
                    let id = position.map(|position| self.cursor(channel, &position));
                    sse::write_event(&mut text, built_in, event, id.as_deref());
                }
                Bytes::from(text)
            }
        }
    }

    /// A client joined `channel` or left it; `info` is its ClientInfo as JSON.
    pub fn presence(&self, channel: &ChannelName, joined: bool, info: &str) -> Bytes {
        let what = if joined { ChannelPush::Join(info) } else { ChannelPush::Leave(info) };
        let push = Push::Channel(channel, what);
        let mut text = String::new();
        if let Self::Form(form) = self {
            form.write_push(&mut text, &push);
            return form.message(&text);
        }
        push.write(&mut text);
        websocket::text(&text)
    }

    /// The reader's position is gone: what is left begins after `oldest`, and goes on after `head`.
    pub fn reset(&self, channel: &ChannelName, oldest: &Position, head: &Position) -> Bytes {
        Bytes::from(sse::reset(channel, oldest, head, Some(&self.cursor(channel, head))))
    }
}
