//! A small client of the client protocol (protocol §2, §4): one WebSocket to a gateway. Connects,
//! sends commands and reads messages one at a time, answers pings and detects missing ones. Decides
//! from the code of an ended connection whether to reconnect, and nothing about channels.
//! Must hold: no error repeats a token.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::anyhow;
use futures_util::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::error::{CapacityError, Error as SocketError};
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

use super::remote::{RESPONSE_TIMEOUT, Remote, RequestError, describe};
use super::terminal::printable;
use crate::domain::position::{Epoch, Position};
use crate::net::http_client::{StatusCode, Upgraded};
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

/// The result of `connect` (protocol §4.1).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Connected {
    ping: u32,
    pong: bool,
    subs: std::collections::BTreeMap<String, serde::de::IgnoredAny>,
}

/// The result of `subscribe` (protocol §4.2).
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

/// The result of `history`: stored events (protocol §4.6).
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

/// A push (protocol §5). Kinds that are of no interest here have neither field.
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

pub(super) struct Client {
    socket: WebSocketStream<Upgraded>,
    /// Messages of the last frame that are not consumed yet.
    messages: VecDeque<ServerMessage>,
    last_id: u32,
    /// How long the server may be silent; `None` means without a limit.
    silence: Option<Duration>,
    pong: bool,
    /// The channels that the token subscribes to by itself.
    server_side: Vec<String>,
}

impl Client {
    pub(super) async fn connect(remote: &Remote, token: &str) -> Result<Self, Disconnected> {
        let mut client = Self {
            socket: open_socket(remote).await?,
            messages: VecDeque::new(),
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

    /// Sends a command and returns the id of its reply.
    pub(super) async fn send(&mut self, method: &str, about: Value) -> Result<u32, Disconnected> {
        self.last_id += 1;
        self.send_text(json!({ "id": self.last_id, method: about }).to_string()).await?;
        Ok(self.last_id)
    }

    /// The next message. Fails if there is none until `answer_by`.
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
        let sent = timeout(RESPONSE_TIMEOUT, self.socket.send(Message::text(text))).await;
        sent.map_err(|_| retry("the gateway does not read what is sent"))?.map_err(|error| broke(&error))
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
                Some(Ok(Message::Text(text))) => self.read(&text)?,
                Some(Ok(Message::Close(reason))) => return Err(closed(reason)),
                Some(Ok(Message::Binary(_))) => return Err(not_the_protocol()),
                // Reading on answers a ping.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(broke(&error)),
                None => return Err(retry("the gateway ended the connection")),
            }
        }
    }

    /// A frame has one message in each line (protocol §1).
    fn read(&mut self, text: &str) -> Result<(), Disconnected> {
        for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
            self.messages.push_back(serde_json::from_str(line).map_err(|_| not_the_protocol())?);
        }
        Ok(())
    }
}

impl History {
    /// The position before the first of these events, or before the next one if there is none.
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

fn broke(error: &SocketError) -> Disconnected {
    match error {
        // After reconnecting the same message would come again.
        SocketError::Capacity(CapacityError::MessageTooLong { .. }) => Disconnected::Fatal(anyhow!(
            "a message of the gateway is longer than {} MiB",
            LARGEST_MESSAGE >> 20
        )),
        error => retry(format!("the connection broke: {error}")),
    }
}

fn not_the_protocol() -> Disconnected {
    Disconnected::Fatal(anyhow!("what the gateway sends is not the client protocol"))
}

fn closed(reason: Option<CloseFrame>) -> Disconnected {
    const SHUTDOWN: u16 = DisconnectCode::Shutdown.code();
    const EXPIRED: u16 = DisconnectCode::Expired.code();
    const BAD_TOKEN: u16 = DisconnectCode::InvalidToken.code();
    let Some(CloseFrame { code, reason }) = reason else {
        return retry("the gateway ended the connection");
    };
    let code = u16::from(code);
    let message = printable(&format!("the gateway ended the connection: {reason} (code {code})"));
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

/// Opens a WebSocket (RFC 6455, section 4.1).
async fn open_socket(remote: &Remote) -> Result<WebSocketStream<Upgraded>, Disconnected> {
    let key = generate_key();
    let request = remote.get(PATH).header("Connection", "Upgrade").header("Upgrade", "websocket");
    let request = request.header("Sec-WebSocket-Version", "13").header("Sec-WebSocket-Key", &key);
    let response = remote.open(request).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(no_socket(response.status()));
    }
    if response.header("Sec-WebSocket-Accept") != Some(derive_accept_key(key.as_bytes()).as_str()) {
        return Err(Disconnected::Fatal(anyhow!("this is not a gateway: it does not speak WebSocket")));
    }
    let socket = response.upgrade().await.map_err(|error| retry(format!("the connection broke: {error}")))?;
    let config = WebSocketConfig::default()
        .max_message_size(Some(LARGEST_MESSAGE))
        .max_frame_size(Some(LARGEST_MESSAGE));
    Ok(WebSocketStream::from_raw_socket(socket, Role::Client, Some(config)).await)
}

impl From<RequestError> for Disconnected {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Unreachable(error) => Self::Unreachable(error),
            RequestError::NoResponse(error) => Self::Retry(error),
        }
    }
}

/// What it means that a request for a WebSocket was answered with this status.
fn no_socket(status: StatusCode) -> Disconnected {
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
