//! What was published to one channel, who has received it, and in which order. Its invariant is the
//! promise: every subscriber receives the same messages in the same order, none missing, none twice, and those of one
//! publisher in the order in which they were published. Plain data; no sockets.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

/// The deliveries of one channel.
pub struct SequenceCheck {
    subscribers: u32,
    /// By number.
    published: Vec<Published>,
    /// Numbers in the order in which whichever subscriber was first received them.
    order: Vec<u32>,
    /// By subscriber: how many it has received, all of them a prefix of `order`.
    received: Vec<u32>,
    /// By publisher: the last number of its own in `order`.
    latest: Vec<Option<u32>>,
    outstanding: u64,
}

struct Published {
    at: Instant,
    /// Receipts that are missing.
    missing: u32,
    publisher: u32,
    in_order: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Since before it was published.
    pub latency: Duration,
    /// The publisher, if this was the last subscriber to receive it.
    pub completed: Option<usize>,
}

impl SequenceCheck {
    pub fn new(subscribers: usize, publishers: usize) -> Self {
        Self {
            subscribers: subscribers as u32,
            published: Vec::new(),
            order: Vec::new(),
            received: vec![0; subscribers],
            latest: vec![None; publishers],
            outstanding: 0,
        }
    }

    /// Takes the next number for a message that `publisher` is about to publish.
    pub fn publish(&mut self, publisher: usize, at: Instant) -> u32 {
        let number = self.published.len() as u32;
        let publisher = publisher as u32;
        self.outstanding += u64::from(self.subscribers);
        self.published.push(Published { at, missing: self.subscribers, publisher, in_order: false });
        number
    }

    pub fn published(&self) -> usize {
        self.published.len()
    }

    pub fn outstanding(&self) -> u64 {
        self.outstanding
    }

    pub fn received(&self, subscriber: usize) -> u64 {
        self.received[subscriber].into()
    }

    /// Records a delivery; an error if it breaks the promise.
    pub fn receive(&mut self, subscriber: usize, number: u32, at: Instant) -> Result<Receipt> {
        let Some(message) = self.published.get_mut(number as usize) else {
            bail!("message {number} came, but {} were published", self.published.len());
        };
        let place = self.received[subscriber] as usize;
        match self.order.get(place) {
            Some(expected) => {
                ensure!(*expected == number, "message {number} came where others received {expected}");
            }
            None => {
                ensure!(!message.in_order, "message {number} came twice, or late");
                let latest = &mut self.latest[message.publisher as usize];
                if let Some(latest) = latest.filter(|latest| *latest > number) {
                    bail!("message {number} came after {latest} of the same publisher");
                }
                *latest = Some(number);
                message.in_order = true;
                self.order.push(number);
            }
        }
        self.received[subscriber] += 1;
        message.missing -= 1;
        self.outstanding -= 1;
        let completed = (message.missing == 0).then_some(message.publisher as usize);
        Ok(Receipt { latency: at.saturating_duration_since(message.at), completed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two subscribers, two publishers; messages 0, 1 and 2 are by publishers 0, 1 and 0.
    fn verdict(received: &[(usize, u32)]) -> String {
        let mut check = SequenceCheck::new(2, 2);
        let now = Instant::now();
        for publisher in [0, 1, 0] {
            check.publish(publisher, now);
        }
        for (subscriber, number) in received {
            if let Err(error) = check.receive(*subscriber, *number, now) {
                return error.to_string();
            }
        }
        format!("{} outstanding", check.outstanding())
    }

    #[test]
    fn the_promise_is_kept_or_the_run_fails() {
        assert_eq!(verdict(&[(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (0, 2)]), "0 outstanding");
        assert_eq!(verdict(&[(0, 1), (0, 0), (1, 1)]), "3 outstanding", "publishers may overtake each other");
        assert_eq!(verdict(&[(0, 0), (0, 1), (1, 1)]), "message 1 came where others received 0");
        assert_eq!(verdict(&[(0, 0), (0, 0)]), "message 0 came twice, or late");
        assert_eq!(verdict(&[(0, 0), (1, 0), (1, 0)]), "message 0 came twice, or late");
        assert_eq!(verdict(&[(0, 2), (0, 0)]), "message 0 came after 2 of the same publisher");
        assert_eq!(verdict(&[(0, 7)]), "message 7 came, but 3 were published");
    }

    #[test]
    fn the_last_receipt_completes_a_message() {
        let mut check = SequenceCheck::new(2, 1);
        let at = Instant::now();
        let number = check.publish(0, at);
        let later = at + Duration::from_millis(3);
        let receipt = |completed| Receipt { latency: Duration::from_millis(3), completed };
        assert_eq!(check.receive(0, number, later).unwrap(), receipt(None));
        assert_eq!(check.receive(1, number, later).unwrap(), receipt(Some(0)));
    }
}
