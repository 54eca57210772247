//! The HTTP surface. Handlers take what they need, call one operation and shape the answer; who
//! may do what is decided by the extractors and the access rule.

pub mod accepted;
pub mod access;
pub mod auth;
mod body;
pub mod builds;
mod channel_list;
pub mod client_streams;
pub mod dashboard;
pub mod deliveries;
pub mod error;
mod etag;
pub mod event_stream;
pub mod extract;
mod forwarded;
pub mod health;
pub mod lingering;
pub mod metrics;
mod openapi;
pub mod origin;
pub mod page;
pub mod poll;
mod rate_headers;
pub mod repos;
pub mod routes;
pub mod server_api;
pub mod session;
pub mod state;
pub mod tcp;
pub mod webhooks;
pub mod websocket;

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

use actix_web::dev::Payload;
use actix_web::{FromRequest, HttpRequest};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa::openapi::{Object, Type};

use crate::cluster::Cluster;
use crate::dashboard::Summaries;
use crate::limits::connections::Connections;
use crate::publish::Publisher;
use crate::sign_in::OpenSessions;
use crate::store::Store;
use crate::tasks::revocations::Revoker;
use crate::transport::http_stream::Streams;
use crate::transport::worker::UserLimits;
use error::ApiError;
pub use metrics::Metrics;

/// What the handlers of a node share.
pub struct HttpState {
    pub store: Store,
    pub publisher: Publisher,
    pub cluster: Cluster,
    pub revoker: Revoker,
    pub sessions: OpenSessions,
    pub metrics: Arc<Metrics>,
    pub access: access::Access,
    pub summaries: Summaries,
    /// The largest event, in bytes of its data.
    pub max_publication: usize,
    pub webhooks: webhooks::WebhookEndpoint,
    pub polls: poll::PollEndpoint,
    pub builds: builds::BuildEndpoint,
    pub event_streams: event_stream::StreamEndpoint,
    pub client_streams: client_streams::ClientStreamEndpoints,
    pub websocket: websocket::WebSocketEndpoint,
    pub sign_in: session::SignInEndpoint,
    pub health: health::HealthEndpoint,
    pub connections: Connections,
    pub user_limits: UserLimits,
    pub lingering: Arc<lingering::Lingering>,
}

/// The state of the app on one worker thread. Handlers take it as an extractor.
#[derive(Clone)]
pub struct State {
    pub node: Arc<HttpState>,
    /// Opens client streams on this thread.
    pub streams: Rc<Streams>,
}

impl State {
    /// The state of the app that serves `request`.
    pub fn of(request: &HttpRequest) -> &Self {
        request.app_data().expect("every app is built with its state")
    }
}

impl Deref for State {
    type Target = HttpState;

    fn deref(&self) -> &HttpState {
        &self.node
    }
}

impl FromRequest for State {
    type Error = Infallible;
    type Future = Ready<Result<Self, Infallible>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(Ok(Self::of(request).clone()))
    }
}

/// What the handlers of a node share, where one need not know by which listener a request came.
pub struct Node {
    state: Arc<HttpState>,
    /// It came by `server.internal_listen`.
    pub internal: bool,
}

impl Deref for Node {
    type Target = HttpState;

    fn deref(&self) -> &HttpState {
        &self.state
    }
}

impl FromRequest for Node {
    type Error = Infallible;
    type Future = Ready<Result<Self, Infallible>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let internal: Option<&Arc<HttpState>> = request.app_data();
        let state = internal.unwrap_or_else(|| &State::of(request).node).clone();
        ready(Ok(Self { state, internal: internal.is_some() }))
    }
}

/// Where a page begins, and how many entries it may have.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct PageQuery {
    /// The `cursor` of an earlier response.
    cursor: Option<String>,
    #[param(value_type = Option<u32>, minimum = 1, maximum = 100, default = 50)]
    limit: Option<String>,
}

/// The schema of a field that is there only if it is true.
fn always_true() -> Object {
    Object::builder().schema_type(Type::Boolean).enum_values(Some([true])).build()
}

/// A `limit` in a query: a number from 1 to `max`, `default` if absent.
fn parse_limit(limit: Option<&str>, default: u32, max: u32) -> Result<u32, ApiError> {
    let Some(limit) = limit else { return Ok(default) };
    limit.parse().ok().filter(|limit| (1..=max).contains(limit)).ok_or_else(|| {
        ApiError::bad_request("bad_limit", format!("`limit` must be a number from 1 to {max}"))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("the sources are here") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                sources(&path, found);
            } else if path.extension().is_some_and(|kind| kind == "rs") {
                found.push(path);
            }
        }
    }

    /// What `text` has of the store beside its handle and its error, which are only passed on.
    fn queries(text: &str) -> Vec<&str> {
        let text = text.split("#[cfg(test)]").next().unwrap_or_default();
        let passed_on = ["use crate::store::Store;", "use crate::store::StoreError;"];
        let signs = [
            "store::",
            "use crate::{",
            "diesel",
            "|conn",
            "|tx",
            "|mut tx",
            "store.read(",
            "store.write",
            "store.append(",
            "SELECT ",
            "INSERT INTO",
            "UPDATE ",
            "DELETE FROM",
        ];
        let lines =
            text.lines().filter(|line| !line.trim_start().starts_with("//") && !passed_on.contains(line));
        lines.filter(|line| signs.iter().any(|sign| line.contains(sign))).collect()
    }

    #[test]
    fn no_handler_queries_the_store() {
        let mut files = Vec::new();
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http"), &mut files);
        assert!(files.len() > 20, "these are all of them: {files:?}");
        for file in files {
            let text = fs::read_to_string(&file).expect("a source file");
            assert_eq!(queries(&text), [""; 0], "{}", file.display());
        }
        for planted in [
            "use crate::store::builds;",
            "use crate::store::{self, Store};",
            "x.store.read(f)",
            "store.write_log(|tx| x)",
        ] {
            assert_eq!(queries(planted), [planted]);
        }
    }
}
