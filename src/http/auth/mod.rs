//! Signing a browser in and out, and what a signed-in browser may ask for. A link is made by
//! whoever holds the API key, or by the process itself for its terminal; it lives for ten minutes
//! and lets one browser in. Looking at it changes nothing: only the POST of its secret uses it up.

pub mod secret;
pub mod session;

use std::time::Duration;

use actix_web::cookie::time::Duration as CookieAge;
use actix_web::cookie::{Cookie, SameSite};
use actix_web::http::{StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, web};
use arc_swap::ArcSwap;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;

use self::secret::SignInSecret;
use super::access::{self, Access, Who};
use super::error::{ApiError, ApiResult, internal};
use super::server_api::Api;
use crate::auth::{NewToken, mint};
use crate::config::Secret;
use crate::domain::event::{Time, rfc3339};
use crate::domain::principal::Principal;
use crate::http::metrics::{Metrics, SignInOutcome};
use crate::limits::rate_limit::RateLimit;
use crate::store::sessions::{self, Session};
use crate::store::{self, Store};

/// Who signs in by a link, and what that one may do.
const OPERATOR: &str = "operator";
const SCOPE: &str = "admin";
/// How long a link can be used.
pub const LINK_TTL: Duration = Duration::from_secs(600);
/// Links that wait to be used; one more ends the oldest.
pub const MAX_LINKS: u32 = 100;
/// How long a connection token of a signed-in browser is valid. It outlives a sign-out by as much.
const TOKEN_TTL: Duration = Duration::from_secs(300);
/// The largest body of a sign-in, and how long it may take to arrive.
const MAX_BODY: usize = 1024;
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// What the endpoint needs.
pub struct SignInEndpoint {
    /// Where browsers reach this gateway: what a link begins with.
    pub base: String,
    /// Browsers come by https, so the cookie is for that alone.
    pub secure: bool,
    /// How long a session lasts.
    pub session_ttl: Duration,
    /// Sessions at once; one more ends the oldest.
    pub max_sessions: u32,
    /// Wrong secrets by address.
    pub failures: RateLimit,
    /// Makes the tokens that are handed to a signed-in browser; a reload changes it.
    pub signing: ArcSwap<Signing>,
    /// Tells the streams of this node that somebody signed out.
    pub signed_out: watch::Sender<()>,
}

/// What our own tokens are signed with, and must say to be let in.
pub struct Signing {
    pub secret: Secret,
    /// The `aud`.
    pub audience: Option<String>,
    /// The `iss`.
    pub issuer: Option<String>,
}

impl SignInEndpoint {
    /// Makes a link, and says when its time is over.
    pub async fn new_link(&self, store: &Store) -> store::Result<(String, Time)> {
        let secret = SignInSecret::generate();
        let (hash, now) = (secret.hash(), store.timestamp());
        let end = now.plus(LINK_TTL);
        store
            .write(move |conn| {
                Box::pin(async move { sessions::add_link(conn, hash, now, end, MAX_LINKS).await })
            })
            .await?;
        Ok((format!("{}/sign-in#{}", self.base, secret.expose()), end.into()))
    }

    /// A name with `__Host-` can only be set by this very host, over https and for all paths.
    fn cookie_name(&self) -> &'static str {
        if self.secure { "__Host-campanile" } else { "campanile" }
    }

    fn cookie<'c>(&self, value: &'c str, age: Duration) -> Cookie<'c> {
        let seconds = i64::try_from(age.as_secs()).unwrap_or(i64::MAX);
        Cookie::build(self.cookie_name(), value)
            .path("/")
            .http_only(true)
            .secure(self.secure)
            .same_site(SameSite::Lax)
            .max_age(CookieAge::seconds(seconds))
            .finish()
    }
}

/// `POST /api/auth/links`, with the API key: a new link for whoever asks on the operator's behalf.
pub async fn links(_: Api, endpoint: web::Data<SignInEndpoint>, store: web::Data<Store>) -> ApiResult {
    let (link, end) = endpoint.new_link(&store).await?;
    Ok(no_store(HttpResponse::Created()).json(json!({ "link": link, "expiresAt": rfc3339(end) })))
}

#[derive(Deserialize)]
struct SignIn {
    secret: Secret,
}

/// `POST /api/auth/sign-in`: uses a link up. 204 with the cookie of a new session.
pub async fn sign_in(
    request: HttpRequest,
    body: web::Payload,
    endpoint: web::Data<SignInEndpoint>,
    store: web::Data<Store>,
    metrics: web::Data<Metrics>,
) -> ApiResult {
    let done = redeem_link(&request, body, &endpoint, &store).await;
    metrics.sign_ins.inc(SignInOutcome(done.as_ref().map_or_else(ApiError::code, |_| "ok")));
    let secret = done?;
    Ok(no_store(HttpResponse::NoContent())
        .cookie(endpoint.cookie(secret.expose(), endpoint.session_ttl))
        .finish())
}

