//! How many connections each user has open on this node, over any transport.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// How many connections each user has open.
#[derive(Clone)]
pub struct UserConnections {
    open: Arc<Mutex<Open>>,
    limit: u32,
}

type Open = HashMap<Arc<str>, u32>;

/// One open connection; counted until dropped.
pub struct OpenConnection {
    open: Arc<Mutex<Open>>,
    /// `None`: nobody, who is not counted.
    user: Option<Arc<str>>,
}

impl UserConnections {
    /// At most `limit` for each user; 0 turns the limit off.
    pub fn new(limit: u32) -> Self {
        Self { open: Arc::default(), limit }
    }

    /// Counts one more of `user`; `None` when that is too many. Anonymous users (`""`) are exempt.
    pub fn open(&self, user: &str) -> Option<OpenConnection> {
        let user = if user.is_empty() {
            None
        } else {
            let mut open = self.open.lock().expect("nobody panics while counting");
            let user = open.get_key_value(user).map_or_else(|| user.into(), |(known, _)| known.clone());
            let count = open.entry(user.clone()).or_default();
            if self.limit > 0 && *count >= self.limit {
                return None;
            }
            *count += 1;
            Some(user)
        };
        Some(OpenConnection { open: self.open.clone(), user })
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        let Some(user) = &self.user else { return };
        let mut open = self.open.lock().expect("nobody panics while counting");
        if let Some(count) = open.get_mut(user) {
            *count -= 1;
            if *count == 0 {
                open.remove(user);
            }
        }
    }
}
