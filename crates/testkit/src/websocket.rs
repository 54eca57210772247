//! WebSocket connections to a gateway, and an ordinary client that follows one channel.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
pub use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

/// How long connecting may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// A connection.
pub type Socket = WebSocketStream<TcpStream>;

/// Connects to a path with its query.
pub async fn connect(address: SocketAddr, path: &str) -> Result<Socket, Error> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(client_async(format!("ws://{address}{path}"), stream).await?.0)
}

/// A client that is subscribed to a channel.
pub struct Subscriber(Socket);

impl Subscriber {
    /// Connects with a token and subscribes.
    pub async fn open(address: SocketAddr, token: &str, channel: &str) -> Result<Self> {
        timeout(DEADLINE, Self::begin(address, token, channel)).await.context("the node does not answer")?
    }

    async fn begin(address: SocketAddr, token: &str, channel: &str) -> Result<Self> {
        let mut client = Self(connect(address, "/connection/websocket").await?);
        let connect = json!({ "id": 1, "connect": { "token": token } });
        let subscribe = json!({ "id": 2, "subscribe": { "channel": channel } });
        client.0.send(Message::text(format!("{connect}\n{subscribe}"))).await?;
        loop {
            for message in client.next().await? {
                if message.get("error").is_some() {
                    bail!("a command was answered {message}");
                }
                if message["id"] == 2 {
                    return Ok(client);
                }
            }
        }
    }

    /// The messages of the next frame; pings are answered. A close is an error that names its code.
    pub async fn next(&mut self) -> Result<Vec<Value>> {
        loop {
            match self.0.next().await.context("closed without a close frame")?? {
                Message::Text(text) if text == "{}" => self.0.send(Message::text("{}")).await?,
                Message::Text(text) => {
                    let lines = text.lines().filter(|line| !line.is_empty());
                    return lines.map(|line| Ok(serde_json::from_str(line)?)).collect();
                }
                Message::Close(frame) => {
                    bail!("closed with {}", frame.map_or(1005, |frame| frame.code.into()))
                }
                other => bail!("an unexpected frame: {other:?}"),
            }
        }
    }
}
