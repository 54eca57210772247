//! `POST /api/builds/{buildId}/events` appends an event to a build, `GET /api/build-events/{buildId}` reads
//! its events.

use std::time::{Duration, Instant};

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::json;

use super::body;
use super::error::{ApiError, ApiResult};
use super::extract::Caller;
use super::poll;
use super::rate_headers::with_rate;
use super::{HttpState, State};
use crate::builds::{self, Appended, BuildError, BuildEvent, BuildId};
use crate::config::Config;
use crate::domain::position::Position;
use crate::limits::budget::Budget;
use crate::limits::rate_limit::RateLimit;

/// What a body may contain beside its data, in bytes.
const ENVELOPE_ALLOWANCE: u64 = 1024;

/// What the endpoint needs.
pub struct BuildEndpoint {
    /// How long a body may take to arrive.
    pub body_timeout: Duration,
    /// Bodies in memory at once.
    pub in_flight: Budget,
    /// Events by user.
    pub rate: RateLimit,
}

impl BuildEndpoint {
    pub fn new(config: &Config, in_flight: Budget, rate: RateLimit) -> Self {
        Self { body_timeout: config.limits.webhook_body_timeout.0, in_flight, rate }
    }
}

/// `POST /api/builds/{buildId}/events`: 201 when committed, 200 for an idempotency key that was used before.
pub async fn append(
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
    let mut reserved = endpoint.in_flight.reserve();
    let bounds =
        body::Bounds { bytes: *max_publication as u64 + ENVELOPE_ALLOWANCE, time: endpoint.body_timeout };
    let body = body::read(request.headers(), body, bounds, &mut reserved, |_| {}).await?;
    let event = BuildEvent::parse(&body, *max_publication)?;
    let appended = builds::append(publisher, store, &principal, &build, event, key, accepted).await?;
    let BuildId { id, channel } = build;
    let cursor = |position: Option<Position>| position.as_ref().map(ToString::to_string);
    Ok(match appended {
        Appended::New(event_id, position) => HttpResponse::Created().json(json!({
            "id": event_id,
            "buildId": id,
            "channel": channel,
            "cursor": cursor(position),
        })),
        Appended::Duplicate(position) => HttpResponse::Ok().json(json!({
            "buildId": id,
            "channel": channel,
            "cursor": cursor(position),
            "duplicate": true,
        })),
    })
}

/// `GET /api/build-events/{buildId}`: the poll of `GET /api/events` on the build's channel.
pub async fn events(
    request: HttpRequest,
    caller: Caller,
    id: web::Path<String>,
    query: web::Query<poll::PageQuery>,
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
