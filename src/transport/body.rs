//! A response body that carries a stream. It takes from the outbox what the peer is ready to read,
//! and notifies the connection actor when the dispatcher drops it.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use actix::{Message, Recipient};
use actix_web::body::{BodySize, MessageBody};
use bytes::Bytes;

use crate::hub::outbox::Outbox;
use crate::telemetry::{Kind, Metrics};

/// The dispatcher dropped the body: the peer has gone, or the stream has ended.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct BodyDropped;

/// The body of a streamed response.
pub struct StreamBody {
    outbox: Rc<Outbox>,
    owner: Recipient<BodyDropped>,
    kind: &'static str,
    metrics: Arc<Metrics>,
}

impl StreamBody {
    /// The body that drains `outbox`; `kind` is the name of the transport in metrics.
    pub(super) fn new(
        outbox: Rc<Outbox>,
        owner: Recipient<BodyDropped>,
        kind: &'static str,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { outbox, owner, kind, metrics }
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
            let sent = self.metrics.delivered_bytes.get_or_create(&Kind { kind: self.kind });
            sent.inc_by(chunk.bytes.len() as u64);
            if let Some(accepted) = chunk.accepted {
                self.metrics.event_latency_seconds.observe(accepted.elapsed().as_secs_f64());
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
