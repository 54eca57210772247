//! The events of a `text/event-stream` answer.

use anyhow::{Context as _, Result};
use futures_util::{TryStream, TryStreamExt as _};
use hyper::body::{Body, Incoming};
pub use sse_stream::Sse;
use sse_stream::SseStream;

use crate::http::Stream;

/// What has come and what is to come.
pub struct Events<B: Body = Incoming>(SseStream<B>);

impl Events {
    /// The events of an answer.
    pub fn of(answer: Stream) -> Self {
        Self(SseStream::new(answer.into_body()))
    }
}

impl<B: Body> Events<B>
where
    SseStream<B>: TryStream<Ok = Sse, Error: std::error::Error + Send + Sync + 'static> + Unpin,
{
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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use futures_util::stream;

    use super::*;

    #[tokio::test]
    async fn messages_are_the_same_wherever_the_bytes_were_cut() {
        let text = b": ping\n\nretry: 5\n\nid: e.1\nevent: workflow:completed\ndata: {\"a\":1}\n\ndata:x\r\ndata: y\r\n\r\n";
        for cut in 0..text.len() {
            let pieces =
                [&text[..cut], &text[cut..]].map(|piece| Ok::<_, Infallible>(Bytes::copy_from_slice(piece)));
            let mut events = Events(SseStream::from_bytes_stream(stream::iter(pieces)));
            let first = events.next().await.unwrap().unwrap();
            let seen = [first.id, first.event, first.data];
            assert_eq!(
                seen,
                ["e.1", "workflow:completed", "{\"a\":1}"].map(|text| Some(text.to_owned())),
                "{cut}"
            );
            let second = events.next().await.unwrap().unwrap();
            assert_eq!(second.data.as_deref(), Some("x\ny"), "{cut}");
            assert!(events.next().await.unwrap().is_none(), "{cut}");
        }
    }
}
