//! A subscriber's connection over any transport that pushes: a WebSocket, or an answer that does not end,
//! of lines or of events. Bidirectional clients speak over the socket, or by posts, to any node;
//! unidirectional ones bring all they have to say with their request.

use std::time::Duration;

use anyhow::{Result, bail};
use futures_util::stream::{BoxStream, ReadyChunks, SplitSink};
use futures_util::{SinkExt as _, StreamExt as _, TryStreamExt as _, future};
use http_body_util::BodyExt as _;
use serde_json::json;
use sse_stream::{Sse, SseStream};
use testkit::http::{self, Answer, Client, RequestBuilder as _};
use testkit::random::Random;
use testkit::websocket::{self, Error, Message, Socket};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::error::ProtocolError;

use super::events;
use super::protocol::{self, Protocol, Session};
use super::subscription::{Context, Ended, Subscription};
use crate::history::Transport;

/// How long a stream may go on whose session is gone.
const ENDING: Duration = Duration::from_secs(5);
/// The most that is handled before a connection answers.
const BATCH: usize = 256;

pub struct Connection {
    incoming: ReadyChunks<Incoming>,
    pending: Vec<Result<Received>>,
    outgoing: Outgoing,
    protocol: Protocol,
}

type Incoming = BoxStream<'static, Result<Received>>;

enum Received {
    /// Messages of the client protocol, a line each.
    Messages(String),
    /// An event of `/api/events/stream`.
    Event(Sse),
    /// A WebSocket is closed with this code and reason.
    Closed(u16, String),
}

enum Outgoing {
    Nothing,
    Socket(SplitSink<Socket, Message>),
    /// Posts, and what has to wait for the reply to connect, because only that says how to post.
    Posts(Client, Option<String>),
}

impl Connection {
    /// Connects and says where the subscriber is.
    pub async fn open(
        transport: Transport,
        token: &str,
        subscriptions: &mut [Subscription],
        context: &Context,
        random: &mut Random,
    ) -> Result<Self> {
        let listens =
            matches!(transport, Transport::UniWebSocket | Transport::UniHttpStream | Transport::UniSse);
        let first = match listens {
            true => protocol::request(token, subscriptions, context),
            false => protocol::connect(token),
        };
        let (incoming, outgoing) = match transport {
            Transport::Events => (events(token, subscriptions, context).await?, Outgoing::Nothing),
            Transport::WebSocket => {
                let first = format!("{first}\n{}", protocol::subscribes(subscriptions, context));
                socket("/connection/websocket", Some(first), subscriptions, context).await?
            }
            Transport::UniWebSocket => {
                let path = "/connection/uni_websocket";
                let (path, first) = match random.once_in(2) {
                    true => (format!("{path}?cf_connect={}", encoded(&first)), None),
                    false => (path.to_owned(), Some(first)),
                };
                socket(&path, first, subscriptions, context).await?
            }
            _ => {
                let subscribes = protocol::subscribes(subscriptions, context);
                let (first, rest) = match random.once_in(2) {
                    _ if listens => (first, None),
                    true => (format!("{first}\n{subscribes}"), None),
                    false => (first, Some(subscribes)),
                };
                let incoming = stream(transport, first, subscriptions, context, random).await?;
                // In a cluster posts may well come to another node.
                let posts = Outgoing::Posts(Client::new(context.address), rest);
                (incoming, if listens { Outgoing::Nothing } else { posts })
            }
        };
        let (incoming, protocol) =
            (incoming.ready_chunks(BATCH), Protocol::new(listens, subscriptions.len()));
        Ok(Self { incoming, pending: Vec::new(), outgoing, protocol })
    }

    /// Waits for more; may be dropped meanwhile without losing any.
    pub async fn receive(&mut self) -> Result<()> {
        match self.incoming.next().await {
            Some(received) => self.pending = received,
            None => bail!(Ended("the connection ended")),
        }
        Ok(())
    }

