//! The whole URL table. What a route needs beside its request is in the app's data, put there by
//! `app`.

use actix_web::http::{StatusCode, header};
use actix_web::web::{self, ServiceConfig, delete, get, post};
use actix_web::{HttpRequest, Route, guard};

use super::error::{ApiError, ApiResult};
use super::server_api::Method;
use super::{
    auth, builds, client_streams, dashboard, deliveries, event_stream, health, openapi, page, poll, repos,
    server_api, webhooks, websocket,
};

pub fn routes(app: &mut ServiceConfig) {
    let only = |route| web::resource(route).default_service(web::to(method_not_allowed));
    app.app_data(web::QueryConfig::default().error_handler(|error, _| {
        ApiError::bad_request("bad_query", format!("the query string cannot be read: {error}")).into()
    }))
    // In this order they are tried, so what comes often stands first.
    .service(only(poll::PATH).route(get().to(poll::events)))
    .service(only("/webhooks/github").route(post().to(webhooks::receive)))
    .service(only("/api/publish").route(post().to(server_api::of(Method::Publish))))
    .service(only("/").route(look().to(page::home)))
    .service(only("/sign-in").route(look().to(page::sign_in)))
    .service(only("/healthz").route(look().to(health::alive)))
    .service(only("/health").route(look().to(health::health)))
    .service(only("/readyz").route(look().to(health::ready)))
    .service(only("/metrics").route(get().to(health::metrics)))
    .service(only("/api/openapi.json").route(get().to(openapi::document)))
    .service(only("/api/events/stream").route(get().to(event_stream::open)))
    .service(only(websocket::PATH).route(get().to(websocket::no_upgrade)))
    .service(only(websocket::UNI_PATH).route(get().to(websocket::no_upgrade)))
    .service(only("/connection/http_stream").route(post().to(client_streams::http_stream)))
    .service(
        only("/connection/sse")
            .route(get().to(client_streams::sse))
            .route(post().to(client_streams::sse_by_body)),
    )
    .service(only("/emulation").route(post().to(client_streams::emulate)))
    .service(only("/connection/uni_http_stream").route(post().to(client_streams::uni_http_stream)))
    .service(
        only("/connection/uni_sse")
            .route(get().to(client_streams::uni_sse))
            .route(post().to(client_streams::uni_sse_by_body)),
    )
    .service(only("/api/broadcast").route(post().to(server_api::of(Method::Broadcast))))
    .service(only("/api/subscribe").route(post().to(server_api::of(Method::Subscribe))))
    .service(only("/api/unsubscribe").route(post().to(server_api::of(Method::Unsubscribe))))
    .service(only("/api/disconnect").route(post().to(server_api::of(Method::Disconnect))))
    .service(only("/api/refresh").route(post().to(server_api::of(Method::Refresh))))
    .service(only("/api/presence").route(post().to(server_api::of(Method::Presence))))
    .service(only("/api/presence_stats").route(post().to(server_api::of(Method::PresenceStats))))
    .service(only("/api/history").route(post().to(server_api::of(Method::History))))
    .service(only("/api/history_remove").route(post().to(server_api::of(Method::HistoryRemove))))
    .service(only("/api/channels").route(post().to(server_api::of(Method::Channels))))
    .service(only("/api/info").route(post().to(server_api::of(Method::Info))))
    .service(only("/api/rpc").route(post().to(server_api::of(Method::Rpc))))
    .service(only("/api/batch").route(post().to(server_api::of(Method::Batch))))
    .service(only("/api/connections").route(post().to(server_api::of(Method::Connections))))
    .service(only("/api/revoke_token").route(post().to(server_api::of(Method::RevokeToken))))
    .service(only("/api/block_user").route(post().to(server_api::of(Method::BlockUser))))
    .service(only("/api/unblock_user").route(post().to(server_api::of(Method::UnblockUser))))
    .service(only("/api/deliveries").route(get().to(deliveries::list)))
    .service(only("/api/deliveries/{id}").route(get().to(deliveries::get)))
    .service(only("/api/deliveries/{id}/process").route(post().to(deliveries::process)))
    .service(only("/api/builds/{id}/events").route(post().to(builds::append)))
    .service(only("/api/build-events/{id}").route(get().to(builds::events)))
    .service(only("/api/repos").route(get().to(repos::list)))
    .service(only("/api/repos/{id}").route(get().to(repos::get)))
    .service(only("/api/repos/{id}/runs").route(get().to(repos::runs)))
    .service(only("/api/auth/links").route(post().to(auth::links)))
    .service(only("/api/auth/sign-in").route(post().to(auth::sign_in)))
    .service(only("/api/auth/session").route(delete().to(auth::sign_out)))
    .service(only("/api/auth/me").route(get().to(auth::me)))
    .service(only("/api/auth/token").route(post().to(auth::token)))
    .service(only("/api/dashboard/summary").route(get().to(dashboard::summary)))
    .service(only("/api/dashboard/activity").route(get().to(dashboard::activity)))
    .service(only("/page/{file}").route(look().to(page::file)))
    .default_service(web::to(not_found));
}

/// GET, and HEAD, which many health checkers send.
fn look() -> Route {
    web::route().guard(guard::Any(guard::Get()).or(guard::Head()))
}

async fn not_found(request: HttpRequest) -> ApiResult {
    Err(ApiError::not_found("route").details(serde_json::json!({ "path": request.path() })))
}

async fn method_not_allowed(request: HttpRequest) -> ApiResult {
    let allowed = openapi::methods_of(request.match_pattern().as_deref().unwrap_or_default());
    let message = "this route does not support the method";
    Err(ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
        .header(header::ALLOW, allowed))
}
