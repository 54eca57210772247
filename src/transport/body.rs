//! A response body that carries a stream. It takes from the outbox what the peer is ready to read,
//! and tells whoever keeps the connection when the dispatcher lets go of it.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use actix::{Message, Recipient};
use actix_web::body::{BodySize, MessageBody};
use bytes::Bytes;

use crate::hub::outbox::Outbox;
use crate::telemetry::{Kind, Metrics};

/// The peer went away, or the stream is at its end.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Gone;

/// See the module.
pub struct StreamBody {
    outbox: Rc<Outbox>,
    keeper: Recipient<Gone>,
    kind: &'static str,
    metrics: Arc<Metrics>,
}

impl StreamBody {
    /// The body that empties `outbox`; `kind` is the transport in metrics.
    pub(super) fn new(
        outbox: Rc<Outbox>,
        keeper: Recipient<Gone>,
        kind: &'static str,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { outbox, keeper, kind, metrics }
    }
}

impl MessageBody for StreamBody {
    type Error = std::convert::Infallible;

    fn size(&self) -> BodySize {
        BodySize::Stream
    }

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        self.outbox.poll_take(cx).map(|taken| {
            let taken = taken?;
            let sent = self.metrics.delivered_bytes.get_or_create(&Kind { kind: self.kind });
            sent.inc_by(taken.bytes.len() as u64);
            if let Some(accepted) = taken.accepted {
                self.metrics.event_latency_seconds.observe(accepted.elapsed().as_secs_f64());
            }
            Some(Ok(taken.bytes))
        })
    }
}

impl Drop for StreamBody {
    fn drop(&mut self) {
        self.outbox.close();
        self.keeper.do_send(Gone);
    }
}
