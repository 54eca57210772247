//! What a trusted caller publishes: one event for one channel, or for many. Each channel is a unit of its
//! own, with its own key, version and outcome; many share a transaction, and none waits for a second sync.

use std::sync::Arc;

use futures_util::stream::{self, StreamExt as _};
use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{Committed, Dedup, MAX_KEY, PublishError, Publisher, UnitOfWork, Version};
use crate::domain::channel::{ChannelKind, ChannelName};
use crate::domain::event::{NewEvent, Time, envelope, is_event_type};
use crate::domain::options::{Namespaces, NoChannel, SharedNamespaces};

/// Channels of one broadcast.
const MAX_CHANNELS: usize = 10_000;
/// Bytes that one broadcast writes to the log, all channels together.
const MAX_BYTES: usize = 256 << 20;
/// Channels, and bytes, that are committed in one transaction, so that others get their turn at the store.
const BATCH_SIZE: usize = 5_000;
const BATCH_BYTES: usize = 16 << 20;
/// Transactions in flight: while one is committed, the next is prepared.
const IN_FLIGHT: usize = 2;

/// An event without its channels.
pub struct PublishRequest {
    /// One JSON value.
    pub data: Arc<str>,
    /// A JSON object of texts.
    pub tags: Option<Arc<str>>,
    pub skip_history: bool,
    /// Whether subscribers may get it as a difference.
    pub delta: bool,
    /// How a repeat is recognised, in each channel by itself.
    pub key: Option<String>,
    pub version: Option<Version>,
    /// By the clock of the store.
    pub now: Time,
}

/// Whether a text can be a key, or the epoch of a version. PostgreSQL cannot store NUL in text.
pub fn is_key(text: &str) -> bool {
    text.len() <= MAX_KEY && !text.contains('\0')
}

/// Why an event is not published to a channel, or to several.
#[derive(Debug, Clone)]
pub enum RequestError {
    /// The event, its key or its version is not as the channel takes it.
    Bad,
    NoChannel(NoChannel),
    /// Too many channels, or too many bytes for all of them together.
    TooMuch,
    Publish(PublishError),
}

impl PublishRequest {
    /// Refuses what no channel takes: more than `max_bytes` of data, and keys that are too long.
    pub fn check(mut self, max_bytes: usize) -> Result<Self, RequestError> {
        let good_key = self.key.as_deref().is_none_or(is_key);
        let good_version = self.version.as_ref().is_none_or(|version| is_key(&version.epoch));
        let good = self.data.len() <= max_bytes && good_key && good_version;
        // A line feed would end the frame; outside of strings JSON does not need it, inside it is escaped.
        if self.data.contains(['\n', '\r']) {
            self.data = self.data.replace(['\n', '\r'], "").into();
        }
        good.then_some(self).ok_or(RequestError::Bad)
    }

    /// Roughly how many bytes it takes in the log of each channel.
    fn size(&self) -> usize {
        self.data.len() + self.tags.as_ref().map_or(0, |tags| tags.len()) + 1
    }

    /// The unit of work that publishes it to `channel`.
    pub fn unit(&self, namespaces: &Namespaces, channel: &str) -> Result<UnitOfWork, RequestError> {
        let (channel, options) = namespaces.find(channel).map_err(RequestError::NoChannel)?;
        if options.is_some_and(|options| !options.publication_data_format.admits(&self.data)) {
            return Err(RequestError::Bad);
        }
        let kept = namespaces.retention_of(&channel).is_some() && !self.skip_history;
        let dedup = self.key.clone().map_or(Dedup::None, |key| Dedup::by_key(channel.clone(), key, self.now));
        let mut event = if channel.is_built_in() {
            enveloped(channel, &self.data, self.now)?
        } else {
            NewEvent::new(channel, Uuid::now_v7(), "message", self.data.clone())
        };
        event.tags.clone_from(&self.tags);
        event.kept = kept;
        event.delta = self.delta;
        // Without history there is nothing to compare a version with.
        let version = self.version.clone().filter(|_| kept);
        Ok(UnitOfWork { dedup, version, ..UnitOfWork::of(vec![event]) })
    }
}

