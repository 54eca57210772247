//! Who is asking, from where, and what they may do: the extractors and checks of every endpoint. A
//! handler that takes a [`Caller`] cannot forget to authenticate.

use std::future::{Ready, ready};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use actix_web::dev::Payload;
use actix_web::http::header;
use actix_web::{FromRequest, HttpRequest, web};
use futures_util::future::{Either, LocalBoxFuture};
use ipnet::IpNet;
use sha2::{Digest as _, Sha256};

use super::auth::session;
use super::error::ApiError;
use crate::auth::revocations::Revocations;
use crate::auth::{self, KeyRing, TokenError};
use crate::config::{Config, Origin, OriginPattern, Secret};
use crate::domain::access::{self, AccessContext, Action, ResourceInfo};
use crate::domain::channel::ChannelName;
use crate::domain::options::SharedNamespaces;
use crate::domain::principal::Principal;
use crate::store::sessions::SecretHash;
use crate::store::{Store, resources};

/// The longest user's id that a rate's key shows.
const MAX_USER: usize = 100;

/// What every endpoint needs to authenticate and authorise a caller.
pub struct Access {
    pub keys: KeyRing,
    /// Revoked tokens and blocked users.
    pub revocations: Revocations,
    /// The key of the server API.
    pub api_key: Secret,
    /// The namespaces of the configuration.
    pub namespaces: SharedNamespaces,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Origins that browsers may send requests from.
    pub origins: Origins,
}

/// The allowed origins: our own, and those of the config.
pub struct Origins {
    /// Under which browsers reach this server.
    pub own: Vec<Origin>,
    pub foreign: Vec<OriginPattern>,
}

impl Origins {
    /// The origin of the public URL, or else those of `address` and localhost, and the configured ones.
    pub fn new(config: &Config, address: SocketAddr) -> Self {
        let port = address.port();
        let own = match &config.server.public_url {
            Some(own) => vec![own.clone()],
            None => [
                format!("http://{address}"),
                format!("http://localhost:{port}"),
                format!("http://127.0.0.1:{port}"),
            ]
            .iter()
            .filter_map(|origin| origin.parse().ok())
            .collect(),
        };
        Self { own, foreign: config.client.allowed_origins.clone() }
    }

    /// Whether a page of `origin` (the header's text) may use this server.
    pub fn allow(&self, origin: &str) -> bool {
        origin.parse::<Origin>().is_ok_and(|origin| {
            self.own.contains(&origin) || self.foreign.iter().any(|pattern| pattern.matches(&origin))
        })
    }
}

impl Access {
    /// Whether `principal` may do `action` on `channel` over HTTP.
    pub async fn permit(
        &self,
        store: &Store,
        principal: &Principal,
        action: Action,
        channel: &ChannelName,
    ) -> Result<(), ApiError> {
        let resource = resources::lookup(store, channel).await?;
        self.check(principal, action, channel, &resource)
    }

    /// As [`permit`](Self::permit), for callers that know the resource behind the channel.
    pub fn check(
        &self,
        principal: &Principal,
        action: Action,
        channel: &ChannelName,
        resource: &ResourceInfo,
    ) -> Result<(), ApiError> {
        let namespaces = self.namespaces.load();
        let options = namespaces.options_of(channel);
        let context = AccessContext { options, resource: resource.as_resource(), ..AccessContext::default() };
        Ok(access::may(principal, action, channel, &context)?)
    }

    /// The key under which rate limits count a principal: its user, or its address if it is anonymous. Short
    /// and printable, whatever the user id is like.
    pub fn rate_key(&self, request: &HttpRequest, principal: &Principal) -> String {
        Self::user_key(principal).unwrap_or_else(|| self.address_of(request).to_string())
    }

    /// The key for a user; `None` for an anonymous one.
    pub fn user_key(principal: &Principal) -> Option<String> {
        if principal.is_anonymous() {
            return None;
        }
        let user = &principal.user;
        let short = user.len() <= MAX_USER && user.bytes().all(|byte| (0x20..0x7f).contains(&byte));
        Some(if short { ["u:", user].concat() } else { ["h:", &hex::encode(Sha256::digest(user))].concat() })
    }

