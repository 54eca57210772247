//! A budget of bytes that strangers share with everybody else. What arrives whole at once only counts; what lets
//! itself be waited for is on a list, and when the room is full, somebody on it makes way: first who has not
//! proven who it is, of a holder with more than its share, and of those the one whose bytes lie there longest.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use tokio::sync::oneshot;

use super::budget::{Budget, Reserved};

/// One holder's share of a full room is one of so many parts. While there is room, nobody has a share.
const SHARES: u64 = 8;

/// A budget, and who in it is waited for. Cheap to clone: clones are the same room.
#[derive(Clone)]
pub struct Room(Arc<Inner>);

struct Inner {
    budget: Budget,
    start: Instant,
    hasher: RandomState,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    places: HashMap<u64, Held>,
    /// What each holder has in them.
    holders: HashMap<u64, u64>,
    entered: u64,
}

/// What one place holds while it waits for more.
struct Held {
    holder: u64,
    proven: bool,
    reserved: Reserved,
    /// When its bytes came, on average, in seconds since the start of the room.
    came: f64,
    _evicted: oneshot::Sender<()>,
}

/// A part of a [`Room`]; given back when dropped.
pub struct Place {
    room: Room,
    holder: u64,
    proven: bool,
    state: State,
}

enum State {
    /// Not on the list.
    Counted(Reserved),
    Waiting {
        id: u64,
        evicted: oneshot::Receiver<()>,
    },
}

/// Why a place does not grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoRoom {
    /// Nobody has to make way for it.
    Full,
    /// It had to make way itself.
    Evicted,
}

impl Room {
    pub fn new(budget: Budget) -> Self {
        Self(Arc::new(Inner {
            budget,
            start: Instant::now(),
            hasher: RandomState::new(),
            waiting: Mutex::default(),
        }))
    }

    /// An empty place of `holder`: of a user, if it has proven who it is, or else of an [`address`].
    pub fn enter(&self, holder: impl Hash, proven: bool) -> Place {
        let holder = self.0.hasher.hash_one(holder);
        Place { room: self.clone(), holder, proven, state: State::Counted(self.0.budget.reserve()) }
    }
}

/// What counts as one address: of IPv6 a network of 64 bits, which is what one host may have.
pub fn address(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address => address,
    }
}

impl Inner {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("the lock is not poisoned")
    }

    fn now(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }
}

impl Place {
    /// Takes `more`, which has come. In a full room others make way for it.
    pub fn grow(&mut self, more: u64) -> Result<(), NoRoom> {
        let room = &*self.room.0;
        match &mut self.state {
            State::Counted(reserved) => {
                if reserved.grow(more) {
                    return Ok(());
                }
                let mut waiting = room.waiting();
                let all = waiting.of_holder(self.holder) + reserved.amount() + more;
                waiting.make_way(self.proven.then_some(all), room.budget.level().1, || reserved.grow(more))
            }
            State::Waiting { id, .. } => {
                let mut waiting = room.waiting();
                // Out of the list, so that it does not make way for itself.
                let mut held = waiting.remove(*id).ok_or(NoRoom::Evicted)?;
                let all = waiting.of_holder(self.holder) + held.reserved.amount() + more;
                let grown = held.reserved.grow(more)
                    || waiting
                        .make_way(self.proven.then_some(all), room.budget.level().1, || {
                            held.reserved.grow(more)
                        })
                        .is_ok();
                let part = more as f64 / held.reserved.amount().max(1) as f64;
                held.came += (room.now() - held.came) * part.min(1.0);
                waiting.insert(*id, held);
                if grown { Ok(()) } else { Err(NoRoom::Full) }
            }
        }
    }

    /// From now on it is waited for what is still to come, and it may have to make way.
    pub fn wait(&mut self) {
        let room = &*self.room.0;
        if let State::Counted(reserved) = &mut self.state {
            let (sender, evicted) = oneshot::channel();
            let mut waiting = room.waiting();
            let id = waiting.entered;
            waiting.entered += 1;
            let held = Held {
                holder: self.holder,
                proven: self.proven,
                reserved: std::mem::replace(reserved, room.budget.reserve()),
                came: room.now(),
                _evicted: sender,
            };
            waiting.insert(id, held);
            self.state = State::Waiting { id, evicted };
        }
    }

    /// Resolves when it has to make way; never before it waits.
    pub async fn evicted(&mut self) {
        match &mut self.state {
            State::Counted(_) => std::future::pending().await,
            State::Waiting { evicted, .. } => drop(evicted.await),
        }
    }

    /// All of it has come: it does not make way any more.
    pub fn arrived(&mut self) -> Result<(), NoRoom> {
        if let State::Waiting { id, .. } = &self.state {
            let held = self.room.0.waiting().remove(*id).ok_or(NoRoom::Evicted)?;
            self.state = State::Counted(held.reserved);
        }
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let State::Waiting { id, .. } = &self.state {
            self.room.0.waiting().remove(*id);
        }
    }
}

impl Waiting {
    fn insert(&mut self, id: u64, held: Held) {
        *self.holders.entry(held.holder).or_default() += held.reserved.amount();
        self.places.insert(id, held);
    }

    fn remove(&mut self, id: u64) -> Option<Held> {
        let held = self.places.remove(&id)?;
        if let Entry::Occupied(mut all) = self.holders.entry(held.holder) {
            *all.get_mut() -= held.reserved.amount();
            if *all.get() == 0 {
                all.remove();
            }
        }
        Some(held)
    }

    fn of_holder(&self, holder: u64) -> u64 {
        self.holders.get(&holder).copied().unwrap_or_default()
    }

