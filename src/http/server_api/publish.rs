//! One event for one channel, or for many (protocol §12.2).

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Api, Failure, MethodResult, error_of};
use crate::domain::position::Position;
use crate::protocol::code::ErrorCode;
use crate::publish::{Committed, PublishError, PublishRequest, RequestError, Version, is_key};

/// A request of `publish` or of `broadcast`.
#[derive(Deserialize)]
pub(super) struct Publish<'a> {
    #[serde(default)]
    channel: String,
    #[serde(default)]
    channels: Vec<String>,
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
    let unit = asked.read(api)?.unit(&api.state().access.namespaces.load(), &channel)?;
    let committed = api.state().publisher.commit(unit).await.map_err(RequestError::Publish)?;
    Ok(result(&committed)?)
}

/// `POST /api/broadcast`.
pub(super) async fn broadcast(api: &Api, mut asked: Publish<'_>) -> MethodResult {
    let channels = std::mem::take(&mut asked.channels);
    if channels.is_empty() {
        return Err(ErrorCode::BadRequest.into());
    }
    let (request, state) = (asked.read(api)?, api.state());
    let outcomes = state.publisher.broadcast(&state.access.namespaces, &request, &channels).await?;
    let response = |outcome: Result<Committed, RequestError>| {
        let done = outcome.map_err(|error| Failure::from(error).code());
        done.and_then(|committed| result(&committed)).map_or_else(
            |code| {
                api.count(code);
                format!("{{\"error\":{}}}", error_of(code))
            },
            |result| format!("{{\"result\":{result}}}"),
        )
    };
    let responses: Vec<String> = outcomes.into_iter().map(response).collect();
    Ok(format!("{{\"responses\":[{}]}}", responses.join(",")))
}

/// The position of the event as JSON; an empty object if it was not stored.
fn result(committed: &Committed) -> Result<String, ErrorCode> {
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

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Bad => ErrorCode::BadRequest.into(),
            RequestError::NoChannel(none) => none.into(),
            RequestError::TooMuch => ErrorCode::LimitExceeded.into(),
            RequestError::Publish(PublishError::Failed(_)) => ErrorCode::Internal.into(),
            RequestError::Publish(error) => Self::Refused(error.into()),
        }
    }
}

impl Publish<'_> {
    fn read(self, api: &Api) -> Result<PublishRequest, Failure> {
        let data = match (self.data, self.b64data.filter(|data| !data.is_empty())) {
            // Subscribers read JSON, so it must decode to JSON.
            (_, Some(coded)) => {
                let decoded = STANDARD.decode(coded).map_err(|_| ErrorCode::BadRequest)?;
                let value: &RawValue = serde_json::from_slice(&decoded).map_err(|_| ErrorCode::BadRequest)?;
                value.get().into()
            }
            (Some(data), None) => data.get().into(),
            (None, None) => return Err(ErrorCode::BadRequest.into()),
        };
        let number = self.version.filter(|number| *number > 0);
        let number = number.map(i64::try_from).transpose().map_err(|_| ErrorCode::BadRequest)?;
        let epoch = self.version_epoch.unwrap_or_default();
        // Without a number the version does not come to `check`.
        if !is_key(&epoch) {
            return Err(ErrorCode::BadRequest.into());
        }
        let tags = self.tags.filter(|tags| !tags.is_empty());
        let tags = tags.map(|tags| serde_json::to_string(&tags)).transpose();
        let request = PublishRequest {
            data,
            tags: tags.map_err(|_| ErrorCode::BadRequest)?.map(Arc::from),
            skip_history: self.skip_history,
            delta: self.delta,
            key: self.idempotency_key.filter(|key| !key.is_empty()),
            version: number.map(|number| Version { number, epoch }),
            now: api.state().store.now(),
        };
        Ok(request.check(api.state().max_publication)?)
    }
}
