//! The client protocol as a subscriber needs it, over any transport: connect and subscribe with its
//! cursors, unsubscribe, and what the server answers. A unidirectional client sends one request and gets
//! bare pushes. Ends that no client should ever get are violations.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::atomic::Ordering;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::subscription::{Context, Ended, Subscription};

/// The ids of commands: connect, then the subscribes, then the unsubscribes.
const CONNECT: u32 = 1;
const SUBSCRIBE: u32 = 10;
const UNSUBSCRIBE: u32 = 20;

/// What one connection has come to.
pub struct Protocol {
    listens: bool,
    /// By follow: the subscribe reply has come.
    joined: Vec<bool>,
    left: usize,
    /// Pings that wait for their answer.
    pub pongs: usize,
    /// How posts name this connection; none before the reply to connect.
    pub session: Option<Session>,
}

/// What a post says about whose it is.
#[derive(Deserialize)]
pub struct Session {
    #[serde(default)]
    pub session: String,
    #[serde(default)]
    pub node: String,
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
    /// The first one that a unidirectional client gets.
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

pub fn connect(token: &str) -> String {
    json!({ "id": CONNECT, "connect": { "token": token } }).to_string()
}

/// A subscribe for each channel, from its cursor.
pub fn subscribes(subscriptions: &[Subscription], context: &Context) -> String {
    let one = |(id, subscription): (u32, &Subscription)| {
        let mut subscribe = position(subscription);
        subscribe["channel"] = json!(context.channels[subscription.channel].name);
        json!({ "id": id, "subscribe": subscribe }).to_string()
    };
    (SUBSCRIBE..).zip(subscriptions).map(one).collect::<Vec<_>>().join("\n")
}

pub fn unsubscribes(subscriptions: &[Subscription], context: &Context) -> String {
    let one = |(id, subscription): (u32, &Subscription)| {
        let channel = &context.channels[subscription.channel].name;
        json!({ "id": id, "unsubscribe": { "channel": channel } }).to_string()
    };
    (UNSUBSCRIBE..).zip(subscriptions).map(one).collect::<Vec<_>>().join("\n")
}

/// All that a unidirectional client ever says.
pub fn request(token: &str, subscriptions: &[Subscription], context: &Context) -> String {
    let one = |s: &Subscription| (context.channels[s.channel].name.clone(), position(s));
    let subs: Map<String, Value> = subscriptions.iter().map(one).collect();
    json!({ "token": token, "subs": subs }).to_string()
}

fn position(subscription: &Subscription) -> Value {
    json!({ "recover": true, "epoch": subscription.epoch, "offset": subscription.offset })
}

impl Protocol {
    /// On a new connection; `listens`: to nothing but bare pushes.
    pub fn new(listens: bool, subscriptions: usize) -> Self {
        Self { listens, joined: vec![false; subscriptions], left: 0, pongs: 0, session: None }
    }

    /// Whether the server hears what is said on it.
    pub fn speaks(&self) -> bool {
        !self.listens
    }

    /// Every unsubscribe has its reply.
    pub fn has_left(&self) -> bool {
        self.left == self.joined.len()
    }

    /// Handles one message; an error that is not an end is nonsense.
    pub fn message(
        &mut self,
        message: &str,
        subscriptions: &mut [Subscription],
        context: &Context,
    ) -> Result<()> {
        if message == "{}" {
            // A unidirectional client has nothing to answer.
            self.pongs += usize::from(!self.listens);
            return Ok(());
        }
        if self.listens {
            let push = serde_json::from_str(message).context("no push")?;
            return self.push(push, subscriptions, context);
        }
        let message: Message<'_> = serde_json::from_str(message).context("no message")?;
        if let Some(push) = message.push {
            return self.push(push, subscriptions, context);
        }
        let of =
            message.id.checked_sub(SUBSCRIBE).map(|of| of as usize).filter(|of| *of < subscriptions.len());
        if let Some(error) = message.error {
            if ![100, 111].contains(&error.code) {
                let error = format!("command {} got error {} {}", message.id, error.code, error.message);
                subscriptions[of.unwrap_or(0)].unexpected(error);
            }
            bail!(Ended("a command was refused"));
        }
        if let Some(session) = message.connect {
            self.session = Some(session);
        } else if let (Some(of), Some(reply)) = (of, message.subscribe) {
            self.joined[of] = true;
            subscribed(&mut subscriptions[of], &reply);
        } else if message.id >= UNSUBSCRIBE {
            self.left += 1;
        }
        Ok(())
    }

    fn push(&mut self, push: Push<'_>, subscriptions: &mut [Subscription], context: &Context) -> Result<()> {
        if let Some(Code { code, reason }) = push.disconnect {
            return closed(code, &reason, subscriptions, context);
        }
        if let Some(connected) = push.connect {
            for (of, subscription) in subscriptions.iter_mut().enumerate() {
                match connected.subs.get(&context.channels[subscription.channel].name) {
                    Some(reply) => subscribed(subscription, reply),
                    None => subscription.unexpected("left out of the channels without a reason"),
                }
                self.joined[of] = true;
            }
            return Ok(());
        }
        let of = subscriptions.iter().position(|s| context.channels[s.channel].name == push.channel);
        let Some(of) = of else { return Ok(()) };
        if let Some(publication) = push.publication {
            if !self.joined[of] {
                subscriptions[of].unexpected("an event came before the subscribe reply");
            }
            subscriptions[of].event(publication.offset, publication.data.get());
        }
        if let Some(Code { code, .. }) = push.unsubscribe {
            if code < 2500 {
                subscriptions[of].unexpected(format!("unsubscribed with {code}"));
            }
            bail!(Ended("unsubscribed"));
        }
        Ok(())
    }
}

fn subscribed(subscription: &mut Subscription, reply: &Subscribed<'_>) {
    if reply.epoch != subscription.epoch {
        if reply.recovered {
            subscription.unexpected(format!("recovered from {} into {}", subscription.epoch, reply.epoch));
        }
        subscription.change_epoch(&reply.epoch);
    }
    if !reply.recovered {
        return subscription.signal(reply.offset);
    }
    if reply.offset != subscription.offset {
        subscription
            .unexpected(format!("recovered from {} instead of {}", reply.offset, subscription.offset));
    }
    for publication in &reply.publications {
        subscription.event(publication.offset, publication.data.get());
    }
}

/// The server ends the connection with a code: shutdown, slow, a dead node and the like are no
/// violation, because the cursor stays.
pub fn closed(code: u16, reason: &str, subscriptions: &mut [Subscription], context: &Context) -> Result<()> {
    match code {
        3008 => {
            context.counters.slow.fetch_add(1, Ordering::Relaxed);
        }
        3000..=3499 | 1000 | 1001 | 1005 | 1006 | 1011..=1013 => {}
        _ => subscriptions[0].unexpected(format!("closed with {code} {reason}")),
    }
    bail!(Ended("closed"))
}
