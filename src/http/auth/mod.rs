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
use super::limit::RateLimit;
use super::server_api::Api;
use crate::auth::{NewToken, mint};
use crate::config::Secret;
use crate::domain::event::{Time, rfc3339};
use crate::domain::principal::Principal;
use crate::store::sessions::{self, Session};
use crate::store::{self, Store};
use crate::telemetry::{Metrics, count};

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

/// What the door knows.
pub struct SignInDoor {
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
    /// The secret.
    pub secret: Secret,
    /// The `aud`.
    pub audience: Option<String>,
    /// The `iss`.
    pub issuer: Option<String>,
}

impl SignInDoor {
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
pub async fn links(_: Api, door: web::Data<SignInDoor>, store: web::Data<Store>) -> ApiResult {
    let (link, end) = door.new_link(&store).await?;
    Ok(private(HttpResponse::Created()).json(json!({ "link": link, "expiresAt": rfc3339(end) })))
}

#[derive(Deserialize)]
struct SignIn {
    secret: Secret,
}

/// `POST /api/auth/sign-in`: uses a link up. 204 with the cookie of a new session.
pub async fn sign_in(
    request: HttpRequest,
    body: web::Payload,
    door: web::Data<SignInDoor>,
    store: web::Data<Store>,
    metrics: web::Data<Metrics>,
) -> ApiResult {
    let done = let_in(&request, body, &door, &store).await;
    count(&metrics.sign_ins, done.as_ref().map_or_else(ApiError::code, |_| "ok"));
    let secret = done?;
    Ok(private(HttpResponse::NoContent()).cookie(door.cookie(secret.expose(), door.session_ttl)).finish())
}

/// The secret of a new session.
async fn let_in(
    request: &HttpRequest,
    body: web::Payload,
    door: &SignInDoor,
    store: &Store,
) -> Result<SignInSecret, ApiError> {
    let access = access::of(request);
    session::check_host(request, access)?;
    session::check_origin(request, access)?;
    let bad = || ApiError::bad_request("bad_request", "send {\"secret\": …}, the part of a link behind `#`");
    let reading = tokio::time::timeout(BODY_TIMEOUT, body.to_bytes_limited(MAX_BODY));
    let read = reading
        .await
        .map_err(|_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", "the body took too long"))?;
    let body = read.map_err(|_| bad())?.map_err(|_| bad())?;
    // A derived reader would also take a list, by place.
    let object = body.trim_ascii_start().starts_with(b"{");
    let SignIn { secret: given } = serde_json::from_slice(&body).ok().filter(|_| object).ok_or_else(bad)?;

    let (now, most) = (store.timestamp(), door.max_sessions);
    let Some(link) = SignInSecret::parse(given.expose()).map(|secret| secret.hash()) else {
        return Err(refused(request, access, door).await);
    };
    // Looked at on the reading side first, so that guesses never wait for the writer.
    let open = store.read(move |conn| Box::pin(async move { sessions::is_open(conn, link, now).await }));
    if !open.await? {
        return Err(refused(request, access, door).await);
    }
    let secret = SignInSecret::generate();
    let (hash, end) = (secret.hash(), now.plus(door.session_ttl));
    let session = Session { subject: OPERATOR.into(), scope: SCOPE.into(), expires_at: end.into() };
    let redeemed = store
        .write(move |conn| {
            Box::pin(async move { sessions::redeem(conn, link, hash, session, now, most).await })
        })
        .await?;
    if redeemed { Ok(secret) } else { Err(refused(request, access, door).await) }
}

/// A link that lets nobody in; counted, so that an address cannot go on for ever.
async fn refused(request: &HttpRequest, access: &Access, door: &SignInDoor) -> ApiError {
    let decision = door.failures.check(&access.address_of(request).to_string()).await;
    if !decision.allowed {
        let after = decision.retry_us.div_ceil(1_000_000);
        return ApiError::too_many("too_many_sign_ins", "too many wrong links: wait a minute", after);
    }
    let message = "this link is used up, too old or incomplete: make a new one with `campanile sign-in`";
    ApiError::new(StatusCode::UNAUTHORIZED, "link_invalid", message)
}

/// `DELETE /api/auth/session`: signs the browser out, and ends what it has open. 204 also if it
/// was not signed in.
pub async fn sign_out(
    request: HttpRequest,
    door: web::Data<SignInDoor>,
    store: web::Data<Store>,
) -> ApiResult {
    if let Some(hash) = session::presented(&request, &door)? {
        store.write(move |conn| Box::pin(async move { sessions::end(conn, hash).await })).await?;
        door.signed_out.send_replace(());
    }
    Ok(private(HttpResponse::NoContent()).cookie(door.cookie("", Duration::ZERO)).finish())
}

/// `GET /api/auth/me`: who is asking.
pub async fn me(who: Who) -> ApiResult {
    let Principal { user, orgs, repos, scopes, expires_at, .. } = &*who.principal;
    let words = [("scan", scopes.scan), ("publish", scopes.publish), ("admin", scopes.admin)];
    let scopes: Vec<&str> = words.iter().filter(|(_, has)| *has).map(|(word, _)| *word).collect();
    Ok(private(HttpResponse::Ok()).json(json!({
        "sub": user, "scopes": scopes, "orgs": orgs, "repos": repos,
        "expiresAt": expires_at.map(rfc3339), "session": who.session.is_some(),
    })))
}

/// `POST /api/auth/token`: a short-lived connection token for the signed-in browser, because
/// sockets do not take the cookie.
pub async fn token(who: Who, door: web::Data<SignInDoor>) -> ApiResult {
    if who.session.is_none() {
        let message = "this hands tokens to signed-in browsers: sign in first (`campanile sign-in`)";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "session_needed", message));
    }
    let now = chrono::Utc::now();
    let left = who.principal.expires_at.and_then(|end| (end - now).to_std().ok());
    let ttl = left.map_or(TOKEN_TTL, |left| left.min(TOKEN_TTL));
    let signing = door.signing.load();
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
    Ok(private(HttpResponse::Ok()).json(json!({ "token": token, "expiresAt": rfc3339(end) })))
}

/// An answer that nobody keeps.
fn private(mut answer: actix_web::HttpResponseBuilder) -> actix_web::HttpResponseBuilder {
    answer.insert_header((header::CACHE_CONTROL, "no-store"));
    answer
}
