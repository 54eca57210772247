//! A subscriber over WebSocket: connect and all subscribes in the first frame, recovery from its
//! cursor, pongs. Close codes that no client should ever get are breaches.

use std::borrow::Cow;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Around, Ended, Follow, Subscriber};
use crate::framing::Head;
use crate::ws::frame::{self, Kind};

const READ_SIZE: usize = 16 * 1024;
/// How long the goodbye may take.
const LEAVING: Duration = Duration::from_secs(5);
/// The ids of commands: connect, then the subscribes, then the unsubscribes.
const CONNECT: u32 = 1;
const SUBSCRIBE: u32 = 10;
const UNSUBSCRIBE: u32 = 20;

/// The connection.
pub(super) struct Socket {
    stream: TcpStream,
    input: Vec<u8>,
    pongs: usize,
    /// By follow: the subscribe reply has come.
    joined: Vec<bool>,
    left: usize,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(default)]
    id: u32,
    error: Option<Refusal<'a>>,
    #[serde(borrow)]
    push: Option<Push<'a>>,
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
}

#[derive(Deserialize)]
struct Code {
    code: u32,
}

#[derive(Deserialize)]
struct Publication<'a> {
    #[serde(borrow)]
    data: &'a RawValue,
    #[serde(default)]
    offset: u32,
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
    pub(super) async fn open_socket(&mut self) -> Result<Socket> {
        let door = self.door();
        let mut stream = TcpStream::connect(door.address).await?;
        stream.set_nodelay(true)?;
        let request = format!(
            "GET /connection/websocket HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            door.host
        );
        stream.write_all(request.as_bytes()).await?;
        let mut input = Vec::with_capacity(READ_SIZE);
        let length = loop {
            if let Some((head, length)) = Head::parse(&input)? {
                match head.status {
                    101 => break length,
                    429 | 500..=599 => bail!(Ended("the upgrade was put off")),
                    status => {
                        self.follows[0].broken(format!("the upgrade was answered {status}"));
                        bail!(Ended("the upgrade was refused"));
                    }
                }
            }
            if stream.read_buf(&mut input).await? == 0 {
                bail!(Ended("closed instead of an upgrade"));
            }
        };
        input.drain(..length);

        let mut commands = json!({ "id": CONNECT, "connect": { "token": self.token } }).to_string();
        for (id, follow) in (SUBSCRIBE..).zip(&self.follows) {
            let channel = &self.around.channels[follow.index];
            let place = json!({
                "channel": channel.name, "recover": true, "epoch": channel.epoch, "offset": follow.at,
            });
            commands.push('\n');
            commands.push_str(&json!({ "id": id, "subscribe": place }).to_string());
        }
        stream.write_all(&frame::masked(Kind::Text, commands.as_bytes())).await?;
        Ok(Socket { stream, input, pongs: 0, joined: vec![false; self.follows.len()], left: 0 })
    }

    /// Unsubscribes and hears what comes before the replies.
    pub(super) async fn leave(&mut self, mut socket: Socket) -> Result<()> {
        let mut commands = Vec::new();
        for (id, follow) in (UNSUBSCRIBE..).zip(&self.follows) {
            let channel = &self.around.channels[follow.index].name;
            commands.push(json!({ "id": id, "unsubscribe": { "channel": channel } }).to_string());
        }
        let goodbye = async {
            socket.stream.write_all(&frame::masked(Kind::Text, commands.join("\n").as_bytes())).await?;
            while socket.left < self.follows.len() {
                socket.fill().await?;
                socket.take(&mut self.follows, &self.around)?;
            }
            Ok(())
        };
        timeout(LEAVING, goodbye).await?
    }
}

impl Socket {
    pub(super) async fn fill(&mut self) -> Result<()> {
        self.input.reserve(READ_SIZE);
        let read = self.stream.read_buf(&mut self.input).await?;
        if read == 0 { bail!(Ended("closed")) } else { Ok(()) }
    }

    /// Answers the pings that have come.
    pub(super) async fn answer(&mut self) -> Result<()> {
        for _ in 0..std::mem::take(&mut self.pongs) {
            self.stream.write_all(&frame::masked(Kind::Text, b"{}")).await?;
        }
        Ok(())
    }

    /// Handles whole frames; true if there is something to answer.
    pub(super) fn take(&mut self, follows: &mut [Follow], around: &Around) -> Result<bool> {
        let input = std::mem::take(&mut self.input);
        let mut at = 0;
        while let Some((kind, payload, length)) = frame::split(&input[at..])? {
            match kind {
                Kind::Text => {
                    for line in payload.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                        self.line(line, follows, around)?;
                    }
                }
                Kind::Close => return closed(payload, follows, around),
                Kind::Binary | Kind::Ping | Kind::Pong => follows[0].broken(format!("a frame of {kind:?}")),
            }
            at += length;
        }
        self.input = input;
        self.input.drain(..at);
        Ok(self.pongs > 0)
    }

    fn line(&mut self, line: &[u8], follows: &mut [Follow], around: &Around) -> Result<()> {
        if line == b"{}" {
            self.pongs += 1;
            return Ok(());
        }
        let message: Message<'_> = serde_json::from_slice(line).context("no message")?;
        if let Some(push) = message.push {
            let of = follows.iter().position(|f| around.channels[f.index].name == push.channel);
            let Some(of) = of else { return Ok(()) };
            if let Some(publication) = push.publication {
                if !self.joined[of] {
                    follows[of].broken("an event came before the subscribe reply");
                }
                follows[of].event(publication.offset, publication.data.get());
            }
            if let Some(Code { code }) = push.unsubscribe {
                if code < 2500 {
                    follows[of].broken(format!("unsubscribed with {code}"));
                }
                bail!(Ended("unsubscribed"));
            }
            return Ok(());
        }
        let of = message.id.checked_sub(SUBSCRIBE).map(|of| of as usize).filter(|of| *of < follows.len());
        if let Some(error) = message.error {
            if ![100, 111].contains(&error.code) {
                let words = format!("command {} got error {} {}", message.id, error.code, error.message);
                follows[of.unwrap_or(0)].broken(words);
            }
            bail!(Ended("a command was refused"));
        }
        if let (Some(of), Some(reply)) = (of, message.subscribe) {
            self.joined[of] = true;
            let epoch = &around.channels[follows[of].index].epoch;
            subscribed(&mut follows[of], epoch, &reply);
        } else if message.id >= UNSUBSCRIBE {
            self.left += 1;
        }
        Ok(())
    }
}

fn subscribed(follow: &mut Follow, epoch: &str, reply: &Subscribed<'_>) {
    if reply.epoch != epoch {
        return follow.broken(format!("the epoch is {}, not {epoch}", reply.epoch));
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

/// A Close frame: shutdown, slow, a dead node and the like are no breach, because the cursor stays.
fn closed(payload: &[u8], follows: &mut [Follow], around: &Around) -> Result<bool> {
    let code = payload.get(..2).map_or(1005, |code| u16::from_be_bytes([code[0], code[1]]));
    match code {
        3008 => {
            around.counters.slow.fetch_add(1, Ordering::Relaxed);
        }
        3000..=3499 | 1000 | 1001 | 1005 | 1006 | 1011..=1013 => {}
        _ => {
            let reason = String::from_utf8_lossy(payload.get(2..).unwrap_or_default()).into_owned();
            follows[0].broken(format!("closed with {code} {reason}"));
        }
    }
    bail!(Ended("closed"))
}
