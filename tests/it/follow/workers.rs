//! Worker threads whose inbox is full: they catch up from the log, in order, and hear of a replaced
//! history before anything that belongs to the new one.

use super::*;

on_both![
    a_worker_that_was_full_hears_of_a_reset_before_anything_after_it,
    a_worker_that_was_full_gets_the_rest_from_the_log_and_nothing_twice,
    a_history_that_begins_while_the_store_is_away_keeps_its_followers,
    what_was_on_its_way_when_a_history_began_reaches_who_has_no_position
];

/// A worker thread whose inbox is emptied by hand.
struct Slow {
    worker: Worker,
    messages: mpsc::Receiver<FanoutMessage>,
}

#[derive(Debug, PartialEq, Eq)]
enum Got {
    Events(Vec<u64>),
    Passing,
    Reset(Position),
}

impl Slow {
    fn new(id: usize, room: usize) -> Self {
        let (inbox, messages) = mpsc::channel(room);
        Self { worker: Worker { id, inbox }, messages }
    }

    async fn next(&mut self) -> Got {
        let message = tokio::time::timeout(Duration::from_secs(15), self.messages.recv()).await;
        match message.expect("a message comes").expect("the channel lives") {
            FanoutMessage::Events(batch) if batch.epoch().is_none() => Got::Passing,
            FanoutMessage::Events(batch) => Got::Events(offsets(batch.events())),
            FanoutMessage::Reset(_, bounds) => Got::Reset(bounds.head),
            FanoutMessage::Presence(channel, _) | FanoutMessage::ListMembers(channel, _) => {
                panic!("nobody is on {channel}")
            }
        }
    }

    /// The offsets of all messages up to the one that ends with `last`.
    async fn up_to(&mut self, last: u64) -> Vec<u64> {
        let mut seen = Vec::new();
        while seen.last() != Some(&last) {
            match self.next().await {
                Got::Events(offsets) => seen.extend(offsets),
                other => panic!("{other:?} after {seen:?}"),
            }
        }
        seen
    }
}

async fn a_worker_that_was_full_gets_the_rest_from_the_log_and_nothing_twice(store: TestStore) {
    on_node(store, options(), no_faults(), async |node, _| {
        let news = channel("news");
        let (mut slow, mut quick) = (Slow::new(1001, 1), Slow::new(1002, 10_000));
        for worker in [&slow.worker, &quick.worker] {
            assert_eq!(node.hub.join(&news, worker).await.unwrap().position.unwrap().offset, 0);
        }
        let passing = NewEvent { kept: false, ..event(&news, "\"now\"") };
        for _ in 0..600 {
            node.publish(&news, "1").await;
        }
        assert_eq!(quick.up_to(600).await, (1..=600).collect::<Vec<_>>());
        assert_eq!(slow.up_to(600).await, (1..=600).collect::<Vec<_>>(), "over several pages");
        assert!(node.overflows(Queue::Worker) > 0);

        // What is not kept finds no room and is gone; that is no reason to read the log.
        let last = node.publish(&news, "1").await;
        assert_eq!(quick.next().await, Got::Events(vec![last.offset]));
        for _ in 0..3 {
            node.publisher.commit(UnitOfWork::of(vec![passing.clone()])).await.unwrap();
            assert_eq!(quick.next().await, Got::Passing);
        }
        assert_eq!(slow.next().await, Got::Events(vec![last.offset]));
        let last = node.publish(&news, "1").await;
        assert_eq!(slow.next().await, Got::Events(vec![last.offset]));
        node.hub.leave(&news, slow.worker.id);
        let last = node.publish(&news, "1").await;
        assert_eq!(quick.up_to(last.offset).await.len(), 2);
        assert!(slow.messages.try_recv().is_err(), "who left gets nothing");
    })
    .await;
}

