//! The session cookie of our endpoints. A browser sends it along whoever made it ask, so it counts
//! only where the request is our own page's: addressed to our own host (no page of another name
//! that points here), from our own origin, and provably so where something is changed.

use std::net::SocketAddr;
use std::time::Duration;

use actix_web::HttpRequest;
use actix_web::cookie::time::Duration as CookieAge;
use actix_web::cookie::{Cookie, SameSite};
use actix_web::http::header::HeaderName;
use actix_web::http::{StatusCode, header};
use arc_swap::ArcSwap;

use super::access::Access;
use super::error::ApiError;
use super::{HttpState, State, origin};
use crate::config::{Config, Origin, Secret, Secrets, TokenConfig};
use crate::domain::principal::Principal;
use crate::limits::rate_limit::RateLimit;
use crate::sign_in::{self, SecretHash, SignInSecret};

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

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
}

/// What our own tokens are signed with, and must say to be let in.
pub struct Signing {
    pub secret: Secret,
    /// The `aud`.
    pub audience: Option<String>,
    /// The `iss`.
    pub issuer: Option<String>,
}

impl Signing {
    /// Signs with `secret` what `config` accepts.
    pub fn new(config: &TokenConfig, secret: &Secret) -> Self {
        let (audience, issuer) = (config.audience.clone(), config.issuer.clone());
        Self { secret: secret.clone(), audience, issuer }
    }
}

impl SignInEndpoint {
    /// Browsers reach it at the public URL, or else at `address`.
    pub fn new(config: &Config, secrets: &Secrets, address: SocketAddr, failures: RateLimit) -> Self {
        let public_url = config.server.public_url.as_ref();
        let base = match public_url {
            Some(own) => own.to_string(),
            None if address.ip().is_unspecified() => format!("http://localhost:{}", address.port()),
            None => format!("http://{address}"),
        };
        Self {
            base,
            secure: public_url.is_some_and(|own| own.scheme() == "https"),
            session_ttl: config.server.session_ttl.0,
            max_sessions: config.limits.sessions,
            failures,
            signing: ArcSwap::from_pointee(Signing::new(&config.client.token, &secrets.jwt)),
        }
    }

    /// A name with `__Host-` can only be set by this very host, over https and for all paths.
    pub(super) fn cookie_name(&self) -> &'static str {
        if self.secure { "__Host-campanile" } else { "campanile" }
    }

    pub(super) fn cookie<'c>(&self, value: &'c str, age: Duration) -> Cookie<'c> {
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

/// The principal of the session cookie of `request`; `None` without a cookie.
pub async fn of(request: &HttpRequest) -> Result<Option<(Principal, SecretHash)>, ApiError> {
    let state = State::of(request);
    let Some(secret) = presented(request)? else { return Ok(None) };
    let principal = sign_in::principal_of(&state.store, secret).await?.ok_or_else(|| {
        let message = "the session has ended: sign in again with a link from `campanile sign-in`";
        ApiError::new(StatusCode::UNAUTHORIZED, "session_over", message)
    })?;
    // A blocked user stays blocked, however it authenticates.
    state.access.revocations.check(&principal, chrono::Utc::now())?;
    Ok(Some((principal, secret)))
}

/// The secret that `request` presents, if the request comes from our own page.
pub(super) fn presented(request: &HttpRequest) -> Result<Option<SecretHash>, ApiError> {
    let HttpState { sign_in, access, .. } = &**State::of(request);
    let Some(cookie) = request.cookie(sign_in.cookie_name()) else { return Ok(None) };
    check_host(request, access)?;
    check_origin(request, access)?;
    if !request.method().is_safe() && !is_proven(request) {
        return Err(origin::forbidden());
    }
    Ok(SignInSecret::parse(cookie.value()).map(|secret| secret.hash()))
}

/// The request must be addressed to a name of ours. A page that another name of this address has
/// brought (DNS rebinding) is of the same origin as its requests, and gives itself away by that name.
pub(super) fn check_host(request: &HttpRequest, access: &Access) -> Result<(), ApiError> {
    let ours = |name: &str| {
        let own = |origin: &Origin| {
            // In the spelling of origins: lower case, without the port that the scheme implies.
            format!("{}://{name}", origin.scheme()).parse().is_ok_and(|named: Origin| named == *origin)
        };
        access.origins.own.iter().any(own)
    };
    let mut names = request.headers().get_all(header::HOST);
    let host = names.next().and_then(|name| name.to_str().ok());
    let line = request.uri().authority().map(|authority| authority.as_str());
    if names.next().is_none() && host.is_some_and(ours) && line.is_none_or(ours) {
        return Ok(());
    }
    let message = "use the address of this gateway: server.public_url, or the address it listens on";
    Err(ApiError::new(StatusCode::MISDIRECTED_REQUEST, "wrong_host", message))
}

/// Whatever the browser says about where the request comes from must name our own pages: foreign
/// origins that may come with a token (`client.allowed_origins`) have no part in the cookie.
pub(super) fn check_origin(request: &HttpRequest, access: &Access) -> Result<(), ApiError> {
    let headers = request.headers();
    let own = |origin: &header::HeaderValue| {
        let origin = origin.to_str().ok().and_then(|text| text.parse::<Origin>().ok());
        origin.is_some_and(|origin| access.origins.own.contains(&origin))
    };
    // `none` is a person: an address typed in, or a bookmark.
    let near = |site: &header::HeaderValue| site == "same-origin" || site == "none";
    if headers.get(header::ORIGIN).is_none_or(own) && headers.get(&FETCH_SITE).is_none_or(near) {
        Ok(())
    } else {
        Err(origin::forbidden())
    }
}

/// Whether the browser vouches for the request, after [`check_origin`] found nothing against it.
fn is_proven(request: &HttpRequest) -> bool {
    let headers = request.headers();
    headers.contains_key(header::ORIGIN) || headers.get(&FETCH_SITE).is_some_and(|site| site == "same-origin")
}
