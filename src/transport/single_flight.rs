//! Merges identical concurrent reads: when a thousand clients return to the same position, the log is
//! read a few times and not a thousand times. A result is never older than the call that gets it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::Hash;
use std::rc::Rc;

use tokio::sync::oneshot;

/// The reads of one worker thread that are under way, with the callers that wait for the next one.
pub(super) struct SingleFlight<K, V>(RefCell<HashMap<K, Vec<oneshot::Sender<V>>>>);

impl<K, V> Default for SingleFlight<K, V> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<K: Eq + Hash + Clone + 'static, V: Clone + 'static> SingleFlight<K, V> {
    /// Reads the value of `key` with `load`, which always starts after this call: at once, or, if a
    /// load of the same key is under way, when that has finished, and then once for all waiting callers.
    pub(super) async fn run<F>(self: &Rc<Self>, key: K, load: impl Fn(K) -> F + 'static) -> Option<V>
    where
        F: Future<Output = V> + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let under_way = {
            let mut flights = self.0.borrow_mut();
            let under_way = flights.contains_key(&key);
            flights.entry(key.clone()).or_default().push(sender);
            under_way
        };
        if !under_way {
            let flights = self.clone();
            actix_rt::spawn(async move {
                let flight = Flight { flights, key };
                while let Some(waiting) = flight.take_waiting() {
                    let value = load(flight.key.clone()).await;
                    // A caller may have stopped waiting.
                    waiting.into_iter().for_each(|sender| drop(sender.send(value.clone())));
                }
            });
        }
        receiver.await.ok()
    }
}

/// A key that is being loaded. When it is dropped, callers that still wait for it get `None`.
struct Flight<K: Eq + Hash, V> {
    flights: Rc<SingleFlight<K, V>>,
    key: K,
}

impl<K: Eq + Hash, V> Flight<K, V> {
    /// The callers that wait now, if there are any.
    fn take_waiting(&self) -> Option<Vec<oneshot::Sender<V>>> {
        let mut flights = self.flights.0.borrow_mut();
        flights.get_mut(&self.key).map(std::mem::take).filter(|waiting| !waiting.is_empty())
    }
}

impl<K: Eq + Hash, V> Drop for Flight<K, V> {
    fn drop(&mut self) {
        self.flights.0.borrow_mut().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures_util::future::join_all;
    use tokio::sync::Semaphore;

    use super::*;

    #[actix_rt::test]
    async fn callers_that_come_during_a_load_share_the_next_one() {
        let single_flight = Rc::new(SingleFlight::default());
        let (loads, may_end) = (Rc::new(Cell::new(0)), Rc::new(Semaphore::new(0)));
        let run = |key: &'static str| {
            let (single_flight, loads, may_end) = (single_flight.clone(), loads.clone(), may_end.clone());
            actix_rt::spawn(async move {
                let load = move |key| {
                    loads.set(loads.get() + 1);
                    let (nth, may_end) = (loads.get(), may_end.clone());
                    async move {
                        may_end.acquire().await.unwrap().forget();
                        (key, nth)
                    }
                };
                single_flight.run(key, load).await
            })
        };
        let settle = || join_all((0..8).map(|_| tokio::task::yield_now()));

        let first = run("a");
        settle().await;
        let (later, gone) = ([run("a"), run("a"), run("a")], run("a"));
        settle().await;
        assert_eq!(loads.get(), 1, "the later callers wait");
        let other = run("b");
        settle().await;
        assert_eq!(loads.get(), 2, "another key does not wait");
        gone.abort();
        may_end.add_permits(3);
        assert_eq!(first.await.unwrap(), Some(("a", 1)));
        assert_eq!(other.await.unwrap(), Some(("b", 2)));
        for caller in later {
            assert_eq!(caller.await.unwrap(), Some(("a", 3)));
        }
        settle().await;
        assert_eq!(loads.get(), 3);
        assert!(single_flight.0.borrow().is_empty());
    }
}