/// The secret of a new session.
async fn redeem_link(
    request: &HttpRequest,
    body: web::Payload,
    endpoint: &SignInEndpoint,
    store: &Store,
) -> Result<SignInSecret, ApiError> {
    let access = access::of(request);
    session::check_host(request, access)?;
    session::check_origin(request, access)?;
    let bad =
        || ApiError::bad_request("bad_request", "send {\"secret\": …} with the part of the link after `#`");
    let reading = tokio::time::timeout(BODY_TIMEOUT, body.to_bytes_limited(MAX_BODY));
    let read = reading
        .await
        .map_err(|_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", "the body took too long"))?;
    let body = read.map_err(|_| bad())?.map_err(|_| bad())?;
    // A derived deserializer would also accept an array, by position.
    let object = body.trim_ascii_start().starts_with(b"{");
    let SignIn { secret: given } = serde_json::from_slice(&body).ok().filter(|_| object).ok_or_else(bad)?;

    let (now, most) = (store.timestamp(), endpoint.max_sessions);
    let Some(link) = SignInSecret::parse(given.expose()).map(|secret| secret.hash()) else {
        return Err(refused(request, access, endpoint).await);
    };
    // Checked by a read first, so that guesses never occupy the writer.
    let open = store.read(move |conn| Box::pin(async move { sessions::is_open(conn, link, now).await }));
    if !open.await? {
        return Err(refused(request, access, endpoint).await);
    }
    let secret = SignInSecret::generate();
    let (hash, end) = (secret.hash(), now.plus(endpoint.session_ttl));
    let session = Session { subject: OPERATOR.into(), scope: SCOPE.into(), expires_at: end.into() };
    let redeemed = store
        .write(move |conn| {
            Box::pin(async move { sessions::redeem(conn, link, hash, session, now, most).await })
        })
        .await?;
    if redeemed { Ok(secret) } else { Err(refused(request, access, endpoint).await) }
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

/// `DELETE /api/auth/session`: signs the browser out, and ends what it has open. 204 also if it
/// was not signed in.
pub async fn sign_out(
    request: HttpRequest,
    endpoint: web::Data<SignInEndpoint>,
    store: web::Data<Store>,
) -> ApiResult {
    if let Some(hash) = session::presented(&request, &endpoint)? {
        store.write(move |conn| Box::pin(async move { sessions::end(conn, hash).await })).await?;
        endpoint.signed_out.send_replace(());
    }
    Ok(no_store(HttpResponse::NoContent()).cookie(endpoint.cookie("", Duration::ZERO)).finish())
}

/// `GET /api/auth/me`: who is asking.
pub async fn me(who: Who) -> ApiResult {
    let Principal { user, orgs, repos, scopes, expires_at, .. } = &*who.principal;
    let words = [("scan", scopes.scan), ("publish", scopes.publish), ("admin", scopes.admin)];
    let scopes: Vec<&str> = words.iter().filter(|(_, has)| *has).map(|(word, _)| *word).collect();
    Ok(no_store(HttpResponse::Ok()).json(json!({
        "sub": user, "scopes": scopes, "orgs": orgs, "repos": repos,
        "expiresAt": expires_at.map(rfc3339), "session": who.session.is_some(),
    })))
}

/// `POST /api/auth/token`: a short-lived connection token for the signed-in browser, because
/// sockets do not take the cookie.
pub async fn token(who: Who, endpoint: web::Data<SignInEndpoint>) -> ApiResult {
    if who.session.is_none() {
        let message = "only signed-in browsers get a token here: sign in first (`campanile sign-in`)";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "session_needed", message));
    }
    let now = chrono::Utc::now();
    let left = who.principal.expires_at.and_then(|end| (end - now).to_std().ok());
    let ttl = left.map_or(TOKEN_TTL, |left| left.min(TOKEN_TTL));
    let signing = endpoint.signing.load();
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
    Ok(no_store(HttpResponse::Ok()).json(json!({ "token": token, "expiresAt": rfc3339(end) })))
}

/// A response that must not be cached.
fn no_store(mut answer: actix_web::HttpResponseBuilder) -> actix_web::HttpResponseBuilder {
    answer.insert_header((header::CACHE_CONTROL, "no-store"));
    answer
}
