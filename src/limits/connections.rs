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

use super::address_budget::{TurnedAway, is_exempt, is_greedy};
use super::budget::Budget;
use super::room;

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
    addresses: HashMap<IpAddr, Connected>,
    count: u64,
    begun: u64,
}

/// What one address has open.
struct Connected {
    address: Arc<Address>,
    count: usize,
    /// By age, those that may be idle; and a busy one until somebody looks at it.
    idle: BTreeMap<u64, Arc<State>>,
}

struct Address {
    all: Connections,
    address: IpAddr,
}

struct State {
    /// A request is under way, or a stream.
    busy: AtomicBool,
    /// It is among those that may be idle.
    listed: AtomicBool,
    evicted: AtomicBool,
    waker: AtomicWaker,
}

/// One open connection; it counts until it is dropped.
pub struct Slot {
    address: Arc<Address>,
    id: u64,
    state: Arc<State>,
}

/// One open connection that never makes way; it counts until it is dropped.
pub struct LastingSlot(Arc<Address>);

impl Connections {
    /// At most as many as `count` has, and `per_address` of one address unless that is 0.
    pub fn new(count: Budget, per_address: u32, exempt: Vec<IpNet>) -> Self {
        Self(Arc::new(Inner { count, per_address: per_address as usize, exempt, open: Mutex::default() }))
    }

    /// Counts a connection of `address`. With it comes whether another one has to make way.
    pub fn open(&self, address: IpAddr) -> Result<(Slot, bool), TurnedAway> {
        let most = self.0.count.level().1;
        let exempt = is_exempt(&self.0.exempt, address);
        let address = room::address(address);
        let mut open = self.lock();
        let own = open.addresses.get(&address).map_or(0, |connected| connected.count);
        let over = !exempt && self.0.per_address > 0 && own >= self.0.per_address;
        let greedy = !exempt && is_greedy(own as u64, open.count, most);
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
        let (id, state) = (open.begun, Arc::new(State::new()));
        open.begun += 1;
        open.count += 1;
        let connected = open.addresses.entry(address).or_insert_with(|| Connected {
            address: Arc::new(Address { all: self.clone(), address }),
            count: 0,
            idle: BTreeMap::new(),
        });
        connected.count += 1;
        connected.idle.insert(id, state.clone());
        let address = connected.address.clone();
        self.0.count.set(open.count);
        Ok((Slot { address, id, state }, evicted))
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.open.lock().expect("the lock is not poisoned")
    }
}

impl Open {
    /// Lets the oldest connection of `address` that is idle make way; `false` if there is none.
    fn evict_of(&mut self, address: IpAddr) -> bool {
        let Some(connected) = self.addresses.get_mut(&address) else { return false };
        while let Some((_, state)) = connected.idle.pop_first() {
            if state.take_if_idle() {
                state.evicted.store(true, Ordering::Release);
                state.waker.wake();
                self.leave(address);
                return true;
            }
        }
        false
    }

    /// Does so for the address with the most connections of which one is idle.
    fn evict_of_largest(&mut self) -> bool {
        loop {
            let some = self.addresses.iter().filter(|(_, connected)| !connected.idle.is_empty());
            let largest = some.max_by_key(|(_, connected)| connected.count).map(|(address, _)| *address);
            let Some(largest) = largest else { return false };
            // If all of them were busy, none of them is listed any more.
            if self.evict_of(largest) {
                return true;
            }
        }
    }

    /// One connection of `address` less.
    fn leave(&mut self, address: IpAddr) {
        let Some(connected) = self.addresses.get_mut(&address) else { return };
        connected.count -= 1;
        self.count -= 1;
        if connected.count == 0 {
            self.addresses.remove(&address);
        }
    }
}

impl Address {
    /// Changes what is listed of it.
    fn change<T>(&self, change: impl FnOnce(&mut Open) -> T) -> T {
        let mut open = self.all.lock();
        let changed = change(&mut open);
        self.all.0.count.set(open.count);
        changed
    }
}

