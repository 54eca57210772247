//! The floor against the tool's own client: what every comparison stands on.

use std::time::{Duration, Instant};

use super::*;
use crate::ws::publisher::{Options, Publishers};
use crate::ws::sequence_check::SequenceCheck;
use crate::ws::swarm::{FirstFrame, Received, Swarm, expect_nothing};

const SUBSCRIBERS: usize = 20;

/// A floor that lives as long as the test's process, with subscribers.
fn subscribed() -> (SocketAddr, Swarm) {
    let mut floor = Floor::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = floor.listener.local_addr().unwrap();
    std::thread::spawn(move || while floor.turn().is_ok() {});
    let mut swarm = Swarm::new(address, "floor").unwrap();
    let frame = |_| FirstFrame::subscribing("a token", ["bench:load"]);
    swarm.open((0..SUBSCRIBERS).map(frame).collect(), 3).unwrap();
    (address, swarm)
}

/// Publishes `count` messages of `size` bytes over each of these many connections at once, until
/// nothing is outstanding.
fn publish(publishers: usize, count: usize, size: usize) {
    let (address, mut swarm) = subscribed();
    let options = Options { address, host: "floor", api_key: "k", channel: "bench:load", size };
    let mut left = vec![count; publishers];
    let mut check = SequenceCheck::new(SUBSCRIBERS, publishers);
    let mut publishers = Publishers::open(&options, &swarm, publishers).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while check.outstanding() > 0 || left.iter().any(|left| *left > 0) {
        assert!(Instant::now() < deadline, "{} outstanding", check.outstanding());
        for (index, publisher) in publishers.idle().filter(|(index, _)| left[*index] > 0).collect::<Vec<_>>()
        {
            left[index] -= 1;
            publisher.publish(check.publish(index, Instant::now())).unwrap();
        }
        let mut on_received = |subscriber: usize, received: Received<'_>, at: Instant| match received {
            Received::Publication(number) => check.receive(subscriber, number, at).map(drop),
            received => expect_nothing(subscriber, received, at),
        };
        publishers.poll(&mut swarm, Duration::from_millis(100), &mut on_received).unwrap();
    }
}

#[test]
fn every_subscriber_receives_every_message_in_order() {
    publish(1, 50, 128);
}

#[test]
fn messages_that_wait_are_merged_and_none_is_lost() {
    publish(30, 10, 20_000);
}

#[test]
fn a_connection_that_asks_for_something_else_is_closed() {
    let (address, _) = subscribed();
    let mut stranger = std::net::TcpStream::connect(address).unwrap();
    stranger.write_all(b"GET /connection/websocket HTTP/1.1\r\nSec-WebSocket-Key: other\r\n\r\n").unwrap();
    assert_eq!(stranger.read(&mut [0; 64]).unwrap(), 0);
}
