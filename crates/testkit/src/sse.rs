//! The events of a `text/event-stream` answer.

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use hyper::body::Incoming;
pub use sse_stream::Sse;
use sse_stream::SseStream;

use crate::http::Stream;

/// What has come and what is to come.
pub struct Events(SseStream<Incoming>);

impl Events {
    /// The events of an answer.
    pub fn of(answer: Stream) -> Self {
        Self(SseStream::new(answer.into_body()))
    }

    /// The next event; whatever has neither data nor an id is left out. None after a proper end.
    pub async fn next(&mut self) -> Result<Option<Sse>> {
        loop {
            let next = self.0.try_next().await.context("the stream broke off")?;
            if next.as_ref().is_none_or(|event| event.data.is_some() || event.id.is_some()) {
                return Ok(next);
            }
        }
    }
}
