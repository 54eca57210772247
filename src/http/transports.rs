//! The doors of the streams that speak the client protocol: `/connection/http_stream` and
//! `/connection/sse`, their sisters that only listen, and `/emulation` for what the clients of the
//! first two say later (protocol §3.3 to §3.6). Who the client is comes with its first command; a
//! door looks only at the request. Origins are judged by `origin`, for all routes.

use std::rc::Rc;
use std::time::Duration;

use actix_web::http::{StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, web};
use bytestring::ByteString;
use serde::Deserialize;
use tokio::sync::watch;

use super::body::{self, Bounds};
use super::error::{self, ApiError, ApiResult};
use super::limit::Budget;
use super::line::{self, Socket};
use crate::cluster::{Cluster, Posted};
use crate::protocol::form::Form;
use crate::transport::emulation::{Delivery, Sessions};
use crate::transport::stream::{Line, Streams};

/// What one of the doors knows.
#[derive(Debug, Clone, Copy)]
pub struct Door {
    /// Whether it is open at all.
    pub enabled: bool,
    /// The largest body, or parameter in its place.
    pub largest: u64,
}

/// What all of them know.
pub struct TransportDoors {
    /// One for each [`Form`]; that of the socket is elsewhere.
    pub doors: [Door; Form::COUNT],
    /// The largest post.
    pub largest_post: u64,
    /// How long a body may take to arrive.
    pub body_timeout: Duration,
    /// Bodies in memory while they arrive.
    pub in_flight: Budget,
    /// Open connections of this node; `None` without a limit.
    pub open: Option<Budget>,
    /// Open streams of this node.
    pub streams: Budget,
    /// The sessions that posts may be for.
    pub sessions: Sessions,
    /// `Some(spread)` as soon as the process stops.
    pub stopping: watch::Receiver<Option<Duration>>,
}

/// The query string of a client that sends no body.
#[derive(Debug, Deserialize)]
pub struct Query {
    /// What it would say first.
    pub cf_connect: Option<String>,
}

type Doors = web::Data<TransportDoors>;

/// `POST /connection/http_stream`
pub async fn http_stream(request: HttpRequest, body: web::Payload, doors: Doors) -> ApiResult {
    open_with_body(Form::HttpStream, request, body, doors).await
}

/// `POST /connection/sse`
pub async fn sse_by_body(request: HttpRequest, body: web::Payload, doors: Doors) -> ApiResult {
    open_with_body(Form::Sse, request, body, doors).await
}

/// `GET /connection/sse`
pub async fn sse(request: HttpRequest, query: web::Query<Query>, doors: Doors) -> ApiResult {
    let Some(first) = query.into_inner().cf_connect else {
        let message = "say what to connect with: ?cf_connect=COMMANDS";
        return Err(ApiError::bad_request("cf_connect_missing", message));
    };
    open(Form::Sse, &request, first.into(), &doors)
}

/// `POST /connection/uni_http_stream`
pub async fn uni_http_stream(request: HttpRequest, body: web::Payload, doors: Doors) -> ApiResult {
    open_with_body(Form::UniHttpStream, request, body, doors).await
}

/// `POST /connection/uni_sse`
pub async fn uni_sse_by_body(request: HttpRequest, body: web::Payload, doors: Doors) -> ApiResult {
    open_with_body(Form::UniSse, request, body, doors).await
}

/// `GET /connection/uni_sse`: without a parameter it is an empty request.
pub async fn uni_sse(request: HttpRequest, query: web::Query<Query>, doors: Doors) -> ApiResult {
    let first = query.into_inner().cf_connect.unwrap_or_else(|| "{}".to_owned());
    open(Form::UniSse, &request, first.into(), &doors)
}

/// What a client says after its stream has opened.
#[derive(Deserialize)]
struct Post {
    session: String,
    node: String,
    data: String,
}

