//! A response body that carries a stream. It takes from the outbox what the peer is ready to read,
//! and notifies the connection actor when the dispatcher drops it.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use actix::{Message, Recipient};
use actix_web::body::{BodySize, MessageBody};
use bytes::Bytes;

use crate::hub::metrics::{Metrics, Transport};
use crate::hub::outbox::Outbox;
use crate::telemetry::metrics::{Counter, Histogram};

/// The dispatcher dropped the body: the peer has gone, or the stream has ended.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct BodyDropped;

/// The body of a streamed response.
pub struct StreamBody {
    outbox: Rc<Outbox>,
    owner: Recipient<BodyDropped>,
    sent_bytes: Counter,
    latency: Histogram,
}

impl StreamBody {
    /// The body that drains `outbox`; `transport` is its name in metrics.
    pub(super) fn new(
        outbox: Rc<Outbox>,
        owner: Recipient<BodyDropped>,
        transport: &'static str,
        metrics: &Metrics,
    ) -> Self {
        let sent_bytes = metrics.sent_bytes.with(Transport(transport));
        Self { outbox, owner, sent_bytes, latency: metrics.event_latency_seconds.clone() }
    }
}

impl MessageBody for StreamBody {
    type Error = std::convert::Infallible;

    fn size(&self) -> BodySize {
        BodySize::Stream
    }

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        self.outbox.poll_chunk(cx).map(|chunk| {
            let chunk = chunk?;
            self.sent_bytes.inc_by(chunk.bytes.len() as u64);
            if let Some(accepted) = chunk.accepted {
                self.latency.observe(accepted.elapsed().as_secs_f64());
            }
            Some(Ok(chunk.bytes))
        })
    }
}

impl Drop for StreamBody {
    fn drop(&mut self) {
        self.outbox.close();
        self.owner.do_send(BodyDropped);
    }
}
