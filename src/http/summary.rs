//! `GET /api/dashboard/summary`: the numbers of the first screen. They are counted for all
//! repositories together, at most every other second however many ask, and each caller gets the
//! sum of what it may see; 304 while nothing has changed.

use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use chrono::NaiveTime;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex;

use super::access::Caller;
use super::error::{ApiResult, internal};
use super::poll::matches_tag;
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
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

#[derive(Serialize)]
struct Summary<'a> {
    counts: Counts,
    /// What a stream of everything that the caller sees asks for.
    channels: &'a [ChannelName],
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

/// Answers `{"counts":{…},"channels":[…]}`.
pub async fn summary(
    request: HttpRequest,
    Caller(principal): Caller,
    summaries: web::Data<Summaries>,
    store: web::Data<Store>,
) -> ApiResult {
    let counted = summaries.counted(&store).await?;
    let mut own = default_channels(&principal);
    own.truncate(summaries.max_channels as usize);
    let channels = if is_admin(&principal) { &counted.channels } else { &own };
    let summary = Summary { counts: counted.counts_of(&principal), channels };
    let body = serde_json::to_string(&summary).map_err(|error| internal(&error))?;
    let tag = format!("\"{}\"", hex::encode(&Sha256::digest(&body)[..12]));
    let known = request.headers().get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let fresh = known.is_some_and(|known| matches_tag(known, &tag));
    let mut answer = if fresh { HttpResponse::NotModified() } else { HttpResponse::Ok() };
    answer.insert_header((header::ETAG, tag));
    answer.insert_header((header::CACHE_CONTROL, "private, max-age=0"));
    answer.insert_header((header::VARY, "Authorization, Cookie"));
    Ok(if fresh { answer.finish() } else { answer.content_type("application/json").body(body) })
}
