//! The routes of the audit log of webhook deliveries, for admins.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::error::{ApiError, ApiResult, internal};
use super::extract::Admin;
use super::{HttpState, State};
use crate::deliveries::{self, Delivery, DeliveryError};
use crate::domain::event::rfc3339;

const DEFAULT_LIMIT: u32 = 50;
const MAX_LIMIT: u32 = 100;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DeliveryOut {
    id: Uuid,
    delivery_id: String,
    event: String,
    action: Option<String>,
    repo: Option<String>,
    status: &'static str,
    error: Option<String>,
    received_at: String,
    processed_at: Option<String>,
    /// Only of a single delivery; null once it was dropped for age.
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<Box<RawValue>>,
}

impl From<Delivery> for DeliveryOut {
    fn from(delivery: Delivery) -> Self {
        Self {
            id: delivery.id,
            delivery_id: delivery.delivery_id,
            event: delivery.event,
            action: delivery.action,
            repo: delivery.repo,
            status: delivery.status.as_str(),
            error: delivery.error,
            received_at: rfc3339(delivery.received_at),
            processed_at: delivery.processed_at.map(rfc3339),
            payload: None,
        }
    }
}

/// The query string of the list.
#[derive(Debug, Deserialize)]
pub struct Query {
    cursor: Option<String>,
    limit: Option<String>,
}

/// `GET /api/deliveries`: newest first; `cursor` is null at the end.
pub async fn list(_: Admin, query: web::Query<Query>, state: State) -> ApiResult {
    let limit = super::parse_limit(query.limit.as_deref(), DEFAULT_LIMIT, MAX_LIMIT)?;
    let bad = |_| ApiError::bad_request("bad_cursor", "`cursor` must be one that this list returned");
    let before = query.cursor.as_deref().map(Uuid::try_parse).transpose().map_err(bad)?;
    let (found, cursor) = deliveries::list(&state.store, before, limit).await?;
    let found: Vec<DeliveryOut> = found.into_iter().map(DeliveryOut::from).collect();
    Ok(HttpResponse::Ok().json(json!({ "deliveries": found, "cursor": cursor })))
}

/// `GET /api/deliveries/{id}`: one, with its payload.
pub async fn get(_: Admin, id: web::Path<String>, state: State) -> ApiResult {
    let (delivery, payload) = deliveries::get(&state.store, &id).await?;
    let mut out = DeliveryOut::from(delivery);
    let text = payload.unwrap_or_else(|| "null".to_owned());
    out.payload = Some(RawValue::from_string(text).map_err(|error| internal(&error))?);
    Ok(HttpResponse::Ok().json(out))
}

/// `POST /api/deliveries/{id}/process`: processes a delivery again that failed or was ignored.
pub async fn process(_: Admin, id: web::Path<String>, state: State) -> ApiResult {
    let HttpState { publisher, store, webhooks, .. } = &*state;
    let delivery = deliveries::process(publisher, store, &webhooks.repos, &id).await?;
    Ok(HttpResponse::Ok().json(DeliveryOut::from(delivery)))
}

impl From<DeliveryError> for ApiError {
    fn from(error: DeliveryError) -> Self {
        let message = error.to_string();
        match error {
            DeliveryError::Missing => Self::not_found("delivery"),
            DeliveryError::PayloadGone => Self::new(StatusCode::GONE, "payload_gone", message),
            DeliveryError::AlreadyProcessed => Self::new(StatusCode::CONFLICT, "already_processed", message),
            DeliveryError::BadPayload(error) => internal(&error),
            DeliveryError::Store(error) => error.into(),
            DeliveryError::Publish(error) => error.into(),
        }
    }
}