/// Built-in channels carry envelopes: the caller gives `type` and `data`, the rest is made here.
fn enveloped(channel: ChannelName, data: &str, now: Time) -> Result<NewEvent, RequestError> {
    #[derive(Deserialize)]
    struct Given<'a> {
        #[serde(rename = "type")]
        kind: String,
        #[serde(borrow)]
        data: Option<&'a RawValue>,
        repo: Option<String>,
    }
    let given: Given<'_> =
        serde_json::from_str(data).ok().filter(|_| data.starts_with('{')).ok_or(RequestError::Bad)?;
    if !is_event_type(&given.kind) {
        return Err(RequestError::Bad);
    }
    let repo = match channel.kind() {
        ChannelKind::Repo { owner, name } => Some(format!("{owner}/{name}")),
        _ => given.repo,
    };
    let id = Uuid::now_v7();
    let inner = given.data.unwrap_or(RawValue::NULL);
    let text = envelope(id, &given.kind, now, repo.as_deref(), inner);
    Ok(NewEvent::new(channel, id, &given.kind, text))
}

/// What became of a broadcast in each channel, in the order in which they were given.
pub type BroadcastOutcomes = Vec<Result<Committed, RequestError>>;

impl Publisher {
    /// Publishes `request` to each of `channels`. An error is that of the first transaction: no channel is
    /// known to have the event.
    pub async fn broadcast(
        &self,
        namespaces: &SharedNamespaces,
        request: &PublishRequest,
        channels: &[String],
    ) -> Result<BroadcastOutcomes, RequestError> {
        if channels.len() > MAX_CHANNELS || channels.len() * request.size() > MAX_BYTES {
            return Err(RequestError::TooMuch);
        }
        let batch_size = (BATCH_BYTES / request.size()).clamp(1, BATCH_SIZE);
        // Sorted, so that neighbouring rows are written together.
        let mut indices: Vec<usize> = (0..channels.len()).collect();
        indices.sort_by_key(|index| &channels[*index]);
        let parts = indices.chunks(batch_size).map(|part| {
            let names: Vec<&str> = part.iter().map(|index| channels[*index].as_str()).collect();
            async move { (part, self.publish_to(namespaces, request, &names).await) }
        });
        let mut parts = stream::iter(parts).buffered(IN_FLIGHT);
        let mut outcomes: Vec<Option<_>> = vec![None; channels.len()];
        let mut first = true;
        while let Some((part, done)) = parts.next().await {
            let done = match done {
                Ok(done) => done,
                // The earlier ones are known to be published, so the request as a whole has not failed.
                Err(error) if !first => vec![Err(RequestError::Publish(error)); part.len()],
                Err(error) => return Err(RequestError::Publish(error)),
            };
            first = false;
            part.iter().zip(done).for_each(|(index, outcome)| outcomes[*index] = Some(outcome));
        }
        Ok(outcomes.into_iter().flatten().collect())
    }

    /// Publishes to `channels` in one transaction.
    async fn publish_to(
        &self,
        namespaces: &SharedNamespaces,
        request: &PublishRequest,
        channels: &[&str],
    ) -> Result<BroadcastOutcomes, PublishError> {
        let mut units = Vec::with_capacity(channels.len());
        let refusals: Vec<Result<(), RequestError>> = {
            let namespaces = namespaces.load();
            let unit_for = |channel| request.unit(&namespaces, channel).map(|unit| units.push(unit));
            channels.iter().copied().map(unit_for).collect()
        };
        let mut committed = match self.commit_all(units).await {
            Ok(committed) => committed.into_iter(),
            Err(error @ PublishError::Failed(_)) => {
                let failed = refusals
                    .into_iter()
                    .map(|refusal| refusal.and_then(|()| Err(RequestError::Publish(error.clone()))));
                return Ok(failed.collect());
            }
            Err(error) => return Err(error),
        };
        let mut next = || committed.next().expect("each unit has its answer");
        Ok(refusals.into_iter().map(|refusal| refusal.map(|()| next())).collect())
    }
}
