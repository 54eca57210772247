//! `/healthz`, `/health`, `/readyz` and `/metrics`. Ready means that this node can keep its promise; a
//! node that is stopping or whose store can keep nothing is not ready.

use std::sync::Arc;
use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, route};
use serde::Serialize;
use tokio::sync::watch;
use utoipa::ToSchema;

use super::error::{ApiError, ApiResult};
use super::metrics::Limit;
use super::{HttpState, Node, State};
use crate::limits::budget::Budget;
use crate::publish;
use crate::telemetry::metrics::Registry;
use crate::telemetry::process;

/// How long `/readyz` waits for the store.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// What the endpoint needs.
pub struct HealthEndpoint {
    /// `Some` as soon as the process stops.
    pub stopping: watch::Receiver<Option<Duration>>,
    /// Whether messages of other nodes arrive directly.
    pub bus: watch::Receiver<bool>,
    /// What there is only so much of on this node, by the names that `/metrics` gives them.
    pub limits: Vec<(&'static str, Budget)>,
    /// Knows how many units wait for the publisher, which is a limit as well.
    pub publish: Arc<publish::Metrics>,
    pub registry: Arc<Registry>,
    /// There is a second listener, and metrics are on it alone.
    pub internal: bool,
}

/// That the process lives.
#[derive(Serialize, ToSchema)]
#[serde(tag = "status", rename_all = "lowercase")]
enum Liveness {
    Alive { version: &'static str },
}

/// Whether a node is ready.
#[derive(Serialize, ToSchema)]
#[serde(tag = "status", rename_all = "lowercase")]
enum Readiness {
    Ready {
        #[schema(pattern = "^(sqlite|postgres)$")]
        store: &'static str,
        /// `bus`: events of other nodes may arrive late.
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        degraded: &'static [Dependency],
    },
    Stopping,
    Unavailable {
        unavailable: [Dependency; 1],
    },
}

/// What a node depends on.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Dependency {
    Bus,
    Store,
}

/// The process lives.
#[utoipa::path(
    responses((status = 200, description = "The process lives.", body = Liveness)),
    security(),
)]
#[route("/healthz", method = "GET", method = "HEAD")]
pub async fn get_liveness() -> HttpResponse {
    HttpResponse::Ok().json(Liveness::Alive { version: env!("CARGO_PKG_VERSION") })
}

#[derive(Serialize, ToSchema)]
#[schema(max_properties = 0)]
struct Empty {}

/// The process lives, as the client protocol asks.
#[utoipa::path(
    responses((status = 200, description = "The process lives.", body = inline(Empty))),
    security(),
)]
#[route("/health", method = "GET", method = "HEAD")]
pub async fn get_health() -> HttpResponse {
    HttpResponse::Ok().json(Empty {})
}

/// Whether this node can keep its promise.
#[utoipa::path(
    responses(
        (status = 200, description = "The node is ready.", body = Readiness),
        (status = 503, description = "The node is stopping, or its store can keep nothing.", body = Readiness),
    ),
    security(),
)]
#[route("/readyz", method = "GET", method = "HEAD", method = "OPTIONS")]
pub async fn get_readiness(state: Node) -> HttpResponse {
    let HttpState { health: endpoint, store, .. } = &*state;
    let ready = tokio::time::timeout(PROBE_TIMEOUT, store.ready()).await.unwrap_or(false);
    // After the probe, so that a node that began to stop meanwhile does not call itself ready.
    if endpoint.stopping.borrow().is_some() {
        return HttpResponse::ServiceUnavailable().json(Readiness::Stopping);
    }
    if !ready {
        return HttpResponse::ServiceUnavailable()
            .json(Readiness::Unavailable { unavailable: [Dependency::Store] });
    }
    // Without the bus, events of other nodes arrive late, but they do arrive.
    let degraded: &[Dependency] = if *endpoint.bus.borrow() { &[] } else { &[Dependency::Bus] };
    HttpResponse::Ok().json(Readiness::Ready { store: store.backend_name(), degraded })
}

/// Whether `/metrics` is on the other listener, and so for no method where `request` came.
pub fn are_metrics_elsewhere(request: &HttpRequest) -> bool {
    request.app_data::<State>().is_some_and(|state| state.health.internal)
}

/// Metrics for Prometheus.
#[utoipa::path(
    responses((status = 200, description = "OpenMetrics 1.0.", body = String, content_type = "application/openmetrics-text")),
    security(),
)]
#[route("/metrics", method = "GET", method = "HEAD")]
pub async fn get_metrics(state: Node) -> ApiResult {
    let HttpState { health: endpoint, metrics, .. } = &*state;
    if endpoint.internal && !state.internal {
        return Err(ApiError::not_found("route"));
    }
    let show = |name, used: u64, max: u64| {
        metrics.limit_used.with(Limit(name)).set(i64::try_from(used).unwrap_or(i64::MAX));
        metrics.limit_max.with(Limit(name)).set(i64::try_from(max).unwrap_or(i64::MAX));
    };
    for (name, budget) in &endpoint.limits {
        let (used, max) = budget.level();
        show(name, used, max);
    }
    let queued = endpoint.publish.publish_queue_length.get().try_into().unwrap_or(0);
    show("publish_queue", queued, publish::QUEUE as u64);
    let bytes = |bytes: Option<u64>| bytes.and_then(|bytes| i64::try_from(bytes).ok()).unwrap_or(0);
    metrics.resident_memory_bytes.set(bytes(process::resident_memory()));
    metrics.memory_limit_bytes.set(bytes(process::memory_limit()));
    Ok(HttpResponse::Ok()
        .content_type("application/openmetrics-text; version=1.0.0; charset=utf-8")
        .body(endpoint.registry.encode()))
}
