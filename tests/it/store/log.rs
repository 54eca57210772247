//! The log: what is appended, what is read, and what retention leaves of it.

use std::time::Duration;

use campanile::domain::channel::ChannelName;
use campanile::domain::event::NewEvent;
use campanile::domain::options::{ChannelOptions, Namespaces, Retention};
use campanile::domain::position::{Epoch, Position};
use campanile::domain::units::Span;
use campanile::publish::Committed;
use campanile::store::log::{self, Append, IdempotencyKey};
use campanile::store::{StoreError, generation};
use campanile::tasks::janitor;
use campanile::tasks::leases::Lease;
use campanile::tasks::metrics::{Metrics, Table};
use futures_util::FutureExt as _;
use uuid::Uuid;

use crate::support::store::*;

on_both![
    offsets_have_no_hole_however_many_append,
    many_channels_move_together_known_and_new_alike,
    a_rollback_gives_its_offsets_back,
    data_comes_back_byte_for_byte,
    tags_info_kind_and_id_come_back,
    looking_at_a_channel_leaves_no_trace,
    an_epoch_outlives_a_restart,
    a_new_generation_changes_the_epochs_of_all_channels,
    a_channel_that_lost_events_gets_a_new_epoch_and_no_other_does,
    heads_are_read_together,
    a_reader_turns_page_after_page_without_a_hole,
    what_is_too_much_is_out_of_reach_before_it_is_trimmed,
    what_is_too_old_is_out_of_reach_before_it_is_trimmed,
    a_place_that_is_gone_is_named_with_what_is_left,
    the_latest_events_are_within_retention,
    the_longest_retention_is_longer_than_any_calendar,
    trimming_takes_the_oldest_a_batch_at_a_time,
    a_round_trims_what_is_too_much_or_too_old_of_many_channels,
    expired_keys_are_forgotten_a_batch_at_a_time,
    channels_are_found_by_name,
];

async fn offsets_have_no_hole_however_many_append(store: TestStore) {
    let channels = ["repo:a/a", "org:a", "repo:a/b"].map(channel);
    let (publisher, _) = store.publisher();
    let tasks = (0..8).map(|task| {
        let (publisher, channels) = (publisher.clone(), channels.clone());
        tokio::spawn(async move {
            let mut told = Vec::new();
            for round in 0..25 {
                let events: Vec<NewEvent> = (0..=(task + round) % 3)
                    .map(|i| event(&channels[(task + i) % 3], &format!("[{task},{round}]")))
                    .collect();
                let ids: Vec<_> = events.iter().map(|event| (event.channel.clone(), event.id)).collect();
                let done = publisher.commit(campanile::publish::UnitOfWork::of(events)).await.unwrap();
                let Committed::Done(positions) = done else { panic!("{done:?}") };
                told.extend(ids.into_iter().zip(positions));
            }
            told
        })
    });
    let told = futures_util::future::try_join_all(tasks).await.unwrap().concat();
    for channel in &channels {
        let log = store.whole_log(channel).await;
        let mut answers: Vec<_> = told.iter().filter(|((name, _), _)| name == channel).collect();
        answers.sort_by_key(|(_, position)| position.offset);
        let answered: Vec<_> = answers.iter().map(|((_, id), position)| (*id, position.offset)).collect();
        assert_eq!(answered, log.iter().map(|event| (event.id, event.offset)).collect::<Vec<_>>());
    }
}

