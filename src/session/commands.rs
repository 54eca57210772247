//! The commands that ask once and are answered once: publish, presence, history (protocol §4.4 to
//! §4.6). Each is judged by the rule here; who performs it judges nothing.

use std::sync::Arc;

use serde_json::value::RawValue;
use uuid::Uuid;

use super::connection::{Connection, send_reply};
use super::effect::{Effect, Published, ReadHistory, Since, Stored};
use super::pending::Pending;
use super::state::CommandResult;
use crate::domain::access::{Action, ResourceInfo};
use crate::domain::channel::ChannelName;
use crate::domain::event::NewEvent;
use crate::domain::presence::{Member, counts};
use crate::protocol::code::ErrorCode;
use crate::protocol::command::{History, Presence, Publish};
use crate::protocol::reply::Reply;

/// The type of what clients publish.
const KIND: &str = "message";

impl Connection {
    pub(super) fn publish(
        &mut self,
        id: u32,
        command: Publish<'_>,
        effects: &mut Vec<Effect>,
    ) -> CommandResult {
        let channel = ChannelName::parse(&command.channel)?;
        let data = command.data.map(RawValue::get).ok_or(ErrorCode::BadRequest)?;
        if data.len() > self.context.options.max_publication {
            return Err(ErrorCode::BadRequest.into());
        }
        let subscription = self.subscriptions.get(channel.as_str());
        // Nothing that stands behind a channel lets a client publish to it, or see who is there.
        self.may(Action::Publish, &channel, &ResourceInfo::Unknown, subscription.is_some(), false)?;
        let chan_info = subscription.and_then(|subscription| subscription.chan_info.as_deref());
        let info = self.client_info(chan_info);
        let namespaces = self.context.namespaces.load();
        if namespaces.options_of(&channel).is_some_and(|o| !o.publication_data_format.admits(data)) {
            return Err(ErrorCode::BadRequest.into());
        }
        let kept = namespaces.retention_of(&channel).is_some();
        let event = NewEvent::new(channel, Uuid::now_v7(), KIND, one_line(data));
        effects.push(Effect::Publish(NewEvent { info: Some(info), kept, ..event }));
        self.pending = Some(Box::new(Pending::Publish { id }));
        Ok(())
    }

    pub(super) fn published(&mut self, id: u32, published: Published, effects: &mut Vec<Effect>) {
        match published {
            Published::Done => send_reply(effects, id, &Reply::Publish),
            Published::Unavailable => self.refuse(id, ErrorCode::Internal.into(), effects),
        }
    }

    /// `presence` and `presence_stats`
    pub(super) fn presence(
        &mut self,
        command: Presence<'_>,
        pending: Pending,
        effects: &mut Vec<Effect>,
    ) -> CommandResult {
        let channel = ChannelName::parse(&command.channel)?;
        let subscribed = self.subscriptions.contains(channel.as_str());
        self.may(Action::Presence, &channel, &ResourceInfo::Unknown, subscribed, false)?;
        effects.push(Effect::ReadPresence(channel));
        self.pending = Some(Box::new(pending));
        Ok(())
    }

    pub(super) fn presence_read(&self, id: u32, members: &[Member], effects: &mut Vec<Effect>) {
        let clients: Vec<_> = members.iter().map(|member| (member.client, &*member.info)).collect();
        send_reply(effects, id, &Reply::Presence(&clients));
    }

    pub(super) fn presence_counted(&self, id: u32, members: &[Member], effects: &mut Vec<Effect>) {
        let (clients, users) = counts(members);
        send_reply(effects, id, &Reply::PresenceStats { clients, users });
    }

    pub(super) fn history(
        &mut self,
        id: u32,
        command: History<'_>,
        effects: &mut Vec<Effect>,
    ) -> CommandResult {
        let channel = ChannelName::parse(&command.channel)?;
        let subscription = self.subscriptions.get(channel.as_str());
        let (subscribed, known) = (subscription.is_some(), subscription.map(|sub| sub.resource().clone()));
        let resource = match known {
            Some(resource) => resource,
            None => {
                let Some(resource) = self.resource_of(&channel, effects)? else { return Ok(()) };
                resource
            }
        };
        self.may(Action::History, &channel, &resource, subscribed, false)?;
        // Nothing lies before the first event.
        if command.reverse && command.since.as_ref().is_some_and(|since| since.offset == 0) {
            return Err(ErrorCode::BadRequest.into());
        }
        let most = self.context.options.history_limit;
        let since = command.since.map(|since| Since { epoch: since.epoch.into(), offset: since.offset });
        // A number below 0 asks for everything.
        let limit = u32::try_from(command.limit).map_or(most, |limit| limit.min(most));
        effects.push(Effect::ReadHistory(ReadHistory { channel, since, limit, reverse: command.reverse }));
        self.pending = Some(Box::new(Pending::History { id }));
        Ok(())
    }

    pub(super) fn history_read(&mut self, id: u32, stored: Stored, effects: &mut Vec<Effect>) {
        match stored {
            Stored::Events(publications, position) => {
                let reply = Reply::History { publications: &publications, position: &position };
                send_reply(effects, id, &reply);
            }
            Stored::OtherEpoch => self.refuse(id, ErrorCode::UnrecoverablePosition.into(), effects),
            Stored::Unavailable => self.refuse(id, ErrorCode::Internal.into(), effects),
        }
    }
}

/// A JSON value without line breaks, which it can only have between its parts.
fn one_line(json: &str) -> Arc<str> {
    if json.contains(['\n', '\r']) { json.replace(['\n', '\r'], "").into() } else { json.into() }
}
