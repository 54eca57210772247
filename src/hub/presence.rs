//! Who is on a channel, as values. Each worker thread knows its own by the entries of its fan-out,
//! so that coming and leaving costs no other thread anything; the channel actor asks them all.

use std::collections::HashSet;
use std::sync::Arc;

use uuid::Uuid;

/// Somebody on a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The connection's id.
    pub client: Uuid,
    /// The user; empty for anonymous.
    pub user: Arc<str>,
    /// ClientInfo as JSON (protocol §4.10).
    pub info: Arc<str>,
}

/// How many connections and users `members` are. All connections without a user count as one.
pub fn counts(members: &[Member]) -> (u32, u32) {
    let users: HashSet<&str> = members.iter().map(|member| &*member.user).collect();
    let number = |count| u32::try_from(count).unwrap_or(u32::MAX);
    (number(members.len()), number(users.len()))
}

/// How somebody is on a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attendance {
    /// Who.
    pub member: Member,
    /// Whether others may ask who is here and find them.
    pub listed: bool,
    /// Whether their coming and leaving is told.
    pub announced: bool,
}

/// Somebody came or left, as it is told to others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Movement {
    /// `false`: they left.
    pub came: bool,
    /// ClientInfo as JSON.
    pub info: Arc<str>,
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