/// More than a statement of many rows takes, with some left over.
async fn many_channels_move_together_known_and_new_alike(store: TestStore) {
    let channels: Vec<_> = (0..75).map(|i| channel(&format!("news:{}", i * 37 % 75))).collect();
    store.append(channels.iter().step_by(2).map(|channel| event(channel, "1")).collect()).await;
    // Some get two.
    let events: Vec<_> = channels.iter().chain(&channels[..20]).map(|channel| event(channel, "2")).collect();
    let positions = store.append(events.clone()).await;
    for (i, channel) in channels.iter().enumerate() {
        let known = (i + 1) % 2;
        let log = store.whole_log(channel).await;
        let new: Vec<_> = log[known..].iter().map(|event| (event.id, event.offset)).collect();
        let of_channel = events.iter().zip(&positions).filter(|(event, _)| event.channel == *channel);
        let told: Vec<_> = of_channel.map(|(event, position)| (event.id, position.offset)).collect();
        assert_eq!(new, told);
        assert_eq!(told.len(), if i < 20 { 2 } else { 1 });
        assert_eq!(store.head(channel).await.offset, (known + told.len()) as u64);
    }
}

async fn a_rollback_gives_its_offsets_back(store: TestStore) {
    let news = channel("news");
    store.fill(&news, 2).await;
    let lost = event(&news, "3");
    let failed: Result<(), StoreError> = store
        .store
        .write_log(move |mut conn| {
            async move {
                let append = Append { events: &[&lost], ..Append::default() };
                log::append(&mut conn, &[append]).await?;
                Err(StoreError::Busy)
            }
            .boxed()
        })
        .await;
    assert!(matches!(failed, Err(StoreError::Busy)));
    assert_eq!(store.head(&news).await.offset, 2);
    assert_eq!(store.append(vec![event(&news, "3")]).await[0].offset, 3);
    store.whole_log(&news).await;
}

async fn data_comes_back_byte_for_byte(store: TestStore) {
    let news = channel("news");
    let long = format!("\"{}\"", "long \u{1F514} ".repeat(40_000));
    let texts = [
        " {\"b\" :1,\t\"a\":  2}  ",
        "{\"a\":1,\"a\":2,\"A\":3}",
        "123456789012345678901234567890.000100",
        "1e400",
        "-0.0e-999999",
        "\"\\u0000\\ud800 \\/ \\u00e9 é \u{1F600} \u{202e} \u{feff}\"",
        "\"it's 100 % \\\\ $1 ? :x\"",
        "null",
        &long,
    ];
    store.append(texts.iter().map(|text| event(&news, text)).collect()).await;
    let stored = store.whole_log(&news).await;
    assert_eq!(stored.iter().map(|event| &*event.data).collect::<Vec<_>>(), texts);
}

async fn tags_info_kind_and_id_come_back(store: TestStore) {
    let news = channel("$private:x y#~");
    let full = NewEvent {
        tags: Some("{ \"a\" : \"1\" }".into()),
        info: Some("{\"user\":\"ana\"}".into()),
        kind: "message".into(),
        ..event(&news, "1")
    };
    let bare = event(&news, "2");
    let positions = store.append(vec![full.clone(), bare.clone()]).await;
    let expected = [full.at(1), bare.at(2)];
    assert_eq!(store.stored(&news).await, expected);
    assert_eq!(positions.iter().map(|p| p.offset).collect::<Vec<_>>(), [1, 2]);
}

async fn looking_at_a_channel_leaves_no_trace(store: TestStore) {
    let news = channel("news");
    let base = Position::new(store.store.generation(), 0);
    assert_eq!(store.head(&news).await, base);
    assert_eq!(store.bounds(&news, FOREVER).await.oldest(), base);
    assert_eq!(events_of(store.page(&news, FOREVER, Some(&base), None, 10).await), []);
    assert_eq!(events_of(store.page(&news, FOREVER, None, None, 10).await), []);
    assert_eq!(store.count("channels").await, 0);

    let first = store.fill(&news, 1).await.remove(0);
    assert_eq!(first, Position::new(base.epoch.clone(), 1), "the first append keeps the epoch");
    assert_eq!(offsets(&events_of(store.page(&news, FOREVER, Some(&base), None, 10).await)), [1]);
}

async fn an_epoch_outlives_a_restart(store: TestStore) {
    let news = channel("news");
    let last = store.fill(&news, 3).await.pop().unwrap();
    let store = store.reopen().await;
    assert_eq!(store.head(&news).await, last);
    assert_eq!(store.fill(&news, 1).await, [Position::new(last.epoch, 4)]);
}

