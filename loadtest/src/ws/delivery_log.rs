//! The deliveries of many channels: who follows which, what was published, who has received it. A message
//! has one number across all channels; each channel has a check of its own. Plain data; no sockets.

use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::sequence_check::{Receipt, SequenceCheck};

/// How connections are spread over channels: every channel has as many subscribers, every connection
/// about as many channels.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    pub channels: usize,
    /// Subscribers of each.
    pub fan_out: usize,
    pub connections: usize,
}

/// One check for each channel.
pub struct DeliveryLog {
    layout: Layout,
    checks: Vec<SequenceCheck>,
    /// By number: its channel, and its number there.
    messages: Vec<(u32, u32)>,
    outstanding: u64,
}

impl Layout {
    /// All subscriptions in the order of channels: channel and connection.
    pub fn subscriptions(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let Self { channels, fan_out, connections } = *self;
        (0..channels * fan_out).map(move |index| (index / fan_out, index % connections))
    }

    /// How many channels a connection follows at most: the first does, so that these add up where there
    /// are several layouts of the same connections.
    pub fn most_subscriptions(&self) -> usize {
        (self.channels * self.fan_out).div_ceil(self.connections)
    }

    /// Which of the subscribers of `channel` a connection is.
    fn subscriber(&self, connection: usize, channel: usize) -> Option<usize> {
        let first = channel * self.fan_out % self.connections;
        let index = (connection + self.connections - first) % self.connections;
        (index < self.fan_out).then_some(index)
    }
}

impl DeliveryLog {
    pub fn new(layout: Layout, publishers: usize) -> Result<Self> {
        let Layout { channels, fan_out, connections } = layout;
        ensure!(fan_out <= connections, "{fan_out} subscribers of a channel, and {connections} connections");
        let checks = (0..channels).map(|_| SequenceCheck::new(fan_out, publishers)).collect();
        Ok(Self { layout, checks, messages: Vec::new(), outstanding: 0 })
    }

    /// Takes the next number for a message that `publisher` is about to publish.
    pub fn publish(&mut self, channel: usize, publisher: usize, at: Instant) -> u32 {
        let local = self.checks[channel].publish(publisher, at);
        self.messages.push((channel as u32, local));
        self.outstanding += self.layout.fan_out as u64;
        self.messages.len() as u32 - 1
    }

    pub fn published(&self) -> usize {
        self.messages.len()
    }

    pub fn outstanding(&self) -> u64 {
        self.outstanding
    }

    /// How many a connection has received of a channel that it follows.
    pub fn received(&self, connection: usize, channel: usize) -> Result<u64> {
        let index = self.layout.subscriber(connection, channel).context("it does not follow that channel")?;
        Ok(self.checks[channel].received(index))
    }

    /// Records a delivery; an error if it breaks the promise.
    pub fn receive(&mut self, connection: usize, number: u32, at: Instant) -> Result<Receipt> {
        let published = self.messages.len();
        let message = self.messages.get(number as usize);
        let (channel, local) =
            *message.with_context(|| format!("message {number} came, but {published} were published"))?;
        let index = self.layout.subscriber(connection, channel as usize);
        let index =
            index.with_context(|| format!("message {number} is of channel {channel}, not of this one's"))?;
        let receipt = self.checks[channel as usize]
            .receive(index, local, at)
            .with_context(|| format!("channel {channel}, where message {number} is {local}"))?;
        self.outstanding -= 1;
        Ok(receipt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout { channels: 4, fan_out: 3, connections: 5 };

    #[test]
    fn every_channel_has_its_subscribers_and_every_connection_knows_its_channels() {
        let mut seats: Vec<(usize, usize)> = LAYOUT.subscriptions().collect();
        let pairs = (0..4).flat_map(|channel| (0..5).map(move |connection| (channel, connection)));
        let known = pairs.filter(|(channel, connection)| LAYOUT.subscriber(*connection, *channel).is_some());
        let mut known: Vec<(usize, usize)> = known.collect();
        seats.sort_unstable();
        known.sort_unstable();
        assert_eq!(seats, known);
        assert!((0..4).all(|channel| seats.iter().filter(|(of, _)| *of == channel).count() == 3));
    }

    #[test]
    fn no_connection_follows_more_than_the_first() {
        for connections in 3..20 {
            let layout = Layout { connections, ..LAYOUT };
            let mut follows = vec![0; connections];
            layout.subscriptions().for_each(|(_, connection)| follows[connection] += 1);
            assert_eq!(Some(&layout.most_subscriptions()), follows.iter().max(), "{connections} connections");
            assert_eq!(layout.most_subscriptions(), follows[0], "{connections} connections");
        }
    }

    #[test]
    fn the_promise_is_kept_channel_by_channel() {
        let now = Instant::now();
        let mut log = DeliveryLog::new(LAYOUT, 1).unwrap();
        let numbers: Vec<u32> = [0, 1, 0].iter().map(|channel| log.publish(*channel, 0, now)).collect();
        assert_eq!((numbers, log.outstanding()), (vec![0, 1, 2], 9));
        log.receive(0, 0, now).unwrap();
        log.receive(3, 1, now).unwrap();
        log.receive(0, 2, now).unwrap();
        assert_eq!((log.outstanding(), log.received(0, 0).unwrap()), (6, 2));
        assert!(log.receive(1, 2, now).is_err(), "0 is missing");
        assert!(log.receive(4, 0, now).is_err(), "it does not follow that channel");
        assert!(log.receive(0, 3, now).is_err(), "never published");
    }
}
