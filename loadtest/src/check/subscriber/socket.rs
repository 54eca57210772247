//! A subscriber over WebSocket, in both manners: one that speaks says connect and all subscribes in
//! its first frame and answers pings; one that listens brings its request in the address or as its
//! first frame, and says nothing more.

use anyhow::{Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::talk::{Talk, ended};
use super::{Around, Ended, Follow, Subscriber, encoded};
use crate::framing::Head;
use crate::ws::frame::{self, Kind};

const READ_SIZE: usize = 16 * 1024;

/// The connection.
pub(super) struct Socket {
    stream: TcpStream,
    input: Vec<u8>,
    pub(super) talk: Talk,
}

impl Subscriber {
    /// Connects and says where it is.
    pub(super) async fn open_socket(&mut self, listens: bool) -> Result<Socket> {
        let (name, mut query, mut first) = ("websocket", String::new(), None);
        if !listens {
            first = Some(format!("{}\n{}", self.connect(), self.subscribes()));
        } else if self.random.once_in(2) {
            query = format!("?cf_connect={}", encoded(&self.request()));
        } else {
            first = Some(self.request());
        }
        let manner = if listens { "uni_" } else { "" };
        let door = self.around.door.clone();
        let mut stream = TcpStream::connect(door.address).await?;
        stream.set_nodelay(true)?;
        let request = format!(
            "GET /connection/{manner}{name}{query} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\n\
             Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            door.host
        );
        stream.write_all(request.as_bytes()).await?;
        let mut input = Vec::with_capacity(READ_SIZE);
        let length = loop {
            if let Some((head, length)) = Head::parse(&input)? {
                match head.status {
                    101 => break length,
                    408 | 429 | 500..=599 => bail!(Ended("the upgrade was put off")),
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
        let mut socket = Socket { stream, input, talk: Talk::new(listens, self.follows.len()) };
        if let Some(first) = first {
            socket.say(&first).await?;
        }
        Ok(socket)
    }
}

impl Socket {
    pub(super) async fn fill(&mut self) -> Result<()> {
        self.input.reserve(READ_SIZE);
        let read = self.stream.read_buf(&mut self.input).await?;
        if read == 0 { bail!(Ended("closed")) } else { Ok(()) }
    }

    pub(super) async fn say(&mut self, words: &str) -> Result<()> {
        Ok(self.stream.write_all(&frame::masked(Kind::Text, words.as_bytes())).await?)
    }

    /// Answers the pings that have come.
    pub(super) async fn answer(&mut self) -> Result<()> {
        for _ in 0..std::mem::take(&mut self.talk.pongs) {
            self.say("{}").await?;
        }
        Ok(())
    }

    /// Handles whole frames.
    pub(super) fn take(&mut self, follows: &mut [Follow], around: &Around) -> Result<()> {
        let input = std::mem::take(&mut self.input);
        let mut at = 0;
        while let Some((kind, payload, length)) = frame::split(&input[at..])? {
            match kind {
                Kind::Text => {
                    for line in payload.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                        self.talk.message(line, follows, around)?;
                    }
                }
                Kind::Close => return closed(payload, follows, around),
                Kind::Binary | Kind::Ping | Kind::Pong => follows[0].broken(format!("a frame of {kind:?}")),
            }
            at += length;
        }
        self.input = input;
        self.input.drain(..at);
        Ok(())
    }
}

fn closed(payload: &[u8], follows: &mut [Follow], around: &Around) -> Result<()> {
    let code = payload.get(..2).map_or(1005, |code| u16::from_be_bytes([code[0], code[1]]));
    let reason = String::from_utf8_lossy(payload.get(2..).unwrap_or_default());
    ended(code, &reason, follows, around)
}
