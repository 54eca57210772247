//! `GET /api/events/stream`: the event stream for people and `EventSource`. Starts live, resumes by
//! `Last-Event-ID` or `cursor`; one forbidden channel refuses all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, get, web};
use serde::Deserialize;
use tokio::sync::watch;
use utoipa::IntoParams;

use super::channel_list;
use super::error::{self, ApiError, ApiResult};
use super::extract;
use super::tcp::{self, TcpHandle};
use super::{HttpState, State};
use crate::config::Config;
use crate::domain::access::{Action, default_channels};
use crate::domain::channel::ChannelName;
use crate::domain::position::Position;
use crate::domain::principal::Principal;
use crate::limits::address_budget::AddressBudget;
use crate::limits::room;
use crate::limits::user_connections::{Capacity, UserConnections};
use crate::resources;
use crate::transport::event_stream::{self, EventStreamContext, OpenError, SseOptions, Start};

/// In how many seconds somebody may try again that follows too many new channels.
const NEW_CHANNELS_RETRY: u64 = 5;

/// What the endpoint needs.
pub struct StreamEndpoint {
    /// Whether streams are served at all.
    pub enabled: bool,
    /// How streams behave.
    pub options: SseOptions,
    /// Channels of one stream.
    pub max_channels: usize,
    /// Open streams of this node.
    pub open: AddressBudget,
    /// Open streams of each user.
    pub by_user: UserConnections,
    /// `Some(spread)` as soon as the process stops.
    pub stopping: watch::Receiver<Option<Duration>>,
}

impl StreamEndpoint {
    pub fn new(
        config: &Config,
        open: AddressBudget,
        by_user: UserConnections,
        stopping: watch::Receiver<Option<Duration>>,
    ) -> Self {
        Self {
            enabled: config.sse.enabled,
            options: SseOptions::from(config),
            max_channels: config.limits.stream_channels as usize,
            open,
            by_user,
            stopping,
        }
    }
}

/// The query string.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// With commas between (`\\,` for one in a name); all that the claims admit if absent.
    channels: Option<String>,
    /// The `cursor` of an earlier response.
    cursor: Option<String>,
    #[param(ignore)]
    token: Option<String>,
}

/// Live events (SSE) of up to 32 channels.
///
/// Begins with what comes, or behind `Last-Event-ID` (or `cursor`). A lost cursor is told as
/// `stream:reset`, the token's end as `stream:expired`, the server's as `stream:closing`.
#[utoipa::path(
    params(Query, ("Last-Event-ID" = Option<String>, Header)),
    responses(
        (status = 200, description = "A stream.", body = String, content_type = "text/event-stream"),
        (status = 404), (status = 429),
    ),
    security(("token" = []), ("session" = []), ("token_in_query" = [])),
)]
#[get("/api/events/stream")]
pub async fn stream_events(request: HttpRequest, query: web::Query<Query>, state: State) -> ApiResult {
    let done = try_open(request, query, &state).await;
    error::count_connect(&state.streams.worker.metrics, &done);
    done
}