    pub fn take(&mut self, subscriptions: &mut [Subscription], context: &Context) -> Result<()> {
        for received in self.pending.drain(..) {
            match received? {
                Received::Event(event) => events::handle(&event, subscriptions, context)?,
                Received::Closed(code, reason) => protocol::closed(code, &reason, subscriptions, context)?,
                Received::Messages(text) => {
                    for line in text.lines().filter(|line| !line.is_empty()) {
                        self.protocol.message(line, subscriptions, context)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Says what had to wait, and answers the pings that have come.
    pub async fn answer(&mut self, subscriptions: &mut [Subscription]) -> Result<()> {
        if let Outgoing::Posts(_, rest) = &mut self.outgoing
            && self.protocol.session.is_some()
            && let Some(text) = rest.take()
        {
            self.send(text, subscriptions).await?;
        }
        for _ in 0..std::mem::take(&mut self.protocol.pongs) {
            self.send("{}".into(), subscriptions).await?;
        }
        Ok(())
    }

    pub async fn unsubscribe(&mut self, subscriptions: &mut [Subscription], context: &Context) -> Result<()> {
        self.send(protocol::unsubscribes(subscriptions, context), subscriptions).await
    }

    /// Whether the server hears what is said on it.
    pub fn speaks(&self) -> bool {
        !matches!(self.outgoing, Outgoing::Nothing) && self.protocol.speaks()
    }

    /// Whether something can be said by now.
    pub fn can_speak(&self) -> bool {
        match &self.outgoing {
            Outgoing::Posts(_, rest) => self.protocol.session.is_some() && rest.is_none(),
            _ => true,
        }
    }

    /// Every unsubscribe has its reply.
    pub fn has_left(&self) -> bool {
        self.protocol.has_left()
    }

    async fn send(&mut self, text: String, subscriptions: &mut [Subscription]) -> Result<()> {
        match &mut self.outgoing {
            Outgoing::Nothing => Ok(()),
            Outgoing::Socket(sink) => Ok(sink.send(Message::text(text)).await?),
            Outgoing::Posts(client, _) => {
                let Some(Session { session, node }) = &self.protocol.session else {
                    bail!(Ended("nobody said how to post"))
                };
                let post = json!({ "session": session, "node": node, "data": text });
                let answer = client.send(http::post("/emulation").json(&post)).await?;
                match answer.status {
                    204 => return Ok(()),
                    404 => {
                        // The node has gone, and then the stream ends as well.
                        let end = async { while self.incoming.next().await.is_some() {} };
                        if timeout(ENDING, end).await.is_err() {
                            subscriptions[0].unexpected("a post was answered 404, and the stream goes on");
                        }
                    }
                    408 | 429 | 500..=599 => {}
                    status => {
                        let excerpt = answer.excerpt();
                        subscriptions[0].unexpected(format!("a post was answered {status} {excerpt}"));
                    }
                }
                bail!(Ended("a post was not taken"))
            }
        }
    }
}

/// Opens a WebSocket with this first frame, if any.
async fn socket(
    path: &str,
    first: Option<String>,
    subscriptions: &mut [Subscription],
    context: &Context,
) -> Result<(Incoming, Outgoing)> {
    let socket = match websocket::connect(context.address, path).await {
        Ok(socket) => socket,
        Err(Error::Http(answer)) => return Err(refused(answer.status().as_u16(), "", subscriptions)),
        Err(error) => bail!(error),
    };
    let (mut sink, stream) = socket.split();
    if let Some(first) = first {
        sink.send(Message::text(first)).await?;
    }
    Ok((stream.map(from_socket).boxed(), Outgoing::Socket(sink)))
}

fn from_socket(message: Result<Message, Error>) -> Result<Received> {
    match message {
        Ok(Message::Text(text)) => Ok(Received::Messages(text.to_string())),
        Ok(Message::Close(None)) => Ok(Received::Closed(1005, String::new())),
        Ok(Message::Close(Some(frame))) => Ok(Received::Closed(frame.code.into(), frame.reason.to_string())),
        Ok(other) => bail!("an unexpected frame: {other:?}"),
        Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) | Error::Io(_)) => {
            bail!(Ended("the connection broke"))
        }
        Err(nonsense) => bail!(nonsense),
    }
}

/// Opens an answer of lines or of events that carry messages.
async fn stream(
    transport: Transport,
    first: String,
    subscriptions: &mut [Subscription],
    context: &Context,
    random: &mut Random,
) -> Result<Incoming> {
    let path = format!("/connection/{transport}");
    let is_sse = matches!(transport, Transport::Sse | Transport::UniSse);
    // `EventSource` can only get; others may bring what they say in the body as well.
    let request = match is_sse && !random.once_in(4) {
        true => http::get(&format!("{path}?cf_connect={}", encoded(&first))).with(""),
        false => http::post(&path).with(first),
    };
    let body = open(request, subscriptions, context).await?;
    if is_sse {
        let messages = SseStream::new(body).map_err(from_sse).try_filter_map(|event| future::ok(event.data));
        return Ok(messages.map_ok(Received::Messages).boxed());
    }
    let mut pending = Vec::new();
    let lines = body.into_data_stream().map(move |data| {
        pending.extend_from_slice(&data.map_err(|_| Ended("the stream broke"))?);
        let whole = memchr::memrchr(b'\n', &pending).map_or(0, |end| end + 1);
        Ok(Received::Messages(String::from_utf8(pending.drain(..whole).collect())?))
    });
    Ok(lines.boxed())
}

/// Opens `/api/events/stream`.
async fn events(token: &str, subscriptions: &mut [Subscription], context: &Context) -> Result<Incoming> {
    let names: Vec<&str> = subscriptions.iter().map(|s| &*context.channels[s.channel].name).collect();
    let request = http::get(&format!("/api/events/stream?channels={}", names.join(",")))
        .bearer(token)
        .header("Accept", "text/event-stream")
        .header("Last-Event-ID", events::cursor(subscriptions, context));
    let body = open(request.with(""), subscriptions, context).await?;
    let events = SseStream::new(body).map_err(from_sse).map_ok(Received::Event);
    Ok(events
        .try_filter(|received| future::ready(!matches!(received, Received::Event(Sse { data: None, .. }))))
        .boxed())
}

fn from_sse(error: sse_stream::Error) -> anyhow::Error {
    match error {
        sse_stream::Error::Body(_) => Ended("the stream broke").into(),
        nonsense => nonsense.into(),
    }
}

async fn open(
    request: http::Request,
    subscriptions: &mut [Subscription],
    context: &Context,
) -> Result<hyper::body::Incoming> {
    let answer = http::open(context.address, request).await?;
    let status = answer.status().as_u16();
    if status != 200 {
        return Err(refused(status, &Answer::read(answer).await?.excerpt(), subscriptions));
    }
    Ok(answer.into_body())
}

/// The end of a connection that was not let in, which is a violation unless it was only put off.
fn refused(status: u16, excerpt: &str, subscriptions: &mut [Subscription]) -> anyhow::Error {
    if !matches!(status, 408 | 429 | 500..=599) {
        subscriptions[0].unexpected(format!("connecting was answered {status} {excerpt}"));
    }
    Ended("connecting was refused").into()
}

/// As it may stand in a query.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => out.push(byte.into()),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
