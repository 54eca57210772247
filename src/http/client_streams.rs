//! The endpoints of the streams that speak the client protocol: `/connection/http_stream` and
//! `/connection/sse`, their unidirectional variants, and `/emulation` for the later commands of the
//! clients of the first two (protocol §3.3 to §3.6). The client authenticates with its first command;
//! an endpoint looks only at the request. Origins are judged by `origin`, for all routes.

use std::time::Duration;

use actix_web::http::{StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, web};
use bytestring::ByteString;
use serde::Deserialize;
use tokio::sync::watch;
use uuid::Uuid;

use super::body::{self, Bounds, Pace};
use super::error::{self, ApiError, ApiResult};
use super::state::Budgets;
use super::tcp::{self, TcpHandle};
use super::{HttpState, State};
use crate::cluster::PostOutcome;
use crate::config::Config;
use crate::limits::address_budget::AddressBudget;
use crate::limits::gcra::Rate;
use crate::limits::rate_limit::RateLimit;
use crate::limits::room::{self, Place, Room};
use crate::limits::shared::SharedCounters;
use crate::protocol::form::Form;
use crate::transport::emulation::{LocalPostOutcome, Sessions, is_session};
use crate::transport::http_stream::StreamRequest;

/// The options of one transport.
#[derive(Debug, Clone, Copy)]
pub struct Endpoint {
    /// Whether this transport is enabled.
    pub enabled: bool,
    /// The largest body, or parameter in its place.
    pub largest: u64,
}

/// What the endpoints of all these transports share.
pub struct ClientStreamEndpoints {
    /// One for each [`Form`]; that of the socket is elsewhere.
    pub endpoints: [Endpoint; Form::COUNT],
    /// The largest post.
    pub largest_post: u64,
    /// How long a body may take to arrive.
    pub body_timeout: Duration,
    /// How fast it has to come.
    pub pace: Pace,
    /// Bodies in memory while they arrive.
    pub in_flight: Room,
    /// Open connections of this node; `None` without a limit.
    pub open: Option<AddressBudget>,
    /// Open streams of this node.
    pub streams: AddressBudget,
    /// Posts for sessions of other nodes, by address.
    pub relayed: RateLimit,
    /// The sessions that posts may be for.
    pub sessions: Sessions,
    /// `Some(spread)` as soon as the process stops.
    pub stopping: watch::Receiver<Option<Duration>>,
}

impl Endpoint {
    fn new(config: &Config, form: Form) -> Self {
        let (enabled, largest) = match form {
            Form::HttpStream => (config.http_stream.enabled, config.http_stream.max_request_body_size),
            Form::Sse => (config.sse.enabled, config.sse.max_request_body_size),
            Form::UniWebsocket => (config.uni_websocket.enabled, config.uni_websocket.message_size_limit),
            Form::UniHttpStream => {
                (config.uni_http_stream.enabled, config.uni_http_stream.max_request_body_size)
            }
            Form::UniSse => (config.uni_sse.enabled, config.uni_sse.max_request_body_size),
        };
        Self { enabled, largest: largest.0 }
    }
}

impl ClientStreamEndpoints {
    pub fn new(
        config: &Config,
        budgets: &Budgets,
        (streams, open): (AddressBudget, Option<AddressBudget>),
        sessions: Sessions,
        stopping: watch::Receiver<Option<Duration>>,
    ) -> Self {
        Self {
            endpoints: Form::ALL.map(|form| Endpoint::new(config, form)),
            largest_post: config.emulation.max_request_body_size.0,
            body_timeout: config.client.stale_close_delay.0,
            pace: Pace::from(&config.limits),
            in_flight: Room::new(budgets.client_bytes.clone()),
            open,
            streams,
            // A post must not wait for Redis, and this node alone asks for it.
            relayed: RateLimit::new(
                "relayed_posts",
                Rate::per_minute(config.limits.relayed_posts_per_minute.into()),
                SharedCounters::none(),
            ),
            sessions,
            stopping,
        }
    }
}