async fn try_open(request: HttpRequest, query: web::Query<Query>, state: &State) -> ApiResult {
    let HttpState { access, event_streams: endpoint, store, .. } = &**state;
    if !endpoint.enabled {
        let message = "event streams are disabled (sse.enabled): poll GET /api/events";
        return Err(ApiError::new(StatusCode::NOT_FOUND, "transport_disabled", message));
    }
    let who = extract::identify(&request, query.token.as_deref()).await?;
    let principal = who.principal;
    let channels = channels(&principal, query.channels.as_deref(), endpoint.max_channels)?;
    for channel in &channels {
        let resource = resources::lookup(store, channel).await?;
        access.check(&principal, Action::Subscribe, channel, &resource)?;
    }
    let mut positions = positions(&request, &query, &channels)?;
    let namespaces = access.namespaces.load_full();
    if let Some(channel) = positions.keys().find(|channel| namespaces.retention_of(channel).is_none()) {
        let message = format!("nothing of {channel} is kept, so there is no place to resume from");
        return Err(ApiError::bad_request("bad_cursor", message));
    }
    if endpoint.stopping.borrow().is_some() {
        return Err(ApiError::unavailable("stopping", "this node is shutting down: reconnect"));
    }
    let counted = endpoint.open.take(access.address_of(&request)).map_err(error::no_stream)?;
    let full = || ApiError::too_many("connection_limit", "this user has too many open streams: close one", 5);
    let (by_user, claim) = endpoint.by_user.open(&principal.user).ok_or_else(full)?;
    if let Some(claim) = claim {
        match endpoint.by_user.resolve(claim).await {
            Capacity::Available => {}
            Capacity::Exceeded => return Err(full()),
            Capacity::Unknown => {
                let message = "the number of streams of this user on another node is unknown: try again";
                return Err(ApiError::unavailable("connection_count_unknown", message));
            }
        }
    }
    let worker = &state.streams.worker;
    let holder = || match &*principal.user {
        "" => format!("a:{}", room::address(access.address_of(&request))),
        user => format!("u:{user}"),
    };
    if !channels.iter().all(|channel| worker.may_open(channel, holder)) {
        let message = "too many new channels in a short time: wait, or follow fewer";
        return Err(ApiError::too_many("too_many_new_channels", message, NEW_CHANNELS_RETRY));
    }
    let starts = channels.into_iter().map(|channel| Start {
        kept: namespaces.retention_of(&channel),
        from: positions.remove(&channel),
        channel,
    });
    let (abort, closed) = TcpHandle::of(&request);
    let context = EventStreamContext {
        fanout: worker.fanout.clone(),
        store: store.clone(),
        metrics: worker.metrics.clone(),
        options: endpoint.options.clone(),
        stopping: endpoint.stopping.clone(),
        abort,
        closed,
        revoked: who.session.map(|session| Box::pin(state.sessions.ended(session)) as _),
        clients: worker.clients.clone(),
        principal: Arc::unwrap_or_clone(principal),
        revocations: access.revocations.clone(),
        held: Box::new((counted, by_user)),
    };
    let body = event_stream::open(context, starts.collect()).await.map_err(|error| match error {
        OpenError::Subscribe(error) => ApiError::from(error),
        OpenError::Revoked(revoked) => revoked.into(),
    })?;
    Ok(HttpResponse::build(StatusCode::OK)
        .insert_header((header::CONTENT_TYPE, "text/event-stream; charset=utf-8"))
        .insert_header(tcp::UNCACHED)
        .insert_header(tcp::UNBUFFERED)
        .body(body))
}

/// The channels of the request, or all that the claims admit.
fn channels(
    principal: &Principal,
    asked: Option<&str>,
    max: usize,
) -> Result<BTreeSet<ChannelName>, ApiError> {
    let channels = match asked {
        Some(names) => channel_list::parse(names)?,
        None => default_channels(principal).into_iter().collect(),
    };
    if channels.is_empty() {
        let message = "name the channels, because the token names none: ?channels=org:acme,repo:acme/api";
        return Err(ApiError::bad_request("bad_channel", message));
    }
    channel_list::check_number(&channels, max)?;
    Ok(channels)
}

/// Where the reader is on each channel: by `Last-Event-ID`, which wins, or by `cursor`.
fn positions(
    request: &HttpRequest,
    query: &Query,
    channels: &BTreeSet<ChannelName>,
) -> Result<BTreeMap<ChannelName, Position>, ApiError> {
    let header = request.headers().get("last-event-id").filter(|value| !value.is_empty());
    let bad = |_| ApiError::bad_request("bad_cursor", "Last-Event-ID is not a cursor");
    let text = match header {
        Some(value) => Some(value.to_str().map_err(bad)?),
        None => query.cursor.as_deref(),
    };
    text.map_or_else(|| Ok(BTreeMap::new()), |text| channel_list::positions(text, channels))
}
