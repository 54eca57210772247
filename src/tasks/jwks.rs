//! Fetches the key set of `client.token.jwks_public_endpoint`: at the start, now and then, when the
//! configuration is read anew, and when a token names a key that is not in it. A fetch has a
//! deadline and a bound and follows no redirect; what fails leaves the last good set in place, and
//! is tried again soon. Who asks how often costs nothing: tokens can only ask when it is their turn.

use std::sync::Arc;
use std::time::Duration;

use awc::error::{PayloadError, SendRequestError};
use awc::http::{StatusCode, Version, header};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use crate::auth::{BadKeySet, Fetching, KeyRing, KeySet, MAX_KEY_SET};
use crate::config::JwksUrl;
use crate::telemetry::{Metrics, count};

/// How often, and how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Between two fetches when all is well.
    pub refresh: Duration,
    /// Between two fetches that tokens ask for, and after one that failed.
    pub rest: Duration,
    /// How long a fetch may take, to the last byte.
    pub deadline: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            refresh: Duration::from_secs(600),
            rest: Duration::from_secs(30),
            deadline: Duration::from_secs(2),
        }
    }
}

/// Why there is no new key set.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the server cannot be reached: {0}")]
    Unreachable(String),
    #[error("the answer took too long")]
    Timeout,
    #[error("the answer is a redirect ({0}), and none is followed: name the address that it leads to")]
    Redirect(StatusCode),
    #[error("the answer is {0}")]
    Status(StatusCode),
    /// The HTTP library takes such a body for an empty one.
    #[error("the answer says nothing of its length: it needs Content-Length or chunks")]
    NoLength,
    #[error("the answer broke off: {0}")]
    Broken(PayloadError),
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
            Self::NoLength => "no_length",
            Self::Broken(_) => "broken",
            Self::BadSet(BadKeySet::TooLarge) => "too_large",
            Self::BadSet(_) => "bad_set",
        }
    }
}

/// Keeps the key set of `source` fresh in `keys` until the sender of `source` is gone; a value that
/// is sent again means a fetch. Must be run inside an actix system.
pub async fn run(
    keys: KeyRing,
    mut source: watch::Receiver<Option<JwksUrl>>,
    pace: Pace,
    metrics: Arc<Metrics>,
) {
    let client = client();
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
            never = keep(&keys, &client, &url, pace, &metrics) => match never {},
            _ = source.changed() => {}
        }
    }
}

/// Fetches from one address, over and over.
async fn keep(
    keys: &KeyRing,
    client: &awc::Client,
    url: &JwksUrl,
    pace: Pace,
    metrics: &Metrics,
) -> std::convert::Infallible {
    let (mut asked, mut rested_at, mut failed) = (false, Instant::now(), true);
    loop {
        keys.set_fetching(Fetching::UnderWay);
        let began = Instant::now();
        let fetched = timeout(pace.deadline, fetch(client, url)).await.unwrap_or(Err(Failure::Timeout));
        if asked {
            rested_at = began + pace.rest;
        }
        let mut rests = Instant::now() < rested_at;
        let next = match fetched {
            Ok(set) => {
                count(&metrics.jwks_fetches, "ok");
                if std::mem::take(&mut failed) || asked {
                    tracing::info!(keys = set.len(), skipped = set.skipped(), "the key set was fetched");
                }
                keys.set_fetched(Some(set));
                keys.set_fetching(if rests { Fetching::Rested } else { Fetching::Ready });
                began + pace.refresh
            }
            Err(failure) => {
                count(&metrics.jwks_fetches, failure.kind());
                failed = true;
                tracing::warn!(
                    option = "client.token.jwks_public_endpoint",
                    %failure,
                    "the key set cannot be fetched; the last good one stays"
                );
                keys.set_fetching(Fetching::Failed);
                rests = false;
                began + pace.rest
            }
        };
        asked = loop {
            tokio::select! {
                () = keys.asked() => break true,
                () = sleep_until(next) => break false,
                () = sleep_until(rested_at), if rests => {
                    rests = false;
                    keys.set_fetching(Fetching::Ready);
                }
            }
        };
    }
}

fn client() -> awc::Client {
    // Fails if there is one already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let connector = awc::Connector::new().max_http_version(Version::HTTP_11);
    awc::Client::builder()
        .connector(connector)
        .disable_redirects()
        .add_default_header((header::USER_AGENT, concat!("campanile/", env!("CARGO_PKG_VERSION"))))
        .add_default_header((header::ACCEPT, "application/jwk-set+json, application/json"))
        .finish()
}

async fn fetch(client: &awc::Client, url: &JwksUrl) -> Result<KeySet, Failure> {
    let sent = client.get(url.as_str()).force_close().send().await;
    let mut answer = sent.map_err(|error| match error {
        SendRequestError::Timeout => Failure::Timeout,
        error => Failure::Unreachable(error.to_string()),
    })?;
    match answer.status() {
        StatusCode::OK => {}
        status if status.is_redirection() => return Err(Failure::Redirect(status)),
        status => return Err(Failure::Status(status)),
    }
    let measured = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING];
    if !measured.iter().any(|name| answer.headers().contains_key(name)) {
        return Err(Failure::NoLength);
    }
    let body = answer.body().limit(MAX_KEY_SET).await.map_err(|error| match error {
        PayloadError::Overflow => Failure::BadSet(BadKeySet::TooLarge),
        error => Failure::Broken(error),
    })?;
    Ok(KeySet::from_json(&body)?)
}
