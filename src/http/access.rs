//! Who may do what over HTTP: keys, revocations, rules and addresses. Extractors are in `extract`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use actix_web::HttpRequest;
use actix_web::http::header::HeaderMap;
use arc_swap::ArcSwap;
use ipnet::IpNet;
use sha2::{Digest as _, Sha256};

use super::error::ApiError;
use super::forwarded;
use crate::auth::KeyRing;
use crate::auth::revocations::Revocations;
use crate::config::{Config, ForwardedHeader, Origin, OriginPattern, Secret};
use crate::domain::access::{self, AccessContext, Action, ResourceInfo};
use crate::domain::channel::ChannelName;
use crate::domain::options::SharedNamespaces;
use crate::domain::principal::Principal;
use crate::telemetry::LogAddresses;

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
    /// Proxies whose `forwarded_header` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Where they say whom a request is from.
    pub forwarded_header: ForwardedHeader,
    /// How much of an address the logs show; a reload changes it.
    pub log_addresses: ArcSwap<LogAddresses>,
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
        origin.parse::<Origin>().is_ok_and(|origin| self.own.contains(&origin))
            || self.foreign.iter().any(|pattern| pattern.matches(origin))
    }
}

impl Access {
    /// Whether `principal` may do `action` on `channel`, behind which is `resource`, over HTTP.
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

    /// The client's address: the last one that no trusted proxy wrote, or that of the proxy which hides it.
    /// IPv4 as IPv4, also where a socket of both families shows it as `::ffff:…`: networks are written so in
    /// the config.
    pub fn address_of(&self, request: &HttpRequest) -> IpAddr {
        self.address_behind(request.peer_addr(), request.headers())
    }

    /// The same of a request that no route has taken.
    pub fn address_behind(&self, peer: Option<SocketAddr>, headers: &HeaderMap) -> IpAddr {
        let peer = peer.map_or(IpAddr::from([0, 0, 0, 0]), |addr| addr.ip().to_canonical());
        let trusted = |address: &IpAddr| self.trusted_proxies.iter().any(|net| net.contains(address));
        let mut address = peer;
        if !trusted(&address) {
            return address;
        }
        for hop in forwarded::hops(headers, self.forwarded_header) {
            let Some(earlier) = hop else { break };
            address = earlier;
            if !trusted(&address) {
                break;
            }
        }
        address
    }
}
