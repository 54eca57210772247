//! What came for a subscriber while it was paused.

use std::sync::Arc;

use super::batch::Batch;
use crate::bus::PresenceChange;
use crate::domain::position::Position;

/// Events that a paused subscriber keeps; with more it reads the log again instead.
pub(super) const MAX_BUFFERED: usize = 1024;

/// Something that came while a subscriber was paused.
pub(super) enum Buffered {
    Batch(Arc<Batch>),
    PresenceChange(PresenceChange),
}

/// What came while a subscriber was paused.
#[derive(Default)]
pub(super) struct PauseBuffer {
    pub(super) items: Vec<Buffered>,
    pub(super) events: usize,
    pub(super) bytes: usize,
    /// Something was dropped: the log has it.
    pub(super) incomplete: bool,
    /// Up to where everything had been pushed when the subscriber fell behind.
    pub(super) resume_from: Option<Position>,
}

impl PauseBuffer {
    /// A buffer that keeps nothing: everything after `resume_from` is read from the log.
    pub(super) fn incomplete(resume_from: Option<Position>) -> Self {
        Self { incomplete: true, resume_from, ..Self::default() }
    }

    /// Keeps `batch`, unless that makes too many events or more than `most` bytes: they are all pushed at
    /// once in the end, and must not look like the backlog of a slow reader.
    pub(super) fn add(&mut self, batch: &Arc<Batch>, most: usize) {
        self.events += batch.events.len();
        self.bytes += batch.events.iter().map(|event| event.data.len()).sum::<usize>();
        if self.events > MAX_BUFFERED || self.bytes > most {
            self.items.clear();
            self.incomplete = true;
        }
        if !self.incomplete {
            self.items.push(Buffered::Batch(batch.clone()));
        }
    }
}
