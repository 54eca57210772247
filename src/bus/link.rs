//! The connections to Redis: one that says, in order, many messages in one write, and one that
//! hears. They are made and given up together. A message to oneself each half second shows that
//! Redis still says what it hears; it counts as lost for the moment when one is late, and as gone
//! when it stays away.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use redis::aio::{MultiplexedConnection, PubSub, PubSubSink};
use redis::{AsyncConnectionConfig, Client, RedisError};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, timeout};

use super::Notice;
use super::interests::Changes;
use super::shared::{Message, Shared};
use super::wire::Said;
use crate::domain::channel::ChannelName;
use crate::domain::event::Event;
use crate::telemetry::count;

/// How long a connection may take, and a command on it.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(250);
/// What is not confirmed after this is said by NOTIFY as well.
const CONFIRM: Duration = Duration::from_millis(200);
/// Between two messages to oneself, and how often one looks.
const PING: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_millis(100);
/// A message to oneself that takes longer leaves in doubt whether anything is heard.
const DOUBT: Duration = Duration::from_millis(400);
/// One that takes longer than this does not come.
const GONE: Duration = Duration::from_secs(2);
/// Messages in one write.
const AT_ONCE: usize = 128;
/// Channels in one command.
const NAMES: usize = 1_000;
/// Bytes of data in one message, unless a single event has more. Redis cuts off who has 32 MB unread.
const LARGEST: usize = 512 << 10;

/// A connection that says.
pub(super) struct Link {
    saying: MultiplexedConnection,
    failed: Notify,
}

/// Ends a task with what started it.
struct Ending(JoinHandle<()>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Connects, and again whenever the connection is lost, for ever.
pub(super) async fn keep(shared: &Shared, client: Client) {
    let mut told = false;
    loop {
        let why = match timeout(PATIENCE, connect(&client)).await {
            Ok(Ok((saying, hearing))) => {
                told = false;
                let why = live(shared, saying, hearing).await;
                if let Some(out) = shared.out() {
                    out.link.store(None);
                }
                shared.set_live(false);
                shared.parts().interests.lost();
                count(&shared.parts().metrics.bus_reconnects, "redis");
                why
            }
            Ok(Err(error)) => reason(&error),
            Err(_) => "no answer".to_owned(),
        };
        if !std::mem::replace(&mut told, true) {
            tracing::warn!(
                why,
                "Redis cannot be used; it is tried again, and meanwhile PostgreSQL carries all"
            );
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn connect(client: &Client) -> redis::RedisResult<(MultiplexedConnection, PubSub)> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(PATIENCE))
        .set_response_timeout(Some(PATIENCE));
    let saying = client.get_multiplexed_async_connection_with_config(&config).await?;
    Ok((saying, client.get_async_pubsub().await?))
}

/// An error without the address, which may hold a password.
fn reason(error: &RedisError) -> String {
    let detail = error.detail().unwrap_or_default();
    format!("{} {detail}", error.category())
}

/// Says and hears until something fails, and answers what.
async fn live(shared: &Shared, saying: MultiplexedConnection, hearing: PubSub) -> String {
    let Some(out) = shared.out() else { return String::new() };
    let (mut sink, mut hearing) = hearing.split();
    let names = [out.name_of_all(), out.name_of_node(shared.node())];
    let begun = timeout(PATIENCE, async {
        sink.subscribe(&names).await?;
        shared.parts().interests.begin();
        loop {
            let changes = shared.parts().interests.take(NAMES);
            if changes == Changes::default() {
                return Ok::<_, RedisError>(());
            }
            change(shared, &mut sink, changes).await?;
        }
    });
    match begun.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return reason(&error),
        Err(_) => return "no answer to SUBSCRIBE".to_owned(),
    }
    let link = Arc::new(Link { saying, failed: Notify::new() });
    out.link.store(Some(link.clone()));
    let _following = Ending(tokio::spawn(follow(shared.clone(), sink, link.clone())));

    let mut ticks = tokio::time::interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut asked, mut next) = (None, Instant::now());
    loop {
        tokio::select! {
            message = hearing.next() => {
                let Some(message) = message else { return "the connection was closed".to_owned() };
                let Ok(text) = std::str::from_utf8(message.get_payload_bytes()) else { continue };
                let number = shared.heard_from_redis(message.get_channel_name(), text);
                if let (Some(number), Some((waited, since))) = (number, asked)
                    && number == waited
                {
                    let since: Instant = since;
                    shared.parts().metrics.bus_round_trip_seconds.observe(since.elapsed().as_secs_f64());
                    asked = None;
                    shared.set_live(true);
                }
            }
            _ = ticks.tick() => match asked {
                Some((_, since)) if since.elapsed() > GONE => return "it does not answer".to_owned(),
                Some((_, since)) if since.elapsed() > DOUBT => shared.set_live(false),
                Some(_) => {}
                None if Instant::now() < next => {}
                None => {
                    let number = shared.number();
                    (asked, next) = (Some((number, Instant::now())), Instant::now() + PING);
                    ping(shared, &link, number);
                }
            },
            () = link.failed.notified() => return "a command failed".to_owned(),
        }
    }
}

