//! The second listener, `server.internal_listen`: health and metrics on a thread of their own, where the clients of
//! the first one take no room.

use std::net::TcpListener;
use std::sync::Arc;

use actix_web::dev::Server;
use actix_web::{App, HttpServer, web};

use crate::http::HttpState;
use crate::http::error::{ApiError, ApiResult};
use crate::http::health;

/// Starts to serve `listener`.
pub(super) fn start(listener: TcpListener, state: Arc<HttpState>) -> std::io::Result<Server> {
    let app = move || {
        App::new()
            .app_data(state.clone())
            .service(health::get_liveness)
            .service(health::get_health)
            .service(health::get_readiness)
            .service(health::get_metrics)
            .default_service(web::to(unrouted))
    };
    Ok(HttpServer::new(app).workers(1).disable_signals().shutdown_timeout(1).listen(listener)?.run())
}

async fn unrouted() -> ApiResult {
    Err(ApiError::not_found("route"))
}
