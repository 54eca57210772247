//! The TCP connections of a node, by address. While there is room, anybody may have as many as it likes. The last
//! part of the room is for addresses with less than a share, so that one alone never shuts the others out; and a
//! connection without a request under way makes way for a new one.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Context;

use futures_util::task::AtomicWaker;
use ipnet::IpNet;

use super::budget::Budget;
use super::room;

/// The last of so many parts of the room is for addresses that have less than such a part.
const SHARES: u64 = 8;

/// The open connections of a node; cheap to clone.
#[derive(Clone)]
pub struct Connections(Arc<Inner>);

struct Inner {
    count: Budget,
    /// Of one address; 0 turns it off.
    per_address: usize,
    /// Proxies, who carry the connections of many.
    exempt: Vec<IpNet>,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    /// By address, and then by age.
    addresses: HashMap<IpAddr, BTreeMap<u64, Arc<State>>>,
    count: u64,
    begun: u64,
}

#[derive(Default)]
struct State {
    /// A request is under way, or a stream.
    busy: AtomicBool,
    evicted: AtomicBool,
    waker: AtomicWaker,
}

/// One open connection; it counts until it is dropped.
pub struct Slot {
    all: Connections,
    address: IpAddr,
    id: u64,
    state: Arc<State>,
}

/// Why a connection is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnedAway {
    /// Its address has too many.
    Address,
    /// There are too many.
    Full,
}

impl Connections {
    /// At most as many as `count` has, and `per_address` of one address unless that is 0.
    pub fn new(count: Budget, per_address: u32, exempt: Vec<IpNet>) -> Self {
        Self(Arc::new(Inner { count, per_address: per_address as usize, exempt, open: Mutex::default() }))
    }

    /// Counts a connection of `address`. With it comes whether another one has to make way.
    pub fn open(&self, address: IpAddr) -> Result<(Slot, bool), TurnedAway> {
        let most = self.0.count.level().1;
        let exempt = self.0.exempt.iter().any(|net| net.contains(&address.to_canonical()));
        let address = room::address(address);
        let mut open = self.lock();
        let own = open.addresses.get(&address).map_or(0, BTreeMap::len);
        let share = (most / SHARES).max(1);
        let over = !exempt && self.0.per_address > 0 && own >= self.0.per_address;
        let greedy = !exempt && own as u64 >= share && open.count >= most.saturating_sub(share);
        let evicted = match (over, greedy || open.count >= most) {
            (true, _) => open.evict_of(address),
            (false, true) => open.evict_of_largest(),
            (false, false) => false,
        };
        if !evicted && (over || greedy) {
            return Err(TurnedAway::Address);
        }
        if !evicted && open.count >= most {
            return Err(TurnedAway::Full);
        }
        let (id, state) = (open.begun, Arc::<State>::default());
        open.begun += 1;
        open.count += 1;
        open.addresses.entry(address).or_default().insert(id, state.clone());
        self.0.count.set(open.count);
        Ok((Slot { all: self.clone(), address, id, state }, evicted))
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.open.lock().expect("the lock is not poisoned")
    }
}

impl Open {
    /// Lets the oldest connection of `address` that is idle make way; `false` if there is none.
    fn evict_of(&mut self, address: IpAddr) -> bool {
        let Some(slots) = self.addresses.get(&address) else { return false };
        let oldest = slots.iter().find(|(_, slot)| slot.is_idle()).map(|(id, slot)| (*id, slot.clone()));
        let Some((id, state)) = oldest else { return false };
        state.evicted.store(true, Ordering::Release);
        state.waker.wake();
        self.remove(address, id);
        true
    }

    /// Does so for the address with the most connections of which one is idle.
    fn evict_of_largest(&mut self) -> bool {
        let idle = self.addresses.iter().filter(|(_, slots)| slots.values().any(|slot| slot.is_idle()));
        let largest = idle.max_by_key(|(_, slots)| slots.len()).map(|(address, _)| *address);
        largest.is_some_and(|largest| self.evict_of(largest))
    }

    fn remove(&mut self, address: IpAddr, id: u64) {
        let Some(slots) = self.addresses.get_mut(&address) else { return };
        if slots.remove(&id).is_some() {
            self.count -= 1;
        }
        if slots.is_empty() {
            self.addresses.remove(&address);
        }
    }
}

impl State {
    fn is_idle(&self) -> bool {
        !self.busy.load(Ordering::Relaxed)
    }
}

impl Slot {
    /// Whether something is under way: then it does not make way.
    pub fn set_busy(&self, busy: bool) {
        self.state.busy.store(busy, Ordering::Relaxed);
    }

    /// It never makes way from now on. The task that would have been woken is let go, and with it the memory
    /// of all that it did.
    pub fn stay(&self) {
        self.set_busy(true);
        drop(self.state.waker.take());
    }

    /// Whether it has to make way. If not, the task is woken when it has to.
    pub fn is_evicted(&self, cx: &Context<'_>) -> bool {
        let evicted = || self.state.evicted.load(Ordering::Acquire);
        evicted() || {
            self.state.waker.register(cx.waker());
            evicted()
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut open = self.all.lock();
        open.remove(self.address, self.id);
        self.all.0.count.set(open.count);
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn of(number: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, number])
    }

    fn room(most: u64, per_address: u32) -> Connections {
        let proxy = "10.0.0.0/8".parse().expect("a network");
        Connections::new(Budget::new(most), per_address, vec![proxy])
    }

    fn busy(all: &Connections, address: IpAddr) -> Result<Slot, TurnedAway> {
        let (slot, _) = all.open(address)?;
        slot.set_busy(true);
        Ok(slot)
    }

    fn is_evicted(slot: &Slot) -> bool {
        slot.is_evicted(&Context::from_waker(Waker::noop()))
    }

    #[test]
    fn one_address_cannot_take_the_last_of_the_room() {
        let all = room(80, 0);
        let taken: Vec<_> = (0..100).map_while(|_| busy(&all, of(1)).ok()).collect();
        assert_eq!(taken.len(), 70);
        let others: Vec<_> = (0..10).map_while(|_| busy(&all, of(2)).ok()).collect();
        assert_eq!(others.len(), 10);
        assert_eq!(busy(&all, of(3)).err(), Some(TurnedAway::Full));
        drop((taken, others));
        assert_eq!(all.0.count.level().0, 0);
    }

    #[test]
    fn who_is_idle_makes_way_the_oldest_of_the_largest_first() {
        let all = room(8, 0);
        let open = |number| all.open(of(number)).map(|(slot, _)| slot).expect("there is room");
        let (small, working) = (open(2), busy(&all, of(1)).expect("there is room"));
        let idle: Vec<_> = (0..6).map(|_| open(1)).collect();
        let _new = open(3);
        assert!(is_evicted(&idle[0]) && !is_evicted(&idle[1]));
        assert!(!is_evicted(&small) && !is_evicted(&working));
    }

    #[test]
    fn an_address_with_its_limit_changes_one_of_its_own() {
        let all = room(1000, 2);
        let (first, _) = all.open(of(1)).expect("there is room");
        let _second = busy(&all, of(1)).expect("there is room");
        let (third, _) = all.open(of(1)).expect("the first makes way");
        assert!(is_evicted(&first) && !is_evicted(&third));
        third.set_busy(true);
        assert_eq!(all.open(of(1)).err(), Some(TurnedAway::Address));
        let proxy = IpAddr::from([10, 0, 0, 1]);
        let proxied: Vec<_> = (0..100).map_while(|_| busy(&all, proxy).ok()).collect();
        assert_eq!(proxied.len(), 100);
    }
}
