//! What a channel still holds: pieces of its log forward and backward, within retention and
//! within what one answer may be.

use std::time::Duration;

use campanile::domain::channel::ChannelName;
use campanile::domain::options::Retention;
use campanile::domain::position::Position;
use campanile::store::history::{History, MAX_BYTES, MAX_EVENTS, Wish};
use futures_util::FutureExt as _;

use crate::support::store::*;

on_both![
    forward_reads_from_the_oldest_or_behind_a_place,
    backward_reads_from_the_newest_or_before_a_place,
    no_limit_at_all_is_still_bounded_by_events,
    no_limit_at_all_is_still_bounded_by_bytes,
    a_limit_of_zero_answers_the_position_alone,
    another_epoch_is_named_and_an_empty_one_fits_any,
    a_channel_that_nobody_used_has_an_epoch_and_no_events,
    what_retention_no_longer_covers_is_not_shown,
    trimmed_events_leave_no_hole_in_an_answer,
];

async fn read(store: &TestStore, channel: &ChannelName, kept: Retention, wish: Wish<'_>) -> History {
    let channel = channel.clone();
    let since = wish.since.map(|(epoch, offset)| (epoch.to_owned(), offset));
    let (limit, reverse) = (wish.limit, wish.reverse);
    store
        .read(move |tx| {
            async move {
                let since = since.as_ref().map(|(epoch, offset)| (epoch.as_str(), *offset));
                let wish = Wish { since, limit, reverse, bytes: usize::MAX };
                tx.history(&channel, kept, wish).await
            }
            .boxed()
        })
        .await
}

/// The offsets that are found, and the head's.
async fn offsets(
    store: &TestStore,
    channel: &ChannelName,
    kept: Retention,
    since: Option<u64>,
    limit: u32,
    reverse: bool,
) -> (Vec<u64>, u64) {
    let epoch = store.head(channel).await.epoch;
    let since = since.map(|offset| (epoch.as_str(), offset));
    match read(store, channel, kept, Wish { since, limit, reverse, bytes: usize::MAX }).await {
        History::Events { events, head } => {
            assert_eq!(head.epoch, epoch);
            (events.iter().map(|event| event.offset).collect(), head.offset)
        }
        History::OtherEpoch(head) => panic!("it is the epoch of {head}"),
    }
}

async fn forward_reads_from_the_oldest_or_behind_a_place(store: TestStore) {
    let news = channel("news");
    store.fill(&news, 450).await;
    let log = store.whole_log(&news).await;
    let whole = read(
        &store,
        &news,
        FOREVER,
        Wish { since: None, limit: u32::MAX, reverse: false, bytes: usize::MAX },
    )
    .await;
    assert_eq!(whole, History::Events { events: log, head: store.head(&news).await });
    for (since, limit, expected) in [
        (None, 2, 1..3),
        (None, 401, 1..402),
        (Some(0), 1, 1..2),
        (Some(10), 2, 11..13),
        (Some(449), 9, 450..451),
        (Some(450), 9, 1..1),
        (Some(451), 9, 1..1),
        (Some(u64::MAX), 9, 1..1),
    ] {
        let found = offsets(&store, &news, FOREVER, since, limit, false).await;
        assert_eq!(found, (expected.collect(), 450), "{since:?} {limit}");
    }
}

async fn backward_reads_from_the_newest_or_before_a_place(store: TestStore) {
    let news = channel("news");
    store.fill(&news, 450).await;
    for (since, limit, expected) in [
        (None, 2, 449..451),
        (None, u32::MAX, 1..451),
        (Some(450), 401, 49..450),
        (Some(3), 9, 1..3),
        (Some(2), 1, 1..2),
        (Some(1), 9, 1..1),
        (Some(0), 9, 1..1),
        (Some(451), 1, 450..451),
        (Some(u64::MAX), 1, 450..451),
    ] {
        let found = offsets(&store, &news, FOREVER, since, limit, true).await;
        assert_eq!(found, (expected.rev().collect(), 450), "{since:?} {limit}");
    }
}

async fn no_limit_at_all_is_still_bounded_by_events(store: TestStore) {
    let news = channel("news");
    let most = u64::from(MAX_EVENTS);
    store.fill(&news, most + 3).await;
    let (first, head) = offsets(&store, &news, FOREVER, None, u32::MAX, false).await;
    assert_eq!((first.len() as u64, first[0], head), (most, 1, most + 3));
    let (rest, _) = offsets(&store, &news, FOREVER, first.last().copied(), u32::MAX, false).await;
    assert_eq!(rest, [most + 1, most + 2, most + 3]);
    let (last, _) = offsets(&store, &news, FOREVER, None, u32::MAX, true).await;
    assert_eq!((last.len() as u64, last[0], last.last().copied()), (most, most + 3, Some(4)));
}