    /// Lets places make way until there is room. Proven ones make way only for a holder that is proven as well and
    /// has less; `proven` is what it will have.
    fn make_way(
        &mut self,
        proven: Option<u64>,
        limit: u64,
        mut fits: impl FnMut() -> bool,
    ) -> Result<(), NoRoom> {
        while let Some(id) = self.next_victim(proven, limit) {
            self.remove(id);
            if fits() {
                return Ok(());
            }
        }
        Err(NoRoom::Full)
    }

    fn next_victim(&self, proven: Option<u64>, limit: u64) -> Option<u64> {
        let greedy = |held: &Held| self.of_holder(held.holder) > limit / SHARES;
        let makes_way =
            |held: &Held| !held.proven || proven.is_some_and(|all| self.of_holder(held.holder) > all);
        let full = self.places.iter().filter(|(_, held)| held.reserved.amount() > 0 && makes_way(held));
        let order = |held: &Held| (held.proven, !greedy(held));
        let victim = full.min_by(|(_, one), (_, other)| {
            order(one).cmp(&order(other)).then(one.came.total_cmp(&other.came))
        });
        victim.map(|(id, _)| *id)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn waiting(room: &Room, holder: &str, bytes: u64) -> Place {
        let mut place = room.enter(holder, false);
        place.grow(bytes).expect("there is room");
        place.wait();
        place
    }

    fn is_evicted(place: &mut Place) -> bool {
        place.grow(0) == Err(NoRoom::Evicted)
    }

    #[test]
    fn the_one_that_waits_longest_makes_way_for_what_comes() {
        let room = Room::new(Budget::new(100));
        let (mut first, mut second) = (waiting(&room, "a", 10), waiting(&room, "b", 10));
        let mut new = room.enter("c", false);
        assert_eq!(new.grow(85), Ok(()));
        assert_eq!(first.evicted().now_or_never(), Some(()));
        assert!(is_evicted(&mut first) && !is_evicted(&mut second));
        assert_eq!(room.0.budget.level().0, 95);
    }

    #[test]
    fn whoever_has_more_than_a_share_makes_way_before_others() {
        let room = Room::new(Budget::new(100));
        let mut fair = waiting(&room, "fair", 10);
        let mut greedy: Vec<Place> = (0..9).map(|_| waiting(&room, "greedy", 10)).collect();
        assert_eq!(room.enter("fair", false).grow(60), Ok(()));
        assert!(!is_evicted(&mut fair), "though it waits longest");
        let left = greedy.iter_mut().filter_map(|place| (!is_evicted(place)).then_some(())).count();
        assert_eq!(left, 3);
    }

    #[test]
    fn what_trickles_in_makes_nothing_younger() {
        let room = Room::new(Budget::new(1 << 20));
        let mut trickle = waiting(&room, "a", 1 << 19);
        let mut other = waiting(&room, "b", 1 << 18);
        (0..100).for_each(|_| trickle.grow(1).expect("there is room"));
        assert_eq!(room.enter("c", false).grow(1 << 19), Ok(()));
        assert!(is_evicted(&mut trickle) && !is_evicted(&mut other));
    }

    #[test]
    fn what_has_arrived_or_is_proven_makes_way_for_no_stranger() {
        let room = Room::new(Budget::new(100));
        let mut whole = waiting(&room, "a", 40);
        whole.arrived().expect("it was in time");
        let mut user = room.enter("ana", true);
        user.grow(50).expect("there is room");
        user.wait();
        assert_eq!(room.enter("b", false).grow(20), Err(NoRoom::Full));
        assert_eq!(room.enter("ana", true).grow(20), Err(NoRoom::Full), "not for what it has itself");
        assert_eq!(room.enter("ben", true).grow(20), Ok(()), "but for a user that has less");
        assert!(is_evicted(&mut user));
    }

    #[test]
    fn a_stranger_makes_way_before_a_user_that_waits_longer() {
        let room = Room::new(Budget::new(100));
        let mut user = room.enter("ana", true);
        user.grow(60).expect("there is room");
        user.wait();
        let mut stranger = waiting(&room, "a", 20);
        assert_eq!(room.enter("ben", true).grow(30), Ok(()));
        assert!(is_evicted(&mut stranger) && !is_evicted(&mut user));
    }

    #[test]
    fn what_holds_nothing_stays_because_nothing_is_gained() {
        let room = Room::new(Budget::new(100));
        let mut empty = waiting(&room, "empty", 0);
        let mut others: Vec<Place> = (0..9).map(|n| waiting(&room, &n.to_string(), 10)).collect();
        assert_eq!(room.enter("new", false).grow(20), Ok(()));
        assert!(is_evicted(&mut others[0]) && !is_evicted(&mut empty), "though it waits longest");
    }

    #[test]
    fn all_of_it_is_given_back() {
        let room = Room::new(Budget::new(100));
        let mut grown = waiting(&room, "a", 10);
        grown.grow(20).expect("there is room");
        assert_eq!(grown.grow(90), Err(NoRoom::Full), "not for what it has itself");
        let mut arrived = waiting(&room, "b", 30);
        arrived.arrived().expect("it was in time");
        assert_eq!(room.0.budget.level().0, 60);
        drop((grown, arrived));
        assert_eq!(room.0.budget.level().0, 0);
        assert!(room.0.waiting().holders.is_empty());
    }

    #[test]
    fn a_host_has_one_address_of_ipv6() {
        let block = |text: &str| address(text.parse().expect("an address"));
        assert_eq!(block("2001:db8:1:2:3::4"), block("2001:db8:1:2::"));
        assert_ne!(block("2001:db8:1:2::"), block("2001:db8:1:3::"));
        assert_eq!(block("::ffff:192.0.2.1"), block("192.0.2.1"));
    }
}
