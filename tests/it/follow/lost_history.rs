//! A log that lost events, as after a crash without a sync: its followers are told of a new history.

use super::*;

/// What a crash of a server that forgets commits does: everything after `offset` is gone.
pub async fn lose_after(store: &TestStore, offset: u64) {
    use campanile::store::schema::{channels, events};
    use diesel::prelude::*;
    store
        .write_log(move |mut conn| {
            Box::pin(async move {
                let gone = events::table.filter(events::offset.gt(offset as i64));
                conn.execute(diesel::delete(gone)).await?;
                conn.execute(diesel::update(channels::table).set(channels::head.eq(offset as i64))).await
            })
        })
        .await;
}

pub async fn a_history_that_lost_events_is_told_to_every_follower(store: TestStore) {
    on_node(store, options(), no_faults(), async |node, store| {
        let (news, fanouts) = (channel("news"), [node.fanout(), node.fanout()]);
        let mut readers = Vec::new();
        for fanout in &fanouts {
            readers.push(Reader::follow(node, fanout, &news, None).await);
        }
        for n in 0..10 {
            node.publish(&news, &n.to_string()).await;
        }
        let before = store.head(&news).await;
        for reader in &mut readers {
            reader.reaches(&before).await;
        }
        lose_after(store, 7).await;
        node.hub.check_all().await;
        eventually("the channel has a new epoch", async || store.head(&news).await.epoch != before.epoch)
            .await;
        let head = store.head(&news).await;
        assert_eq!(head.offset, 7);
        for reader in &mut readers {
            assert_eq!(reader.reaches(&head).await.resets, 1);
        }
        // A client that was away with a position of the lost history is told as well.
        let mut late = Reader::follow(node, &fanouts[0], &news, Some(before)).await;
        assert_eq!(late.reaches(&head).await.resets, 1);
        let next = node.publish(&news, "\"again\"").await;
        assert_eq!(next, Position::new(head.epoch, 8));
        for reader in readers.iter_mut().chain([&mut late]) {
            let seen = reader.reaches(&next).await;
            assert_eq!(seen.resets, 1);
        }
        node.hub.check_all().await;
        assert_eq!(node.metrics.channel_resets.get(), 1);
    })
    .await;
}

pub async fn a_history_with_another_event_at_a_known_place_is_told(store: TestStore) {
    on_node(store, options(), no_faults(), async |node, store| {
        let (news, fanout) = (channel("news"), node.fanout());
        let mut reader = Reader::follow(node, &fanout, &news, None).await;
        for n in 1..=5 {
            node.publish(&news, &n.to_string()).await;
        }
        let before = store.head(&news).await;
        assert_eq!(reader.reaches(&before).await.resets, 0);
        node.hub.recheck_all().await;
        // As if the log had been put back to an earlier state and gone on to the same length.
        let another = "UPDATE events SET event_id = (SELECT event_id FROM events WHERE \"offset\" = 1) \
                       WHERE \"offset\" = 5";
        store.execute(another).await;
        node.hub.recheck_all().await;
        eventually("the channel has a new epoch", async || store.head(&news).await.epoch != before.epoch)
            .await;
        let head = store.head(&news).await;
        assert_eq!(head.offset, 5);
        assert_eq!(reader.reaches(&head).await.resets, 1);
        let next = node.publish(&news, "6").await;
        assert_eq!(next, Position::new(head.epoch, 6));
        assert_eq!(reader.reaches(&next).await.resets, 1);
        // The new epoch is left alone.
        node.hub.recheck_all().await;
        assert_eq!(store.head(&news).await, next);
        assert_eq!(node.metrics.channel_resets.get(), 1);
    })
    .await;
}

pub async fn announced_events_that_the_log_lost_are_a_new_history_and_not_a_busy_loop(store: TestStore) {
    on_node(store, options(), nothing_arrives(), async |node, store| {
        let (news, fanout) = (channel("news"), node.fanout());
        let mut reader = Reader::follow(node, &fanout, &news, None).await;
        let events: Vec<_> = (0..5).map(|n| event(&news, &n.to_string())).collect();
        for event in &events {
            node.publisher.commit(UnitOfWork::of(vec![event.clone()])).await.unwrap();
        }
        let old = store.head(&news).await;
        lose_after(store, 2).await;
        // Only the last announcement gets through.
        let content = Content::Logged { epoch: old.epoch.clone(), events: vec![events[4].at(5)] };
        node.hub.deliver(HubEvent::Appended(vec![Announcement {
            channel: news.clone(),
            content,
            accepted: None,
        }]));
        eventually("the channel has a new epoch", async || store.head(&news).await.epoch != old.epoch).await;
        let head = store.head(&news).await;
        let seen = reader.reaches(&head).await;
        assert_eq!((seen.resets, head.offset), (1, 2));
        assert_eq!(node.metrics.channel_resets.get(), 1);
    })
    .await;
}

/// Somebody, or a part that is broken, announces an event that was never committed.
pub async fn an_invented_event_does_not_displace_the_one_that_was_committed(store: TestStore) {
    on_node(store, options(), no_faults(), async |node, store| {
        let (news, fanout) = (channel("news"), node.fanout());
        let mut reader = Reader::follow(node, &fanout, &news, None).await;
        let first = node.publish(&news, "1").await;
        reader.reaches(&first).await;
        let next = Position::new(first.epoch.clone(), 2);
        let content =
            Content::Logged { epoch: first.epoch.clone(), events: vec![event(&news, "\"invented\"").at(2)] };
        let invented = Announcement { channel: news.clone(), content, accepted: None };
        node.hub.deliver(HubEvent::Appended(vec![invented]));
        reader.reaches(&next).await;

        let real = node.publish(&news, "2").await;
        assert_eq!(real, next);
        eventually("the channel has a new epoch", async || store.head(&news).await.epoch != first.epoch)
            .await;
        let head = store.head(&news).await;
        assert_eq!(reader.reaches(&head).await.resets, 1, "it is told to read again");
        let last = node.publish(&news, "3").await;
        assert_eq!((reader.reaches(&last).await.resets, last.offset), (1, 3));
    })
    .await;
}
