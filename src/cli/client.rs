//! A small client of the client protocol (protocol §2, §4): one WebSocket to a gateway. Connects,
//! sends commands and reads messages one at a time; answers pings and detects missing ones. Decides
//! nothing about channels; what an ended connection means is decided here, by its code.
//! Must hold: no error repeats a token.

use std::collections::VecDeque;
use std::time::Duration;

use actix_codec::Framed;
use anyhow::anyhow;
use awc::BoxedSocket;
use awc::error::{WsClientError, WsProtocolError};
use awc::http::StatusCode;
use awc::ws::{CloseReason, Codec, Frame, Message};
use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::remote::{RESPONSE_TIMEOUT, Remote, RequestError, describe};
use super::terminal::printable;
use crate::domain::position::{Epoch, Position};
use crate::protocol::code::{ClientAction, DisconnectCode, ErrorCode};

const PATH: &str = "/connection/websocket";
/// How late a ping may be.
const PING_GRACE: Duration = Duration::from_secs(20);
/// The most bytes of one message. Far above what a gateway sends.
const LARGEST_MESSAGE: usize = 64 << 20;
const PONG: &str = "{}";

/// Why a connection ended or could not be opened.
#[derive(Debug)]
pub(super) enum Disconnected {
    /// The gateway cannot be reached.
    Unreachable(anyhow::Error),
    /// A temporary error: reconnect later.
    Retry(anyhow::Error),
    /// The token has expired.
    Expired,
    /// The gateway rejects the token.
    BadToken(String),
    /// A permanent error.
    Fatal(anyhow::Error),
}

/// A message from the server.
#[derive(Debug)]
pub(super) enum Incoming {
    /// The reply to the command with this id.
    Reply(u32, Result<Reply, Failure>),
    /// A push.
    Push(Push),
}

/// A successful reply.
#[derive(Debug)]
pub(super) enum Reply {
    /// To `subscribe`.
    Subscribed(Subscribed),
    /// To `history`.
    History(History),
    /// To anything else.
    Done,
}

/// What the server says of the connection (protocol §4.1).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Connected {
    ping: u32,
    pong: bool,
    subs: std::collections::BTreeMap<String, serde::de::IgnoredAny>,
}

/// What the server says of a subscription (protocol §4.2).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Subscribed {
    pub(super) recoverable: bool,
    pub(super) positioned: bool,
    pub(super) epoch: String,
    pub(super) offset: u64,
    pub(super) recovered: bool,
    pub(super) publications: Vec<Publication>,
}

/// Stored events (protocol §4.6).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct History {
    pub(super) publications: Vec<Publication>,
    epoch: String,
    offset: u64,
}

/// An event (protocol §4.10).
#[derive(Debug, Deserialize)]
pub(super) struct Publication {
    pub(super) data: Box<RawValue>,
    #[serde(default)]
    pub(super) offset: u64,
    pub(super) tags: Option<Box<RawValue>>,
    pub(super) info: Option<Box<RawValue>>,
}

/// What comes unasked (protocol §5). Other kinds have none of these.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Push {
    pub(super) channel: String,
    #[serde(rename = "pub")]
    pub(super) publication: Option<Publication>,
    pub(super) unsubscribe: Option<Unsubscribed>,
}

/// The end of a subscription (protocol §6.2).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Unsubscribed {
    pub(super) code: u32,
    pub(super) reason: String,
}

/// An error reply (protocol §6.1).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Failure {
    pub(super) code: u32,
    message: String,
    temporary: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ServerMessage {
    id: u32,
    error: Option<Failure>,
    connect: Option<Connected>,
    subscribe: Option<Subscribed>,
    history: Option<History>,
    push: Option<Push>,
}

/// One connection.
pub(super) struct Client {
    socket: Framed<BoxedSocket, Codec>,
    /// Messages of the last frame that are not consumed yet.
    messages: VecDeque<ServerMessage>,
    /// A message of several frames, as far as it has come.
    partial: BytesMut,
    last_id: u32,
    /// How long the server may be silent; `None` is without a limit.
    silence: Option<Duration>,
    pong: bool,
    /// The channels that the token subscribes to by itself.
    server_side: Vec<String>,
}

