//! The floor against the tool's own client: what every comparison stands on.

use std::time::{Duration, Instant};

use super::*;
use crate::ws::dialect::Dialect;
use crate::ws::door::{Door, Publishing};
use crate::ws::ledger::Ledger;
use crate::ws::swarm::{FOREIGN, Swarm, first_frame};

const SUBSCRIBERS: usize = 20;

/// A floor that lives as long as the test's process, with subscribers.
fn subscribed() -> (SocketAddr, Swarm) {
    let mut floor = Floor::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = floor.listener.local_addr().unwrap();
    std::thread::spawn(move || while floor.turn().is_ok() {});
    let mut swarm = Swarm::new(address, "floor").unwrap();
    swarm.open(vec![first_frame("a token", "bench:load"); SUBSCRIBERS], 3).unwrap();
    (address, swarm)
}

/// Publishes `count` messages of `size` bytes over each of these many connections at once, until
/// nothing is owing.
fn publish(publishers: usize, count: usize, size: usize) {
    let (address, mut swarm) = subscribed();
    let dialect = Dialect::Centrifuge;
    let publishing =
        Publishing { address, host: "floor", api_key: "k", channel: "bench:load", size, dialect };
    let mut doors: Vec<Door> = (0..publishers)
        .map(|index| Door::open(&publishing, swarm.registry(), Token(FOREIGN + index)).unwrap())
        .collect();
    let mut ledger = Ledger::new(SUBSCRIBERS, publishers);
    let (mut left, mut foreign) = (vec![count; publishers], Vec::new());
    let deadline = Instant::now() + Duration::from_secs(30);
    while ledger.owing() > 0 || left.iter().any(|left| *left > 0) {
        assert!(Instant::now() < deadline, "{} owing", ledger.owing());
        for (index, door) in doors.iter_mut().enumerate() {
            if left[index] > 0 && !door.is_busy() {
                left[index] -= 1;
                door.publish(ledger.publish(index, Instant::now())).unwrap();
            }
        }
        let mut hear = |subscriber, number, at| ledger.receive(subscriber, number, at).map(drop);
        swarm.turn(Duration::from_millis(100), &mut hear, &mut foreign).unwrap();
        for Token(token) in foreign.drain(..) {
            doors[token - FOREIGN].hear().unwrap();
        }
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
