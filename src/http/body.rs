//! Bodies of requests: read chunk by chunk within bounds, and within the room that all of them share. One that is
//! waited for must bring something all the time, and may have to make way for others.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header::{CONTENT_LENGTH, HeaderMap};
use actix_web::web;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::time::Instant;

use super::error::ApiError;
use crate::config::LimitsConfig;
use crate::limits::room::{NoRoom, Place};

/// The bounds of one body.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// At most so large.
    pub bytes: u64,
    /// It must have arrived after so long.
    pub time: Duration,
    pub pace: Pace,
}

/// What has to come of a body in any such time while it is waited for.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    bytes: u64,
    time: Duration,
}

impl From<&LimitsConfig> for Pace {
    fn from(limits: &LimitsConfig) -> Self {
        let time = limits.body_grace.0;
        let bytes = limits.body_min_rate.0 as f64 * time.as_secs_f64();
        Self { bytes: bytes.max(1.0) as u64, time }
    }
}

/// Reads a body; each chunk is shown to `seen` as it comes, and has a place in the room.
pub async fn read(
    headers: &HeaderMap,
    body: web::Payload,
    bounds: Bounds,
    place: &mut Place,
    seen: impl FnMut(&[u8]),
) -> Result<Vec<u8>, ApiError> {
    let reading = read_on(headers, body, bounds, place, seen);
    tokio::time::timeout(bounds.time, reading).await.unwrap_or_else(|_| {
        Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", "the body took too long"))
    })
}

async fn read_on(
    headers: &HeaderMap,
    mut body: web::Payload,
    bounds: Bounds,
    place: &mut Place,
    mut seen: impl FnMut(&[u8]),
) -> Result<Vec<u8>, ApiError> {
    let max = bounds.bytes;
    let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > max) {
        return Err(too_large(max));
    }
    let mut bytes = Vec::new();
    let mut check = None;
    loop {
        let chunk = match body.next().now_or_never() {
            Some(chunk) => chunk,
            None => wait(&mut body, place, bounds.pace, &mut check, bytes.len() as u64).await?,
        };
        let Some(chunk) = chunk else { break };
        let chunk = chunk.map_err(|_| ApiError::bad_request("body_broken", "the body ended early"))?;
        if bytes.len() as u64 + chunk.len() as u64 > max {
            return Err(too_large(max));
        }
        place.grow(chunk.len() as u64)?;
        seen(&chunk);
        bytes.extend_from_slice(&chunk);
    }
    place.arrived()?;
    Ok(bytes)
}

type Chunk = Option<Result<web::Bytes, actix_web::error::PayloadError>>;

/// Waits for the next chunk of a body of which `had` bytes have come. `check` is when more must have come, and
/// how many there were before.
async fn wait(
    body: &mut web::Payload,
    place: &mut Place,
    pace: Pace,
    check: &mut Option<(Instant, u64)>,
    had: u64,
) -> Result<Chunk, ApiError> {
    place.wait();
    loop {
        let (due, before) = *check.get_or_insert_with(|| (Instant::now() + pace.time, had));
        tokio::select! {
            biased;
            chunk = body.next() => return Ok(chunk),
            () = place.evicted() => return Err(NoRoom::Evicted.into()),
            () = tokio::time::sleep_until(due) => {
                if had - before < pace.bytes {
                    let message = "the body arrives too slowly: send it at once";
                    return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", message));
                }
                *check = None;
            }
        }
    }
}

impl From<NoRoom> for ApiError {
    fn from(error: NoRoom) -> Self {
        match error {
            NoRoom::Full => {
                Self::unavailable("overloaded", "too many request bodies are in flight: try again")
            }
            NoRoom::Evicted => Self::unavailable(
                "body_evicted",
                "more bodies arrive than fit, and this one was slow: send it again, at once",
            ),
        }
    }
}

pub fn too_large(max: u64) -> ApiError {
    let message = format!("the body is larger than {max} bytes");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
}
