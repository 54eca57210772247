//! The routes of the audit log of webhook deliveries, for admins.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, get, post, web};
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;
use uuid::Uuid;

use super::error::{ApiError, ApiResult, internal};
use super::extract::Admin;
use super::{HttpState, PageQuery, State};
use crate::deliveries::{self, Delivery, DeliveryError};
use crate::domain::delivery::DeliveryStatus;
use crate::domain::event::rfc3339;

const DEFAULT_LIMIT: u32 = 50;
const MAX_LIMIT: u32 = 100;

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Delivery)]
struct DeliveryOut {
    id: Uuid,
    delivery_id: String,
    event: String,
    action: Option<String>,
    repo: Option<String>,
    status: DeliveryStatus,
    error: Option<String>,
    #[schema(format = DateTime)]
    received_at: String,
    #[schema(format = DateTime)]
    processed_at: Option<String>,
    /// Only of a single delivery, as it came; null once it was dropped for age.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Value)]
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
            status: delivery.status,
            error: delivery.error,
            received_at: rfc3339(delivery.received_at),
            processed_at: delivery.processed_at.map(rfc3339),
            payload: None,
        }
    }
}

/// A part of the list.
#[derive(Serialize, ToSchema)]
struct DeliveryList {
    deliveries: Vec<DeliveryOut>,
    /// Null at the end of the list.
    cursor: Option<Uuid>,
}

/// The audit log of webhooks, newest first (scope `admin`).
#[utoipa::path(
    params(PageQuery),
    responses((
        status = 200, description = "Without payloads.", body = DeliveryList,
        links(
            ("delivery" = (operation_id = "getDelivery", parameters(("id" = "$response.body#/deliveries/0/id")))),
            ("again" = (operation_id = "processDelivery", parameters(("id" = "$response.body#/deliveries/0/id")))),
        ),
    )),
)]
#[get("/api/deliveries")]
pub async fn list_deliveries(_: Admin, query: web::Query<PageQuery>, state: State) -> ApiResult {
    let limit = super::parse_limit(query.limit.as_deref(), DEFAULT_LIMIT, MAX_LIMIT)?;
    let bad = |_| ApiError::bad_request("bad_cursor", "`cursor` must be one that this list returned");
    let before = query.cursor.as_deref().map(Uuid::try_parse).transpose().map_err(bad)?;
    let (found, cursor) = deliveries::list(&state.store, before, limit).await?;
    let deliveries = found.into_iter().map(DeliveryOut::from).collect();
    Ok(HttpResponse::Ok().json(DeliveryList { deliveries, cursor }))
}

/// One delivery with its payload, word for word (scope `admin`).
#[utoipa::path(
    params(("id" = String, Path, description = "#DeliveryId")),
    responses((status = 200, description = "The delivery.", body = DeliveryOut)),
)]
#[get("/api/deliveries/{id}")]
pub async fn get_delivery(_: Admin, id: web::Path<String>, state: State) -> ApiResult {
    let (delivery, payload) = deliveries::get(&state.store, &id).await?;
    let mut out = DeliveryOut::from(delivery);
    let text = payload.unwrap_or_else(|| "null".to_owned());
    out.payload = Some(RawValue::from_string(text).map_err(|error| internal(&error))?);
    Ok(HttpResponse::Ok().json(out))
}

/// Interprets a delivery again that failed or was ignored (scope `admin`).
#[utoipa::path(
    params(("id" = String, Path, description = "#DeliveryId")),
    responses((status = 200, description = "The delivery.", body = DeliveryOut), (status = 409), (status = 410)),
)]
#[post("/api/deliveries/{id}/process")]
pub async fn process_delivery(_: Admin, id: web::Path<String>, state: State) -> ApiResult {
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
