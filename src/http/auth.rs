//! The routes of signing in and out, and what a signed-in browser may ask for. A link is made by
//! whoever holds the API key, or by the process itself for its terminal.

use std::time::Duration;

use actix_web::http::{StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, delete, get, post, web};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::access::Access;
use super::client_streams::read_bytes;
use super::error::{ApiError, ApiResult, internal};
use super::extract::Who;
use super::server_api::Api;
use super::{HttpState, State, session};
use crate::auth::{NewToken, mint};
use crate::config::Secret;
use crate::domain::event::rfc3339;
use crate::domain::principal::Principal;
use crate::domain::sorted_set::SortedSet;
use crate::http::metrics::SignInOutcome;
use crate::sign_in::{self, SCOPE, SignInSecret};

pub use super::session::{SignInEndpoint, Signing};

/// How long a connection token of a signed-in browser is valid. It outlives a sign-out by as much.
const TOKEN_TTL: Duration = Duration::from_secs(300);
/// The largest body of a sign-in.
const MAX_BODY: u64 = 1024;

/// A sign-in link.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct SignInLink {
    #[schema(format = "uri")]
    link: String,
    #[schema(format = DateTime)]
    expires_at: String,
}

/// Makes a sign-in link for the operator's browser.
#[utoipa::path(
    responses((status = 201, description = "Good for one sign-in, until its time is over.", body = SignInLink)),
    security(("api_key" = [])),
)]
#[post("/api/auth/links")]
pub async fn create_sign_in_link(_: Api, state: State) -> ApiResult {
    let (link, end) = sign_in::new_link(&state.store, &state.sign_in.base).await?;
    Ok(no_store(HttpResponse::Created()).json(SignInLink { link, expires_at: rfc3339(end) }))
}

#[derive(Deserialize, ToSchema)]
struct SignIn {
    /// The part of the link behind `#`.
    #[schema(value_type = String)]
    secret: Secret,
}

/// Uses a link up, and signs the browser in.
#[utoipa::path(
    request_body = inline(SignIn),
    responses(
        (status = 204, description = "Signed in.", headers(("Set-Cookie", description = "The session."))),
        (status = 401), (status = 403), (status = 408), (status = 413), (status = 421), (status = 429), (status = 503),
    ),
    security(),
)]
#[post("/api/auth/sign-in")]
pub async fn use_sign_in_link(request: HttpRequest, body: web::Payload, state: State) -> ApiResult {
    let endpoint = &state.sign_in;
    let kept = state.access.namespaces.load().kept.sessions;
    let ttl = kept.map_or(endpoint.session_ttl, |kept| kept.min(endpoint.session_ttl));
    let done = redeem_link(&request, body, &state, ttl).await;
    state.metrics.sign_ins.inc(SignInOutcome(done.as_ref().map_or_else(ApiError::code, |_| "ok")));
    let secret = done?;
    Ok(no_store(HttpResponse::NoContent()).cookie(endpoint.cookie(secret.expose(), ttl)).finish())
}

/// The secret of a new session.
async fn redeem_link(
    request: &HttpRequest,
    body: web::Payload,
    state: &State,
    ttl: Duration,
) -> Result<SignInSecret, ApiError> {
    let HttpState { access, sign_in: endpoint, store, .. } = &**state;
    session::check_host(request, access)?;
    session::check_origin(request, access)?;
    let bad =
        || ApiError::bad_request("bad_request", "send {\"secret\": …} with the part of the link after `#`");
    let (body, _) = read_bytes(request, body, state, MAX_BODY, false).await?;
    // A derived deserializer would also accept an array, by position.
    let object = body.trim_ascii_start().starts_with(b"{");
    let SignIn { secret: given } = serde_json::from_slice(&body).ok().filter(|_| object).ok_or_else(bad)?;

    let redeemed = sign_in::redeem(store, given.expose(), ttl, endpoint.max_sessions).await?;
    match redeemed {
        Some(secret) => Ok(secret),
        None => Err(refused(request, access, endpoint).await),
    }
}

