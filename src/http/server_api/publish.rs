//! One event for one channel, and what `broadcast` shares with it: how a request becomes units of
//! work.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{Api, Failure, MethodResult, channel_of};
use crate::domain::channel::{ChannelKind, ChannelName};
use crate::domain::event::{NewEvent, Time, envelope, is_event_type};
use crate::domain::options::Namespaces;
use crate::domain::position::Position;
use crate::protocol::code::ErrorCode;
use crate::publish::{Committed, Dedup, MAX_KEY, PublishError, UnitOfWork, Version};

/// A request of `publish` or of `broadcast`.
#[derive(Deserialize)]
pub(super) struct Publish<'a> {
    #[serde(default)]
    channel: String,
    #[serde(default)]
    pub(super) channels: Vec<String>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(default)]
    b64data: Option<String>,
    #[serde(default)]
    skip_history: bool,
    #[serde(default)]
    tags: Option<BTreeMap<String, String>>,
    #[serde(default)]
    idempotency_key: Option<String>,
    #[serde(default)]
    delta: bool,
    #[serde(default)]
    version: Option<u64>,
    #[serde(default)]
    version_epoch: Option<String>,
}

/// `POST /api/publish`.
pub(super) async fn publish(api: &Api, asked: Publish<'_>) -> MethodResult {
    let channel = asked.channel.clone();
    let unit = PublishRequest::read(api, asked)?.to(&api.state().access.namespaces.load(), &channel)?;
    match api.state().publisher.commit(unit).await {
        Ok(committed) => Ok(result(&committed)?),
        Err(error @ (PublishError::Busy | PublishError::Unconfirmed(_))) => {
            Err(Failure::Refused(error.into()))
        }
        Err(PublishError::Failed(_)) => Err(ErrorCode::Internal.into()),
    }
}

/// The position of the event as JSON; an empty object if it was not stored.
pub(super) fn result(committed: &Committed) -> Result<String, ErrorCode> {
    let position = match committed {
        Committed::Done(positions) => positions.first(),
        Committed::Duplicate(position) => position.as_ref(),
        Committed::Refused => return Err(ErrorCode::Internal),
    };
    let kept = |position: &&Position| position.offset > 0;
    // An epoch needs no escaping, and a broadcast has ten thousand of these.
    let place = |at: &Position| format!("{{\"epoch\":\"{}\",\"offset\":{}}}", at.epoch, at.offset);
    Ok(position.filter(kept).map_or_else(|| "{}".to_owned(), place))
}

/// A validated publish request, without its channels.
pub(super) struct PublishRequest {
    /// One JSON value on one line.
    data: Arc<str>,
    tags: Option<Arc<str>>,
    skip_history: bool,
    delta: bool,
    key: Option<String>,
    version: Option<Version>,
    /// By the clock of the store.
    now: Time,
}

impl PublishRequest {
    pub(super) fn read(api: &Api, asked: Publish<'_>) -> Result<Self, ErrorCode> {
        let data = match (asked.data, asked.b64data.filter(|data| !data.is_empty())) {
            // Subscribers read JSON, so it must decode to JSON.
            (_, Some(coded)) => {
                let decoded = STANDARD.decode(coded).map_err(|_| ErrorCode::BadRequest)?;
                let value: &RawValue = serde_json::from_slice(&decoded).map_err(|_| ErrorCode::BadRequest)?;
                value.to_owned()
            }
            (Some(data), None) => data.to_owned(),
            (None, None) => return Err(ErrorCode::BadRequest),
        };
        if data.get().len() > api.state().max_publication {
            return Err(ErrorCode::BadRequest);
        }
        let key = asked.idempotency_key.filter(|key| !key.is_empty());
        if key.as_ref().is_some_and(|key| key.len() > MAX_KEY || key.contains('\0')) {
            return Err(ErrorCode::BadRequest);
        }
        let epoch = asked.version_epoch.unwrap_or_default();
        if epoch.len() > MAX_KEY || epoch.contains('\0') {
            return Err(ErrorCode::BadRequest);
        }
        let number = asked.version.filter(|number| *number > 0);
        let number = number.map(i64::try_from).transpose().map_err(|_| ErrorCode::BadRequest)?;
        let tags = asked.tags.filter(|tags| !tags.is_empty());
        let tags = tags.map(|tags| serde_json::to_string(&tags)).transpose();
        Ok(Self {
            // A line feed would end the frame; outside of strings JSON does not need it, inside it
            // is escaped.
            data: data.get().replace(['\n', '\r'], "").into(),
            tags: tags.map_err(|_| ErrorCode::BadRequest)?.map(Arc::from),
            skip_history: asked.skip_history,
            delta: asked.delta,
            key,
            version: number.map(|number| Version { number, epoch }),
            now: api.state().store.now(),
        })
    }

    /// Roughly how many bytes it takes in the log of each channel.
    pub(super) fn size(&self) -> usize {
        self.data.len() + self.tags.as_ref().map_or(0, |tags| tags.len()) + 1
    }

    /// The unit of work that publishes it to `channel`.
    pub(super) fn to(&self, namespaces: &Namespaces, channel: &str) -> Result<UnitOfWork, ErrorCode> {
        let (channel, options) = channel_of(namespaces, channel)?;
        if options.is_some_and(|options| !options.publication_data_format.admits(&self.data)) {
            return Err(ErrorCode::BadRequest);
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
fn enveloped(channel: ChannelName, data: &str, now: Time) -> Result<NewEvent, ErrorCode> {
    #[derive(Deserialize)]
    struct Given<'a> {
        #[serde(rename = "type")]
        kind: String,
        #[serde(borrow)]
        data: Option<&'a RawValue>,
        repo: Option<String>,
    }
    let given: Given<'_> =
        serde_json::from_str(data).ok().filter(|_| data.starts_with('{')).ok_or(ErrorCode::BadRequest)?;
    if !is_event_type(&given.kind) {
        return Err(ErrorCode::BadRequest);
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
