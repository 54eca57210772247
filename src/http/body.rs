//! Bodies of requests: read chunk by chunk within bounds, and within the room that all of them share. One that is
//! waited for must bring something all the time, and may have to make way for others.

use std::future::poll_fn;
use std::task::Poll;
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
    let mut waited = Waited { begun: Instant::now(), check: None };
    let mut bytes = Vec::new();
    loop {
        let arrived = if bytes.is_empty() { first(&mut body).await } else { body.next().now_or_never() };
        let chunk = match arrived {
            Some(chunk) => chunk,
            None => wait(&mut body, place, bounds, &mut waited, bytes.len() as u64).await?,
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

/// The first chunk if it has come. The dispatcher asks for an answer first and only then looks at what came with
/// the request, so it is given that turn: most bodies are never waited for.
async fn first(body: &mut web::Payload) -> Option<Chunk> {
    let mut asked = false;
    poll_fn(|cx| match body.poll_next_unpin(cx) {
        Poll::Ready(chunk) => Poll::Ready(Some(chunk)),
        Poll::Pending if asked => Poll::Ready(None),
        Poll::Pending => {
            asked = true;
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await
}

/// How a body came so far.
struct Waited {
    begun: Instant,
    /// When more must have come, and how many bytes there were before.
    check: Option<(Instant, u64)>,
}

/// Waits for the next chunk of a body of which `had` bytes have come.
async fn wait(
    body: &mut web::Payload,
    place: &mut Place,
    Bounds { time, pace, .. }: Bounds,
    waited: &mut Waited,
    had: u64,
) -> Result<Chunk, ApiError> {
    place.wait();
    let end = waited.begun + time;
    let refused = |code, message| Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, code, message));
    loop {
        let (due, before) = *waited.check.get_or_insert_with(|| (Instant::now() + pace.time, had));
        tokio::select! {
            biased;
            chunk = body.next() => return Ok(chunk),
            () = place.evicted() => return Err(NoRoom::Evicted.into()),
            () = tokio::time::sleep_until(due.min(end)) => {
                if due.min(end) == end {
                    return refused("body_timeout", "the body took too long");
                }
                if had - before < pace.bytes {
                    return refused("body_too_slow", "the body arrives too slowly: send it at once");
                }
                waited.check = None;
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