async fn a_new_generation_changes_the_epochs_of_all_channels(store: TestStore) {
    let (used, unused) = (channel("used"), channel("unused"));
    let last = store.fill(&used, 3).await.pop().unwrap();
    let before = store.head(&unused).await;
    let mut generations = store.store.generations();
    store.write_log(|mut conn| async move { generation::renew(&mut conn, "another").await }.boxed()).await;
    store.store.probe().await.unwrap();

    assert!(generations.has_changed().unwrap());
    let renewed = generations.borrow_and_update().clone();
    assert_eq!(renewed, store.store.generation());
    assert_eq!(store.head(&used).await, Position::new(renewed.clone(), 3));
    assert_eq!(store.head(&unused).await, Position::new(renewed.clone(), 0));
    for old in [last, before] {
        assert_ne!(old.epoch, renewed);
        lost(store.page(&used, FOREVER, Some(&old), None, 10).await);
    }
    assert_eq!(store.reopen().await.store.generation(), renewed);
}

async fn a_channel_that_lost_events_gets_a_new_epoch_and_no_other_does(store: TestStore) {
    let (torn, whole, unused) = (channel("torn"), channel("whole"), channel("unused"));
    let old = store.fill(&torn, 3).await.pop().unwrap();
    let kept = store.fill(&whole, 3).await.pop().unwrap();
    for (name, known, part) in [(&torn, 4, "aaaa"), (&whole, 3, "bbbb"), (&unused, 1, "cccc")] {
        let name = name.clone();
        store
            .write_log(move |mut conn| {
                async move { log::renew_epoch(&mut conn, &name, known, part).await }.boxed()
            })
            .await;
    }
    let generation = store.store.generation();
    let epoch = |part: &str| Epoch::parse(&format!("{generation}-{part}")).unwrap();
    assert_eq!(store.head(&torn).await, Position::new(epoch("aaaa"), 3));
    assert_eq!(store.head(&whole).await, kept, "its log reaches that far");
    assert_eq!(store.head(&unused).await, Position::new(epoch("cccc"), 0));
    assert_eq!(store.fill(&torn, 1).await, [Position::new(epoch("aaaa"), 4)]);
    assert_eq!(store.fill(&unused, 1).await, [Position::new(epoch("cccc"), 1)]);
    lost(store.page(&torn, FOREVER, Some(&old), None, 10).await);
}

async fn heads_are_read_together(store: TestStore) {
    let names = ["a", "b", "c"].map(channel);
    let last_a = store.fill(&names[0], 3).await.pop().unwrap();
    let last_c = store.fill(&names[2], 1).await.pop().unwrap();
    let asked = names.to_vec();
    let mut heads = store.read(move |tx| async move { tx.heads(&asked).await }.boxed()).await;
    assert_eq!(heads.remove("a"), Some(last_a));
    assert_eq!(heads.remove("c"), Some(last_c));
    assert!(heads.is_empty(), "a channel without a row is left out");
    let many: Vec<_> = (0..1000).map(|i| channel(&format!("many:{i}"))).collect();
    let none = store.read(move |tx| async move { tx.heads(&many).await }.boxed()).await;
    assert!(none.is_empty());
}

async fn a_reader_turns_page_after_page_without_a_hole(store: TestStore) {
    let (news, other) = (channel("news"), channel("news:"));
    for _ in 0..5 {
        store.fill(&news, 5).await;
        store.fill(&other, 3).await;
    }
    let mut position = Position::new(store.store.generation(), 0);
    let mut seen = Vec::new();
    loop {
        let page = events_of(store.page(&news, FOREVER, Some(&position), None, 4).await);
        assert!(page.len() <= 4);
        let Some(last) = page.last() else { break };
        position.offset = last.offset;
        seen.extend(offsets(&page));
    }
    assert_eq!(seen, (1..=25).collect::<Vec<_>>());

    let at = |offset| Position::new(position.epoch.clone(), offset);
    let page = async |from, until, limit| {
        offsets(&events_of(store.page(&news, FOREVER, Some(&at(from)), Some(until), limit).await))
    };
    assert_eq!(page(3, 6, 100).await, [4, 5, 6]);
    assert_eq!(page(3, 6, 2).await, [4, 5]);
    assert_eq!(page(24, 99, 100).await, [25], "no further than the head");
    assert!(page(9, 9, 100).await.is_empty());
    assert!(page(9, 3, 100).await.is_empty());
    assert!(page(0, 25, 0).await.is_empty());
}

