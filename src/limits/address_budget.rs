//! Places of a node that addresses share. While there is room, anybody may have as many as it likes; the last part
//! of the room is for addresses with less than a share, so that one alone never shuts the others out.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use ipnet::IpNet;

use super::budget::Budget;
use super::room;

/// The last of so many parts of the room is for addresses that have less than such a part.
const SHARES: u64 = 8;

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnedAway {
    /// The address has too many.
    Address,
    /// There are too many.
    Full,
}

/// Whether somebody with `own` of `used` places gets none of the last ones. There are `most`.
pub fn is_greedy(own: u64, used: u64, most: u64) -> bool {
    let share = most / SHARES;
    share > 0 && own >= share && used >= most - share
}

/// Whether an address is that of a proxy, who carries the connections of many.
pub fn is_exempt(proxies: &[IpNet], address: IpAddr) -> bool {
    proxies.iter().any(|net| net.contains(&address.to_canonical()))
}

/// A number of places; cheap to clone: clones are the same places.
#[derive(Clone)]
pub struct AddressBudget(Arc<Inner>);

struct Inner {
    budget: Budget,
    /// Proxies that do not say for whom they ask.
    exempt: Vec<IpNet>,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    addresses: HashMap<IpAddr, u64>,
    count: u64,
}

/// One place; given back when dropped.
pub struct AddressPlace {
    all: AddressBudget,
    address: IpAddr,
}

impl AddressBudget {
    /// As many places as `budget` has.
    pub fn new(budget: Budget, exempt: Vec<IpNet>) -> Self {
        Self(Arc::new(Inner { budget, exempt, taken: Mutex::default() }))
    }

    /// A place for `address`.
    pub fn take(&self, address: IpAddr) -> Result<AddressPlace, TurnedAway> {
        let most = self.0.budget.level().1;
        let exempt = is_exempt(&self.0.exempt, address);
        let address = room::address(address);
        let mut taken = self.lock();
        let own = taken.addresses.get(&address).copied().unwrap_or_default();
        if taken.count >= most {
            return Err(TurnedAway::Full);
        }
        if !exempt && is_greedy(own, taken.count, most) {
            return Err(TurnedAway::Address);
        }
        taken.addresses.insert(address, own + 1);
        taken.count += 1;
        self.0.budget.set(taken.count);
        Ok(AddressPlace { all: self.clone(), address })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.taken.lock().expect("the lock is not poisoned")
    }
}

impl Drop for AddressPlace {
    fn drop(&mut self) {
        let mut taken = self.all.lock();
        taken.count -= 1;
        self.all.0.budget.set(taken.count);
        if let Some(own) = taken.addresses.get_mut(&self.address) {
            *own -= 1;
            if *own == 0 {
                taken.addresses.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(number: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, number])
    }

    #[test]
    fn one_address_cannot_take_the_last_places() {
        let budget = Budget::new(80);
        let proxy = "10.0.0.0/8".parse().expect("a network");
        let all = AddressBudget::new(budget.clone(), vec![proxy]);
        let mut taken: Vec<_> = (0..100).map_while(|_| all.take(of(1)).ok()).collect();
        assert_eq!((taken.len(), budget.level().0), (70, 70));
        assert_eq!(all.take(of(1)).err(), Some(TurnedAway::Address));
        taken.extend(all.take(of(2)));
        taken.extend((0..100).map_while(|_| all.take(IpAddr::from([10, 0, 0, 1])).ok()));
        assert_eq!(taken.len(), 80);
        assert_eq!(all.take(of(3)).err(), Some(TurnedAway::Full));
        drop(taken);
        assert_eq!((budget.level().0, all.lock().addresses.len()), (0, 0));
    }

    #[test]
    fn too_few_places_have_no_shares() {
        let all = AddressBudget::new(Budget::new(7), Vec::new());
        let taken: Vec<_> = (0..8).map_while(|_| all.take(of(1)).ok()).collect();
        assert_eq!((taken.len(), all.take(of(1)).err()), (7, Some(TurnedAway::Full)));
    }
}
