//! How many connections each user has open on this node, over any transport.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// How many connections each user has open.
#[derive(Clone)]
pub struct UserConnections {
    open: Arc<Mutex<HashMap<String, u32>>>,
    limit: u32,
}

/// One open connection; counted until dropped.
pub struct OpenConnection {
    connections: UserConnections,
    user: String,
}

impl UserConnections {
    /// At most `limit` for each user; 0 turns the limit off.
    pub fn new(limit: u32) -> Self {
        Self { open: Arc::default(), limit }
    }

    /// Counts one more of `user`; `None` when that is too many. Anonymous users (`""`) are exempt.
    pub fn open(&self, user: &str) -> Option<OpenConnection> {
        if !user.is_empty() {
            let mut open = self.open.lock().expect("nobody panics while counting");
            let count = open.entry(user.to_owned()).or_default();
            if self.limit > 0 && *count >= self.limit {
                return None;
            }
            *count += 1;
        }
        Some(OpenConnection { connections: self.clone(), user: user.to_owned() })
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        if self.user.is_empty() {
            return;
        }
        let mut open = self.connections.open.lock().expect("nobody panics while counting");
        if let Some(count) = open.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.user);
            }
        }
    }
}