/// Sends a message to oneself. Whether it arrives is seen elsewhere.
fn ping(shared: &Shared, link: &Arc<Link>, number: u64) {
    let Some(out) = shared.out() else { return };
    let name = out.name_of_node(shared.node());
    let text = Said::Ping.write(shared.node(), number);
    let mut saying = link.saying.clone();
    tokio::spawn(async move {
        let _: redis::RedisResult<i64> =
            redis::cmd("PUBLISH").arg(name).arg(text).query_async(&mut saying).await;
    });
}

/// Makes the subscriptions be like the interests.
async fn follow(shared: Shared, mut sink: PubSubSink, link: Arc<Link>) {
    loop {
        let changes = shared.parts().interests.changes(NAMES).await;
        let changed = timeout(PATIENCE, change(&shared, &mut sink, changes)).await;
        if !matches!(changed, Ok(Ok(()))) {
            link.failed.notify_one();
            return;
        }
    }
}

async fn change(shared: &Shared, sink: &mut PubSubSink, changes: Changes) -> redis::RedisResult<()> {
    let Some(out) = shared.out() else { return Ok(()) };
    let names = |channels: &[ChannelName]| channels.iter().map(|one| out.name_of(one)).collect::<Vec<_>>();
    if !changes.unsubscribe.is_empty() {
        sink.unsubscribe(names(&changes.unsubscribe)).await?;
        shared.parts().interests.ended(&changes.unsubscribe);
    }
    if !changes.subscribe.is_empty() {
        sink.subscribe(names(&changes.subscribe)).await?;
        let late = shared.parts().interests.confirmed(changes.subscribe);
        if !late.is_empty() {
            shared.deliver(Notice::Check(late));
        }
    }
    Ok(())
}

/// Says what waits, in its order. What Redis does not confirm in time goes by NOTIFY.
pub(super) async fn publish(shared: &Shared, mut queue: mpsc::Receiver<Message>) {
    let Some(out) = shared.out() else { return };
    let mut waiting = Vec::with_capacity(AT_ONCE);
    while queue.recv_many(&mut waiting, AT_ONCE).await > 0 {
        let taken = match out.link.load_full() {
            Some(link) if *shared.live().borrow() => {
                let mut commands = redis::pipe();
                for message in &waiting {
                    let name = message.name(out);
                    for text in message.texts(shared) {
                        commands.cmd("PUBLISH").arg(&name).arg(text).ignore();
                    }
                }
                let mut saying = link.saying.clone();
                match timeout(CONFIRM, commands.exec_async(&mut saying)).await {
                    Ok(Ok(())) => true,
                    Ok(Err(_)) => {
                        link.failed.notify_one();
                        false
                    }
                    Err(_) => {
                        shared.set_live(false);
                        false
                    }
                }
            }
            _ => false,
        };
        for message in waiting.drain(..) {
            shared.said_by_redis(message, taken);
        }
    }
}

/// Whether these fit one message.
pub(super) fn is_small(events: &[Event]) -> bool {
    events.len() == 1 || events.iter().map(|event| event.data.len()).sum::<usize>() <= LARGEST
}

/// Cuts events so that a message stays small.
pub(super) fn in_bounds(events: &[Event]) -> impl Iterator<Item = &[Event]> {
    let mut rest = events;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |event: &&Event| {
            bytes += event.data.len();
            bytes <= LARGEST
        };
        let fitting = rest.iter().take_while(fits).count().max(1).min(rest.len());
        let (some, more) = rest.split_at(fitting);
        rest = more;
        (!some.is_empty()).then_some(some)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::event::Delta;
    use uuid::Uuid;

    #[test]
    fn many_large_events_go_in_several_messages() {
        let event = |offset: u64, bytes: usize| Event {
            offset,
            id: Uuid::nil(),
            kind: "k".into(),
            data: "1".repeat(bytes).into(),
            tags: None,
            info: None,
            delta: Delta::No,
        };
        let offsets = |events: &[Event]| -> Vec<Vec<u64>> {
            in_bounds(events).map(|some| some.iter().map(|event| event.offset).collect()).collect()
        };
        let large =
            [event(1, LARGEST / 2), event(2, LARGEST / 2), event(3, 1), event(4, 2 * LARGEST), event(5, 9)];
        assert_eq!(offsets(&large), [vec![1, 2], vec![3], vec![4], vec![5]]);
        assert!(offsets(&[]).is_empty());
    }
}
