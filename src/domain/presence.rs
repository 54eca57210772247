//! Presence: who is on a channel. Each worker thread knows its own clients by the subscribers of its
//! fan-out, so that joins and leaves cost no other thread anything; the channel actor asks them all.

use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::principal::Principal;

/// A client on a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The connection's id.
    pub client: Uuid,
    /// The user; empty for anonymous.
    #[serde(with = "crate::domain::serde_arc_str")]
    pub user: Arc<str>,
    /// ClientInfo as JSON (protocol §4.10).
    #[serde(with = "crate::domain::serde_arc_str")]
    pub info: Arc<str>,
}

/// How many connections and users `members` are. All connections without a user count as one.
pub fn counts(members: &[Member]) -> (u32, u32) {
    let users: HashSet<&str> = members.iter().map(|member| &*member.user).collect();
    let number = |count| u32::try_from(count).unwrap_or(u32::MAX);
    (number(members.len()), number(users.len()))
}

/// How presence shows a client on a channel. What others see is made when they ask: most never do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PresenceInfo {
    /// The connection's id.
    pub client: Uuid,
    /// Who it was when it came.
    pub principal: Rc<Principal>,
    /// Shown as `chan_info`.
    pub chan_info: Option<Arc<str>>,
    /// Whether presence lists the client.
    pub listed: bool,
    /// Whether its joining and leaving is announced.
    pub announced: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anonymous_connections_count_as_one_user() {
        let member = |client, user: &str| {
            let client = Uuid::from_u128(client);
            Member { client, user: user.into(), info: "{}".into() }
        };
        let members = [member(1, "ana"), member(2, "ana"), member(3, ""), member(4, "")];
        assert_eq!((counts(&members), counts(&[])), ((4, 2), (0, 0)));
    }
}