async fn what_is_too_much_is_out_of_reach_before_it_is_trimmed(store: TestStore) {
    let news = channel("news");
    let positions = store.fill(&news, 10).await;
    let kept = Retention { events: 4, ..FOREVER };
    let bounds = store.bounds(&news, kept).await;
    assert_eq!((bounds.before_oldest, bounds.head.offset), (6, 10));
    assert_eq!(offsets(&events_of(store.page(&news, kept, None, None, 100).await)), [7, 8, 9, 10]);
    assert_eq!(offsets(&events_of(store.page(&news, kept, Some(&positions[5]), None, 100).await)).len(), 4);
    assert_eq!(lost(store.page(&news, kept, Some(&positions[4]), None, 100).await), bounds);

    let nothing = Retention { events: 0, ..FOREVER };
    assert_eq!(store.bounds(&news, nothing).await.oldest(), positions[9]);
    assert_eq!(events_of(store.page(&news, nothing, Some(&positions[9]), None, 100).await), []);
    lost(store.page(&news, nothing, Some(&positions[8]), None, 100).await);
}

async fn what_is_too_old_is_out_of_reach_before_it_is_trimmed(store: TestStore) {
    let news = channel("news");
    let positions = store.fill(&news, 10).await;
    store.age(&news, 3, Duration::from_secs(3700)).await;
    let kept = Retention { age: Duration::from_secs(3600), ..FOREVER };
    let bounds = store.bounds(&news, kept).await;
    assert_eq!((bounds.before_oldest, bounds.head.offset), (3, 10));
    assert_eq!(events_of(store.page(&news, kept, Some(&positions[2]), None, 100).await).len(), 7);
    assert_eq!(lost(store.page(&news, kept, Some(&positions[1]), None, 100).await), bounds);

    store.age(&news, 10, Duration::from_secs(3700)).await;
    assert_eq!(store.bounds(&news, kept).await.oldest(), positions[9], "all are too old");
    assert_eq!(store.fill(&news, 1).await[0].offset, 11);
    assert_eq!(offsets(&events_of(store.page(&news, kept, None, None, 100).await)), [11]);
}

async fn a_place_that_is_gone_is_named_with_what_is_left(store: TestStore) {
    let news = channel("news");
    let positions = store.fill(&news, 10).await;
    let kept = Retention { events: 5, ..FOREVER };
    let head = positions[9].clone();
    let elsewhere = Position::new(Epoch::parse("elsewhere").unwrap(), 7);
    let ahead = Position::new(head.epoch.clone(), 11);
    for gone in [positions[3].clone(), ahead, elsewhere, Position::new(head.epoch.clone(), i64::MAX as u64)] {
        let bounds = lost(store.page(&news, kept, Some(&gone), None, 100).await);
        assert_eq!((&bounds.head, bounds.before_oldest), (&head, 5), "{gone}");
        assert!(!bounds.covers(&gone));
        assert_eq!(events_of(store.page(&news, kept, Some(&bounds.oldest()), None, 100).await).len(), 5);
    }
    // Rows that are gone although retention covers them are a loss as well.
    store.execute("DELETE FROM events WHERE channel = 'news' AND \"offset\" = 8").await;
    lost(store.page(&news, kept, Some(&positions[5]), None, 100).await);
    assert_eq!(offsets(&events_of(store.page(&news, kept, Some(&positions[5]), None, 1).await)), [7]);
    assert_eq!(offsets(&events_of(store.page(&news, kept, Some(&positions[7]), None, 100).await)), [9, 10]);
}

