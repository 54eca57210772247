//! `POST /api/builds/{buildId}/events` appends an event to a build, `GET /api/build-events/{buildId}` reads
//! its events.

use std::ops::Not;
use std::time::{Duration, Instant};

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, get, post, web};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::body::{self, Pace};
use super::error::{ApiError, ApiResult};
use super::extract::Caller;
use super::poll;
use super::rate_headers::with_rate;
use super::{HttpState, PageQuery, State};
use crate::builds::{self, Appended, Body, BuildError, BuildEvent, BuildId};
use crate::config::Config;
use crate::domain::channel::ChannelName;
use crate::limits::rate_limit::RateLimit;
use crate::limits::room::Room;

/// What a body may contain beside its data, in bytes.
const ENVELOPE_ALLOWANCE: u64 = 1024;

/// What the endpoint needs.
pub struct BuildEndpoint {
    /// How long a body may take to arrive.
    pub body_timeout: Duration,
    /// How fast it has to come.
    pub pace: Pace,
    /// Bodies in memory at once.
    pub in_flight: Room,
    /// Events by user.
    pub rate: RateLimit,
}

impl BuildEndpoint {
    pub fn new(config: &Config, in_flight: Room, rate: RateLimit) -> Self {
        let limits = &config.limits;
        Self { body_timeout: limits.webhook_body_timeout.0, pace: Pace::from(limits), in_flight, rate }
    }
}

/// Where an event of a build is.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct BuildEventReceipt {
    /// The event's; absent for a key that was known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    id: Option<Uuid>,
    build_id: Uuid,
    #[schema(value_type = String)]
    channel: ChannelName,
    /// The place behind the event.
    cursor: Option<String>,
    /// For a key that was known.
    #[serde(skip_serializing_if = "Not::not")]
    #[schema(schema_with = super::always_true)]
    duplicate: bool,
}

/// Appends an event to a build; the first event creates the build.
#[utoipa::path(
    params(
        ("id" = String, Path, description = "#BuildId"),
        (
            "Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255,
            description = "Known for five minutes.",
        ),
    ),
    request_body(content = inline(Body), example = json!({ "type": "build:started", "data": { "branch": "main" } })),
    responses(
        (
            status = 200, description = "The idempotency key was used before.", body = BuildEventReceipt,
            links(("events" = (operation_id = "listBuildEvents", parameters(("id" = "$response.body#/buildId"))))),
        ),
        (
            status = 201, description = "It is committed.", body = BuildEventReceipt,
            links(("events" = (operation_id = "listBuildEvents", parameters(("id" = "$response.body#/buildId"))))),
        ),
        (status = 408), (status = 409), (status = 410), (status = 413), (status = 429),
    ),
)]
#[post("/api/builds/{id}/events")]
pub async fn append_build_event(
    request: HttpRequest,
    Caller(principal): Caller,
    id: web::Path<String>,
    body: web::Payload,
    state: State,
) -> ApiResult {
    let HttpState { access, builds: endpoint, publisher, store, max_publication, .. } = &*state;
    let accepted = Instant::now();
    let build = BuildId::parse(&id)?;
    builds::check_owner(&principal)?;
    let decision = endpoint.rate.check(&access.rate_key(&request, &principal)).await;
    if !decision.allowed {
        let message = "too many build events: wait, or put more into one event";
        let error = ApiError::too_many("rate_limited", message, decision.retry_secs());
        return Err(with_rate(error, &decision));
    }
    let key = request.headers().get("idempotency-key");
    let key = key.map(|key| builds::user_key(&principal, key.as_bytes())).transpose()?;
    let mut place = endpoint.in_flight.enter(&*principal.user, true);
    let bytes = *max_publication as u64 + ENVELOPE_ALLOWANCE;
    let bounds = body::Bounds { bytes, time: endpoint.body_timeout, pace: endpoint.pace };
    let body = body::read(request.headers(), body, bounds, &mut place, |_| {}).await?;
    let event = BuildEvent::parse(&body, *max_publication)?;
    let appended = builds::append(publisher, store, &principal, &build, event, key, accepted).await?;
    let BuildId { id: build_id, channel } = build;
    let (mut answer, id, position) = match appended {
        Appended::New(id, position) => (HttpResponse::Created(), Some(id), position),
        Appended::Duplicate(position) => (HttpResponse::Ok(), None, position),
    };
    let cursor = position.as_ref().map(ToString::to_string);
    Ok(answer.json(BuildEventReceipt { id, build_id, channel, cursor, duplicate: id.is_none() }))
}

/// A page of a build's events after a cursor.
#[utoipa::path(
    params(("id" = String, Path, description = "#BuildId"), PageQuery),
    responses(
        (status = 200, description = "#Page"), (status = 304),
        (status = 410, description = "#CursorLost"), (status = 429),
    ),
)]
#[get("/api/build-events/{id}")]
pub async fn list_build_events(
    request: HttpRequest,
    caller: Caller,
    id: web::Path<String>,
    query: web::Query<PageQuery>,
    state: State,
) -> ApiResult {
    let channel = BuildId::parse(&id).map(|build| build.channel);
    let hidden =
        |error: ApiError| if error.code() == "forbidden" { BuildError::Missing.into() } else { error };
    poll::rate_limited(&request, &caller, &state, async {
        poll::page(&request, &caller, channel?, &query, &state, hidden).await
    })
    .await
}

impl From<BuildError> for ApiError {
    fn from(error: BuildError) -> Self {
        let message = error.to_string();
        match error {
            BuildError::BadId => Self::bad_request("bad_build", message),
            BuildError::BadKey => Self::bad_request("bad_key", message),
            BuildError::BadEvent(_) => Self::bad_request("bad_event", message),
            BuildError::TooLarge(bytes) => body::too_large(bytes as u64),
            BuildError::NoOwner | BuildError::ForeignOrg | BuildError::NotOwner => Self::forbidden(message),
            BuildError::Expired => Self::new(StatusCode::GONE, "build_over", message),
            BuildError::OtherOrg => Self::new(StatusCode::CONFLICT, "build_org", message),
            BuildError::Missing => Self::not_found("build"),
            BuildError::Store(error) => error.into(),
            BuildError::Publish(error) => error.into(),
        }
    }
}
