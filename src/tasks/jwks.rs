//! Fetches the key set of `client.token.jwks_public_endpoint`: at the start, now and then, when the
//! configuration is read anew, and when a token names a key that is not in it. A fetch has a
//! deadline and a bound and follows no redirect; what fails leaves the last good set in place, and
//! is tried again soon. Requests by tokens are rate limited by the intervals.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::metrics::{FetchOutcome, Metrics};
use crate::auth::{BadKeySet, Fetching, KeyRing, KeySet, MAX_KEY_SET};
use crate::config::JwksUrl;
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

impl From<ureq::Error> for Failure {
    fn from(error: ureq::Error) -> Self {
        match error {
            ureq::Error::Timeout(_) => Self::Timeout,
            ureq::Error::BodyExceedsLimit(_) => Self::BadSet(BadKeySet::TooLarge),
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
            never = keep(&keys, &url, intervals, &metrics) => match never {},
            _ = source.changed() => {}
        }
    }
}

/// Fetches from one address, over and over.
async fn keep(
    keys: &KeyRing,
    url: &JwksUrl,
    intervals: FetchIntervals,
    metrics: &Metrics,
) -> std::convert::Infallible {
    let (mut asked, mut rested_at, mut failed) = (false, Instant::now(), true);
    loop {
        keys.set_fetching(Fetching::UnderWay);
        let began = Instant::now();
        let fetched = fetch(url, intervals.deadline).await;
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

/// Fetches once. On a thread of its own, because the client waits there.
async fn fetch(url: &JwksUrl, deadline: Duration) -> Result<KeySet, Failure> {
    let url = url.clone();
    // A panic of the HTTP client over a malformed answer must not end the process.
    let work = move || supervision::non_critical(async { get(&url, deadline) }).now_or_never();
    let fetched = tokio::task::spawn_blocking(work);
    // The client has its own clock, but looking up a name may take longer than that.
    match timeout(deadline, fetched).await {
        Ok(Ok(Some(fetched))) => fetched,
        Ok(_) => Err(Failure::Unreachable("the client failed".to_owned())),
        Err(_) => Err(Failure::Timeout),
    }
}

fn get(url: &JwksUrl, deadline: Duration) -> Result<KeySet, Failure> {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(deadline))
        .https_only(url.is_https())
        .http_status_as_error(false)
        .max_redirects(0)
        .max_idle_connections(0)
        .proxy(None)
        .user_agent(concat!("campanile/", env!("CARGO_PKG_VERSION")))
        .accept("application/jwk-set+json, application/json")
        .build();
    let mut answer = config.new_agent().get(url.as_str()).call()?;
    match answer.status() {
        status if status.as_u16() == 200 => {}
        status if status.is_redirection() => return Err(Failure::Redirect(status.as_u16())),
        status => return Err(Failure::Status(status.as_u16())),
    }
    let body = answer.body_mut().with_config().limit(MAX_KEY_SET as u64).read_to_vec()?;
    Ok(KeySet::from_json(&body)?)
}
