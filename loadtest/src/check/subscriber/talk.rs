//! The client protocol as a subscriber needs it, whatever carries it: connect and subscribe with its
//! cursors, unsubscribe, and what the server says to that. Who only listens says all in one request
//! and hears bare pushes. Ends that no client should ever get are breaches.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::atomic::Ordering;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::{Around, Ended, Follow, Subscriber};

/// The ids of commands: connect, then the subscribes, then the unsubscribes.
const CONNECT: u32 = 1;
const SUBSCRIBE: u32 = 10;
const UNSUBSCRIBE: u32 = 20;

/// What was heard on one connection.
pub(super) struct Talk {
    listens: bool,
    /// By follow: the subscribe reply has come.
    joined: Vec<bool>,
    left: usize,
    /// Pings that wait for their answer.
    pub(super) pongs: usize,
    /// How posts name this connection; none before the reply to connect.
    pub(super) session: Option<Session>,
}

/// What a post says about whose it is.
#[derive(Deserialize)]
pub(super) struct Session {
    #[serde(default)]
    pub(super) session: String,
    #[serde(default)]
    pub(super) node: String,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(default)]
    id: u32,
    error: Option<Refusal<'a>>,
    #[serde(borrow)]
    push: Option<Push<'a>>,
    connect: Option<Session>,
    #[serde(borrow)]
    subscribe: Option<Subscribed<'a>>,
}

#[derive(Deserialize)]
struct Refusal<'a> {
    code: u32,
    #[serde(borrow)]
    message: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Push<'a> {
    #[serde(borrow, default)]
    channel: Cow<'a, str>,
    #[serde(borrow, rename = "pub")]
    publication: Option<Publication<'a>>,
    unsubscribe: Option<Code>,
    disconnect: Option<Code>,
    /// The first one of who only listens.
    #[serde(borrow)]
    connect: Option<Connected<'a>>,
}

#[derive(Deserialize)]
struct Code {
    code: u16,
    #[serde(default)]
    reason: String,
}

#[derive(Deserialize)]
struct Publication<'a> {
    #[serde(borrow)]
    data: &'a RawValue,
    #[serde(default)]
    offset: u32,
}

#[derive(Deserialize)]
struct Connected<'a> {
    #[serde(borrow, default)]
    subs: HashMap<String, Subscribed<'a>>,
}

#[derive(Deserialize)]
struct Subscribed<'a> {
    #[serde(borrow, default)]
    epoch: Cow<'a, str>,
    #[serde(default)]
    offset: u32,
    #[serde(default)]
    recovered: bool,
    #[serde(borrow, default)]
    publications: Vec<Publication<'a>>,
}

impl Subscriber {
    /// The first command.
    pub(super) fn connect(&self) -> String {
        json!({ "id": CONNECT, "connect": { "token": self.token } }).to_string()
    }

    /// A subscribe for each channel, from its cursor.
    pub(super) fn subscribes(&self) -> String {
        let one = |(id, follow): (u32, &Follow)| {
            let mut place = Self::place(follow);
            place["channel"] = json!(self.around.channels[follow.index].name);
            json!({ "id": id, "subscribe": place }).to_string()
        };
        (SUBSCRIBE..).zip(&self.follows).map(one).collect::<Vec<_>>().join("\n")
    }

    /// An unsubscribe for each channel.
    pub(super) fn unsubscribes(&self) -> String {
        let one = |(id, follow): (u32, &Follow)| {
            let channel = &self.around.channels[follow.index].name;
            json!({ "id": id, "unsubscribe": { "channel": channel } }).to_string()
        };
        (UNSUBSCRIBE..).zip(&self.follows).map(one).collect::<Vec<_>>().join("\n")
    }

    /// All that one who only listens ever says.
    pub(super) fn request(&self) -> String {
        let place = |follow: &Follow| (self.around.channels[follow.index].name.clone(), Self::place(follow));
        let subs: Map<String, Value> = self.follows.iter().map(place).collect();
        json!({ "token": self.token, "subs": subs }).to_string()
    }

    fn place(follow: &Follow) -> Value {
        json!({ "recover": true, "epoch": follow.epoch, "offset": follow.at })
    }
}

