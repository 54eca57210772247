//! `POST /webhooks/github`: the endpoint for webhooks. Headers are checked before the body is read, the body
//! is hashed while it is read, and nothing is looked at or stored before the signature is right.

use std::ops::Not;
use std::time::{Duration, Instant};

use actix_web::http::StatusCode;
use actix_web::http::header::HeaderMap;
use actix_web::{HttpRequest, HttpResponse, post, web};
use ipnet::IpNet;
use serde::Serialize;
use utoipa::ToSchema;

use super::body::{self, Pace};
use super::error::{ApiError, ApiResult, internal};
use super::{HttpState, State};
use crate::config::{Config, Secrets};
use crate::deliveries::{self, AcceptError, Accepted, Incoming, Names};
use crate::domain::delivery::DeliveryId;
use crate::http::metrics::WebhookOutcome;
use crate::limits::rate_limit::RateLimit;
use crate::limits::room::{self, Room};
use crate::sources::github::signature::{ExpectedMac, WebhookSecrets};
use crate::sources::github::{BadBody, BadRepoMap, RepoMap};

/// What the endpoint needs.
pub struct WebhookEndpoint {
    pub secrets: WebhookSecrets,
    /// Which repositories count.
    pub repos: RepoMap,
    /// How they are called.
    pub names: Names,
    /// Where deliveries may come from; everywhere if empty.
    pub allowed_addresses: Vec<IpNet>,
    /// The largest body.
    pub max_body: u64,
    /// How long a body may take to arrive.
    pub body_timeout: Duration,
    /// How fast it has to come.
    pub pace: Pace,
    /// Bodies in memory at once.
    pub in_flight: Room,
    /// The rate limit of invalid signatures, by address.
    pub invalid_signatures: RateLimit,
}

impl WebhookEndpoint {
    pub fn new(
        config: &Config,
        secrets: &Secrets,
        in_flight: Room,
        invalid_signatures: RateLimit,
    ) -> Result<Self, BadRepoMap> {
        Ok(Self {
            secrets: WebhookSecrets::new(secrets.github.iter().map(|secret| secret.expose())),
            repos: RepoMap::try_from(&config.github)?,
            names: Names::default(),
            allowed_addresses: config.github.allowed_addresses.clone(),
            max_body: config.limits.webhook_body.0,
            body_timeout: config.limits.webhook_body_timeout.0,
            pace: Pace::from(&config.limits),
            in_flight,
            invalid_signatures,
        })
    }
}

/// That a delivery is durable.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct WebhookReceipt<'a> {
    #[schema(schema_with = super::always_true)]
    received: bool,
    delivery_id: &'a str,
    /// For a delivery that was known.
    #[serde(skip_serializing_if = "Not::not")]
    #[schema(schema_with = super::always_true)]
    duplicate: bool,
}

/// Takes one delivery of GitHub; 2xx means that it is durable.
#[utoipa::path(
    params(
        ("X-Hub-Signature-256" = String, Header, pattern = "^sha256=[0-9a-f]{64}$"),
        ("X-GitHub-Event" = String, Header, pattern = "^[a-z0-9_]{1,100}$"),
        ("X-GitHub-Delivery" = Uuid, Header),
    ),
    request_body(content(
        (Object = "application/json"),
        (ref("#/components/schemas/WebhookForm") = "application/x-www-form-urlencoded"),
    )),
    responses(
        (status = 200, description = "The delivery was accepted before.", body = WebhookReceipt),
        (status = 202, description = "It is committed.", body = WebhookReceipt),
        (status = 401), (status = 403), (status = 408), (status = 413), (status = 429), (status = 503),
    ),
    security(),
)]
#[post("/webhooks/github")]
pub async fn receive_github_delivery(request: HttpRequest, body: web::Payload, state: State) -> ApiResult {
    receive(request, body, state).await
}

/// The same route with a slash behind it.
pub async fn receive_with_slash(request: HttpRequest, body: web::Payload, state: State) -> ApiResult {
    receive(request, body, state).await
}

