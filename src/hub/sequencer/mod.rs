//! Puts the announcements of one channel into the order of its log: no gap, no repeat. Plain data; the
//! channel actor asks it what to do next and does it.

use std::collections::{BTreeMap, VecDeque};

use uuid::Uuid;

use crate::domain::event::Event;
use crate::domain::position::{Epoch, Position};

/// How many events may wait for one that is missing. What comes on top is dropped here and read from the
/// log with the gap.
pub const MAX_PENDING: usize = 1024;

/// How many of the last events are known by their ids.
const RECENT: usize = 16;

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
    /// Another event was delivered at one of these places: the log says which one is right.
    Disputed(Delivered),
}

/// An event that was delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivered {
    pub offset: u64,
    pub id: Uuid,
}

/// The sequencer of one channel.
#[derive(Debug, Clone)]
pub struct Sequencer {
    position: Position,
    /// The last offset that was announced, whether it is kept in `pending` or had no room.
    announced: u64,
    pending: BTreeMap<u64, Event>,
    /// The ids of the last events up to the position, the newest at the back.
    recent: VecDeque<Uuid>,
}

impl Sequencer {
    /// Starts after `position`.
    pub fn at(position: Position) -> Self {
        Self { announced: position.offset, position, pending: BTreeMap::new(), recent: VecDeque::new() }
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

    /// The event at the position, if it passed here since the history began or was replaced.
    pub fn last(&self) -> Option<Delivered> {
        self.delivered_at(self.position.offset)
    }

    /// The event that was delivered at `offset`, if it is one of the last.
    fn delivered_at(&self, offset: u64) -> Option<Delivered> {
        let back = usize::try_from(self.position.offset.checked_sub(offset)?).ok()?;
        let id = *self.recent.get(self.recent.len().checked_sub(back + 1)?)?;
        Some(Delivered { offset, id })
    }

    /// Takes announced events: ascending offsets of one epoch.
    pub fn accept(&mut self, epoch: &Epoch, events: Vec<Event>) -> Next {
        if *epoch != self.position.epoch {
            return Next::OtherEpoch;
        }
        let disputed = |event: &Event| self.delivered_at(event.offset).filter(|known| known.id != event.id);
        if let Some(known) = events.iter().find_map(disputed) {
            return Next::Disputed(known);
        }
        let mut ready = Vec::new();
        for event in events {
            self.announced = self.announced.max(event.offset);
            if event.offset == self.position.offset + 1 {
                self.deliver(event, &mut ready);
                self.take_ready(&mut ready);
            } else if event.offset > self.position.offset {
                self.keep(event);
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
                self.pending.remove(&event.offset);
                self.deliver(event, &mut ready);
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
        self.recent.clear();
        let mut ready = Vec::new();
        self.take_ready(&mut ready);
        ready
    }

    fn take_ready(&mut self, ready: &mut Vec<Event>) {
        while let Some(event) = self.pending.remove(&(self.position.offset + 1)) {
            self.deliver(event, ready);
        }
    }

    /// Advances over the event that follows.
    fn deliver(&mut self, event: Event, ready: &mut Vec<Event>) {
        self.position.offset += 1;
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(event.id);
        ready.push(event);
    }

    /// Keeps an event that has to wait. Of two at one place neither is believed: the log has the right one.
    fn keep(&mut self, event: Event) {
        match self.pending.get(&event.offset) {
            Some(other) if other.id != event.id => drop(self.pending.remove(&event.offset)),
            None if self.pending.len() < MAX_PENDING => drop(self.pending.insert(event.offset, event)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