/// `POST /emulation`
pub async fn emulate(
    request: HttpRequest,
    body: web::Payload,
    doors: Doors,
    cluster: web::Data<Cluster>,
) -> ApiResult {
    if ![Form::HttpStream, Form::Sse].iter().any(|form| doors.doors[form.index()].enabled) {
        return Err(disabled("http_stream, sse"));
    }
    let text = read(&request, body, &doors, doors.largest_post).await?;
    let post: Post = serde_json::from_str(&text).map_err(|_| {
        ApiError::bad_request(
            "bad_post",
            "this is no {\"session\":…,\"node\":…,\"data\":…}: see the protocol",
        )
    })?;
    let frame = ByteString::from(post.data);
    let posted = match doors.sessions.deliver(&post.node, &post.session, frame.clone()) {
        Delivery::Done => Posted::Done,
        Delivery::TooMuch => Posted::TooMuch,
        Delivery::OtherNode => cluster.post(&post.node, post.session, frame.into()).await,
    };
    match posted {
        Posted::Done => Ok(HttpResponse::NoContent().finish()),
        Posted::NoNode => Err(ApiError::not_found("node")),
        Posted::NoAnswer => Err(ApiError::unavailable(
            "node_silent",
            "the node of this session does not answer: connect again",
        )),
        Posted::TooMuch => {
            let message = "more waits for this connection than may; it was closed: connect again";
            Err(ApiError::too_many("session_busy", message, 1))
        }
    }
}

async fn open_with_body(form: Form, request: HttpRequest, body: web::Payload, doors: Doors) -> ApiResult {
    check(form, &doors)?;
    let first = read(&request, body, &doors, doors.doors[form.index()].largest).await?;
    open(form, &request, first, &doors)
}

fn open(form: Form, request: &HttpRequest, first: ByteString, doors: &TransportDoors) -> ApiResult {
    let app = request.app_data::<Rc<Streams>>().expect("every worker is built with its streams");
    let admitted = admit(form, first, doors, request, app);
    // One that is let in counts when its session is open, or over without that.
    if admitted.is_err() {
        error::count_connect(&app.all.metrics, &admitted);
    }
    admitted
}

fn admit(
    form: Form,
    first: ByteString,
    doors: &TransportDoors,
    request: &HttpRequest,
    streams: &Rc<Streams>,
) -> ApiResult {
    check(form, doors)?;
    let largest = doors.doors[form.index()].largest;
    if first.len() as u64 > largest {
        return Err(body::too_large(largest));
    }
    let mut held = (doors.streams.reserve(), doors.open.as_ref().map(Budget::reserve));
    if !held.0.grow(1) {
        return Err(ApiError::unavailable("too_many_streams", "this node has no room for another stream"));
    }
    if held.1.as_mut().is_some_and(|open| !open.grow(1)) {
        return Err(ApiError::unavailable("too_many_connections", "this node has no room for another one"));
    }
    let (cut, left) = Socket::of(request);
    let body = streams.open(form, first, Line { cut, left, held: Box::new(held) });
    let kind = if form.is_sse() { "text/event-stream; charset=utf-8" } else { "application/json" };
    Ok(HttpResponse::build(StatusCode::OK)
        .insert_header((header::CONTENT_TYPE, kind))
        .insert_header(line::UNCACHED)
        .insert_header(line::UNBUFFERED)
        .insert_header((header::PRAGMA, "no-cache"))
        .body(body))
}

/// Whether the door is open.
fn check(form: Form, doors: &TransportDoors) -> Result<(), ApiError> {
    if !doors.doors[form.index()].enabled {
        return Err(disabled(form.name()));
    }
    if doors.stopping.borrow().is_some() {
        return Err(ApiError::unavailable("stopping", "this node goes away: connect again"));
    }
    Ok(())
}

fn disabled(section: &str) -> ApiError {
    let message = format!("this transport is switched off here ({section}.enabled)");
    ApiError::new(StatusCode::NOT_FOUND, "transport_disabled", message)
}

/// Reads a body of text. The binary flavour of the protocol is not spoken here.
async fn read(
    request: &HttpRequest,
    body: web::Payload,
    doors: &TransportDoors,
    largest: u64,
) -> ApiResult<ByteString> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    if kind.is_some_and(|kind| kind.starts_with("application/octet-stream")) {
        let message = "this server speaks JSON alone: send application/json";
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_format", message));
    }
    let bounds = Bounds { bytes: largest, time: doors.body_timeout };
    let mut reserved = doors.in_flight.reserve();
    let bytes = body::read(request.headers(), body, bounds, &mut reserved, |_| {}).await?;
    String::from_utf8(bytes)
        .map(ByteString::from)
        .map_err(|_| ApiError::bad_request("body_not_utf8", "the body is not UTF-8"))
}