async fn receive(request: HttpRequest, body: web::Payload, state: State) -> ApiResult {
    let arrived = Instant::now();
    let done = take(&request, body, &state, arrived).await;
    let outcome = match &done {
        Ok((_, Accepted::Duplicate)) => "duplicate",
        Ok((_, Accepted::New(status))) => status.as_str(),
        Err(error) => error.code(),
    };
    state.metrics.webhooks.inc(WebhookOutcome(outcome));
    let id = done.as_ref().ok().map(|(id, _)| id.as_str());
    tracing::debug!(delivery = id, outcome, duration_ms = arrived.elapsed().as_millis() as u64, "webhook");
    done.map(|(id, accepted)| {
        let duplicate = matches!(accepted, Accepted::Duplicate);
        let mut answer = if duplicate { HttpResponse::Ok() } else { HttpResponse::Accepted() };
        answer.json(WebhookReceipt { received: true, delivery_id: id.as_str(), duplicate })
    })
}

async fn take(
    request: &HttpRequest,
    body: web::Payload,
    state: &State,
    arrived: Instant,
) -> Result<(DeliveryId, Accepted), ApiError> {
    let HttpState { access, webhooks: endpoint, publisher, store, .. } = &**state;
    let address = access.address_of(request);
    if !endpoint.allowed_addresses.is_empty()
        && !endpoint.allowed_addresses.iter().any(|net| net.contains(&address))
    {
        return Err(ApiError::forbidden("deliveries from this address are not allowed"));
    }
    let headers = request.headers();
    let expected = signature(headers)?;
    let event = event_name(headers)?;
    let delivery_id = text(headers, "x-github-delivery").and_then(DeliveryId::parse).ok_or_else(|| {
        ApiError::bad_request("delivery_header", "the header X-GitHub-Delivery is missing or malformed")
    })?;

    // Who sends it is known only at its end.
    let mut place = endpoint.in_flight.enter(room::address(address), false);
    let mut hasher = endpoint.secrets.hasher(expected);
    let WebhookEndpoint { max_body: bytes, body_timeout: time, pace, .. } = *endpoint;
    let bounds = body::Bounds { bytes, time, pace };
    let body = body::read(headers, body, bounds, &mut place, |chunk| hasher.update(chunk)).await?;
    if !hasher.matches() {
        let decision = endpoint.invalid_signatures.check(&address.to_string()).await;
        if !decision.allowed {
            let (code, after) = ("too_many_invalid_signatures", decision.retry_secs());
            return Err(ApiError::too_many(code, "too many invalid signatures", after));
        }
        let address = access.log_addresses.load().shown(address);
        tracing::info!(delivery = delivery_id.as_str(), address, "a delivery has an invalid signature");
        return Err(unauthorized(
            "signature_invalid",
            "the signature is invalid: check that GitHub has the same secret",
        ));
    }
    let content_type = text(headers, "content-type");
    let incoming = Incoming { id: delivery_id.clone(), event, content_type, body, arrived };
    // The place is for the payload until it is stored.
    let accepted = deliveries::accept(publisher, store, (&endpoint.repos, &endpoint.names), incoming).await?;
    Ok((delivery_id, accepted))
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn unauthorized(code: &'static str, message: &str) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, code, message)
}

fn signature(headers: &HeaderMap) -> Result<ExpectedMac, ApiError> {
    match headers.get("x-hub-signature-256") {
        Some(value) => {
            value.to_str().ok().and_then(|value| ExpectedMac::parse(value).ok()).ok_or_else(|| {
                unauthorized("signature_malformed", "X-Hub-Signature-256 must be sha256= and 64 hex digits")
            })
        }
        None if headers.contains_key("x-hub-signature") => Err(unauthorized(
            "signature_sha1",
            "SHA-1 signatures are not accepted: GitHub sends X-Hub-Signature-256 when a secret is set",
        )),
        None => {
            Err(unauthorized("signature_missing", "X-Hub-Signature-256 is missing: set a secret on GitHub"))
        }
    }
}

fn event_name(headers: &HeaderMap) -> Result<&str, ApiError> {
    let plain = |name: &&str| {
        (1..=100).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    text(headers, "x-github-event").filter(plain).ok_or_else(|| {
        ApiError::bad_request("event_header", "the header X-GitHub-Event is missing or malformed")
    })
}

impl From<AcceptError> for ApiError {
    fn from(error: AcceptError) -> Self {
        match error {
            AcceptError::Pack(error) => internal(&error),
            AcceptError::Store(error) => error.into(),
            AcceptError::Publish(error) => error.into(),
            AcceptError::BadBody(error) => {
                let code = match error {
                    BadBody::Empty => "body_empty",
                    BadBody::NotJson => "body_not_json",
                    BadBody::NoPayload => "form_without_payload",
                };
                Self::bad_request(code, error.to_string())
            }
        }
    }
}
