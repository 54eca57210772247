//! Builds: whoever appends the first event creates a build and owns it. A build that a caller may not see
//! does not exist for it.
//! Must hold: nobody can append to somebody else's build, also when two callers create it at the same
//! time.

mod event;

use std::time::Instant;

use futures_util::future::BoxFuture;
use uuid::Uuid;

pub use event::{Body, BuildEvent, user_key};

use crate::domain::access::may_append_to_build;
use crate::domain::channel::{ChannelKind, ChannelName, is_owner};
use crate::domain::event::{NewEvent, envelope};
use crate::domain::position::Position;
use crate::domain::principal::Principal;
use crate::publish::{Apply, Committed, Dedup, PublishError, Publisher, UnitOfWork, Verdict};
use crate::store::builds::{self, Build};
use crate::store::{self, LockKey, Store, StoreError, Table, Transaction};

/// Why an event was not appended to a build.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("the id of a build must be a lower-case UUID with hyphens")]
    BadId,
    #[error("a build has an owner: send a token with a `sub` claim")]
    NoOwner,
    /// The idempotency key is empty or too long.
    #[error("Idempotency-Key must have 1 to {} bytes", crate::publish::MAX_KEY)]
    BadKey,
    #[error("{0}")]
    BadEvent(&'static str),
    /// Its data has more bytes than this.
    #[error("the data of an event can have at most {0} bytes")]
    TooLarge(usize),
    #[error("`org` must be one of the token's `orgs`")]
    ForeignOrg,
    #[error("a build with this id existed and has expired: choose another id")]
    Expired,
    #[error("`org` differs from that of the build's first event: leave it out or repeat the same one")]
    OtherOrg,
    #[error("only the owner of a build may append events to it")]
    NotOwner,
    /// There is none that the caller may see.
    #[error("there is no such build")]
    Missing,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Publish(#[from] PublishError),
}

/// The id of a build and the channel of its events.
#[derive(Debug, Clone)]
pub struct BuildId {
    pub id: Uuid,
    pub channel: ChannelName,
}

impl BuildId {
    /// One id has one spelling, as in the name of its channel.
    pub fn parse(id: &str) -> Result<Self, BuildError> {
        let channel = ChannelName::parse(&format!("build:{id}")).map_err(|_| BuildError::BadId)?;
        match channel.kind() {
            ChannelKind::Build(id) => Ok(Self { id, channel }),
            _ => Err(BuildError::BadId),
        }
    }
}

/// An event that is durable.
#[derive(Debug)]
pub enum Appended {
    /// The id of the new event and its position.
    New(Uuid, Option<Position>),
    /// The idempotency key was used before: the position of the event that it was used for.
    Duplicate(Option<Position>),
}

/// Whether `principal` can own a build.
pub fn check_owner(principal: &Principal) -> Result<(), BuildError> {
    let has_name = !principal.is_anonymous() && !principal.user.contains('\0');
    has_name.then_some(()).ok_or(BuildError::NoOwner)
}

/// Appends `event` to `build`, or creates the build with it. `key` is one that [`user_key`] made;
/// `accepted` is when the event arrived here.
pub async fn append(
    publisher: &Publisher,
    store: &Store,
    principal: &Principal,
    build: &BuildId,
    event: BuildEvent<'_>,
    key: Option<String>,
    accepted: Instant,
) -> Result<Appended, BuildError> {
    check_owner(principal)?;
    let id = build.id;
    let row = resolve_build(store, principal, id, event.org).await?;
    let event_id = Uuid::now_v7();
    let data = envelope(event_id, &event.kind, store.now(), None, event.data);
    let new = NewEvent::new(build.channel.clone(), event_id, &event.kind, data);
    let dedup = key.map_or(Dedup::None, |key| Dedup::by_key(build.channel.clone(), key, store.now()));
    let apply: Box<dyn Apply> = Box::new(UpsertBuild { id, build: row });
    let unit = UnitOfWork { dedup, apply: Some(apply), accepted, ..UnitOfWork::of(vec![new]) };
    match publisher.commit(unit).await? {
        Committed::Done(positions) => Ok(Appended::New(event_id, positions.into_iter().next())),
        Committed::Duplicate(position) => Ok(Appended::Duplicate(position)),
        // Somebody else has created it meanwhile.
        Committed::Refused => Err(BuildError::Missing),
    }
}

/// The build that the caller appends to: the existing one, or the one that this event would create.
async fn resolve_build(
    store: &Store,
    principal: &Principal,
    id: Uuid,
    org: Option<String>,
) -> Result<Build, BuildError> {
    if org.as_ref().is_some_and(|org| !is_owner(org) || !principal.orgs.contains(org)) {
        return Err(BuildError::ForeignOrg);
    }
    let (found, used_up) = store
        .read(move |conn| {
            Box::pin(async move {
                let found = builds::get(conn, id).await?;
                let used_up = found.is_none() && builds::is_used_up(conn, id).await?;
                store::Result::Ok((found, used_up))
            })
        })
        .await?;
    match found {
        None if used_up => Err(BuildError::Expired),
        None => Ok(Build { owner: principal.user.clone(), org }),
        Some(build) if may_append_to_build(principal, &build.owner) => {
            if org.is_some() && org != build.org {
                Err(BuildError::OtherOrg)
            } else {
                Ok(build)
            }
        }
        // Members of its organization may know that it exists.
        Some(build) if build.org.as_ref().is_some_and(|org| principal.orgs.contains(org)) => {
            Err(BuildError::NotOwner)
        }
        Some(_) => Err(BuildError::Missing),
    }
}

/// Creates the build, or records that it had another event.
struct UpsertBuild {
    id: Uuid,
    build: Build,
}

impl Apply for UpsertBuild {
    fn locks(&self) -> Vec<LockKey> {
        vec![LockKey::of(Table::Builds, self.id)]
    }

    fn apply<'a>(&'a self, tx: &'a mut Transaction<'_>) -> BoxFuture<'a, store::Result<Verdict>> {
        Box::pin(async move {
            let ours = builds::touch(tx.conn, self.id, &self.build, tx.now).await?;
            Ok(if ours { Verdict::Proceed } else { Verdict::Refuse })
        })
    }
}