impl Client {
    /// Connects with `token`.
    pub(super) async fn connect(remote: &Remote, token: &str) -> Result<Self, Disconnected> {
        let request = remote.websocket(PATH).max_frame_size(LARGEST_MESSAGE);
        let (_, socket) = request.connect().await.map_err(|error| no_socket(remote, error))?;
        let mut client = Self {
            socket,
            messages: VecDeque::new(),
            partial: BytesMut::new(),
            last_id: 0,
            silence: None,
            pong: false,
            server_side: Vec::new(),
        };
        let about = json!({ "token": token, "name": "campanile", "version": env!("CARGO_PKG_VERSION") });
        client.send("connect", about).await?;
        let answer_by = Instant::now() + RESPONSE_TIMEOUT;
        let connected = loop {
            match client.next_message(Some(answer_by)).await? {
                ServerMessage { error: Some(failure), .. } => return Err(failure.into()),
                ServerMessage { connect: Some(connected), .. } => break connected,
                _ => {}
            }
        };
        client.silence =
            (connected.ping > 0).then(|| Duration::from_secs(connected.ping.into()) + PING_GRACE);
        client.pong = connected.pong;
        client.server_side = connected.subs.into_keys().collect();
        Ok(client)
    }

    /// Whether the token has subscribed to `channel`.
    pub(super) fn is_subscribed(&self, channel: &str) -> bool {
        self.server_side.iter().any(|subscribed| subscribed == channel)
    }

    /// Sends a command; its reply will have the number that this returns.
    pub(super) async fn send(&mut self, method: &str, about: Value) -> Result<u32, Disconnected> {
        self.last_id += 1;
        self.send_text(json!({ "id": self.last_id, method: about }).to_string()).await?;
        Ok(self.last_id)
    }

    /// The next message. Gives up if there is none until `answer_by`.
    pub(super) async fn next(&mut self, answer_by: Option<Instant>) -> Result<Incoming, Disconnected> {
        loop {
            match self.next_message(answer_by).await? {
                ServerMessage { push: Some(push), .. } => return Ok(Incoming::Push(push)),
                ServerMessage { id: 0, .. } if self.pong => self.send_text(PONG.to_owned()).await?,
                ServerMessage { id: 0, .. } => {}
                ServerMessage { id, error: Some(failure), .. } => {
                    return Ok(Incoming::Reply(id, Err(failure)));
                }
                ServerMessage { id, subscribe: Some(subscribed), .. } => {
                    return Ok(Incoming::Reply(id, Ok(Reply::Subscribed(subscribed))));
                }
                ServerMessage { id, history: Some(history), .. } => {
                    return Ok(Incoming::Reply(id, Ok(Reply::History(history))));
                }
                ServerMessage { id, .. } => return Ok(Incoming::Reply(id, Ok(Reply::Done))),
            }
        }
    }

    async fn send_text(&mut self, text: String) -> Result<(), Disconnected> {
        self.write(Message::Text(text.into())).await
    }

    async fn write(&mut self, message: Message) -> Result<(), Disconnected> {
        let written = tokio::time::timeout(RESPONSE_TIMEOUT, self.socket.send(message)).await;
        written.map_err(|_| retry("the gateway does not read what is sent"))?.map_err(|error| broke(&error))
    }

    async fn next_message(&mut self, answer_by: Option<Instant>) -> Result<ServerMessage, Disconnected> {
        loop {
            if let Some(message) = self.messages.pop_front() {
                return Ok(message);
            }
            let quiet_until = self.silence.map(|silence| Instant::now() + silence);
            let frame = match [answer_by, quiet_until].into_iter().flatten().min() {
                None => self.socket.next().await,
                Some(until) => timeout_at(until, self.socket.next()).await.map_err(|_| {
                    let unanswered = answer_by.is_some_and(|answer_by| answer_by <= until);
                    let waited = self.silence.filter(|_| !unanswered).unwrap_or(RESPONSE_TIMEOUT);
                    let what = if unanswered { "no reply was received" } else { "nothing was received" };
                    retry(format!("{what} for {} s", waited.as_secs()))
                })?,
            };
            match frame {
                Some(Ok(frame)) => self.take(frame).await?,
                Some(Err(error)) => return Err(broke(&error)),
                None => return Err(retry("the gateway ended the connection")),
            }
        }
    }

    async fn take(&mut self, frame: Frame) -> Result<(), Disconnected> {
        match frame {
            Frame::Text(text) => self.read(&text)?,
            Frame::Continuation(item) => self.join(item)?,
            Frame::Ping(payload) => self.write(Message::Pong(payload)).await?,
            Frame::Pong(_) => {}
            Frame::Close(reason) => return Err(closed(reason)),
            Frame::Binary(_) => return Err(not_the_protocol()),
        }
        Ok(())
    }