impl State {
    fn new() -> Self {
        let [busy, listed, evicted] = [false, true, false].map(AtomicBool::new);
        Self { busy, listed, evicted, waker: AtomicWaker::new() }
    }

    /// Whether it is idle, asked by who has taken it off the list. A busy one is listed again when its request
    /// has ended, so that many of them cost each search little.
    fn take_if_idle(&self) -> bool {
        self.listed.store(false, Ordering::SeqCst);
        !self.busy.load(Ordering::SeqCst)
    }
}

impl Slot {
    /// Whether something is under way: then it does not make way.
    pub fn set_busy(&self, busy: bool) {
        self.state.busy.store(busy, Ordering::SeqCst);
        if !busy && !self.state.listed.load(Ordering::SeqCst) {
            self.list_again();
        }
    }

    #[cold]
    fn list_again(&self) {
        let Self { address, id, state } = self;
        address.change(|open| {
            let evicted = state.evicted.load(Ordering::Relaxed);
            if let Some(connected) = open.addresses.get_mut(&address.address).filter(|_| !evicted) {
                state.listed.store(true, Ordering::SeqCst);
                connected.idle.insert(*id, state.clone());
            }
        });
    }

    /// It never makes way from now on; `None` if it has to already. The task that would have been woken is let go,
    /// and with it the memory of all that it did.
    pub fn into_lasting(self) -> Option<LastingSlot> {
        let address = self.address.clone();
        address.change(|open| {
            if self.state.evicted.load(Ordering::Relaxed) {
                return None;
            }
            let connected = open.addresses.get_mut(&address.address)?;
            connected.idle.remove(&self.id);
            // What counts is the new one, which is dropped without the lock.
            connected.count += 1;
            open.count += 1;
            Some(LastingSlot(address.clone()))
        })
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
        let Self { address, id, state } = self;
        address.change(|open| {
            if !state.evicted.load(Ordering::Relaxed)
                && let Some(connected) = open.addresses.get_mut(&address.address)
            {
                connected.idle.remove(id);
                open.leave(address.address);
            }
        });
    }
}

impl Drop for LastingSlot {
    fn drop(&mut self) {
        self.0.change(|open| open.leave(self.0.address));
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Wake, Waker};

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

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
    fn who_was_busy_when_somebody_looked_makes_way_later() {
        let all = room(8, 2);
        let open = || all.open(of(1)).map(|(slot, _)| slot);
        let (first, second) = (open().expect("room"), open().expect("room"));
        [&first, &second].iter().for_each(|slot| slot.set_busy(true));
        assert_eq!(open().err(), Some(TurnedAway::Address));
        second.set_busy(false);
        let third = open().expect("the second makes way");
        third.set_busy(true);
        second.set_busy(false);
        assert!(is_evicted(&second) && !is_evicted(&first));
        assert_eq!(open().err(), Some(TurnedAway::Address), "it is not there to make way twice");
        drop((first, second, third));
        assert_eq!(all.0.count.level().0, 0);
    }

    #[test]
    fn who_lasts_counts_and_never_makes_way() {
        let all = room(8, 2);
        let open = || all.open(of(1)).map(|(slot, _)| slot);
        let lasting = open().expect("room").into_lasting().expect("it does not have to make way");
        let (idle, third) = (open().expect("room"), open().expect("the second makes way"));
        assert!(is_evicted(&idle) && idle.into_lasting().is_none());
        third.set_busy(true);
        assert_eq!(open().err(), Some(TurnedAway::Address));
        drop((lasting, third));
        assert_eq!((all.0.count.level().0, all.lock().addresses.len()), (0, 0));
    }

    #[test]
    fn whoever_makes_way_is_woken() {
        let all = room(1, 0);
        let (first, _) = all.open(of(1)).expect("there is room");
        let woken = Arc::new(Woken::default());
        assert!(!first.is_evicted(&Context::from_waker(&woken.clone().into())));
        all.open(of(2)).expect("the first makes way");
        assert!(woken.0.load(Ordering::Relaxed) && is_evicted(&first));
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