    /// The principal of a token.
    pub fn authenticate(&self, token: &str) -> Result<Arc<Principal>, ApiError> {
        let now = chrono::Utc::now();
        let principal = self.keys.authenticate_cached(token, now)?;
        self.revocations.check(&principal, now)?;
        Ok(principal)
    }

    /// The principal of a token that is valid and cached; no signature is verified.
    pub fn authenticate_from_cache(&self, token: &str) -> Option<Arc<Principal>> {
        let now = chrono::Utc::now();
        let principal = self.keys.cached(token, now)?.ok()?;
        self.revocations.check(&principal, now).ok().map(|_| principal)
    }

    /// The client's address: the last one that no trusted proxy wrote. IPv4 as IPv4, also where a
    /// socket of both families shows it as `::ffff:…`: networks are written so in the config.
    pub fn address_of(&self, request: &HttpRequest) -> IpAddr {
        let peer = request.peer_addr().map_or(IpAddr::from([0, 0, 0, 0]), |addr| addr.ip().to_canonical());
        let trusted = |address: &IpAddr| self.trusted_proxies.iter().any(|net| net.contains(address));
        let forwarded = request.headers().get_all("x-forwarded-for").filter_map(|value| value.to_str().ok());
        let hops: Vec<&str> = forwarded.flat_map(|value| value.split(',')).map(str::trim).collect();
        let mut address = peer;
        for hop in hops.iter().rev() {
            if !trusted(&address) {
                break;
            }
            let Ok(earlier) = hop.parse::<IpAddr>() else { break };
            address = earlier.to_canonical();
        }
        address
    }
}

/// The access rules of the app that serves `request`.
pub fn of(request: &HttpRequest) -> &Access {
    request.app_data::<web::Data<Access>>().expect("every app is built with its access rules")
}

/// Whoever stands behind a request, by bearer token or by session.
pub struct Caller(pub Arc<Principal>);

impl FromRequest for Caller {
    type Error = ApiError;
    type Future = Either<Ready<Result<Self, ApiError>>, LocalBoxFuture<'static, Result<Self, ApiError>>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        // A token is judged at once; a session has to be looked up.
        if let Some(by_token) = by_token(request, None).transpose() {
            return Either::Left(ready(by_token.map(Self)));
        }
        let request = request.clone();
        Either::Right(Box::pin(async move { Ok(Self(by_session(&request).await?.0)) }))
    }
}

/// The same, for what depends on how they came in.
pub struct Who {
    /// Who it is.
    pub principal: Arc<Principal>,
    /// The session, if a cookie said it.
    pub session: Option<SecretHash>,
}

impl FromRequest for Who {
    type Error = ApiError;
    type Future = LocalBoxFuture<'static, Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let request = request.clone();
        Box::pin(async move { identify(&request, None).await })
    }
}

/// The caller by the `Authorization` header, or else by `token`, or else by the session cookie.
pub async fn identify(request: &HttpRequest, token: Option<&str>) -> Result<Who, ApiError> {
    if let Some(principal) = by_token(request, token)? {
        return Ok(Who { principal, session: None });
    }
    let (principal, session) = by_session(request).await?;
    Ok(Who { principal, session: Some(session) })
}

/// The caller by the `Authorization` header, or else by `token`; `None` without either.
fn by_token(request: &HttpRequest, token: Option<&str>) -> Result<Option<Arc<Principal>>, ApiError> {
    let header = request.headers().get(header::AUTHORIZATION).map(|value| value.to_str().unwrap_or(""));
    let token = match header {
        Some(header) => Some(auth::bearer(header).ok_or(TokenError::Invalid)?),
        None => token,
    };
    token.map(|token| of(request).authenticate(token)).transpose()
}

/// The caller by the session cookie.
async fn by_session(request: &HttpRequest) -> Result<(Arc<Principal>, SecretHash), ApiError> {
    let (principal, session) = session::of(request).await?.ok_or(TokenError::Missing)?;
    Ok((Arc::new(principal), session))
}

/// A caller with the admin scope.
pub struct Admin;

impl FromRequest for Admin {
    type Error = ApiError;
    type Future = LocalBoxFuture<'static, Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let request = request.clone();
        Box::pin(async move {
            if access::is_admin(&identify(&request, None).await?.principal) {
                Ok(Self)
            } else {
                Err(ApiError::forbidden("this needs a token with the scope `admin`"))
            }
        })
    }
}
