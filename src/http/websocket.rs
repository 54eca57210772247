//! `GET /connection/websocket` and `/connection/uni_websocket`: the endpoint at which sockets leave the
//! HTTP dispatcher. It sees every request for an upgrade before any route or middleware does, so it
//! checks itself what those check elsewhere: path, method, version, origin, limits. Who the client is
//! comes with its first command.

use std::time::Duration;

use actix_codec::Framed;
use actix_http::body::{BodySize, BoxBody, MessageBody as _};
use actix_http::ws::{HandshakeError, handshake};
use actix_http::{HttpMessage as _, Method, Request, Response, StatusCode, Version, h1};
use actix_web::http::header;
use actix_web::{HttpResponse, web};
use bytes::BytesMut;
use bytestring::ByteString;
use futures_util::SinkExt as _;
use tokio::sync::watch;

use super::accepted::Accepted;
use super::client_streams::Query;
use super::error::{self, ApiError, ApiResult};
use super::metrics::RefusalCode;
use super::{HttpState, State, origin};
use crate::limits::address_budget::{AddressBudget, AddressPlace};
use crate::transport::websocket::SocketClient;

pub const PATH: &str = "/connection/websocket";
/// The path of clients that only listen.
pub const UNI_PATH: &str = "/connection/uni_websocket";
/// The subprotocol that we speak; a client may also name none.
const SUBPROTOCOL: &str = "centrifuge-json";
/// How long the answer to an upgrade may take to be written.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// What the endpoint needs.
#[derive(Clone)]
pub struct WebSocketEndpoint {
    /// Whether sockets are served at all.
    pub enabled: bool,
    /// Whether sockets of clients that only listen are.
    pub uni_enabled: bool,
    /// Open sockets of this node; `None` without a limit.
    pub open: Option<AddressBudget>,
    /// `Some(spread)` as soon as the process stops.
    pub stopping: watch::Receiver<Option<Duration>>,
}

/// Answers a request for an upgrade, and lets the socket live on its own if all is well.
pub async fn upgrade(
    request: Request,
    mut framed: Framed<Accepted, h1::Codec>,
    state: State,
) -> Result<(), actix_web::Error> {
    let worker = &state.streams.worker;
    framed.io_ref().set_busy();
    let admitted = admit(&request, &state);
    // An admitted one is counted when its session is open, or when it ends before that.
    if admitted.is_err() {
        error::count_connect(&worker.metrics, &admitted);
    }
    let (answer, held) = match admitted {
        Ok(held) => (accepted(&request), Some(held)),
        Err(error) => {
            state.metrics.refusals.inc(RefusalCode(error.code()));
            (refused(error), None)
        }
    };
    tokio::time::timeout(ANSWER_TIMEOUT, send(&mut framed, answer)).await.map_err(std::io::Error::from)??;
    let Some(held) = held else {
        framed.io_ref().unread_mark().set();
        return Ok(());
    };
    let client = if request.path() == UNI_PATH {
        SocketClient::Unidirectional(connect_of(&request))
    } else {
        SocketClient::Bidirectional
    };
    drop(request);
    let parts = framed.into_parts();
    // A copy, because the dispatcher's buffer is large and would live as long as the socket.
    let first = BytesMut::from(&parts.read_buf[..]);
    let (stream, slot) = parts.io.into_stream()?;
    actix_rt::spawn(worker.clone().serve(stream, first, client, (held, slot)));
    Ok(())
}

