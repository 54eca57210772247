//! What a session does when time passes: it sends pings, misses pongs, and ends what has expired.
//! Invariant: a pong that is queued behind an unfinished command does not count as missing.

use std::time::Instant;

use super::connection::Connection;
use super::effect::Effect;
use super::state::Phase;
use super::timers::{Now, is_late};
use crate::domain::event::Time;
use crate::protocol::code::{DisconnectCode, UnsubscribeCode};
use crate::protocol::reply::PING;

impl Connection {
    /// When [`Connection::on_time`] must be called next.
    pub fn deadline(&self, now: Now) -> Option<Instant> {
        let options = &self.context.options;
        match self.phase {
            Phase::New | Phase::Refused => self.pending.is_none().then_some(self.timers.stale),
            Phase::Closed => None,
            Phase::Open => {
                let late = |expires: Option<Time>, delay| now.after(expires?, delay);
                let connection = late(self.timers.expires, options.expired_close_delay);
                let subscription = late(self.subscriptions.first_expiry(), options.expired_sub_close_delay);
                [connection, subscription, self.timers.ping, self.pong_check()].into_iter().flatten().min()
            }
        }
    }

    /// Time has passed. To be called at or after [`Connection::deadline`]; earlier calls do nothing.
    pub fn on_time(&mut self, now: Now, effects: &mut Vec<Effect>) {
        match self.phase {
            Phase::New | Phase::Refused => {
                if self.pending.is_none() && self.timers.stale <= now.mono {
                    self.close(DisconnectCode::Stale, effects);
                }
            }
            Phase::Closed => {}
            Phase::Open => {
                if is_late(self.timers.expires, self.context.options.expired_close_delay, now) {
                    return self.close(DisconnectCode::Expired, effects);
                }
                self.end_expired_subscriptions(now, effects);
                self.keep_alive(now, effects);
            }
        }
    }

    /// Whether the client owes a pong for more than half of its time.
    pub fn is_unhealthy(&self) -> bool {
        self.timers.pong_is_late
    }

    /// When the pong has to be looked at next: after half of its time, and at its end.
    fn pong_check(&self) -> Option<Instant> {
        let pong = self.timers.pong?;
        Some(if self.timers.pong_is_late { pong } else { pong - self.context.options.pong_timeout / 2 })
    }

    fn end_expired_subscriptions(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let delay = self.context.options.expired_sub_close_delay;
        if !is_late(self.subscriptions.first_expiry(), delay, now) {
            return;
        }
        let expired = self.subscriptions.iter().filter(|(_, sub)| is_late(sub.expires, delay, now));
        let expired: Vec<_> = expired.map(|(channel, sub)| (channel.clone(), sub.server_side)).collect();
        if expired.iter().any(|(_, server_side)| *server_side) {
            return self.close(DisconnectCode::SubscriptionExpired, effects);
        }
        for (channel, _) in expired {
            self.end_subscription(&channel, UnsubscribeCode::Expired, effects);
        }
    }

    fn keep_alive(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if self.phase == Phase::Closed {
            return;
        }
        self.timers.pong_is_late |= self.pong_check().is_some_and(|check| check <= now.mono);
        let options = &self.context.options;
        if self.timers.pong.is_some_and(|pong| pong <= now.mono) {
            if self.pending.is_none() {
                return self.close(DisconnectCode::NoPong, effects);
            }
            // The pong may be queued behind the unfinished command.
            self.timers.pong = Some(now.mono + options.pong_timeout);
        }
        if let Some(ping) = self.timers.ping.filter(|ping| *ping <= now.mono) {
            let next = ping + options.ping_interval;
            // If several pings are overdue, one is sent.
            self.timers.ping = Some(if next > now.mono { next } else { now.mono + options.ping_interval });
            if !self.is_uni() {
                self.timers.pong.get_or_insert(now.mono + options.pong_timeout);
            }
            effects.push(Effect::Send(PING.to_owned()));
        }
    }
}
