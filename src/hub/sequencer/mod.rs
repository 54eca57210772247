//! Puts the announcements of one channel into the order of its log: no gap, no repeat. Plain data; the
//! channel actor asks it what to do next and does it.

use std::collections::BTreeMap;

use crate::domain::event::Event;
use crate::domain::position::{Epoch, Position};

/// How many events may wait for one that is missing. What comes on top is dropped here and read from the
/// log with the gap.
pub const MAX_PENDING: usize = 1024;

/// What to do after an announcement.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Send these: they follow what was sent before without a hole.
    Deliver(Vec<Event>),
    /// Something before it is missing: wait a moment, then read the log.
    Wait,
    /// All of it was known.
    Nothing,
    /// It belongs to another history: read the log.
    OtherEpoch,
}

/// The sequencer of one channel.
#[derive(Debug, Clone)]
pub struct Sequencer {
    position: Position,
    /// The last offset that was announced, whether it is kept in `pending` or had no room.
    announced: u64,
    pending: BTreeMap<u64, Event>,
}

impl Sequencer {
    /// Starts after `position`.
    pub fn at(position: Position) -> Self {
        Self { announced: position.offset, position, pending: BTreeMap::new() }
    }

    /// Up to where everything was delivered.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// The end of the log as far as it was announced: the log cannot end before it.
    pub fn announced(&self) -> u64 {
        self.announced
    }

    /// Whether something that was announced could not be delivered yet.
    pub fn has_gap(&self) -> bool {
        self.announced > self.position.offset
    }

    /// Takes announced events: ascending offsets of one epoch.
    pub fn accept(&mut self, epoch: &Epoch, events: Vec<Event>) -> Next {
        if *epoch != self.position.epoch {
            return Next::OtherEpoch;
        }
        let mut ready = Vec::new();
        for event in events {
            self.announced = self.announced.max(event.offset);
            if event.offset == self.position.offset + 1 {
                self.position.offset += 1;
                ready.push(event);
                self.take_ready(&mut ready);
            } else if event.offset > self.position.offset && self.pending.len() < MAX_PENDING {
                self.pending.insert(event.offset, event);
            }
        }
        match (ready.is_empty(), self.has_gap()) {
            (false, _) => Next::Deliver(ready),
            (true, true) => Next::Wait,
            (true, false) => Next::Nothing,
        }
    }

    /// Takes events that were read from the log after [`Sequencer::position`], and returns all that can now
    /// be delivered.
    pub fn fill(&mut self, events: Vec<Event>) -> Vec<Event> {
        let mut ready = Vec::new();
        for event in events {
            if event.offset == self.position.offset + 1 {
                self.position.offset += 1;
                self.pending.remove(&event.offset);
                ready.push(event);
            }
        }
        self.take_ready(&mut ready);
        self.announced = self.announced.max(self.position.offset);
        ready
    }

    /// Continues after `position`, because the history was replaced or is lost up to there. Events that
    /// waited in the same history stay; returns those that can now be delivered.
    pub fn reset(&mut self, position: Position) -> Vec<Event> {
        let same = position.epoch == self.position.epoch;
        self.pending.retain(|offset, _| same && *offset > position.offset);
        self.announced = if same { self.announced.max(position.offset) } else { position.offset };
        self.position = position;
        let mut ready = Vec::new();
        self.take_ready(&mut ready);
        ready
    }

    fn take_ready(&mut self, ready: &mut Vec<Event>) {
        while let Some(event) = self.pending.remove(&(self.position.offset + 1)) {
            self.position.offset += 1;
            ready.push(event);
        }
    }
}

#[cfg(test)]
mod tests;
