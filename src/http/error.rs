//! The error responses of our own routes: `{"error":{"code":"snake_case","message":"…","details":…}}` with a
//! status. Codes are stable, messages say what to do. What a client sees is decided here; what
//! an operator sees is logged here, once.

use actix_web::dev::ServiceResponse;
use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::{HttpResponse, ResponseError};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::State;
use super::metrics::RefusalCode;
use crate::auth::TokenError;
use crate::auth::revocations::Revoked;
use crate::domain::access::Denied;
use crate::hub::SubscribeError;
use crate::limits::address_budget::TurnedAway;
use crate::publish::PublishError;
use crate::store::StoreError;
use crate::transport;
use crate::transport::metrics::AttemptOutcome;

/// The body of an error response.
#[derive(Serialize, ToSchema)]
pub struct Refusal<'a> {
    error: Reason<'a>,
}

/// Why a request is refused.
#[derive(Serialize, ToSchema)]
struct Reason<'a> {
    #[schema(pattern = "^[a-z0-9_]+$")]
    code: &'a str,
    #[schema(min_length = 1)]
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Value)]
    details: Option<&'a Value>,
}

/// The result of a handler.
pub type ApiResult<T = HttpResponse> = Result<T, ApiError>;

#[derive(Debug, Clone, derive_more::Display)]
#[display("{code}: {message}")]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    details: Option<Value>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl ApiError {
    /// A refusal with any status.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), details: None, headers: Vec::new() }
    }

    /// 400: the request cannot be understood.
    pub fn bad_request(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// 403: known, but not allowed.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", message)
    }

    /// 404: not there, or not for this caller.
    pub fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("there is no such {what}"))
    }

    /// 503 with `Retry-After`: nothing was changed, or a retry with the same key is safe.
    pub fn unavailable(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message).retry_after(5)
    }

    /// 429 with `Retry-After` in seconds.
    pub fn too_many(code: &'static str, message: impl Into<String>, after: u64) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, code, message).retry_after(after)
    }

    /// Adds `details`.
    pub fn details(mut self, details: Value) -> Self {
        self.details = Some(details);
        self
    }

    /// Adds a header.
    pub fn header(mut self, name: HeaderName, value: impl TryInto<HeaderValue>) -> Self {
        if let Ok(value) = value.try_into() {
            self.headers.push((name, value));
        }
        self
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// Whether the caller can do better, and not we.
    pub fn is_callers(&self) -> bool {
        self.status.is_client_error()
    }

    fn retry_after(self, seconds: u64) -> Self {
        self.header(header::RETRY_AFTER, seconds)
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status);
        for header in &self.headers {
            response.append_header(header.clone());
        }
        response.append_header((header::CACHE_CONTROL, "no-store"));
        let details = self.details.as_ref();
        response.json(Refusal { error: Reason { code: self.code, message: &self.message, details } })
    }
}

impl From<TokenError> for ApiError {
    fn from(error: TokenError) -> Self {
        let (code, message) = match error {
            TokenError::Missing => (
                "token_missing",
                "send a token: Authorization: Bearer <JWT> (make one with `campanile token`)".to_owned(),
            ),
            TokenError::Invalid => (
                "token_invalid",
                "the token is not valid here: it is malformed, or no key of this gateway has signed it"
                    .to_owned(),
            ),
            TokenError::Claim(name) => ("token_invalid", wrong_claim(name)),
            TokenError::Expired => {
                ("token_expired", "the token has expired (`exp` or `expire_at`): get a new one".to_owned())
            }
            TokenError::NotYetValid => (
                "token_not_yet_valid",
                "the token is not valid yet (`nbf`): wait, or compare the clocks".to_owned(),
            ),
            TokenError::KeyPending => {
                let message = "the key of the token is not known yet: try again";
                return Self::unavailable("token_key_awaited", message);
            }
        };
        Self::new(StatusCode::UNAUTHORIZED, code, message).header(header::WWW_AUTHENTICATE, "Bearer")
    }
}