async fn the_latest_events_are_within_retention(store: TestStore) {
    let news = channel("news");
    store.fill(&news, 10).await;
    store.age(&news, 4, Duration::from_secs(3700)).await;
    let latest = async |events, limit| {
        let kept = Retention { events, age: Duration::from_secs(3600) };
        let news = news.clone();
        let read = store.read(move |tx| async move { tx.latest(&news, kept, limit).await }.boxed()).await;
        offsets(&read)
    };
    assert_eq!(latest(100, 3).await, [10, 9, 8]);
    assert_eq!(latest(100, 100).await, [10, 9, 8, 7, 6, 5]);
    assert_eq!(latest(2, 100).await, [10, 9]);
    assert!(latest(0, 100).await.is_empty());
}

async fn the_longest_retention_is_longer_than_any_calendar(store: TestStore) {
    let news = channel("news");
    store.fill(&news, 2).await;
    let kept = Retention { events: u64::MAX, age: Duration::MAX };
    assert_eq!(events_of(store.page(&news, kept, None, None, 10).await).len(), 2);
    let forever = store.store.timestamp().plus(Duration::MAX);
    let key = IdempotencyKey { channel: news.clone(), key: "k".into(), expires_at: forever };
    let unit = || campanile::publish::UnitOfWork {
        dedup: campanile::publish::Dedup::Key(key.clone()),
        ..unit(&news, "3")
    };
    assert!(matches!(store.commit(unit()).await, Committed::Done(_)));
    assert!(matches!(store.commit(unit()).await, Committed::Duplicate(Some(_))));
}

async fn trimming_takes_the_oldest_a_batch_at_a_time(store: TestStore) {
    let (news, other) = (channel("news"), channel("other"));
    let positions = store.fill(&news, 10).await;
    store.fill(&other, 10).await;
    let bounds = store.bounds(&news, Retention { events: 3, ..FOREVER }).await;
    let trim = async |batch| {
        let (news, bounds) = (news.clone(), bounds.clone());
        store
            .write_log(move |mut conn| {
                async move { log::trim(&mut conn, &news, &bounds, batch).await }.boxed()
            })
            .await
    };
    assert_eq!((trim(4).await, offsets(&store.stored(&news).await)[0]), (4, 5));
    assert_eq!((trim(4).await, offsets(&store.stored(&news).await)[0]), (3, 8));
    assert_eq!((trim(4).await, trim(0).await), (0, 0));
    assert_eq!(store.stored(&other).await.len(), 10);
    assert_eq!(store.head(&news).await, positions[9], "the head stays");
    let left = store.bounds(&news, FOREVER).await;
    assert_eq!(left.before_oldest, 7, "what is gone is gone, whatever retention says");
    lost(store.page(&news, FOREVER, Some(&positions[5]), None, 10).await);

    let all = store.bounds(&news, Retention { events: 0, ..FOREVER }).await;
    let name = news.clone();
    store
        .write_log(move |mut conn| async move { log::trim(&mut conn, &name, &all, 100).await }.boxed())
        .await;
    assert_eq!(store.bounds(&news, FOREVER).await.oldest(), positions[9]);
    assert_eq!(store.fill(&news, 1).await[0].offset, 11, "an empty log goes on where it was");
}