/// The query string of a client that sends no body.
#[derive(Debug, Deserialize)]
pub struct Query {
    /// Its first commands.
    pub cf_connect: Option<String>,
}

/// `POST /connection/http_stream`
pub async fn http_stream(request: HttpRequest, body: web::Payload, state: State) -> ApiResult {
    open_with_body(Form::HttpStream, request, body, state).await
}

/// `POST /connection/sse`
pub async fn sse_by_body(request: HttpRequest, body: web::Payload, state: State) -> ApiResult {
    open_with_body(Form::Sse, request, body, state).await
}

/// `GET /connection/sse`
pub async fn sse(request: HttpRequest, query: web::Query<Query>, state: State) -> ApiResult {
    let Some(first) = query.into_inner().cf_connect else {
        let message = "the parameter cf_connect is missing: pass ?cf_connect=COMMANDS";
        return Err(ApiError::bad_request("cf_connect_missing", message));
    };
    open(Form::Sse, &request, first.into(), &state)
}

/// `POST /connection/uni_http_stream`
pub async fn uni_http_stream(request: HttpRequest, body: web::Payload, state: State) -> ApiResult {
    open_with_body(Form::UniHttpStream, request, body, state).await
}

/// `POST /connection/uni_sse`
pub async fn uni_sse_by_body(request: HttpRequest, body: web::Payload, state: State) -> ApiResult {
    open_with_body(Form::UniSse, request, body, state).await
}

/// `GET /connection/uni_sse`: without a parameter it is an empty request.
pub async fn uni_sse(request: HttpRequest, query: web::Query<Query>, state: State) -> ApiResult {
    let first = query.into_inner().cf_connect.unwrap_or_else(|| "{}".to_owned());
    open(Form::UniSse, &request, first.into(), &state)
}

/// Commands that a client sends after its stream has opened.
#[derive(Deserialize)]
struct Post {
    session: String,
    node: String,
    data: String,
}

/// `POST /emulation`
pub async fn emulate(request: HttpRequest, body: web::Payload, state: State) -> ApiResult {
    let HttpState { client_streams: endpoints, cluster, access, .. } = &*state;
    if ![Form::HttpStream, Form::Sse].iter().any(|form| endpoints.endpoints[form.index()].enabled) {
        return Err(disabled("http_stream, sse"));
    }
    let text = read(&request, body, &state, endpoints.largest_post).await?;
    let post: Post = serde_json::from_str(&text).map_err(|_| {
        ApiError::bad_request("bad_post", "the body must be {\"session\":…,\"node\":…,\"data\":…}")
    })?;
    // Nobody is asked for what cannot be.
    let node = Uuid::parse_str(&post.node).ok().filter(|node| node.to_string() == post.node);
    if node.is_none() {
        return Err(ApiError::not_found("node"));
    }
    if !is_session(&post.session) {
        return Err(ApiError::not_found("session"));
    }
    let frame = ByteString::from(post.data);
    let outcome = match endpoints.sessions.deliver(&post.node, &post.session, frame.clone()) {
        LocalPostOutcome::Accepted => PostOutcome::Accepted,
        LocalPostOutcome::QueueFull => PostOutcome::QueueFull,
        LocalPostOutcome::OtherNode => {
            let address = room::address(access.address_of(&request)).to_string();
            let decision = endpoints.relayed.check(&address).await;
            if !decision.allowed {
                let message = "too many posts for streams of other nodes from this address: wait";
                return Err(ApiError::too_many("too_many_relayed_posts", message, decision.retry_secs()));
            }
            cluster.post(&post.node, post.session, frame.into()).await
        }
    };
    match outcome {
        PostOutcome::Accepted => Ok(HttpResponse::NoContent().finish()),
        PostOutcome::UnknownNode => Err(ApiError::not_found("node")),
        PostOutcome::NoResponse => {
            Err(ApiError::unavailable("node_silent", "the node of this session does not answer: reconnect"))
        }
        PostOutcome::QueueFull => {
            let message = "too many queued messages: reconnect";
            Err(ApiError::too_many("session_busy", message, 1))
        }
    }
}

