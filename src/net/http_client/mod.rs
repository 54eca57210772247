//! The one client for HTTP that leaves the gateway. Connections are kept, each exchange has a deadline,
//! and each body a limit. Redirects are not followed: the caller sees their status. Proxies of the
//! environment are not used. Callers choose whom the client may connect to.
//! Must hold: no error repeats a URL or a header, since both may contain secrets.

use std::error::Error;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::LazyLock;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use ipnet::IpNet;
pub use reqwest::{StatusCode, Upgraded};
use reqwest::{Url, dns, redirect};
use url::Host;

use super::tls::Trust;

const USER_AGENT: &str = concat!("campanile/", env!("CARGO_PKG_VERSION"));
/// How long an idle connection is kept.
const IDLE: Duration = Duration::from_secs(30);
/// How long a connection may take to open, within the deadline of its exchange.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_IDLE_PER_HOST: usize = 8;

/// Whom a client may connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// Anybody: for URLs that the operator wrote.
    Any,
    /// Only public addresses: for URLs that others wrote. A name is resolved once, and the connection goes
    /// to an address that was checked, so that no later answer of the DNS can change it.
    Public,
}

/// A client. Clones share its connections.
#[derive(Debug, Clone)]
pub struct HttpClient {
    client: reqwest::Client,
    destination: Destination,
}

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The exchange was not over in time.
    #[error("the response took too long")]
    Timeout,
    /// The body is larger than its limit in bytes.
    #[error("the response is larger than {0} bytes")]
    TooLarge(usize),
    /// The address is not public, and the client connects to no other.
    #[error("the address {0} is not public")]
    Refused(IpAddr),
    /// There is no connection, so the request cannot have arrived.
    #[error("{0}")]
    Connect(String),
    /// There is no connection, because TLS failed.
    #[error("{0}")]
    Tls(String),
    /// The request is malformed, or the exchange broke off. The request may have arrived.
    #[error("{0}")]
    Exchange(String),
}

/// A request that has not been sent yet. What is malformed in it is an error of [`Self::send`].
#[must_use]
pub struct Request {
    builder: reqwest::RequestBuilder,
    destination: Destination,
}

/// A response whose body has not been read yet. The deadline of the request holds for the body too.
#[derive(Debug)]
pub struct Response(reqwest::Response);

impl HttpClient {
    /// A client for these destinations.
    pub fn new(destination: Destination) -> Self {
        let tls = Trust::Name(None).client().ok().flatten().expect("public authorities need no file");
        let builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .user_agent(USER_AGENT)
            .redirect(redirect::Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(MAX_IDLE_PER_HOST);
        let builder = match destination {
            Destination::Any => builder,
            Destination::Public => builder.dns_resolver(PublicResolver),
        };
        Self { client: builder.build().expect("nothing in these options can fail"), destination }
    }

    /// Begins a GET.
    pub fn get(&self, url: &str) -> Request {
        Request { builder: self.client.get(url), destination: self.destination }
    }

    /// Begins a POST.
    pub fn post(&self, url: &str) -> Request {
        Request { builder: self.client.post(url), destination: self.destination }
    }
}

impl Request {
    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.builder = self.builder.header(name, value);
        self
    }

    /// Sets the body.
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.builder = self.builder.body(body.into());
        self
    }

    /// Sends it. The exchange must be over within `deadline`, to the last byte of the response.
    pub async fn send(self, deadline: Duration) -> Result<Response, HttpError> {
        let (client, request) = self.builder.timeout(deadline).build_split();
        let request = request?;
        if self.destination == Destination::Public {
            // A literal address is not resolved.
            check_literal(request.url())?;
        }
        Ok(Response(client.execute(request).await?))
    }
}

impl Response {
    /// The status, whatever it is.
    pub fn status(&self) -> StatusCode {
        self.0.status()
    }