async fn a_round_trims_what_is_too_much_or_too_old_of_many_channels(store: TestStore) {
    let kept = ChannelOptions { history_size: 3, history_ttl: Span::secs(3600), ..ChannelOptions::default() };
    let namespaces = Namespaces { without: Some(kept), ..Namespaces::default() };
    // More of them, and one with more to remove, than fit into one transaction.
    let busy: Vec<ChannelName> = (0..60).map(|n| channel(&format!("busy{n:02}"))).collect();
    for name in &busy {
        store.fill(name, 5).await;
    }
    let [long, old, fresh, foreign] = ["busy30x", "old", "fresh", "other:x"].map(channel);
    for (name, count) in [(&long, 600), (&old, 3), (&fresh, 3), (&foreign, 9)] {
        store.fill(name, count).await;
    }
    store.age(&old, 2, Duration::from_secs(2 * 3600)).await;
    let metrics = Metrics::default();
    let sweep = async || {
        let lease = Lease::always_held();
        janitor::sweep(&store.store, &namespaces, &metrics, &lease, &mut Uuid::nil()).await.unwrap();
        metrics.rows_removed.with(Table("events")).get()
    };
    store.age(&foreign, 4, Duration::from_secs(8 * 24 * 3600)).await;
    assert_eq!(sweep().await, 60 * 2 + 597 + 2 + 4);
    for name in busy.iter().chain([&long, &fresh]) {
        let head = store.head(name).await.offset;
        assert_eq!(offsets(&store.stored(name).await), [head - 2, head - 1, head], "{name}");
    }
    assert_eq!(offsets(&store.stored(&old).await), [3]);
    assert_eq!(store.stored(&foreign).await.len(), 5, "of a namespace that is gone a week is kept");
    assert_eq!(sweep().await, 60 * 2 + 597 + 2 + 4, "nothing is left to do");
}

async fn expired_keys_are_forgotten_a_batch_at_a_time(store: TestStore) {
    let news = channel("news");
    let (old, new) = (ago(&store.store, Duration::from_secs(10)), store.store.timestamp());
    for (i, expires_at) in [old, old, old, new.plus(Duration::from_secs(60))].into_iter().enumerate() {
        let key = IdempotencyKey { channel: news.clone(), key: i.to_string(), expires_at };
        let dedup = campanile::publish::Dedup::Key(key);
        store.commit(campanile::publish::UnitOfWork { dedup, ..unit(&news, "1") }).await;
    }
    let forget = async || store.write(move |conn| log::forget_keys(conn, new, 2).boxed()).await;
    assert_eq!((forget().await, store.count("idempotency").await), (2, 2));
    assert_eq!((forget().await, store.count("idempotency").await), (1, 1));
    assert_eq!((forget().await, store.count("idempotency").await), (0, 1));
}

async fn channels_are_found_by_name(store: TestStore) {
    for name in ["job:x", "repo:b/a", "repo:a/z", "Repo:c/c", "repo;d", "repo:a/Z"] {
        // Not all of these are valid built-in names; the log does not mind.
        let name = name.replace("job:x", "jobs:x");
        store.fill(&channel(&name), 1).await;
    }
    store.fill(&channel("repo:b/a"), 1).await;
    let names = async |after: &'static str, limit| {
        let read = store.read(move |conn| log::oldest_after(conn, after, limit).boxed()).await;
        read.iter().map(|oldest| oldest.channel.as_str().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names("", 3).await, ["Repo:c/c", "jobs:x", "repo:a/Z"], "byte for byte on both");
    assert_eq!(names("repo:a/Z", 9).await, ["repo:a/z", "repo:b/a", "repo;d"]);
    let recent = store.read(|conn| log::recent_channels(conn, "repo:", 2).boxed()).await;
    assert_eq!(recent.iter().map(|name| name.as_str()).collect::<Vec<_>>(), ["repo:b/a", "repo:a/Z"]);

    let (first, third) = (channel("repo:b/a"), channel("absent"));
    let id = store.stored(&first).await[1].id;
    let known = store
        .read(move |conn| {
            async move {
                let found = log::event_id_at(conn, &first, 2).await?;
                let beyond = log::event_id_at(conn, &first, 3).await?;
                Ok((
                    found,
                    beyond,
                    log::last_stored(conn, &first).await?,
                    log::last_stored(conn, &third).await?,
                ))
            }
            .boxed()
        })
        .await;
    assert_eq!(known, (Some(id), None, Some(2), None));
}