async fn a_worker_that_was_full_hears_of_a_reset_before_anything_after_it(store: TestStore) {
    on_node(store, options(), no_faults(), async |node, store| {
        let news = channel("news");
        // One is full when the history is replaced, one has been full for a while.
        let mut workers = [Slow::new(1001, 1), Slow::new(1002, 1), Slow::new(1003, 100)];
        for slow in &workers {
            node.hub.join(&news, &slow.worker).await.unwrap();
        }
        node.publish(&news, "1").await;
        assert_eq!(workers[0].next().await, Got::Events(vec![1]));
        node.publish(&news, "2").await;
        assert_eq!(workers[2].up_to(2).await, [1, 2]);

        lose_after(store, 1).await;
        node.hub.check_all().await;
        let Got::Reset(head) = workers[2].next().await else { panic!("a reset comes") };
        assert_eq!(head.offset, 1);
        assert_eq!(workers[0].next().await, Got::Events(vec![2]));
        assert_eq!(workers[0].next().await, Got::Reset(head.clone()));
        assert_eq!(workers[1].next().await, Got::Events(vec![1]));
        assert_eq!(workers[1].next().await, Got::Reset(head.clone()));
        let next = node.publish(&news, "\"again\"").await;
        assert_eq!(next, Position::new(head.epoch, 2));
        for slow in &mut workers {
            assert_eq!(slow.next().await, Got::Events(vec![2]));
        }
    })
    .await;
}

/// Channels of the namespace `chat` keep nothing at first; gives what to change.
fn without_history() -> (HubOptions, Namespaces) {
    let kept = options().namespaces.load().without.clone().expect("they have options");
    let of = |chat: ChannelOptions| Namespaces {
        without: Some(kept.clone()),
        named: [("chat".to_owned(), chat)].into(),
        ..Namespaces::default()
    };
    let (before, after) = (of(ChannelOptions::default()), of(kept.clone()));
    (HubOptions { namespaces: before.shared(), ..options() }, after)
}

async fn a_history_that_begins_while_the_store_is_away_keeps_its_followers(store: TestStore) {
    let (before, after) = without_history();
    let shared = before.namespaces.clone();
    on_node(store, before, no_faults(), async move |node, store| {
        let chat = channel("chat:x");
        let (mut first, second) = (Slow::new(1001, 100), Slow::new(1002, 100));
        assert_eq!(node.hub.join(&chat, &first.worker).await.unwrap().position, None);
        let passing = NewEvent { kept: false, ..event(&chat, "0") };
        node.publisher.commit(UnitOfWork::of(vec![passing])).await.unwrap();
        assert_eq!(first.next().await, Got::Passing);

        store.execute("ALTER TABLE channels RENAME TO away").await;
        node.hub.prepare(&after).await;
        shared.store(after.into());
        node.hub.take_options();
        assert!(node.hub.join(&chat, &second.worker).await.is_err(), "it has no position to begin at");
        assert!(node.publisher.commit(unit(&chat, "0")).await.is_err());
        assert_eq!(node.hub.active_channels(), 1, "somebody follows it");

        store.execute("ALTER TABLE away RENAME TO channels").await;
        for offset in 1..=3 {
            assert_eq!(node.publish(&chat, "1").await.offset, offset);
        }
        assert_eq!(first.up_to(3).await, [1, 2, 3]);
        let followed = node.hub.join(&chat, &second.worker).await.unwrap();
        assert_eq!(followed.position.unwrap().offset, 3);
    })
    .await;
}

async fn what_was_on_its_way_when_a_history_began_reaches_who_has_no_position(store: TestStore) {
    let (before, after) = without_history();
    let shared = before.namespaces.clone();
    let late = Arc::new(Mutex::new(Vec::new()));
    let kept = late.clone();
    let held_up: Faults = Arc::new(move |event| {
        kept.lock().unwrap().push(event);
        Vec::new()
    });
    on_node(store, before, held_up, async move |node, _| {
        let chat = channel("chat:x");
        let (mut old, mut new) = (Slow::new(1001, 100), Slow::new(1002, 100));
        node.hub.join(&chat, &old.worker).await.unwrap();
        shared.store(after.into());
        node.publish(&chat, "1").await;
        node.publish(&chat, "2").await;
        node.hub.take_options();
        let followed = node.hub.join(&chat, &new.worker).await.unwrap();
        assert_eq!(followed.position.as_ref().map(|position| position.offset), Some(2));

        let events: Vec<_> = late.lock().unwrap().drain(..).collect();
        events.into_iter().for_each(|event| node.hub.deliver(event));
        assert_eq!(old.up_to(2).await, [1, 2]);
        node.publish(&chat, "3").await;
        let events: Vec<_> = late.lock().unwrap().drain(..).collect();
        events.into_iter().for_each(|event| node.hub.deliver(event));
        assert_eq!(old.next().await, Got::Events(vec![3]));
        // Whoever has a position finds in the events where they belong.
        assert_eq!(new.up_to(3).await, [1, 2, 3]);
    })
    .await;
}
