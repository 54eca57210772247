//! A WebSocket client of one node that follows one channel, on tokio. For a few hundred of them; where the
//! client must cost next to nothing there is the swarm.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use testkit::target::Target;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::frame::{self, Kind};
use crate::framing::Head;

/// How long connecting may take.
const TIMEOUT: Duration = Duration::from_secs(10);
const READ_SIZE: usize = 16 * 1024;

/// The connection.
pub struct Wire {
    stream: TcpStream,
    input: Vec<u8>,
}

impl Wire {
    /// Connects and subscribes, from the beginning of the channel.
    pub async fn open(node: &Target, token: &str, channel: &str) -> Result<Self> {
        timeout(TIMEOUT, Self::begin(node, token, channel)).await.context("the node does not answer")?
    }

    async fn begin(node: &Target, token: &str, channel: &str) -> Result<Self> {
        let mut stream = TcpStream::connect(node.address).await?;
        stream.set_nodelay(true)?;
        let request = format!(
            "GET /connection/websocket HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\n\
             Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            node.host
        );
        stream.write_all(request.as_bytes()).await?;
        let mut input = Vec::with_capacity(READ_SIZE);
        let length = loop {
            match Head::parse(&input)? {
                Some((head, length)) if head.status == 101 => break length,
                Some((head, _)) => bail!("the upgrade was answered {}", head.status),
                None if stream.read_buf(&mut input).await? == 0 => bail!("closed instead of an upgrade"),
                None => {}
            }
        };
        input.drain(..length);
        let mut wire = Self { stream, input };
        let connect = json!({ "id": 1, "connect": { "token": token } });
        let subscribe = json!({ "id": 2, "subscribe": { "channel": channel } });
        wire.say(&format!("{connect}\n{subscribe}")).await?;
        loop {
            for message in wire.next().await? {
                if message.get("error").is_some() {
                    bail!("a command was answered {message}");
                }
                if message["id"] == 2 {
                    return Ok(wire);
                }
            }
        }
    }

    async fn say(&mut self, words: &str) -> Result<()> {
        Ok(self.stream.write_all(&frame::masked(Kind::Text, words.as_bytes())).await?)
    }

    /// The messages of the next frame; pings are answered. A close is an error that names its code.
    pub async fn next(&mut self) -> Result<Vec<Value>> {
        loop {
            if let Some((kind, payload, length)) = frame::split(&self.input)? {
                let (kind, payload) = (kind, payload.to_vec());
                self.input.drain(..length);
                match kind {
                    Kind::Text if payload == b"{}" => self.say("{}").await?,
                    Kind::Text => {
                        let lines = payload.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
                        return lines.map(|line| Ok(serde_json::from_slice(line)?)).collect();
                    }
                    Kind::Close => {
                        let code =
                            payload.get(..2).map_or(1005, |code| u16::from_be_bytes([code[0], code[1]]));
                        bail!("closed with {code}");
                    }
                    _ => bail!("a frame of {kind:?}"),
                }
            } else if self.stream.read_buf(&mut self.input).await? == 0 {
                bail!("closed without a Close frame");
            }
        }
    }
}
