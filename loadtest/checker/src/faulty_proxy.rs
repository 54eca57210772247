//! A server that is known to be wrong: the gateway behind a reverse proxy that drops, repeats, reorders or
//! holds back events inside WebSocket frames, server-sent events, lines and pages alike, or acknowledges
//! what was never committed. The checker must convict each.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use clap::ValueEnum;
use futures_util::{SinkExt as _, StreamExt as _, TryStreamExt as _};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Body as _, Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::upgrade::{self, OnUpgrade};
use hyper::{Method, Request, Response, StatusCode, client, server};
use hyper_util::rt::TokioIo;
use memchr::memmem;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

/// One in so many events, or posts, is treated wrongly.
const EVERY_EVENT: u64 = 7;
const EVERY_POST: u64 = 5;

/// What is wrong with the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Defect {
    /// An event is left out.
    Drop,
    /// An event is sent twice.
    Repeat,
    /// An event is sent after the next one.
    Reorder,
    /// From some event on nothing is sent, for longer than anybody waits.
    Delay,
    /// A publisher is answered 2xx, and nothing was committed.
    AckWithoutCommit,
    /// Nodes do not hear each other, and do not look into the log either.
    NoBus,
}

pub struct FaultyProxy {
    pub address: SocketAddr,
    accepting: AbortHandle,
}

type Body = UnsyncBoxBody<Bytes, hyper::Error>;

impl FaultyProxy {
    /// One in front of the gateway at `upstream`.
    pub async fn start(upstream: SocketAddr, defect: Defect) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let posts = Arc::new(AtomicU64::new(0));
        let accept = async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let events = Arc::new(Mutex::new(Distortion { defect, seen: 0, held: None }));
                let connection = Connection { upstream, defect, posts: posts.clone(), events };
                let service = service_fn(move |request| connection.clone().answer(request));
                let http = server::conn::http1::Builder::new();
                tokio::spawn(http.serve_connection(TokioIo::new(stream), service).with_upgrades());
            }
        };
        Ok(Self { address, accepting: tokio::spawn(accept).abort_handle() })
    }
}

impl Drop for FaultyProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

#[derive(Clone)]
struct Connection {
    upstream: SocketAddr,
    defect: Defect,
    /// Over all connections.
    posts: Arc<AtomicU64>,
    events: Arc<Mutex<Distortion>>,
}

impl Connection {
    async fn answer(self, mut request: Request<Incoming>) -> Result<Response<Body>> {
        if self.defect == Defect::AckWithoutCommit && request.method() == Method::POST {
            let number = self.posts.fetch_add(1, Ordering::Relaxed);
            if number % EVERY_POST == EVERY_POST - 1 {
                return acknowledge(request).await;
            }
        }
        let client = upgrade::on(&mut request);
        let stream = TcpStream::connect(self.upstream).await?;
        let (mut sender, connection) = client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection.with_upgrades());
        let mut answer = sender.send_request(request).await?;
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            let gateway = upgrade::on(&mut answer);
            tokio::spawn(relay(client, gateway, self.events));
            return Ok(answer.map(|_| whole("")));
        }
        let (mut head, body) = answer.into_parts();
        if body.size_hint().exact().is_none() {
            let kind = head.headers.get(CONTENT_TYPE).map_or(&b""[..], |kind| kind.as_bytes());
            let end: &[u8] = if kind.starts_with(b"text/event-stream") { b"\n\n" } else { b"\n" };
            return Ok(Response::from_parts(head, rewritten(body, end, self.events)));
        }
        let mut body = body.collect().await?.to_bytes();
        if let Some(page) = lock(&self.events).page(&body) {
            head.headers.remove(CONTENT_LENGTH);
            body = page.into();
        }
        Ok(Response::from_parts(head, whole(body)))
    }
}

