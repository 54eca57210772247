//! `/healthz`, `/health`, `/readyz` and `/metrics`. Ready means that this node can keep its promise; a
//! node that is stopping or cannot reach its store is not ready.

use std::sync::Arc;
use std::time::Duration;

use actix_web::HttpResponse;
use serde_json::json;
use tokio::sync::watch;

use super::metrics::Limit;
use super::{HttpState, State};
use crate::limits::budget::Budget;
use crate::publish;
use crate::telemetry::metrics::Registry;

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
}

/// `GET /healthz`: the process lives.
pub async fn alive() -> HttpResponse {
    HttpResponse::Ok().json(json!({ "status": "alive", "version": env!("CARGO_PKG_VERSION") }))
}

/// `GET /health` (protocol §3).
pub async fn health() -> HttpResponse {
    HttpResponse::Ok().json(json!({}))
}

/// `GET /readyz`: 200 when this node can keep its promise, 503 otherwise.
pub async fn ready(state: State) -> HttpResponse {
    let HttpState { health: endpoint, store, .. } = &*state;
    let probed = tokio::time::timeout(PROBE_TIMEOUT, store.probe()).await;
    // After the probe, so that a node that began to stop meanwhile does not call itself ready.
    if endpoint.stopping.borrow().is_some() {
        return HttpResponse::ServiceUnavailable().json(json!({ "status": "stopping" }));
    }
    match probed {
        Ok(Ok(())) => {
            let mut answer = json!({ "status": "ready", "store": store.backend_name() });
            // Events of other nodes arrive late, but they do arrive.
            if !*endpoint.bus.borrow() {
                answer["degraded"] = json!(["bus"]);
            }
            HttpResponse::Ok().json(answer)
        }
        Ok(Err(_)) | Err(_) => HttpResponse::ServiceUnavailable()
            .json(json!({ "status": "unavailable", "unavailable": ["store"] })),
    }
}

/// `GET /metrics`: OpenMetrics text.
pub async fn metrics(state: State) -> HttpResponse {
    let HttpState { health: endpoint, metrics, .. } = &*state;
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
    HttpResponse::Ok()
        .content_type("application/openmetrics-text; version=1.0.0; charset=utf-8")
        .body(endpoint.registry.encode())
}
