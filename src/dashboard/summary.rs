//! The numbers of the first screen. They are counted for all repositories together, at most every other
//! second however many ask, and each caller gets the sum of what it may see.

use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use chrono::NaiveTime;
use serde::Serialize;
use tokio::sync::Mutex;
use utoipa::ToSchema;

use crate::domain::access::{default_channels, is_admin, may_see_repo};
use crate::domain::channel::ChannelName;
use crate::domain::event::Time;
use crate::domain::principal::Principal;
use crate::store::overview::{self, RepoState};
use crate::store::{self, Store, Ts, log};

/// How old the numbers may be.
const FRESH: Duration = Duration::from_secs(2);

/// What was counted last. Whoever finds it too old counts anew; the others do not wait for that.
pub struct Summaries {
    last: RwLock<Option<(Instant, Arc<Counted>)>>,
    counting: Mutex<()>,
    max_channels: u32,
}

struct Counted {
    repos: Vec<RepoState>,
    all: Counts,
    /// The channels of owners, the most recently used first.
    channels: Vec<ChannelName>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Counts {
    repositories: u64,
    /// Whose newest run failed.
    failing: u64,
    /// Whose newest run is under way.
    running: u64,
    /// Since midnight, UTC.
    runs_today: u64,
    failed_today: u64,
}

/// What one caller sees of the numbers.
#[derive(Debug, Serialize, ToSchema)]
pub struct Summary {
    counts: Counts,
    /// What a stream of everything that the caller sees asks for.
    #[schema(value_type = Vec<String>)]
    channels: Vec<ChannelName>,
}

impl Counts {
    fn add(&mut self, repo: &RepoState) {
        self.repositories += 1;
        match repo.newest.as_deref() {
            Some(state) if RepoState::is_failure(state) => self.failing += 1,
            Some("queued" | "in_progress" | "requested" | "waiting" | "pending") => self.running += 1,
            _ => {}
        }
        self.runs_today += u64::try_from(repo.runs).unwrap_or(0);
        self.failed_today += u64::try_from(repo.failed).unwrap_or(0);
    }
}

impl<'a> FromIterator<&'a RepoState> for Counts {
    fn from_iter<I: IntoIterator<Item = &'a RepoState>>(repos: I) -> Self {
        let mut counts = Self::default();
        repos.into_iter().for_each(|repo| counts.add(repo));
        counts
    }
}

impl Summaries {
    /// Nothing is counted yet. A caller is told of `max_channels` channels at most.
    pub fn new(max_channels: u32) -> Self {
        Self { last: RwLock::default(), counting: Mutex::default(), max_channels }
    }

    /// The numbers and channels of what `principal` may see.
    pub async fn of(&self, store: &Store, principal: &Principal) -> store::Result<Summary> {
        let counted = self.counted(store).await?;
        let channels = if is_admin(principal) {
            counted.channels.clone()
        } else {
            let mut own = default_channels(principal);
            own.truncate(self.max_channels as usize);
            own
        };
        Ok(Summary { counts: counted.counts_of(principal), channels })
    }

    async fn counted(&self, store: &Store) -> store::Result<Arc<Counted>> {
        let _turn = match (self.counting.try_lock(), self.last()) {
            (_, Some((at, counted))) if at.elapsed() < FRESH => return Ok(counted),
            (Ok(turn), _) => turn,
            (Err(_), Some((_, counted))) => return Ok(counted),
            (Err(_), None) => self.counting.lock().await,
        };
        if let Some((at, counted)) = self.last()
            && at.elapsed() < FRESH
        {
            return Ok(counted);
        }
        let (midnight, most) = (midnight(store.now()), self.max_channels);
        let read = store.read(move |conn| {
            Box::pin(async move {
                let repos = overview::repos(conn, midnight).await?;
                Ok((repos, log::recent_channels(conn, "org:", most).await?))
            })
        });
        let (repos, channels) = read.await?;
        let counted = Arc::new(Counted { all: repos.iter().collect(), repos, channels });
        let mut last = self.last.write().expect("the lock is not poisoned");
        *last = Some((Instant::now(), counted.clone()));
        Ok(counted)
    }

    fn last(&self) -> Option<(Instant, Arc<Counted>)> {
        self.last.read().expect("the lock is not poisoned").clone()
    }
}

impl Counted {
    /// The numbers of what `principal` may see.
    fn counts_of(&self, principal: &Principal) -> Counts {
        if is_admin(principal) {
            return self.all;
        }
        self.repos.iter().filter(|repo| may_see_repo(principal, &repo.owner, &repo.name)).collect()
    }
}

fn midnight(now: Time) -> Ts {
    now.date_naive().and_time(NaiveTime::MIN).and_utc().into()
}
