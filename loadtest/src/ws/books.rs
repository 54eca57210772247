//! The books of many channels: who sits where, what was published, who has received it. A message
//! has one number across all channels; the promise is kept channel by channel, by a ledger each.
//! Plain data; no sockets.

use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::ledger::{Ledger, Receipt};

/// How connections are spread over channels: every channel has as many subscribers, every connection
/// about as many channels.
#[derive(Debug, Clone, Copy)]
pub struct Seating {
    /// Channels, from 0 on.
    pub channels: usize,
    /// Subscribers of each.
    pub fan_out: usize,
    /// Connections, from 0 on.
    pub connections: usize,
}

/// One ledger for each channel.
pub struct Books {
    seating: Seating,
    ledgers: Vec<Ledger>,
    /// By number: its channel, and its number there.
    messages: Vec<(u32, u32)>,
    owing: u64,
}

impl Seating {
    /// All that take a seat, in the order of channels: channel and connection.
    pub fn seats(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let Self { channels, fan_out, connections } = *self;
        (0..channels * fan_out).map(move |seat| (seat / fan_out, seat % connections))
    }

    /// How many channels a connection follows at most: the first does, so that these add up where there
    /// are several seatings of the same connections.
    pub fn most_followed(&self) -> usize {
        (self.channels * self.fan_out).div_ceil(self.connections)
    }

    /// Which of the subscribers of `channel` a connection is.
    fn seat(&self, connection: usize, channel: usize) -> Option<usize> {
        let first = channel * self.fan_out % self.connections;
        let seat = (connection + self.connections - first) % self.connections;
        (seat < self.fan_out).then_some(seat)
    }
}

impl Books {
    /// Empty books.
    pub fn new(seating: Seating, publishers: usize) -> Result<Self> {
        let Seating { channels, fan_out, connections } = seating;
        ensure!(fan_out <= connections, "{fan_out} subscribers of a channel, and {connections} connections");
        let ledgers = (0..channels).map(|_| Ledger::new(fan_out, publishers)).collect();
        Ok(Self { seating, ledgers, messages: Vec::new(), owing: 0 })
    }

    /// Takes the next number for a message that `publisher` is about to publish.
    pub fn publish(&mut self, channel: usize, publisher: usize, at: Instant) -> u32 {
        let local = self.ledgers[channel].publish(publisher, at);
        self.messages.push((channel as u32, local));
        self.owing += self.seating.fan_out as u64;
        self.messages.len() as u32 - 1
    }

    /// How many have been published.
    pub fn published(&self) -> usize {
        self.messages.len()
    }

    /// How many deliveries are owing.
    pub fn owing(&self) -> u64 {
        self.owing
    }

    /// How many a connection has received of a channel that it sits in.
    pub fn received(&self, connection: usize, channel: usize) -> Result<u64> {
        let seat = self.seating.seat(connection, channel).context("it does not sit there")?;
        Ok(self.ledgers[channel].received(seat))
    }

    /// Enters a delivery, or says which promise it breaks.
    pub fn receive(&mut self, connection: usize, number: u32, at: Instant) -> Result<Receipt> {
        let published = self.messages.len();
        let message = self.messages.get(number as usize);
        let (channel, local) =
            *message.with_context(|| format!("message {number} came, but {published} were published"))?;
        let seat = self.seating.seat(connection, channel as usize);
        let seat =
            seat.with_context(|| format!("message {number} is of channel {channel}, not of this one's"))?;
        let receipt = self.ledgers[channel as usize]
            .receive(seat, local, at)
            .with_context(|| format!("channel {channel}, where message {number} is {local}"))?;
        self.owing -= 1;
        Ok(receipt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEATING: Seating = Seating { channels: 4, fan_out: 3, connections: 5 };

    #[test]
    fn every_channel_has_its_subscribers_and_every_connection_knows_its_channels() {
        let mut seats: Vec<(usize, usize)> = SEATING.seats().collect();
        let pairs = (0..4).flat_map(|channel| (0..5).map(move |connection| (channel, connection)));
        let known = pairs.filter(|(channel, connection)| SEATING.seat(*connection, *channel).is_some());
        let mut known: Vec<(usize, usize)> = known.collect();
        seats.sort_unstable();
        known.sort_unstable();
        assert_eq!(seats, known);
        assert!((0..4).all(|channel| seats.iter().filter(|(of, _)| *of == channel).count() == 3));
    }

    #[test]
    fn no_connection_follows_more_than_the_first() {
        for connections in 3..20 {
            let seating = Seating { connections, ..SEATING };
            let mut follows = vec![0; connections];
            seating.seats().for_each(|(_, connection)| follows[connection] += 1);
            assert_eq!(Some(&seating.most_followed()), follows.iter().max(), "{connections} connections");
            assert_eq!(seating.most_followed(), follows[0], "{connections} connections");
        }
    }

    #[test]
    fn the_promise_is_kept_channel_by_channel() {
        let now = Instant::now();
        let mut books = Books::new(SEATING, 1).unwrap();
        let numbers: Vec<u32> = [0, 1, 0].iter().map(|channel| books.publish(*channel, 0, now)).collect();
        assert_eq!((numbers, books.owing()), (vec![0, 1, 2], 9));
        books.receive(0, 0, now).unwrap();
        books.receive(3, 1, now).unwrap();
        books.receive(0, 2, now).unwrap();
        assert_eq!((books.owing(), books.received(0, 0).unwrap()), (6, 2));
        assert!(books.receive(1, 2, now).is_err(), "0 is missing");
        assert!(books.receive(4, 0, now).is_err(), "it does not sit there");
        assert!(books.receive(0, 3, now).is_err(), "never published");
    }
}