async fn no_limit_at_all_is_still_bounded_by_bytes(store: TestStore) {
    let news = channel("news");
    let quarter = format!("\"{}\"", "x".repeat(MAX_BYTES / 4));
    for _ in 0..5 {
        store.append(vec![event(&news, &quarter)]).await;
    }
    assert_eq!(offsets(&store, &news, FOREVER, None, u32::MAX, false).await, (vec![1, 2, 3, 4], 5));
    assert_eq!(offsets(&store, &news, FOREVER, Some(4), u32::MAX, false).await, (vec![5], 5));
    assert_eq!(offsets(&store, &news, FOREVER, None, u32::MAX, true).await, (vec![5, 4, 3, 2], 5));
}

async fn a_limit_of_zero_answers_the_position_alone(store: TestStore) {
    let news = channel("news");
    store.fill(&news, 3).await;
    for (since, reverse) in [(None, false), (None, true), (Some(1), false), (Some(3), true)] {
        assert_eq!(offsets(&store, &news, FOREVER, since, 0, reverse).await, (vec![], 3));
    }
}

async fn another_epoch_is_named_and_an_empty_one_fits_any(store: TestStore) {
    let news = channel("news");
    store.fill(&news, 3).await;
    let head = store.head(&news).await;
    for limit in [0, 9] {
        for reverse in [false, true] {
            let found = async |epoch: &str| {
                read(
                    &store,
                    &news,
                    FOREVER,
                    Wish { since: Some((epoch, 2)), limit, reverse, bytes: usize::MAX },
                )
                .await
            };
            for strange in ["other", "x y", &format!("{}-", head.epoch)] {
                assert_eq!(found(strange).await, History::OtherEpoch(head.clone()));
            }
            assert_eq!(found("").await, found(head.epoch.as_str()).await);
        }
    }
}

async fn a_channel_that_nobody_used_has_an_epoch_and_no_events(store: TestStore) {
    let news = channel("news");
    let base = Position::new(store.store.generation(), 0);
    for limit in [0, 9] {
        let found =
            read(&store, &news, FOREVER, Wish { since: None, limit, reverse: false, bytes: usize::MAX })
                .await;
        assert_eq!(found, History::Events { events: Vec::new(), head: base.clone() });
    }
    assert_eq!(store.count("channels").await, 0);
}

async fn what_retention_no_longer_covers_is_not_shown(store: TestStore) {
    let news = channel("news");
    let hour = Duration::from_secs(3600);
    store.fill(&news, 10).await;
    store.age(&news, 4, hour * 2).await;
    for (events, age, oldest) in [(3, hour * 9, 8), (100, hour, 5), (3, hour, 8), (8, hour, 5)] {
        let kept = Retention { events, age };
        let forward = offsets(&store, &news, kept, None, 99, false).await;
        assert_eq!(forward, ((oldest..=10).collect(), 10));
        assert_eq!(offsets(&store, &news, kept, None, 99, true).await, ((oldest..=10).rev().collect(), 10));
        assert_eq!(offsets(&store, &news, kept, Some(1), 1, false).await, (vec![oldest], 10));
        assert_eq!(offsets(&store, &news, kept, Some(oldest), 9, true).await, (vec![], 10));
    }
    store.age(&news, 10, hour * 2).await;
    let kept = Retention { events: 100, age: hour };
    assert_eq!(offsets(&store, &news, kept, None, 99, false).await, (vec![], 10), "the head stays");
    assert_eq!(offsets(&store, &news, kept, None, 99, true).await, (vec![], 10));
}

async fn trimmed_events_leave_no_hole_in_an_answer(store: TestStore) {
    let news = channel("news");
    store.fill(&news, 10).await;
    // As if the janitor had come between two statements.
    store.execute("DELETE FROM events WHERE \"offset\" <= 4").await;
    assert_eq!(offsets(&store, &news, FOREVER, None, 99, false).await, ((5..=10).collect(), 10));
    assert_eq!(offsets(&store, &news, FOREVER, Some(7), 99, true).await, (vec![6, 5], 10));
    store.execute("DELETE FROM events WHERE \"offset\" = 7").await;
    assert_eq!(offsets(&store, &news, FOREVER, None, 99, false).await, (vec![5, 6], 10));
    assert_eq!(offsets(&store, &news, FOREVER, None, 99, true).await, (vec![10, 9, 8], 10));
}