/// Says what is expected of a claim of a token that is signed by us.
fn wrong_claim(name: &str) -> String {
    match name {
        "aud" => "the claim `aud` does not name this gateway (client.token.audience)".to_owned(),
        "iss" => "the claim `iss` is not the issuer that is expected here (client.token.issuer)".to_owned(),
        "channel" => {
            "the claim `channel` makes this the token of a subscription: send that of a connection".to_owned()
        }
        _ => format!("the claim `{name}` has a wrong type or value"),
    }
}

impl From<Revoked> for ApiError {
    fn from(revoked: Revoked) -> Self {
        match revoked {
            Revoked::Token => {
                let message = "the token was revoked: get a new one";
                Self::new(StatusCode::UNAUTHORIZED, "token_revoked", message)
                    .header(header::WWW_AUTHENTICATE, "Bearer")
            }
            Revoked::User => {
                Self::new(StatusCode::FORBIDDEN, "user_blocked", "this user is blocked: contact the operator")
            }
        }
    }
}

impl From<Denied> for ApiError {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Forbidden => Self::forbidden("the token does not give access to this channel"),
            Denied::UnknownChannel => {
                Self::new(StatusCode::NOT_FOUND, "unknown_channel", "no such namespace is configured")
            }
            Denied::NotAvailable => Self::new(
                StatusCode::NOT_FOUND,
                "not_available",
                "the namespace of the channel does not have this feature",
            ),
            Denied::BadName => {
                Self::bad_request("bad_channel", "the namespace does not allow this channel name")
            }
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) | StoreError::Contended | StoreError::Busy => {
                tracing::warn!(%error, "the store did not answer a request");
                Self::unavailable("store_unavailable", "the store is unavailable: try again")
            }
            StoreError::Failed(_) => internal(&error),
        }
    }
}

impl From<PublishError> for ApiError {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Busy => {
                Self::unavailable("overloaded", "too many events are waiting to be committed: try again")
            }
            PublishError::Unconfirmed(_) => Self::unavailable(
                "unconfirmed",
                "the store did not confirm the commit: try again with the same delivery id or idempotency key",
            ),
            PublishError::Failed(error) => internal(&error),
        }
    }
}

impl From<SubscribeError> for ApiError {
    fn from(error: SubscribeError) -> Self {
        tracing::warn!(%error, "a channel could not be subscribed to");
        Self::unavailable("store_unavailable", "the store is unavailable: try again")
    }
}

/// Counts how the opening of a connection went.
pub fn count_connect<T>(metrics: &transport::Metrics, done: &Result<T, ApiError>) {
    let outcome = match done {
        Ok(_) => AttemptOutcome::Open,
        Err(error) if error.status.is_server_error() || error.status == StatusCode::TOO_MANY_REQUESTS => {
            AttemptOutcome::Failed
        }
        Err(_) => AttemptOutcome::Refused,
    };
    metrics.connection_attempts.inc(outcome);
}

/// Counts an answer that is a refusal by its code, wherever on the way it was made.
pub fn count_refusal<B>(response: &ServiceResponse<B>) {
    let refusal = response.response().error().and_then(|error| error.as_error::<ApiError>());
    if let Some(error) = refusal {
        State::of(response.request()).metrics.refusals.inc(RefusalCode(error.code()));
    }
}

/// 500: logged here, never shown.
pub fn internal(error: &dyn std::error::Error) -> ApiError {
    tracing::error!(%error, "a request failed");
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "internal error; see the log of the server")
}

/// Why no stream is opened, of whatever kind.
pub fn no_stream(error: TurnedAway) -> ApiError {
    match error {
        TurnedAway::Full => {
            ApiError::unavailable("too_many_streams", "this node has reached its limit of streams")
        }
        TurnedAway::Address => ApiError::unavailable(
            "too_many_streams_of_address",
            "this address has many streams, and the last places are for others",
        ),
    }
}

/// Why a connection of the client protocol is not opened.
pub fn no_connection(error: TurnedAway) -> ApiError {
    match error {
        TurnedAway::Full => {
            ApiError::unavailable("too_many_connections", "this node has reached its limit of connections")
        }
        TurnedAway::Address => ApiError::unavailable(
            "too_many_connections_of_address",
            "this address has many connections, and the last places are for others",
        ),
    }
}
