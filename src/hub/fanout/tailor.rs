//! What becomes of a batch for a subscriber that does not take it as it stands: one that filters by
//! tags, or takes data as differences (protocol §9). Whoever wants neither never comes here. A
//! difference is made once for all who take it; only a filter costs each subscriber by itself.
//! Must hold: a difference goes only to a client whose last publication is the one it counts from.

use std::cell::Cell;
use std::sync::Arc;

use uuid::Uuid;

use super::batch::Batch;
use crate::domain::event::Event;
use crate::protocol::filter::Filter;
use crate::protocol::reply::as_text;

/// A subscriber's wishes, and what it has.
pub struct Tailor {
    filter: Option<Arc<Filter>>,
    delta: bool,
    /// The last publication that the client got since the subscription began.
    last: Cell<Option<Uuid>>,
}

/// What is left of a batch.
pub(super) enum Cut {
    /// Nothing that is wanted.
    Nothing,
    /// All of it, as it stands.
    AsItStands,
    /// This in its place; all of it is new to the subscriber.
    Other(Arc<Batch>),
}

impl Tailor {
    /// `None` for who takes everything as it stands.
    pub fn of(delta: bool, filter: Option<Arc<Filter>>) -> Option<Box<Self>> {
        (delta || filter.is_some()).then(|| Box::new(Self { filter, delta, last: Cell::new(None) }))
    }

    /// What is wanted of the events of `batch` behind `after`.
    pub(super) fn cut(&self, batch: &Batch, after: u64) -> Cut {
        let new = |event: &Event| batch.epoch().is_none() || event.offset > after;
        let wants = |i: usize| self.filter.as_ref().is_none_or(|filter| filter.wants(&batch.tags()[i]));
        let events = batch.events();
        let wanted: Vec<usize> = (0..events.len()).filter(|i| new(&events[*i]) && wants(*i)).collect();
        let Some(last) = wanted.last() else { return Cut::Nothing };
        let whole = wanted.len() == events.len();
        if !self.delta {
            let all_new = wanted.len() == events.iter().filter(|event| new(event)).count();
            return if all_new { Cut::AsItStands } else { Cut::Other(batch.made_of(events, &wanted)) };
        }
        let had = self.last.replace(Some(events[*last].id));
        if whole {
            let follows = had.is_some() && had == batch.before().map(|event| event.id);
            return Cut::Other(batch.in_deltas(follows).clone());
        }
        let mut had = had;
        let mut told = Vec::with_capacity(wanted.len());
        for i in wanted {
            let before = if i == 0 { batch.before() } else { events.get(i - 1) };
            let follows = had.is_some() && had == before.map(|event| event.id);
            told.push(as_text(&events[i], batch.delta(i).filter(|_| follows)));
            had = Some(events[i].id);
        }
        Cut::Other(batch.made_of(&told, &(0..told.len()).collect::<Vec<_>>()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::channel::ChannelName;
    use crate::domain::position::Epoch;

    fn event(offset: u64, color: &str) -> Event {
        Event {
            offset,
            id: Uuid::from_u128(offset.into()),
            kind: "message".into(),
            data: format!("\"the same words each time, and then {offset}\"").into(),
            tags: Some(format!("{{\"color\":\"{color}\"}}").into()),
            info: None,
            delta: crate::domain::event::Delta::No,
        }
    }

    /// Events 3, 4 and 5 behind event 2: blue, red, red.
    fn batch() -> Batch {
        let channel = ChannelName::parse("news:x").unwrap();
        let events = vec![event(3, "blue"), event(4, "red"), event(5, "red")];
        Batch::new(channel, Epoch::parse("e1"), events, None).behind(Some(event(2, "red")), true)
    }

    fn red(delta: bool) -> Box<Tailor> {
        let filter = Filter::parse(r#"{"key":"color","cmp":"eq","val":"red"}"#).unwrap();
        Tailor::of(delta, Some(Arc::new(filter))).unwrap()
    }

    /// Offsets, with a minus where it is a difference.
    fn told(cut: Cut) -> Vec<i64> {
        let sign = |event: &Event| if event.delta == crate::domain::event::Delta::Is { -1 } else { 1 };
        match cut {
            Cut::Nothing => Vec::new(),
            Cut::AsItStands => vec![0],
            Cut::Other(batch) => batch.events().iter().map(|one| sign(one) * one.offset as i64).collect(),
        }
    }

    #[test]
    fn a_filter_takes_out_whatever_place_it_has() {
        assert_eq!(told(red(false).cut(&batch(), 2)), [4, 5], "the first one goes");
        assert_eq!(told(red(false).cut(&batch(), 3)), [0], "it is not new");
        assert_eq!(told(red(false).cut(&batch(), 5)), [0; 0]);
    }

    #[test]
    fn a_difference_counts_from_what_the_client_has() {
        let all = Tailor::of(true, None).unwrap();
        assert_eq!(told(all.cut(&batch(), 2)), [3, -4, -5], "the first one is whole");
        assert_eq!(told(all.cut(&batch(), 4)), [5], "it has 5, and not 4");
        all.last.set(Some(Uuid::from_u128(2)));
        assert_eq!(told(all.cut(&batch(), 2)), [-3, -4, -5]);
        all.last.set(Some(Uuid::from_u128(3)));
        assert_eq!(told(all.cut(&batch(), 3)), [-4, -5]);
        assert_eq!(told(red(true).cut(&batch(), 2)), [4, -5]);
    }
}
