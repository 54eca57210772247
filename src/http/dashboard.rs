//! The first screen: its numbers, and the newest events of all that the caller may see. 304 while neither
//! has changed.

use actix_web::{HttpRequest, HttpResponse, get, web};
use serde::Deserialize;
use utoipa::IntoParams;

use super::State;
use super::error::{ApiResult, internal};
use super::etag;
use super::extract::Caller;
use crate::dashboard;

const DEFAULT_LIMIT: u32 = 20;
const MAX_LIMIT: u32 = 100;

/// The query string of the activity.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct Query {
    #[param(value_type = Option<u32>, minimum = 1, maximum = 100, default = 20)]
    limit: Option<String>,
}

/// The newest events of all that the caller may see, newest first.
#[utoipa::path(
    params(Query),
    responses((status = 200, description = "#Activity"), (status = 304)),
)]
#[get("/api/dashboard/activity")]
pub async fn list_activity(
    request: HttpRequest,
    Caller(principal): Caller,
    query: web::Query<Query>,
    state: State,
) -> ApiResult {
    let limit = super::parse_limit(query.limit.as_deref(), DEFAULT_LIMIT, MAX_LIMIT)?;
    let namespaces = state.access.namespaces.load_full();
    let known = etag::known(request.headers()).map(str::to_owned);
    let is_known =
        move |version: &str| known.is_some_and(|known| etag::matches(&known, &etag::of(&(limit, version))));
    let activity = dashboard::activity(&state.store, &namespaces, &principal, limit, is_known).await?;
    let Some(activity) = activity else {
        return Ok(HttpResponse::Ok().json(serde_json::json!({ "events": [] })));
    };
    let tag = etag::of(&(limit, activity.version.as_str()));
    let Some(events) = activity.events else { return Ok(etag::not_modified(&tag)) };
    let texts: Vec<&str> = events.iter().map(|event| event.data.as_ref()).collect();
    Ok(etag::json(&tag, format!("{{\"events\":[{}]}}", texts.join(","))))
}

/// The numbers of the first screen, of all that the caller may see.
#[utoipa::path(
    responses(
        (status = 200, description = "At most some seconds old.", body = dashboard::Summary, headers(("ETag"))),
        (status = 304),
    ),
)]
#[get("/api/dashboard/summary")]
pub async fn get_summary(request: HttpRequest, Caller(principal): Caller, state: State) -> ApiResult {
    let summary = state.summaries.of(&state.store, &principal).await?;
    let body = serde_json::to_string(&summary).map_err(|error| internal(&error))?;
    let tag = etag::of(&body);
    let is_known = etag::known(request.headers()).is_some_and(|known| etag::matches(known, &tag));
    Ok(if is_known { etag::not_modified(&tag) } else { etag::json(&tag, body) })
}
