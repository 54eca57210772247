//! The events of `/api/events/stream`: `Last-Event-ID` is a subscriber's cursor, each event's `id` says
//! where it is after that event. `stream:reset` is a signal.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use serde::Deserialize;
use sse_stream::Sse;

use super::subscription::{ConfiguredEvent, Context, Ended, Subscription};
use crate::cursor;

#[derive(Deserialize)]
struct Reset {
    channel: String,
    head: String,
}

pub fn handle(event: &Sse, subscriptions: &mut [Subscription], context: &Context) -> Result<()> {
    let (data, id) = (event.data.as_deref().unwrap_or_default(), event.id.as_deref().unwrap_or_default());
    match event.event.as_deref().unwrap_or_default() {
        "stream:reset" => {
            let reset: Reset = serde_json::from_str(data)?;
            let of = subscriptions.iter_mut().find(|s| context.channels[s.channel].name == reset.channel);
            let Some(subscription) = of else { return Ok(()) };
            match cursor::parse(&reset.head) {
                Some((epoch, head)) => {
                    if epoch != subscription.epoch {
                        subscription.change_epoch(&epoch);
                    }
                    subscription.signal(head);
                }
                None => subscription.unexpected(format!("a reset to {}", reset.head)),
            }
        }
        "stream:closing" | "stream:expired" => bail!(Ended("the stream ends")),
        event => {
            // The event's name distinguishes a built-in from a configured channel.
            let built_in = event != "message";
            let of = subscriptions.iter_mut().find(|s| context.channels[s.channel].built_in == built_in);
            let Some(subscription) = of else { return Ok(()) };
            let channel = &context.channels[subscription.channel];
            let position = cursor::position_in(id, &channel.name);
            let Some((_, offset)) = position.filter(|(epoch, _)| *epoch == subscription.epoch) else {
                subscription.unexpected(format!("an event behind {} has the id {id:?}", subscription.epoch));
                return Ok(());
            };
            if built_in {
                subscription.event(offset, data);
            } else {
                let inside: ConfiguredEvent<'_> = serde_json::from_str(data)?;
                if inside.offset != offset {
                    subscription.unexpected(format!("the id says {offset}, the event {}", inside.offset));
                }
                subscription.event(offset, inside.data.get());
            }
        }
    }
    Ok(())
}

/// Where the subscriber is, on all that it follows.
pub fn cursor(subscriptions: &[Subscription], context: &Context) -> String {
    let positions = subscriptions.iter().map(|s| (&*context.channels[s.channel].name, (&*s.epoch, s.offset)));
    cursor::cursor(&positions.collect::<BTreeMap<_, _>>())
}
