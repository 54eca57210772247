//! Who is on a channel. Plain data; the channel actor owns one and tells others of the changes.

use std::collections::{HashMap, HashSet};
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

/// The connections of one channel that others may know of.
#[derive(Debug, Default)]
pub struct Presence(HashMap<Uuid, Attendance>);

impl Presence {
    /// Somebody comes. Answers what to tell.
    pub fn come(&mut self, attendance: Attendance) -> Option<Movement> {
        let info = attendance.member.info.clone();
        let announced = attendance.announced;
        let known = self.0.insert(attendance.member.client, attendance);
        (announced && known.is_none()).then_some(Movement { came: true, info })
    }

    /// Somebody leaves. Answers what to tell.
    pub fn leave(&mut self, client: Uuid) -> Option<Movement> {
        let gone = self.0.remove(&client)?;
        gone.announced.then_some(Movement { came: false, info: gone.member.info })
    }

    /// Who can be found here.
    pub fn members(&self) -> Vec<Member> {
        self.0.values().filter(|one| one.listed).map(|one| one.member.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attendance(client: u128, listed: bool, announced: bool) -> Attendance {
        let member = Member { client: Uuid::from_u128(client), user: "ana".into(), info: "{}".into() };
        Attendance { member, listed, announced }
    }

    #[test]
    fn who_came_is_found_until_they_leave() {
        let mut presence = Presence::default();
        assert_eq!(presence.come(attendance(1, true, false)), None);
        assert_eq!(presence.members(), [attendance(1, true, false).member]);
        assert_eq!(presence.leave(Uuid::from_u128(1)), None);
        assert_eq!(presence.members(), []);
    }

    #[test]
    fn anonymous_connections_count_as_one_user() {
        let member =
            |client, user: &str| Member { user: user.into(), ..attendance(client, true, false).member };
        let members = [member(1, "ana"), member(2, "ana"), member(3, ""), member(4, "")];
        assert_eq!((counts(&members), counts(&[])), ((4, 2), (0, 0)));
    }

    #[test]
    fn coming_and_leaving_is_told_once() {
        let mut presence = Presence::default();
        let told = |came| Some(Movement { came, info: "{}".into() });
        assert_eq!(presence.come(attendance(1, false, true)), told(true));
        assert_eq!(presence.come(attendance(1, false, true)), None, "they are here");
        assert_eq!(presence.members(), [], "not listed");
        assert_eq!(presence.leave(Uuid::from_u128(1)), told(false));
        assert_eq!(presence.leave(Uuid::from_u128(1)), None);
    }
}
