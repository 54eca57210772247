//! What a subscriber gets of a batch if it filters by tags or takes data as deltas (protocol §9). Other
//! subscribers never come here. A delta is made once for all who take it; only a filter costs each
//! subscriber on its own. Must hold: a delta goes only to a client whose last publication is its base.

use std::cell::Cell;
use std::sync::Arc;

use uuid::Uuid;

use super::batch::Batch;
use crate::domain::event::Event;
use crate::protocol::filter::Filter;
use crate::protocol::reply::as_text;

/// A subscriber's filter and deltas, and the last publication its client has.
pub struct PerSubscriber {
    filter: Option<Arc<Filter>>,
    delta: bool,
    /// The last publication that the client got since the subscription began.
    last: Cell<Option<Uuid>>,
}

/// What a subscriber gets of a batch.
pub(super) enum Filtered {
    /// No event of it.
    Nothing,
    /// All of it, unchanged.
    Unchanged,
    /// This batch in its place; all of it is new to the subscriber.
    Replaced(Arc<Batch>),
}

impl PerSubscriber {
    /// `None` for a subscriber that neither filters nor takes deltas.
    pub fn of(delta: bool, filter: Option<Arc<Filter>>) -> Option<Box<Self>> {
        (delta || filter.is_some()).then(|| Box::new(Self { filter, delta, last: Cell::new(None) }))
    }

    /// What the subscriber gets of the events of `batch` after the offset `after`.
    pub(super) fn apply(&self, batch: &Batch, after: u64) -> Filtered {
        let new = |event: &Event| batch.epoch().is_none() || event.offset > after;
        let wants = |i: usize| self.filter.as_ref().is_none_or(|filter| filter.matches(&batch.tags()[i]));
        let events = batch.events();
        let wanted: Vec<usize> = (0..events.len()).filter(|i| new(&events[*i]) && wants(*i)).collect();
        let Some(last) = wanted.last() else { return Filtered::Nothing };
        let whole = wanted.len() == events.len();
        if !self.delta {
            let all_new = wanted.len() == events.iter().filter(|event| new(event)).count();
            return if all_new {
                Filtered::Unchanged
            } else {
                Filtered::Replaced(batch.subset(events, &wanted))
            };
        }
        let had = self.last.replace(Some(events[*last].id));
        if whole {
            let follows = had.is_some() && had == batch.before().map(|event| event.id);
            return Filtered::Replaced(batch.in_deltas(follows).clone());
        }
        let mut had = had;
        let mut encoded = Vec::with_capacity(wanted.len());
        for i in wanted {
            let before = if i == 0 { batch.before() } else { events.get(i - 1) };
            let follows = had.is_some() && had == before.map(|event| event.id);
            encoded.push(as_text(&events[i], batch.delta(i).filter(|_| follows)));
            had = Some(events[i].id);
        }
        Filtered::Replaced(batch.subset(&encoded, &(0..encoded.len()).collect::<Vec<_>>()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::channel::ChannelName;
    use crate::domain::position::Epoch;

    fn event(offset: u64, color: &str) -> Event {
        let data = format!("\"the same words each time, and then {offset}\"");
        let tags = Some(format!("{{\"color\":\"{color}\"}}").into());
        Event { id: Uuid::from_u128(offset.into()), tags, ..Event::plain(offset, &data) }
    }

    /// Events 3, 4 and 5 after event 2: blue, red, red.
    fn batch() -> Batch {
        let channel = ChannelName::parse("news:x").unwrap();
        let events = vec![event(3, "blue"), event(4, "red"), event(5, "red")];
        Batch::new(channel, Epoch::parse("e1"), events, None).with_previous(Some(event(2, "red")), true)
    }

    fn red(delta: bool) -> Box<PerSubscriber> {
        let filter = Filter::parse(r#"{"key":"color","cmp":"eq","val":"red"}"#).unwrap();
        PerSubscriber::of(delta, Some(Arc::new(filter))).unwrap()
    }

    /// Offsets, negative where the data is a delta.
    fn offsets(filtered: Filtered) -> Vec<i64> {
        let sign = |event: &Event| if event.delta == crate::domain::event::Delta::Is { -1 } else { 1 };
        match filtered {
            Filtered::Nothing => Vec::new(),
            Filtered::Unchanged => vec![0],
            Filtered::Replaced(batch) => {
                batch.events().iter().map(|one| sign(one) * one.offset as i64).collect()
            }
        }
    }

    #[test]
    fn a_filter_takes_out_whatever_place_it_has() {
        assert_eq!(offsets(red(false).apply(&batch(), 2)), [4, 5], "the first one goes");
        assert_eq!(offsets(red(false).apply(&batch(), 3)), [0], "it is not new");
        assert_eq!(offsets(red(false).apply(&batch(), 5)), [0; 0]);
    }

    #[test]
    fn a_difference_counts_from_what_the_client_has() {
        let all = PerSubscriber::of(true, None).unwrap();
        assert_eq!(offsets(all.apply(&batch(), 2)), [3, -4, -5], "the first one is whole");
        assert_eq!(offsets(all.apply(&batch(), 4)), [5], "it has 5, and not 4");
        all.last.set(Some(Uuid::from_u128(2)));
        assert_eq!(offsets(all.apply(&batch(), 2)), [-3, -4, -5]);
        all.last.set(Some(Uuid::from_u128(3)));
        assert_eq!(offsets(all.apply(&batch(), 3)), [-4, -5]);
        assert_eq!(offsets(red(true).apply(&batch(), 2)), [4, -5]);
    }
}