/// Answers as if the request had been committed.
async fn acknowledge(request: Request<Incoming>) -> Result<Response<Body>> {
    let is_webhook = request.uri().path().starts_with("/webhooks/");
    let (status, body) = if is_webhook { (202, "{\"received\":true}") } else { (200, "{\"result\":{}}") };
    request.into_body().collect().await?;
    Ok(Response::builder().status(status).body(whole(body))?)
}

fn whole(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body of events or lines that `end` separates. A gateway ends every one, so that nothing is left over.
fn rewritten(body: Incoming, end: &'static [u8], events: Arc<Mutex<Distortion>>) -> Body {
    let mut pending = Vec::new();
    let rewrite = move |data: Bytes| {
        pending.extend_from_slice(&data);
        let mut out = Vec::new();
        while let Some(at) = memmem::find(&pending, end) {
            let unit: Vec<u8> = pending.drain(..at + end.len()).collect();
            let is_event = is_event(&unit);
            lock(&events).pass(unit, is_event, |unit| out.extend_from_slice(unit));
        }
        Frame::data(Bytes::from(out))
    };
    StreamBody::new(body.into_data_stream().map_ok(rewrite)).boxed_unsync()
}

/// Carries WebSocket messages in both directions, until either side ends.
async fn relay(client: OnUpgrade, gateway: OnUpgrade, events: Arc<Mutex<Distortion>>) -> Result<()> {
    let (client, gateway) = tokio::try_join!(client, gateway)?;
    let mut client = WebSocketStream::from_raw_socket(TokioIo::new(client), Role::Server, None).await;
    let mut gateway = WebSocketStream::from_raw_socket(TokioIo::new(gateway), Role::Client, None).await;
    loop {
        tokio::select! {
            message = client.next() => gateway.send(message.context("the client has gone")??).await?,
            message = gateway.next() => {
                let message = match message.context("the gateway has gone")?? {
                    Message::Text(text) => lock(&events).lines(&text).map(Message::text),
                    other => Some(other),
                };
                if let Some(message) = message {
                    client.send(message).await?;
                }
            }
        }
    }
}

fn lock(events: &Mutex<Distortion>) -> std::sync::MutexGuard<'_, Distortion> {
    events.lock().expect("no panic while events are rewritten")
}

/// What becomes of the events on one connection.
struct Distortion {
    defect: Defect,
    seen: u64,
    held: Option<Vec<u8>>,
}

#[derive(Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    events: Vec<&'a RawValue>,
}

impl Distortion {
    /// What is left of the lines of a text frame, if anything is.
    fn lines(&mut self, text: &str) -> Option<String> {
        let mut kept = Vec::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let is_event = is_event(line.as_bytes());
            self.pass(line.into(), is_event, |line| kept.push(String::from_utf8_lossy(line).into_owned()));
        }
        (!kept.is_empty()).then(|| kept.join("\n"))
    }

    /// What is left of a page of events; none if the body is no page.
    fn page(&mut self, body: &[u8]) -> Option<Vec<u8>> {
        let page: Page<'_> = serde_json::from_slice(body).ok()?;
        let rest = memmem::rfind(body, b"],\"cursor\":")?;
        let mut kept: Vec<Vec<u8>> = Vec::new();
        for event in page.events {
            self.pass(event.get().into(), true, |event| kept.push(event.to_vec()));
        }
        Some([b"{\"events\":[", &*kept.join(&b","[..]), &body[rest..]].concat())
    }

    fn pass(&mut self, unit: Vec<u8>, is_event: bool, mut send: impl FnMut(&[u8])) {
        if !is_event {
            return send(&unit);
        }
        self.seen += 1;
        let now = self.seen.is_multiple_of(EVERY_EVENT);
        match self.defect {
            Defect::Drop if now => {}
            Defect::Repeat if now => {
                send(&unit);
                send(&unit);
            }
            Defect::Reorder if now => self.held = Some(unit),
            Defect::Delay if self.seen > EVERY_EVENT => {}
            _ => {
                send(&unit);
                if let Some(held) = self.held.take() {
                    send(&held);
                }
            }
        }
    }
}