    /// The header of this name, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.0.headers().get(name)?.to_str().ok()
    }

    /// Reads the body, which may have up to `limit` bytes.
    pub async fn read(mut self, limit: usize) -> Result<Bytes, HttpError> {
        let mut body = BytesMut::new();
        while let Some(chunk) = self.0.chunk().await? {
            if chunk.len() > limit - body.len() {
                return Err(HttpError::TooLarge(limit));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }

    /// The connection itself, after the status 101. It has no deadline.
    pub async fn upgrade(self) -> Result<Upgraded, HttpError> {
        Ok(self.0.upgrade().await?)
    }
}

impl From<reqwest::Error> for HttpError {
    fn from(error: reqwest::Error) -> Self {
        let (is_timeout, is_connect) = (error.is_timeout(), error.is_connect());
        // The first cause says what went wrong; the errors around it repeat the URL.
        let error = error.without_url();
        let mut cause: &(dyn Error + 'static) = &error;
        while let Some(next) = cause_of(cause) {
            if let Some(NotPublic(address)) = next.downcast_ref() {
                return Self::Refused(*address);
            }
            cause = next;
        }
        let is_tls = cause.is::<rustls::Error>();
        let cause = cause.to_string();
        match (is_connect, is_tls, is_timeout) {
            (true, true, _) => Self::Tls(cause),
            (true, false, _) => Self::Connect(cause),
            (false, _, true) => Self::Timeout,
            _ => Self::Exchange(cause),
        }
    }
}

/// What caused `error`. The source of an io::Error is that of the error in it, which would be left out.
fn cause_of<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => Some(inner),
        None => error.source(),
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the address {0} is not public")]
struct NotPublic(IpAddr);

/// Resolves names to public addresses alone.
struct PublicResolver;

impl dns::Resolve for PublicResolver {
    fn resolve(&self, name: dns::Name) -> dns::Resolving {
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            match found.iter().find(|address| !is_public(address.ip())) {
                Some(address) => Err(NotPublic(address.ip()).into()),
                None => Ok(Box::new(found.into_iter()) as dns::Addrs),
            }
        })
    }
}

fn check_literal(url: &Url) -> Result<(), HttpError> {
    let address: IpAddr = match url.host() {
        Some(Host::Ipv4(address)) => address.into(),
        Some(Host::Ipv6(address)) => address.into(),
        Some(Host::Domain(_)) | None => return Ok(()),
    };
    if is_public(address) { Ok(()) } else { Err(HttpError::Refused(address)) }
}

/// Networks without public hosts (IANA's registries of special purpose), as far as IPv6 is global unicast.
static NOT_PUBLIC: LazyLock<Vec<IpNet>> = LazyLock::new(|| {
    let networks = [
        "0.0.0.0/8",       // unspecified
        "10.0.0.0/8",      // private
        "100.64.0.0/10",   // behind the NAT of a provider
        "127.0.0.0/8",     // loopback
        "169.254.0.0/16",  // link-local, where clouds have their metadata
        "172.16.0.0/12",   // private
        "192.0.0.0/24",    // protocols
        "192.0.2.0/24",    // documentation
        "192.88.99.0/24",  // relays of 6to4
        "192.168.0.0/16",  // private
        "198.18.0.0/15",   // benchmarks
        "198.51.100.0/24", // documentation
        "203.0.113.0/24",  // documentation
        "224.0.0.0/4",     // multicast
        "240.0.0.0/4",     // reserved, broadcast
        "2001::/23",       // protocols, Teredo
        "2001:db8::/32",   // documentation
        "3fff::/20",       // documentation
    ];
    networks.map(|network| network.parse().expect("a network")).to_vec()
});

fn is_public(address: IpAddr) -> bool {
    let (address, is_global) = match address {
        IpAddr::V4(_) => (address, true),
        IpAddr::V6(v6) => match v6.segments() {
            // Mapped, NAT64 and 6to4: these lead to an IPv4 address.
            [0, 0, 0, 0, 0, 0xffff, high, low]
            | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
            | [0x2002, high, low, ..] => {
                (Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)).into(), true)
            }
            [first, ..] => (address, first >> 13 == 1),
        },
    };
    is_global && !NOT_PUBLIC.iter().any(|network| network.contains(&address))
}

#[cfg(test)]
mod tests;
