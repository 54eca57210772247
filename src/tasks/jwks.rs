//! Fetches the key set of `client.token.jwks_public_endpoint`: at the start, now and then, when the
//! configuration is read anew, and when a token names a key that is not in it. A fetch has a
//! deadline and a bound and follows no redirect; what fails leaves the last good set in place, and
//! is tried again soon. Requests by tokens are rate limited by the intervals.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::metrics::{FetchOutcome, Metrics};
use crate::auth::{BadKeySet, Fetching, KeyRing, KeySet, MAX_KEY_SET};
use crate::config::JwksUrl;
use crate::net::http_client::{Destination, HttpClient, HttpError, StatusCode};
use crate::supervision;

/// How often the key set is fetched, and how long a fetch may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchIntervals {
    /// Between two fetches when the last one succeeded.
    pub refresh: Duration,
    /// Between two fetches that tokens request, and after one that failed.
    pub cooldown: Duration,
    /// How long a fetch may take, to the last byte.
    pub deadline: Duration,
}

impl Default for FetchIntervals {
    fn default() -> Self {
        Self {
            refresh: Duration::from_secs(600),
            cooldown: Duration::from_secs(30),
            deadline: Duration::from_secs(2),
        }
    }
}

/// Why there is no new key set.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the server cannot be reached: {0}")]
    Unreachable(String),
    #[error("the response took too long")]
    Timeout,
    #[error("the response is a redirect ({0}), and redirects are not followed: configure the final address")]
    Redirect(u16),
    #[error("the response has the status {0}")]
    Status(u16),
    #[error(transparent)]
    BadSet(#[from] BadKeySet),
}

impl Failure {
    fn kind(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Timeout => "timeout",
            Self::Redirect(_) => "redirect",
            Self::Status(_) => "status",
            Self::BadSet(BadKeySet::TooLarge) => "too_large",
            Self::BadSet(_) => "bad_set",
        }
    }
}

impl From<HttpError> for Failure {
    fn from(error: HttpError) -> Self {
        match error {
            HttpError::Timeout => Self::Timeout,
            HttpError::TooLarge(_) => Self::BadSet(BadKeySet::TooLarge),
            error => Self::Unreachable(error.to_string()),
        }
    }
}

/// Keeps the key set of `source` fresh in `keys` until the sender of `source` is gone; a value that
/// is sent again means a fetch.
pub async fn run(
    keys: KeyRing,
    mut source: watch::Receiver<Option<JwksUrl>>,
    intervals: FetchIntervals,
    metrics: Arc<Metrics>,
) {
    let client = HttpClient::new(Destination::Any);
    let mut before = None;
    while source.has_changed().is_ok() {
        let url = source.borrow_and_update().clone();
        keys.set_fetching(if url.is_some() { Fetching::UnderWay } else { Fetching::Off });
        if url != before {
            keys.set_fetched(None);
            before.clone_from(&url);
        }
        let Some(url) = url else {
            let _ = source.changed().await;
            continue;
        };
        tokio::select! {
            never = keep(&keys, &client, &url, intervals, &metrics) => match never {},
            _ = source.changed() => {}
        }
    }
}

/// Fetches from one address, over and over.
async fn keep(
    keys: &KeyRing,
    client: &HttpClient,
    url: &JwksUrl,
    intervals: FetchIntervals,
    metrics: &Metrics,
) -> std::convert::Infallible {
    let (mut asked, mut rested_at, mut failed) = (false, Instant::now(), true);
    let mut counted_at: Option<Instant> = None;
    loop {
        keys.set_fetching(Fetching::UnderWay);
        let began = Instant::now();
        let fetched = fetch(client, url, intervals.deadline).await;
        if asked {
            rested_at = began + intervals.cooldown;
        }
        let mut rests = Instant::now() < rested_at;
        let next = match fetched {
            Ok(set) => {
                metrics.jwks_fetches.inc(FetchOutcome("ok"));
                if std::mem::take(&mut failed) || asked {
                    tracing::info!(keys = set.len(), skipped = set.skipped(), "the key set was fetched");
                }
                keys.set_fetched(Some(set));
                if counted_at.is_none_or(|at| began >= at + intervals.cooldown) {
                    counted_at = Some(began);
                    keys.count_fetch();
                }
                keys.set_fetching(if rests { Fetching::Cooldown } else { Fetching::Ready });
                began + intervals.refresh
            }
            Err(failure) => {
                metrics.jwks_fetches.inc(FetchOutcome(failure.kind()));
                failed = true;
                tracing::warn!(
                    option = "client.token.jwks_public_endpoint",
                    %failure,
                    "the key set could not be fetched; the previous one stays in use"
                );
                keys.set_fetching(Fetching::Failed);
                rests = false;
                began + intervals.cooldown
            }
        };
        asked = loop {
            tokio::select! {
                () = keys.fetch_requested() => break true,
                () = sleep_until(next) => break false,
                () = sleep_until(rested_at), if rests => {
                    rests = false;
                    keys.set_fetching(Fetching::Ready);
                }
            }
        };
    }
}

/// Fetches once. A panic over a malformed response must not end the process.
async fn fetch(client: &HttpClient, url: &JwksUrl, deadline: Duration) -> Result<KeySet, Failure> {
    let work = supervision::non_critical(get(client, url, deadline));
    let fetched = AssertUnwindSafe(work).catch_unwind().await;
    fetched.unwrap_or_else(|_| Err(Failure::Unreachable("the client failed".to_owned())))
}

async fn get(client: &HttpClient, url: &JwksUrl, deadline: Duration) -> Result<KeySet, Failure> {
    let request = client.get(url.as_str()).header("Accept", "application/jwk-set+json, application/json");
    let response = request.send(deadline).await?;
    match response.status() {
        StatusCode::OK => Ok(KeySet::from_json(&response.read(MAX_KEY_SET).await?)?),
        status if status.is_redirection() => Err(Failure::Redirect(status.as_u16())),
        status => Err(Failure::Status(status.as_u16())),
    }
}
