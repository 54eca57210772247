//! One event for many channels (protocol §12.2). Each channel is a unit of its own, with its own
//! key, version and answer; many share a transaction, and none waits for a second sync.

use futures_util::stream::{self, StreamExt as _};

use super::publish::{Publish, PublishRequest, result};
use super::{Api, Failure, MethodResult, error_of};
use crate::protocol::code::ErrorCode;
use crate::publish::{PublishError, UnitOfWork};

/// Channels of one broadcast; more are error 106.
const MAX_CHANNELS: usize = 10_000;
/// Bytes that one broadcast writes to the log, all channels together; more are error 106.
const MAX_BYTES: usize = 256 << 20;
/// Channels, and bytes, that are committed in one transaction, so that others get their turn at the store.
const BATCH_SIZE: usize = 5_000;
const BATCH_BYTES: usize = 16 << 20;
/// Transactions in flight: while one is committed, the next is prepared.
const IN_FLIGHT: usize = 2;

/// `POST /api/broadcast`.
pub(super) async fn broadcast(api: &Api, mut asked: Publish<'_>) -> MethodResult {
    let channels = std::mem::take(&mut asked.channels);
    if channels.is_empty() {
        return Err(ErrorCode::BadRequest.into());
    }
    let request = PublishRequest::read(api, asked)?;
    if channels.len() > MAX_CHANNELS || channels.len() * request.size() > MAX_BYTES {
        return Err(ErrorCode::LimitExceeded.into());
    }
    let batch_size = (BATCH_BYTES / request.size()).clamp(1, BATCH_SIZE);
    // Sorted, so that neighbouring rows are written together.
    let mut indices: Vec<usize> = (0..channels.len()).collect();
    indices.sort_by_key(|index| &channels[*index]);
    let parts = indices.chunks(batch_size).map(|part| {
        let names: Vec<&str> = part.iter().map(|index| channels[*index].as_str()).collect();
        let request = &request;
        async move { (part, publish(api, request, &names).await) }
    });
    let mut parts = stream::iter(parts).buffered(IN_FLIGHT);
    let mut responses = vec![String::new(); channels.len()];
    let mut first = true;
    while let Some((part, answers)) = parts.next().await {
        let answers = match answers {
            Ok(answers) => answers,
            // The earlier ones are known to be published, so the request as a whole has not failed.
            Err(error) if !first => vec![Err(Failure::Refused(error.into()).code()); part.len()],
            Err(error) => return Err(Failure::Refused(error.into())),
        };
        first = false;
        for (index, answer) in part.iter().zip(answers) {
            responses[*index] = match answer {
                Ok(result) => format!("{{\"result\":{result}}}"),
                Err(code) => {
                    api.count(code);
                    format!("{{\"error\":{}}}", error_of(code))
                }
            };
        }
    }
    Ok(format!("{{\"responses\":[{}]}}", responses.join(",")))
}

/// Publishes to `channels` in one transaction; answers for each.
async fn publish(
    api: &Api,
    request: &PublishRequest,
    channels: &[&str],
) -> Result<Vec<Result<String, ErrorCode>>, PublishError> {
    let (units, indices): (Vec<UnitOfWork>, Vec<Result<(), ErrorCode>>) = {
        let namespaces = api.state().access.namespaces.load();
        let mut units = Vec::with_capacity(channels.len());
        let indices = channels
            .iter()
            .map(|channel| request.to(&namespaces, channel).map(|unit| units.push(unit)))
            .collect();
        (units, indices)
    };
    let committed = match api.state().publisher.commit_all(units).await {
        Ok(committed) => committed,
        Err(PublishError::Failed(_)) => {
            return Ok(indices.into_iter().map(|index| index.and(Err(ErrorCode::Internal))).collect());
        }
        Err(error) => return Err(error),
    };
    let mut committed = committed.iter();
    let mut answer = |()| committed.next().map_or(Err(ErrorCode::Internal), result);
    Ok(indices.into_iter().map(|index| index.and_then(&mut answer)).collect())
}