async fn open_with_body(form: Form, request: HttpRequest, body: web::Payload, state: State) -> ApiResult {
    let endpoints = &state.client_streams;
    check(form, endpoints)?;
    let first = read(&request, body, &state, endpoints.endpoints[form.index()].largest).await?;
    open(form, &request, first, &state)
}

fn open(form: Form, request: &HttpRequest, first: ByteString, state: &State) -> ApiResult {
    let admitted = admit(form, first, request, state);
    // An admitted one is counted when its session is open, or when it ends before that.
    if admitted.is_err() {
        error::count_connect(&state.streams.worker.metrics, &admitted);
    }
    admitted
}

fn admit(form: Form, first: ByteString, request: &HttpRequest, state: &State) -> ApiResult {
    let State { node, streams } = state;
    let endpoints = &node.client_streams;
    check(form, endpoints)?;
    let largest = endpoints.endpoints[form.index()].largest;
    if first.len() as u64 > largest {
        return Err(body::too_large(largest));
    }
    let address = node.access.address_of(request);
    let stream = endpoints.streams.take(address).map_err(error::no_stream)?;
    let open = endpoints.open.as_ref().map(|open| open.take(address)).transpose();
    let held = (stream, open.map_err(error::no_connection)?);
    let (abort, closed) = TcpHandle::of(request);
    let body = streams.open(form, first, StreamRequest { abort, closed, held: Box::new(held) });
    let kind = if form.is_sse() { "text/event-stream; charset=utf-8" } else { "application/json" };
    Ok(HttpResponse::build(StatusCode::OK)
        .insert_header((header::CONTENT_TYPE, kind))
        .insert_header(tcp::UNCACHED)
        .insert_header(tcp::UNBUFFERED)
        .insert_header((header::PRAGMA, "no-cache"))
        .body(body))
}

/// Fails if the transport is disabled or the node is stopping.
fn check(form: Form, endpoints: &ClientStreamEndpoints) -> Result<(), ApiError> {
    if !endpoints.endpoints[form.index()].enabled {
        return Err(disabled(form.name()));
    }
    if endpoints.stopping.borrow().is_some() {
        return Err(ApiError::unavailable("stopping", "this node is shutting down: reconnect"));
    }
    Ok(())
}

fn disabled(section: &str) -> ApiError {
    let message = format!("this transport is disabled ({section}.enabled)");
    ApiError::new(StatusCode::NOT_FOUND, "transport_disabled", message)
}

/// Reads a body of text. The binary form of the protocol is not supported.
async fn read(
    request: &HttpRequest,
    body: web::Payload,
    state: &HttpState,
    largest: u64,
) -> ApiResult<ByteString> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    if kind.is_some_and(|kind| kind.starts_with("application/octet-stream")) {
        let message = "only JSON is supported: send application/json";
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_format", message));
    }
    // Who sends it is in it.
    let (bytes, _) = read_bytes(request, body, state, largest, false).await?;
    String::from_utf8(bytes)
        .map(ByteString::from)
        .map_err(|_| ApiError::bad_request("body_not_utf8", "the body is not UTF-8"))
}

/// Reads a body, with its place in the room that all of these share. Whoever is not `proven` makes way for who is.
pub(super) async fn read_bytes(
    request: &HttpRequest,
    body: web::Payload,
    HttpState { client_streams: endpoints, access, .. }: &HttpState,
    largest: u64,
    proven: bool,
) -> ApiResult<(Vec<u8>, Place)> {
    let bounds = Bounds { bytes: largest, time: endpoints.body_timeout, pace: endpoints.pace };
    // Who has proven itself has a share of its own, whoever else comes from its address.
    let mut place = endpoints.in_flight.enter((room::address(access.address_of(request)), proven), proven);
    let bytes = body::read(request.headers(), body, bounds, &mut place, |_| {}).await?;
    Ok((bytes, place))
}
