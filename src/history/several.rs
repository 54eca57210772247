//! One page of several channels. Its room is shared out one event at a time, so that a channel with a
//! long backlog leaves the others theirs, and who begins follows from where the reader is: the page depends
//! on nothing else, and a reader that goes on page by page sees each channel in its turn, however small the
//! pages are.

use std::collections::HashMap;

use super::PAGE_BYTES;
use crate::domain::channel::ChannelName;
use crate::domain::event::Event;
use crate::domain::options::Retention;
use crate::domain::position::Position;
use crate::store::log::Bounds;
use crate::store::{self, ReadTx, Store};

/// One of the channels of a page.
#[derive(Debug, Clone)]
pub struct Asked {
    pub channel: ChannelName,
    pub retention: Retention,
    /// Where the reader is; `None` for before the oldest event that is retained.
    pub from: Option<Position>,
}

/// What was found; everything is in the order of the channels that were asked for.
#[derive(Debug)]
pub enum FoundSeveral {
    /// The caller knows what channels with these bounds answer.
    Known(Vec<Bounds>),
    /// These places are gone.
    Lost(Vec<(ChannelName, Bounds)>),
    Page(Vec<Part>),
}

/// What a page has of one channel.
#[derive(Debug)]
pub struct Part {
    pub channel: ChannelName,
    pub bounds: Bounds,
    /// The reader is here after the page.
    pub at: u64,
    pub events: Vec<Event>,
}

/// Reads a page of `limit` events of all of `channels` together, unless nothing is lost and `is_known` says
/// of their bounds that the caller has it.
pub async fn several(
    store: &Store,
    channels: Vec<Asked>,
    limit: u32,
    is_known: impl FnOnce(&[Bounds]) -> bool + Send + 'static,
) -> store::Result<FoundSeveral> {
    let cache = store.clone();
    let read = store.read(move |tx| {
        Box::pin(async move {
            let heads = cache.heads().map(|heads| (heads, heads.version()));
            let bounds = bounds_of(tx, &channels).await?;
            if let Some((heads, since)) = heads {
                for (asked, bounds) in channels.iter().zip(&bounds) {
                    heads.learn(since, &asked.channel, &bounds.head);
                }
            }
            let is_lost = |(asked, bounds): &(&Asked, &Bounds)| {
                asked.from.as_ref().is_some_and(|from| !bounds.covers(from))
            };
            let mut lost: Vec<_> = channels.iter().zip(&bounds).filter(is_lost).map(named).collect();
            if lost.is_empty() && is_known(&bounds) {
                return Ok(FoundSeveral::Known(bounds));
            }
            if !lost.is_empty() {
                return Ok(FoundSeveral::Lost(lost));
            }
            let starts: Vec<(u64, u64)> = channels.iter().zip(&bounds).map(range).collect();
            let shares = share_out(&starts, limit);
            let waiting = shares.iter().filter(|share| **share > 0).count();
            let bytes = PAGE_BYTES / waiting.max(1);
            let mut parts = Vec::with_capacity(channels.len());
            for (((asked, bounds), (after, _)), share) in channels.iter().zip(&bounds).zip(starts).zip(shares)
            {
                let at = after + share;
                match tx.without_hole(&asked.channel, after, at, Some(bytes)).await? {
                    Some(events) => {
                        let at = after + events.len() as u64;
                        let (channel, bounds) = named((asked, bounds));
                        parts.push(Part { channel, bounds, at, events });
                    }
                    None => lost.push(named((asked, bounds))),
                }
            }
            Ok(if lost.is_empty() { FoundSeveral::Page(parts) } else { FoundSeveral::Lost(lost) })
        })
    });
    read.await
}

fn named((asked, bounds): (&Asked, &Bounds)) -> (ChannelName, Bounds) {
    (asked.channel.clone(), bounds.clone())
}

/// What is left to read of a channel: after the first offset, up to the second.
fn range((asked, bounds): (&Asked, &Bounds)) -> (u64, u64) {
    (asked.from.as_ref().map_or(bounds.before_oldest, |from| from.offset), bounds.head.offset)
}

/// The bounds of each, with a statement for each retention that there is among them.
async fn bounds_of(tx: &mut ReadTx<'_>, channels: &[Asked]) -> store::Result<Vec<Bounds>> {
    let mut retentions: Vec<Retention> = Vec::new();
    for asked in channels {
        if !retentions.contains(&asked.retention) {
            retentions.push(asked.retention);
        }
    }
    let mut found: HashMap<String, Bounds> = HashMap::new();
    for retention in retentions {
        let same = channels.iter().filter(|asked| asked.retention == retention);
        let names: Vec<&ChannelName> = same.map(|asked| &asked.channel).collect();
        found.extend(tx.bounds_of(&names, retention).await?);
    }
    let untouched = || Bounds { head: Position::new(tx.generation.clone(), 0), before_oldest: 0 };
    let bounds = channels.iter().map(|asked| found.remove(asked.channel.as_str()).unwrap_or_else(untouched));
    Ok(bounds.collect())
}

/// How many events of each range a page of `limit` has.
fn share_out(ranges: &[(u64, u64)], limit: u32) -> Vec<u64> {
    let mut shares = vec![0; ranges.len()];
    let waiting: Vec<usize> = (0..ranges.len()).filter(|&i| ranges[i].0 < ranges[i].1).collect();
    if waiting.is_empty() {
        return shares;
    }
    // Grows by the events of each page, so that a page too small for all goes on where the last one ended.
    let read = ranges.iter().fold(0u64, |sum, (after, _)| sum.wrapping_add(*after));
    let first = usize::try_from(read % waiting.len() as u64).unwrap_or(0);
    let mut left = limit;
    while left > 0 {
        let before = left;
        for i in 0..waiting.len() {
            let channel = waiting[(first + i) % waiting.len()];
            let (after, until) = ranges[channel];
            if left > 0 && shares[channel] < until - after {
                shares[channel] += 1;
                left -= 1;
            }
        }
        if left == before {
            break;
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_backlog_leaves_the_others_their_room() {
        assert_eq!(share_out(&[(0, 5000), (7, 9), (3, 3), (0, 90)], 50), [24, 2, 0, 24]);
        assert_eq!(share_out(&[(0, 3), (0, 4)], 100), [3, 4]);
        assert_eq!(share_out(&[(5, 5)], 100), [0]);
    }

    #[test]
    fn pages_that_are_too_small_for_all_take_turns() {
        let mut ranges = [(11, 5000), (2, 4), (0, 0), (40, 41)];
        let mut order = Vec::new();
        for _ in 0..6 {
            let shares = share_out(&ranges, 1);
            let read = shares.iter().position(|share| *share == 1).expect("one event");
            ranges[read].0 += 1;
            order.push(read);
        }
        for small in [1, 3] {
            assert_eq!(ranges[small].0, ranges[small].1, "{order:?}");
        }
    }
}