    fn join(&mut self, item: actix_http::ws::Item) -> Result<(), Disconnected> {
        use actix_http::ws::Item;
        let (piece, is_last): (Bytes, bool) = match item {
            Item::FirstText(piece) | Item::Continue(piece) => (piece, false),
            Item::Last(piece) => (piece, true),
            Item::FirstBinary(_) => return Err(not_the_protocol()),
        };
        if self.partial.len() + piece.len() > LARGEST_MESSAGE {
            return Err(too_long());
        }
        self.partial.extend_from_slice(&piece);
        if is_last {
            let text = self.partial.split();
            self.read(&text)?;
        }
        Ok(())
    }

    /// A frame has one message in each line (protocol §1).
    fn read(&mut self, text: &[u8]) -> Result<(), Disconnected> {
        for line in text.strip_suffix(b"\n").unwrap_or(text).split(|byte| *byte == b'\n') {
            self.messages.push_back(serde_json::from_slice(line).map_err(|_| not_the_protocol())?);
        }
        Ok(())
    }
}

impl History {
    /// Behind what the first of these events is, or would be.
    pub(super) fn oldest(&self) -> Option<Position> {
        let first = self.publications.first();
        let offset = first.map_or(self.offset, |event| event.offset.saturating_sub(1));
        Some(Position::new(Epoch::parse(&self.epoch)?, offset))
    }
}

impl Failure {
    /// Whether the same command may succeed later.
    pub(super) fn is_temporary(&self) -> bool {
        self.client_action() == ClientAction::Retry
    }

    /// The message of the gateway.
    pub(super) fn text(&self) -> String {
        printable(&format!("the gateway says: {} (code {})", self.message, self.code))
    }

    fn client_action(&self) -> ClientAction {
        let known = ErrorCode::ALL.iter().find(|known| u32::from(known.code()) == self.code);
        let unknown = if self.temporary { ClientAction::Retry } else { ClientAction::Terminal };
        known.map_or(unknown, |known| known.client_action())
    }
}

impl From<Failure> for Disconnected {
    fn from(failure: Failure) -> Self {
        match failure.client_action() {
            ClientAction::Renew => Self::Expired,
            ClientAction::Terminal => Self::Fatal(anyhow!(failure.text())),
            ClientAction::Retry | ClientAction::Resubscribe | ClientAction::Reconnect => {
                Self::Retry(anyhow!(failure.text()))
            }
        }
    }
}

fn retry(text: impl Into<String>) -> Disconnected {
    Disconnected::Retry(anyhow!(text.into()))
}

fn broke(error: &WsProtocolError) -> Disconnected {
    match error {
        WsProtocolError::Overflow => too_long(),
        error => retry(format!("the connection broke: {error}")),
    }
}

/// Coming back would bring the same message again.
fn too_long() -> Disconnected {
    Disconnected::Fatal(anyhow!("a message of the gateway is longer than {} MiB", LARGEST_MESSAGE >> 20))
}

fn not_the_protocol() -> Disconnected {
    Disconnected::Fatal(anyhow!("what the gateway says is not the client protocol"))
}

fn closed(reason: Option<CloseReason>) -> Disconnected {
    const SHUTDOWN: u16 = DisconnectCode::Shutdown.code();
    const EXPIRED: u16 = DisconnectCode::Expired.code();
    const BAD_TOKEN: u16 = DisconnectCode::InvalidToken.code();
    let Some(CloseReason { code, description }) = reason else {
        return retry("the gateway ended the connection");
    };
    let (code, why) = (u16::from(code), description.unwrap_or_default());
    let message = printable(&format!("the gateway ended the connection: {why} (code {code})"));
    match code {
        SHUTDOWN => retry("the gateway is going away"),
        EXPIRED => Disconnected::Expired,
        BAD_TOKEN => Disconnected::BadToken(message),
        _ if ClientAction::of_disconnect(code.into()) == ClientAction::Terminal => {
            Disconnected::Fatal(anyhow!(message))
        }
        _ => retry(message),
    }
}

/// What it means that there is no WebSocket.
fn no_socket(remote: &Remote, error: WsClientError) -> Disconnected {
    match error {
        WsClientError::SendRequest(error) => match remote.request_error(&error) {
            RequestError::Unreachable(error) => Disconnected::Unreachable(error),
            RequestError::NoResponse(error) => Disconnected::Retry(error),
        },
        WsClientError::InvalidResponseStatus(status) => {
            let message = describe(status, b"");
            match status {
                StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => retry(message),
                _ if status.is_server_error() => retry(message),
                StatusCode::NOT_FOUND => Disconnected::Fatal(anyhow!(
                    "{message}: there is no WebSocket at {PATH}. Is this a gateway, with `websocket.enabled`?"
                )),
                _ => Disconnected::Fatal(anyhow!("{message}, but this is not a WebSocket at {PATH}")),
            }
        }
        error => Disconnected::Fatal(anyhow!("this is not a gateway: {error}")),
    }
}