/// The error for an invalid link; counted, so that an address cannot guess for ever.
async fn refused(request: &HttpRequest, access: &Access, endpoint: &SignInEndpoint) -> ApiError {
    let decision = endpoint.failures.check(&access.address_of(request).to_string()).await;
    if !decision.allowed {
        let after = decision.retry_us.div_ceil(1_000_000);
        return ApiError::too_many("too_many_sign_ins", "too many invalid links: wait a minute", after);
    }
    let message =
        "this link was used before, has expired or is incomplete: create a new one with `campanile sign-in`";
    ApiError::new(StatusCode::UNAUTHORIZED, "link_invalid", message)
}

/// Signs the browser out, and ends what it has open.
#[utoipa::path(
    responses((
        status = 204, description = "Signed out, also if it was not signed in.",
        headers(("Set-Cookie", description = "Takes the cookie away.")),
    )),
    security((), ("session" = [])),
)]
#[delete("/api/auth/session")]
pub async fn sign_out(request: HttpRequest, state: State) -> ApiResult {
    let endpoint = &state.sign_in;
    if let Some(hash) = session::presented(&request)? {
        state.sessions.end(hash).await?;
    }
    Ok(no_store(HttpResponse::NoContent()).cookie(endpoint.cookie("", Duration::ZERO)).finish())
}

/// A caller, as the gateway understands the token or the session.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Me<'a> {
    sub: &'a str,
    scopes: Vec<Scope>,
    #[schema(value_type = Vec<String>)]
    orgs: &'a SortedSet<String>,
    #[schema(value_type = Vec<String>)]
    repos: &'a SortedSet<String>,
    #[schema(format = DateTime)]
    expires_at: Option<String>,
    /// Signed in by the cookie.
    session: bool,
}

/// What a caller may do beside reading.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Scope {
    Scan,
    Publish,
    Admin,
}

/// Who is asking.
#[utoipa::path(responses((status = 200, description = "The caller.", body = Me)))]
#[get("/api/auth/me")]
pub async fn get_me(who: Who) -> ApiResult {
    let Principal { user, orgs, repos, scopes, expires_at, .. } = &*who.principal;
    let all = [(Scope::Scan, scopes.scan), (Scope::Publish, scopes.publish), (Scope::Admin, scopes.admin)];
    let scopes = all.into_iter().filter(|(_, has)| *has).map(|(scope, _)| scope).collect();
    let (expires_at, session) = (expires_at.map(rfc3339), who.session.is_some());
    Ok(no_store(HttpResponse::Ok()).json(Me { sub: user, scopes, orgs, repos, expires_at, session }))
}

/// A connection token.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ConnectionToken {
    token: String,
    #[schema(format = DateTime)]
    expires_at: String,
}

/// A short-lived connection token for a signed-in browser.
///
/// Sockets do not take the cookie. Whoever comes with a token is refused: 403 `session_needed`.
#[utoipa::path(
    responses((
        status = 200, description = "Valid for five minutes, or as long as the session if that is less.", body = ConnectionToken,
    )),
)]
#[post("/api/auth/token")]
pub async fn create_token(who: Who, state: State) -> ApiResult {
    if who.session.is_none() {
        let message = "only signed-in browsers get a token here: sign in first (`campanile sign-in`)";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "session_needed", message));
    }
    let now = chrono::Utc::now();
    let left = who.principal.expires_at.and_then(|end| (end - now).to_std().ok());
    let ttl = left.map_or(TOKEN_TTL, |left| left.min(TOKEN_TTL));
    let signing = state.sign_in.signing.load();
    let claims = NewToken {
        user: who.principal.user.clone(),
        scopes: vec![SCOPE.to_owned()],
        ttl: Some(ttl),
        audience: signing.audience.clone(),
        issuer: signing.issuer.clone(),
        ..NewToken::default()
    };
    let token = mint(signing.secret.expose(), &claims, now).map_err(|error| internal(&error))?;
    let end = now + chrono::TimeDelta::seconds(i64::try_from(ttl.as_secs()).unwrap_or(0));
    Ok(no_store(HttpResponse::Ok()).json(ConnectionToken { token, expires_at: rfc3339(end) }))
}

/// A response that must not be cached.
fn no_store(mut answer: actix_web::HttpResponseBuilder) -> actix_web::HttpResponseBuilder {
    answer.insert_header((header::CACHE_CONTROL, "no-store"));
    answer
}
