//! The bus of a single node: a call.

use super::{Deliver, Notice};

/// Hands every notice to this node's hub, in the order of the commits.
#[derive(Clone)]
pub struct LocalBus(Deliver);

impl LocalBus {
    /// A bus that delivers to `deliver`.
    pub fn new(deliver: Deliver) -> Self {
        Self(deliver)
    }

    pub(super) fn tell(&self, notice: Notice) {
        (self.0)(notice);
    }
}
