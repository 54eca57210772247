//! A subscriber of `/api/events/stream`: `Last-Event-ID` is its cursor, each event's `id` says where
//! it stands behind it. `stream:reset` is a signal.

use anyhow::{Result, bail};
use campanile::domain::channel::ChannelName;
use campanile::domain::cursor::Cursor;
use campanile::domain::position::{Epoch, Position};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Around, Ended, Follow, Subscriber};
use crate::http::{Connection, Stream};
use crate::sse::{Message, Parser};

/// The connection.
pub(super) struct EventStream {
    stream: Stream,
    input: Vec<u8>,
    parser: Parser,
}

#[derive(Deserialize)]
struct Configured<'a> {
    offset: u32,
    #[serde(borrow)]
    data: &'a RawValue,
}

#[derive(Deserialize)]
struct Reset {
    channel: String,
    head: String,
}

impl Subscriber {
    pub(super) async fn open_events(&mut self) -> Result<EventStream> {
        let door = self.around.door.clone();
        let names: Vec<&str> =
            self.follows.iter().map(|follow| &*self.around.channels[follow.index].name).collect();
        let request = format!(
            "GET /api/events/stream?channels={} HTTP/1.1\r\nHost: {}\r\nAccept: text/event-stream\r\n\
             Authorization: Bearer {}\r\nLast-Event-ID: {}\r\n\r\n",
            names.join(","),
            door.host,
            self.token,
            cursor(&self.follows, &self.around)?
        );
        let (status, mut stream) = Connection::to(&door).stream(request.as_bytes()).await?;
        match status {
            200 => Ok(EventStream { stream, input: Vec::new(), parser: Parser::default() }),
            408 | 429 | 500..=599 => bail!(Ended("the stream was put off")),
            _ => {
                let words = super::words_of(&mut stream).await?;
                self.follows[0].broken(format!("the stream was answered {status} {words}"));
                bail!(Ended("the stream was refused"))
            }
        }
    }
}

impl EventStream {
    pub(super) async fn fill(&mut self) -> Result<()> {
        if self.stream.next(&mut self.input).await? { Ok(()) } else { bail!(Ended("the stream ended")) }
    }

    /// Handles whole messages; there is never anything to answer.
    pub(super) fn take(&mut self, follows: &mut [Follow], around: &Around) -> Result<()> {
        for message in self.parser.take(&mut self.input) {
            handle(&message, follows, around)?;
        }
        Ok(())
    }
}

fn handle(message: &Message, follows: &mut [Follow], around: &Around) -> Result<()> {
    match &*message.event {
        "stream:reset" => {
            let reset: Reset = serde_json::from_str(&message.data)?;
            let of = follows.iter_mut().find(|f| around.channels[f.index].name == reset.channel);
            let Some(follow) = of else { return Ok(()) };
            match Position::parse(&reset.head) {
                Some(head) => {
                    if head.epoch.as_str() != follow.epoch {
                        follow.turn(head.epoch.as_str());
                    }
                    follow.signal(u32::try_from(head.offset)?);
                }
                None => follow.broken(format!("a reset to {}", reset.head)),
            }
        }
        "stream:closing" | "stream:expired" => bail!(Ended("the stream ends")),
        event => {
            // A built-in and a configured channel are told apart by the event's name.
            let built_in = event != "message";
            let of = follows.iter_mut().find(|f| around.channels[f.index].built_in == built_in);
            let Some(follow) = of else { return Ok(()) };
            let channel = &around.channels[follow.index];
            let position = match Cursor::parse(&message.id) {
                Ok(Cursor::One(position)) => Some(position),
                Ok(Cursor::Many(mut all)) => {
                    ChannelName::parse(&channel.name).ok().and_then(|n| all.remove(&n))
                }
                Err(_) => None,
            };
            let Some(position) = position.filter(|position| position.epoch.as_str() == follow.epoch) else {
                follow.broken(format!("an event behind {} has the id {:?}", follow.epoch, message.id));
                return Ok(());
            };
            let offset = u32::try_from(position.offset)?;
            if built_in {
                follow.event(offset, &message.data);
            } else {
                let inside: Configured<'_> = serde_json::from_str(&message.data)?;
                if inside.offset != offset {
                    follow.broken(format!("the id says {offset}, the event {}", inside.offset));
                }
                follow.event(offset, inside.data.get());
            }
        }
    }
    Ok(())
}

/// Where the subscriber is, on all that it follows.
fn cursor(follows: &[Follow], around: &Around) -> Result<String> {
    let place = |follow: &Follow| {
        let channel = &around.channels[follow.index];
        let epoch = Epoch::parse(&follow.epoch)?;
        Some((ChannelName::parse(&channel.name).ok()?, Position::new(epoch, follow.at.into())))
    };
    let mut places: Vec<(ChannelName, Position)> = follows.iter().filter_map(place).collect();
    Ok(match (places.len(), places.pop()) {
        (1, Some((_, position))) => Cursor::One(position),
        (_, Some(last)) => Cursor::Many(places.into_iter().chain([last]).collect()),
        (_, None) => bail!("a channel has no position"),
    }
    .to_string())
}