/// Whether a line or a block carries an event: a publication of the client protocol, or an event of
/// `/api/events/stream`, where all else that has an id is about the stream itself.
fn is_event(unit: &[u8]) -> bool {
    let has = |words: &[u8]| memmem::find(unit, words).is_some();
    let message = unit.trim_ascii_start();
    let message = message.strip_prefix(b"data: ").unwrap_or(message);
    if message.starts_with(b"{") {
        let pushed = message.starts_with(b"{\"push\":") || message.starts_with(b"{\"channel\":");
        return pushed && has(b"\"pub\":");
    }
    has(b"\nid: ") && has(b"\ndata: ") && !has(b"event: stream:")
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use sse_stream::{Sse, SseStream};
    use testkit::http::{self, Answer, RequestBuilder as _};
    use testkit::websocket;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn push(number: u32) -> String {
        format!("{{\"push\":{{\"channel\":\"a:b\",\"pub\":{{\"data\":{number},\"offset\":{number}}}}}}}")
    }

    fn offset(message: &str) -> Option<u64> {
        let message: Value = serde_json::from_str(message).unwrap();
        let push = message.get("push").unwrap_or(&message);
        push["pub"]["offset"].as_u64()
    }

    /// A proxy in front of a server that answers every request with these pieces.
    async fn before(defect: Defect, pieces: Vec<Vec<u8>>) -> FaultyProxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    stream.read_buf(&mut head).await.unwrap();
                }
                for piece in &pieces {
                    stream.write_all(piece).await.unwrap();
                    tokio::task::yield_now().await;
                }
            }
        });
        FaultyProxy::start(upstream, defect).await.unwrap()
    }

    /// Five frames with two events each.
    async fn over_websocket(defect: Defect) -> Vec<u64> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = FaultyProxy::start(listener.local_addr().unwrap(), defect).await.unwrap();
        let gateway = async {
            let (stream, _) = listener.accept().await.unwrap();
            let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
            for pair in [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]] {
                socket.send(Message::text(pair.map(push).join("\n"))).await.unwrap();
            }
            socket.close(None).await.unwrap();
            while socket.next().await.is_some_and(|message| message.is_ok()) {}
        };
        let client = async {
            let (mut socket, mut offsets) =
                (websocket::connect(proxy.address, "/").await.unwrap(), Vec::new());
            while let Some(Ok(message)) = socket.next().await {
                if let Message::Text(text) = message {
                    offsets.extend(text.lines().filter_map(offset));
                }
            }
            offsets
        };
        tokio::join!(gateway, client).1
    }

    /// What is left of a stream of this kind, cut anywhere.
    async fn over_chunks(defect: Defect, kind: &str, text: &str) -> http::Stream {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n");
        let chunk = |data: &[u8]| [format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat();
        let chunks = text.as_bytes().chunks(17).map(chunk);
        let pieces = [head.into_bytes()].into_iter().chain(chunks).chain([b"0\r\n\r\n".to_vec()]);
        let proxy = before(defect, pieces.collect()).await;
        http::open(proxy.address, http::get("/").with("")).await.unwrap()
    }

    async fn messages(stream: http::Stream) -> Vec<Sse> {
        SseStream::new(stream.into_body()).try_collect().await.unwrap()
    }

    async fn over_events(defect: Defect) -> Vec<u64> {
        let mut text = "retry: 1\n\n: ping\n\n".to_owned();
        text.extend((1..=10).map(|n| format!("event: message\nid: e.{n}\ndata: {n}\n\n")));
        let messages = messages(over_chunks(defect, "text/event-stream; charset=utf-8", &text).await).await;
        messages.iter().filter_map(|message| message.data.as_ref()?.parse().ok()).collect()
    }

    async fn over_sse(defect: Defect) -> Vec<u64> {
        let mut text = "\r\ndata: {\"id\":1,\"connect\":{}}\n\ndata: {}\n\n".to_owned();
        text.extend((1..=10).map(|n| format!("data: {}\n\n", push(n))));
        let messages = messages(over_chunks(defect, "text/event-stream; charset=utf-8", &text).await).await;
        let messages: Vec<&str> = messages.iter().filter_map(|message| message.data.as_deref()).collect();
        assert_eq!(messages[0], "{\"id\":1,\"connect\":{}}");
        messages.into_iter().filter_map(offset).collect()
    }

    async fn over_lines(defect: Defect) -> Vec<u64> {
        let mut text = "{\"connect\":{\"subs\":{}}}\n".to_owned();
        text.extend(
            (1..=10).map(|n| format!("{{\"channel\":\"a:b\",\"pub\":{{\"data\":{n},\"offset\":{n}}}}}\n")),
        );
        let answer = Answer::read(over_chunks(defect, "application/json", &text).await).await.unwrap();
        std::str::from_utf8(&answer.body).unwrap().lines().filter_map(offset).collect()
    }

    #[tokio::test]
    async fn each_defect_shows_on_every_transport() {
        for (defect, received) in [
            (Defect::Drop, vec![1, 2, 3, 4, 5, 6, 8, 9, 10]),
            (Defect::Repeat, vec![1, 2, 3, 4, 5, 6, 7, 7, 8, 9, 10]),
            (Defect::Reorder, vec![1, 2, 3, 4, 5, 6, 8, 7, 9, 10]),
            (Defect::Delay, vec![1, 2, 3, 4, 5, 6, 7]),
        ] {
            assert_eq!(over_websocket(defect).await, received, "{defect:?}");
            assert_eq!(over_events(defect).await, received, "{defect:?}");
            assert_eq!(over_sse(defect).await, received, "{defect:?}");
            assert_eq!(over_lines(defect).await, received, "{defect:?}");
        }
    }

    #[tokio::test]
    async fn pages_are_wrong_too_and_as_long_as_they_say() {
        let body = "{\"events\":[1,2,3,4,5,6,7,8],\"cursor\":\"e.8\",\"hasNext\":false}";
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nx: y\r\n\r\n{body}", body.len());
        for (defect, events) in [(Defect::Drop, "1,2,3,4,5,6,8"), (Defect::Repeat, "1,2,3,4,5,6,7,7,8")] {
            let proxy = before(defect, answer.as_bytes().chunks(7).map(<[u8]>::to_vec).collect()).await;
            let answer = http::send(proxy.address, http::get("/").with("")).await.unwrap();
            let expected = body.replace("1,2,3,4,5,6,7,8", events);
            assert_eq!(answer.header("content-length"), Some(&*expected.len().to_string()));
            assert_eq!((&*answer.body, answer.header("x")), (expected.as_bytes(), Some("y")));
        }
    }

    #[tokio::test]
    async fn what_is_no_stream_is_left_alone() {
        for (text, status, body) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", 200, "{}"),
            ("HTTP/1.1 404 x\r\ncontent-length: 0\r\n\r\n", 404, ""),
        ] {
            let proxy = before(Defect::Drop, vec![text.into()]).await;
            let answer = http::send(proxy.address, http::get("/").with("")).await.unwrap();
            assert_eq!((answer.status, &*answer.body), (status, body.as_bytes()));
        }
    }

    #[tokio::test]
    async fn one_post_in_five_is_acknowledged_and_never_arrives() {
        let unreachable = vec![b"HTTP/1.1 503 Not Now\r\ncontent-length: 0\r\n\r\n".to_vec()];
        let proxy = before(Defect::AckWithoutCommit, unreachable).await;
        let mut statuses = Vec::new();
        for _ in 0..10 {
            let request = http::post("/api/publish").with("");
            statuses.push(http::send(proxy.address, request).await.unwrap().status);
        }
        assert_eq!(statuses, [503, 503, 503, 503, 200, 503, 503, 503, 503, 200]);
    }
}
