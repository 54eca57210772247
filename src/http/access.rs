//! Who is asking, from where, and what they may do: the extractors and checks that stand at every
//! door. A handler that takes a [`Caller`] cannot forget to authenticate.

use std::future::{Ready, ready};
use std::net::IpAddr;

use actix_web::dev::Payload;
use actix_web::http::header;
use actix_web::{FromRequest, HttpRequest, web};
use ipnet::IpNet;

use super::error::ApiError;
use crate::auth::{self, KeyRing, TokenError};
use crate::config::{Origin, OriginPattern, Secret};
use crate::domain::access::{self, Action, Denied, Facts, Item};
use crate::domain::channel::{ChannelKind, ChannelName};
use crate::domain::options::SharedNamespaces;
use crate::domain::principal::Principal;

/// What the doors know about friend and foe.
pub struct Access {
    /// Verify tokens.
    pub keys: KeyRing,
    /// Opens the server API.
    pub api_key: Secret,
    /// What the operator decided about channels.
    pub namespaces: SharedNamespaces,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Sites that browsers may come from.
    pub origins: Origins,
}

/// The allowed origins: our own, and those of the config.
pub struct Origins {
    /// Under which browsers reach this server.
    pub own: Vec<Origin>,
    /// Foreign ones.
    pub foreign: Vec<OriginPattern>,
}

impl Origins {
    /// Whether a page of `origin` (the header's text) may use this server.
    pub fn allow(&self, origin: &str) -> bool {
        origin.parse::<Origin>().is_ok_and(|origin| {
            self.own.contains(&origin) || self.foreign.iter().any(|pattern| pattern.matches(&origin))
        })
    }
}

impl Access {
    /// Whether `principal` may do `action` on `channel` over HTTP.
    pub fn permit(&self, principal: &Principal, action: Action, channel: &ChannelName) -> Result<(), Denied> {
        let item = match channel.kind() {
            // Nothing makes jobs or builds yet, so no id is known.
            ChannelKind::Job(_) | ChannelKind::Build(_) => Item::Unknown,
            _ => Item::NotNeeded,
        };
        let namespaces = self.namespaces.load();
        let facts = Facts { options: namespaces.options_of(channel), item, ..Facts::default() };
        access::may(principal, action, channel, &facts)
    }

    /// The principal of a token.
    pub fn authenticate(&self, token: &str) -> Result<Principal, TokenError> {
        self.keys.authenticate(token, chrono::Utc::now())
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

/// Whoever holds the bearer token of a request.
pub struct Caller(pub Principal);

impl FromRequest for Caller {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(caller(request, None))
    }
}

/// The caller by the `Authorization` header, or else by `token`.
pub fn caller(request: &HttpRequest, token: Option<&str>) -> Result<Caller, ApiError> {
    let header = request.headers().get(header::AUTHORIZATION).map(|value| value.to_str().unwrap_or(""));
    let token = match header {
        Some(header) => auth::bearer(header).ok_or(TokenError::Invalid)?,
        None => token.ok_or(TokenError::Missing)?,
    };
    Ok(Caller(of(request).authenticate(token)?))
}

/// A caller with the admin scope.
pub struct Admin;

impl FromRequest for Admin {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(caller(request, None).and_then(|Caller(principal)| {
            if access::is_admin(&principal) {
                Ok(Self)
            } else {
                Err(ApiError::forbidden("this needs a token with the scope `admin`"))
            }
        }))
    }
}
