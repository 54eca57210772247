//! One event for many channels (protocol §12.2). Each channel is a unit of its own, with its own
//! key, version and answer; many share a transaction, and none waits for a second sync.

use futures_util::stream::{self, StreamExt as _};

use super::publish::{Letter, Publish, result};
use super::{Api, Called, Failure, error_of};
use crate::protocol::code::ErrorCode;
use crate::publish::{PublishError, Publisher, UnitOfWork};

/// Channels of one broadcast; more are error 106.
const MOST_CHANNELS: usize = 10_000;
/// Bytes that one broadcast writes to the log, all channels together; more are error 106.
const MOST_BYTES: usize = 256 << 20;
/// Channels, and bytes, that are committed in one transaction: others may want the store too.
const AT_ONCE: usize = 5_000;
const BYTES_AT_ONCE: usize = 16 << 20;
/// Transactions that are under way: while one is committed, the next is made ready.
const UNDER_WAY: usize = 2;

/// `POST /api/broadcast`.
pub(super) async fn broadcast(api: &Api, mut asked: Publish<'_>) -> Called {
    let channels = std::mem::take(&mut asked.channels);
    if channels.is_empty() {
        return Err(ErrorCode::BadRequest.into());
    }
    let letter = Letter::read(api, asked)?;
    if channels.len() > MOST_CHANNELS || channels.len() * letter.size() > MOST_BYTES {
        return Err(ErrorCode::LimitExceeded.into());
    }
    let at_once = (BYTES_AT_ONCE / letter.size()).clamp(1, AT_ONCE);
    // What lies side by side in the store is written together.
    let mut places: Vec<usize> = (0..channels.len()).collect();
    places.sort_by_key(|place| &channels[*place]);
    let parts = places.chunks(at_once).map(|part| {
        let names: Vec<&str> = part.iter().map(|place| channels[*place].as_str()).collect();
        let letter = &letter;
        async move { (part, publish(api, letter, &names).await) }
    });
    let mut parts = stream::iter(parts).buffered(UNDER_WAY);
    let mut responses = vec![String::new(); channels.len()];
    let mut first = true;
    while let Some((part, answers)) = parts.next().await {
        let answers = match answers {
            Ok(answers) => answers,
            // Of those before it is known that they are published.
            Err(error) if !first => vec![Err(Failure::Refused(error.into()).code()); part.len()],
            Err(error) => return Err(Failure::Refused(error.into())),
        };
        first = false;
        for (place, answer) in part.iter().zip(answers) {
            responses[*place] = match answer {
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
    letter: &Letter,
    channels: &[&str],
) -> Result<Vec<Result<String, ErrorCode>>, PublishError> {
    let (units, places): (Vec<UnitOfWork>, Vec<Result<(), ErrorCode>>) = {
        let namespaces = api.access().namespaces.load();
        let mut units = Vec::with_capacity(channels.len());
        let places = channels
            .iter()
            .map(|channel| letter.to(&namespaces, channel).map(|unit| units.push(unit)))
            .collect();
        (units, places)
    };
    let committed = match api.part::<Publisher>().commit_all(units).await {
        Ok(committed) => committed,
        Err(PublishError::Failed(_)) => {
            return Ok(places.into_iter().map(|place| place.and(Err(ErrorCode::Internal))).collect());
        }
        Err(error) => return Err(error),
    };
    let mut committed = committed.iter();
    let mut answer = |()| committed.next().map_or(Err(ErrorCode::Internal), result);
    Ok(places.into_iter().map(|place| place.and_then(&mut answer)).collect())
}
