//! What replies to returning clients may take of memory, from the read of the log until they are on their way. Small
//! ones only count for their connection. For a large one a connection asks for room once, and all that it gets in
//! one reply has to fit into it; who finds none waits in a bounded queue.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::budget::{Budget, Reserved};

/// Bytes of data up to which a reply is small.
pub const SMALL: usize = 64 << 10;
/// One user has at most this part of the room.
const USER_SHARE: usize = 4;

/// The room of a node; cheap to clone.
#[derive(Clone)]
pub struct Replies(Arc<Inner>);

struct Inner {
    /// How many replies of full size fit.
    places: Arc<Semaphore>,
    most: usize,
    /// Bytes for the reply of one connection.
    size: usize,
    waiting: AtomicUsize,
    most_waiting: usize,
    used: Budget,
    users: Mutex<HashMap<Arc<str>, usize>>,
}

/// Room for the reply of one connection; given back when dropped.
pub struct ReplyRoom {
    all: Replies,
    user: Arc<str>,
    left: usize,
    _place: OwnedSemaphorePermit,
    _reserved: Reserved,
}

/// Too many wait for room, or the user has its share of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// The room that one connection has, if any.
#[derive(Default)]
pub struct Share {
    /// Large reads of one connection follow each other.
    turn: tokio::sync::Mutex<()>,
    room: RefCell<Option<ReplyRoom>>,
}

/// One large read; others of the connection wait until it is dropped.
pub struct Turn<'a> {
    share: &'a Share,
    _turn: tokio::sync::MutexGuard<'a, ()>,
}

impl Replies {
    /// Room for `used`, `size` bytes for the reply of a connection; at most `most_waiting` wait for some.
    pub fn new(used: Budget, size: usize, most_waiting: usize) -> Self {
        let most = (usize::try_from(used.level().1).unwrap_or(usize::MAX) / size.max(1)).max(1);
        Self(Arc::new(Inner {
            places: Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS))),
            most,
            size,
            waiting: AtomicUsize::new(0),
            most_waiting,
            used,
            users: Mutex::default(),
        }))
    }

    async fn room(&self, user: &str) -> Result<ReplyRoom, Full> {
        let user = self.enter(user)?;
        // Counts as one of its user from now on, also while it waits.
        let counted = Counted { all: self, user: Some(user) };
        let place = match self.0.places.clone().try_acquire_owned() {
            Ok(place) => place,
            Err(_) => {
                let _waiting = Waiting::among(&self.0)?;
                self.0.places.clone().acquire_owned().await.map_err(|_| Full)?
            }
        };
        let reserved = self.0.used.reserve_beyond(self.0.size as u64);
        Ok(ReplyRoom {
            all: self.clone(),
            user: counted.keep(),
            left: self.0.size,
            _place: place,
            _reserved: reserved,
        })
    }

    fn enter(&self, user: &str) -> Result<Arc<str>, Full> {
        let mut users = self.users();
        let user = users.get_key_value(user).map_or_else(|| user.into(), |(known, _)| known.clone());
        let count = users.entry(user.clone()).or_default();
        if *count >= (self.0.most / USER_SHARE).max(1) {
            return Err(Full);
        }
        *count += 1;
        Ok(user)
    }

    fn leave(&self, user: &Arc<str>) {
        let mut users = self.users();
        if let Some(count) = users.get_mut(user) {
            *count -= 1;
            if *count == 0 {
                users.remove(user);
            }
        }
    }

    fn users(&self) -> MutexGuard<'_, HashMap<Arc<str>, usize>> {
        self.0.users.lock().expect("the lock is not poisoned")
    }
}

struct Counted<'a> {
    all: &'a Replies,
    user: Option<Arc<str>>,
}

impl Counted<'_> {
    fn keep(mut self) -> Arc<str> {
        self.user.take().unwrap_or_default()
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if let Some(user) = &self.user {
            self.all.leave(user);
        }
    }
}

struct Waiting<'a>(&'a Inner);

impl<'a> Waiting<'a> {
    fn among(all: &'a Inner) -> Result<Self, Full> {
        let waiting = Self(all);
        if all.waiting.fetch_add(1, Ordering::Relaxed) < all.most_waiting { Ok(waiting) } else { Err(Full) }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for ReplyRoom {
    fn drop(&mut self) {
        self.all.leave(&self.user);
    }
}

impl Share {
    /// Waits for the other large reads of the connection, and for room if it has none yet.
    pub async fn turn(&self, replies: &Replies, user: &str) -> Result<Turn<'_>, Full> {
        let turn = self.turn.lock().await;
        if self.room.borrow().is_none() {
            let room = replies.room(user).await?;
            self.room.replace(Some(room));
        }
        Ok(Turn { share: self, _turn: turn })
    }

    /// The room of a reply that is made; `None` if there is none, or if more is read for it.
    pub fn take(&self) -> Option<ReplyRoom> {
        let turn = self.room.borrow().is_some().then(|| self.turn.try_lock().ok())?;
        turn.and_then(|_turn| self.room.take())
    }
}

impl Turn<'_> {
    /// Bytes that the reply may still have.
    pub fn left(&self) -> usize {
        self.share.room.borrow().as_ref().map_or(0, |room| room.left)
    }

    /// So many have been read.
    pub fn use_up(&self, bytes: usize) {
        if let Some(room) = &mut *self.share.room.borrow_mut() {
            room.left = room.left.saturating_sub(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_connection_has_room_for_one_reply_and_gives_it_back() {
        let replies = Replies::new(Budget::new(100), 10, 5);
        let share = Share::default();
        let turn = share.turn(&replies, "ana").await.expect("there is room");
        turn.use_up(7);
        assert!(share.take().is_none(), "more is being read");
        drop(turn);
        let turn = share.turn(&replies, "ana").await.expect("it has room");
        assert_eq!(turn.left(), 3);
        drop(turn);
        assert_eq!(replies.0.used.level().0, 10);
        drop(share.take());
        assert_eq!((replies.0.used.level().0, replies.users().len()), (0, 0));
    }

    #[tokio::test]
    async fn who_finds_no_room_waits_unless_too_many_do() {
        let replies = Replies::new(Budget::new(20), 10, 1);
        let (first, second) = (replies.room("a").await.expect("room"), replies.room("b").await);
        let mut waiting = Box::pin(replies.room("c"));
        assert!(waiting.as_mut().now_or_never().is_none());
        let refused = replies.room("d").now_or_never().expect("too many wait already");
        assert_eq!(refused.err(), Some(Full));
        drop(first);
        let third = waiting.await.expect("its turn");
        assert!(replies.room("e").now_or_never().is_none(), "nobody waits any more, so that it may");
        drop((second, third));
        assert_eq!((replies.0.used.level().0, replies.users().len()), (0, 0));
    }

    #[tokio::test]
    async fn one_user_has_a_share_of_it() {
        let replies = Replies::new(Budget::new(80), 10, 5);
        let held = [replies.room("a").await, replies.room("a").await];
        assert_eq!(replies.room("a").await.err(), Some(Full));
        assert!(replies.room("b").await.is_ok());
        drop(held);
        assert!(replies.room("a").await.is_ok());
    }
}