fn admit(
    request: &Request,
    HttpState { websocket: endpoint, access, .. }: &HttpState,
) -> Result<Option<Box<AddressPlace>>, ApiError> {
    let (enabled, section) = match request.path() {
        PATH => (endpoint.enabled, "websocket"),
        UNI_PATH => (endpoint.uni_enabled, "uni_websocket"),
        path => {
            return Err(ApiError::not_found("route").details(serde_json::json!({ "path": path })));
        }
    };
    if !enabled {
        let message = format!("WebSocket is disabled ({section}.enabled)");
        return Err(ApiError::new(StatusCode::NOT_FOUND, "transport_disabled", message));
    }
    // Its `Upgrade` means nothing (RFC 9110, section 7.8).
    if request.head().version < Version::HTTP_11 {
        return Err(upgrade_required());
    }
    if request.method() != Method::GET {
        let message = "a WebSocket handshake uses GET";
        let error = ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message);
        return Err(error.header(header::ALLOW, "GET"));
    }
    handshake(request.head()).map_err(|error| match error {
        HandshakeError::UnsupportedVersion | HandshakeError::NoVersionHeader => {
            let message = "only version 13 of WebSocket is supported";
            ApiError::new(StatusCode::UPGRADE_REQUIRED, "websocket_version", message)
                .header(header::SEC_WEBSOCKET_VERSION, "13")
        }
        error => ApiError::bad_request("bad_upgrade", format!("this is not a WebSocket handshake: {error}")),
    })?;
    let origin = request.headers().get(header::ORIGIN);
    if origin.is_some_and(|origin| !origin.to_str().is_ok_and(|text| access.origins.allow(text))) {
        return Err(origin::forbidden());
    }
    let mut offered = subprotocols(request).peekable();
    let other = offered.peek().is_some() && !offered.any(|name| name == SUBPROTOCOL);
    let binary = request.uri().query().is_some_and(|query| {
        query.split('&').any(|pair| matches!(pair, "format=protobuf" | "cf_protocol=protobuf"))
    });
    if other || binary {
        let message = format!("only JSON is supported: offer the subprotocol {SUBPROTOCOL}, or none");
        return Err(ApiError::bad_request("bad_subprotocol", message));
    }
    if endpoint.stopping.borrow().is_some() {
        return Err(ApiError::unavailable("stopping", "this node is shutting down: reconnect"));
    }
    let Some(open) = &endpoint.open else { return Ok(None) };
    let address = access.address_behind(request.peer_addr(), request.headers());
    // Few nodes limit them, and others shall not hold room for that.
    Ok(Some(Box::new(open.take(address).map_err(error::no_connection)?)))
}

/// The connect of a unidirectional client, if its query string contains it.
fn connect_of(request: &Request) -> Option<ByteString> {
    let query = web::Query::<Query>::from_query(request.uri().query().unwrap_or_default()).ok()?;
    query.into_inner().cf_connect.map(ByteString::from)
}

fn subprotocols(request: &Request) -> impl Iterator<Item = &str> {
    let lines = request.headers().get_all(header::SEC_WEBSOCKET_PROTOCOL);
    lines.filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(',')).map(str::trim)
}

fn accepted(request: &Request) -> Response<BoxBody> {
    let Ok(mut answer) = handshake(request.head()) else {
        return Response::new(StatusCode::BAD_REQUEST).map_into_boxed_body();
    };
    if subprotocols(request).any(|name| name == SUBPROTOCOL) {
        answer.insert_header((header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL));
    }
    answer.finish().map_into_boxed_body()
}

/// The same body as a route's refusal; the connection ends with it.
fn refused(error: ApiError) -> Response<BoxBody> {
    let mut answer: Response<BoxBody> = HttpResponse::from_error(error).into();
    answer.head_mut().set_connection_type(actix_http::ConnectionType::Close);
    answer
}

async fn send(
    framed: &mut Framed<Accepted, h1::Codec>,
    answer: Response<BoxBody>,
) -> Result<(), std::io::Error> {
    let (head, body) = answer.into_parts();
    let size = body.size();
    let bytes = body.try_into_bytes().unwrap_or_default();
    if head.status() == StatusCode::SWITCHING_PROTOCOLS || bytes.is_empty() {
        return framed.send(h1::Message::Item((head, BodySize::None))).await;
    }
    framed.feed(h1::Message::Item((head, size))).await?;
    framed.feed(h1::Message::Chunk(Some(bytes))).await?;
    framed.send(h1::Message::Chunk(None)).await
}

/// A request to the path that asks for no upgrade.
pub async fn no_upgrade() -> ApiResult {
    Err(upgrade_required())
}

fn upgrade_required() -> ApiError {
    let message = "this path accepts only WebSocket connections over HTTP/1.1: connect with an SDK, or use GET /api/events/stream";
    ApiError::new(StatusCode::UPGRADE_REQUIRED, "upgrade_required", message)
        .header(header::UPGRADE, "websocket")
}