impl Talk {
    /// On a new connection; `listens`: to nothing but bare pushes.
    pub(super) fn new(listens: bool, follows: usize) -> Self {
        Self { listens, joined: vec![false; follows], left: 0, pongs: 0, session: None }
    }

    /// Whether what it says is heard by the server.
    pub(super) fn speaks(&self) -> bool {
        !self.listens
    }

    /// Every unsubscribe has its reply.
    pub(super) fn has_left(&self) -> bool {
        self.left == self.joined.len()
    }

    /// Handles one message; an error that is not an end is nonsense.
    pub(super) fn message(&mut self, message: &[u8], follows: &mut [Follow], around: &Around) -> Result<()> {
        if message == b"{}" {
            // Who only listens has nothing to answer.
            self.pongs += usize::from(!self.listens);
            return Ok(());
        }
        if self.listens {
            let push = serde_json::from_slice(message).context("no push")?;
            return self.push(push, follows, around);
        }
        let message: Message<'_> = serde_json::from_slice(message).context("no message")?;
        if let Some(push) = message.push {
            return self.push(push, follows, around);
        }
        let of = message.id.checked_sub(SUBSCRIBE).map(|of| of as usize).filter(|of| *of < follows.len());
        if let Some(error) = message.error {
            if ![100, 111].contains(&error.code) {
                let words = format!("command {} got error {} {}", message.id, error.code, error.message);
                follows[of.unwrap_or(0)].broken(words);
            }
            bail!(Ended("a command was refused"));
        }
        if let Some(session) = message.connect {
            self.session = Some(session);
        } else if let (Some(of), Some(reply)) = (of, message.subscribe) {
            self.joined[of] = true;
            subscribed(&mut follows[of], &reply);
        } else if message.id >= UNSUBSCRIBE {
            self.left += 1;
        }
        Ok(())
    }

    fn push(&mut self, push: Push<'_>, follows: &mut [Follow], around: &Around) -> Result<()> {
        if let Some(Code { code, reason }) = push.disconnect {
            return ended(code, &reason, follows, around);
        }
        if let Some(connected) = push.connect {
            for (of, follow) in follows.iter_mut().enumerate() {
                match connected.subs.get(&around.channels[follow.index].name) {
                    Some(reply) => subscribed(follow, reply),
                    None => follow.broken("left out of the channels, without a word"),
                }
                self.joined[of] = true;
            }
            return Ok(());
        }
        let of = follows.iter().position(|f| around.channels[f.index].name == push.channel);
        let Some(of) = of else { return Ok(()) };
        if let Some(publication) = push.publication {
            if !self.joined[of] {
                follows[of].broken("an event came before the subscribe reply");
            }
            follows[of].event(publication.offset, publication.data.get());
        }
        if let Some(Code { code, .. }) = push.unsubscribe {
            if code < 2500 {
                follows[of].broken(format!("unsubscribed with {code}"));
            }
            bail!(Ended("unsubscribed"));
        }
        Ok(())
    }
}

fn subscribed(follow: &mut Follow, reply: &Subscribed<'_>) {
    if reply.epoch != follow.epoch {
        if reply.recovered {
            follow.broken(format!("recovered from {} into {}", follow.epoch, reply.epoch));
        }
        follow.turn(&reply.epoch);
    }
    if !reply.recovered {
        return follow.signal(reply.offset);
    }
    if reply.offset != follow.at {
        follow.broken(format!("recovered from {} instead of {}", reply.offset, follow.at));
    }
    for publication in &reply.publications {
        follow.event(publication.offset, publication.data.get());
    }
}

/// The server ends the connection with a code: shutdown, slow, a dead node and the like are no
/// breach, because the cursor stays.
pub(super) fn ended(code: u16, reason: &str, follows: &mut [Follow], around: &Around) -> Result<()> {
    match code {
        3008 => {
            around.counters.slow.fetch_add(1, Ordering::Relaxed);
        }
        3000..=3499 | 1000 | 1001 | 1005 | 1006 | 1011..=1013 => {}
        _ => follows[0].broken(format!("closed with {code} {reason}")),
    }
    bail!(Ended("closed"))
}
