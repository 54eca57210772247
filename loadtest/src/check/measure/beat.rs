//! A pulse through the cluster: every few milliseconds an event by one of the nodes in turn, and one
//! client at each node that notes when it comes. Beside the publishers and subscribers of the case.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::json;
use tokio::task::AbortHandle;
use tokio::time::{MissedTickBehavior, interval};

use super::{CHANNEL, NAMESPACE};
use crate::check::world::World;
use crate::http::Connection;
use crate::target::Target;
use crate::token;
use crate::ws::wire::Wire;

/// Between two events.
const BEAT: Duration = Duration::from_millis(40);

/// One event.
#[derive(Debug, Clone)]
pub struct Pulse {
    /// The node that took it.
    pub node: usize,
    /// When it was sent to it.
    pub sent: Instant,
    /// When it answered 200, if it did.
    pub taken: Option<Instant>,
    /// By node: when its client had it.
    pub heard: Vec<Option<Instant>>,
}

/// All that happened.
#[derive(Debug, Default)]
pub struct Book {
    /// Events in their order.
    pub pulses: Vec<Pulse>,
    /// Clients that were cut off: when, and in what words.
    pub cuts: Vec<(Instant, String)>,
}

/// It beats until it is dropped.
pub struct Heart {
    book: Arc<Mutex<Book>>,
    tasks: Vec<AbortHandle>,
}

impl Heart {
    /// Starts it, when a client is at each node.
    pub async fn start(world: &World) -> Result<Self> {
        let nodes: Vec<Target> = world.nodes.iter().map(|node| node.target()).collect();
        let (book, mut tasks) = (Arc::new(Mutex::new(Book::default())), Vec::new());
        for (number, node) in nodes.iter().cloned().enumerate() {
            let token = token::mint_for(&world.secrets.jwt, &format!("heart-{number}"), None);
            let channel = format!("{NAMESPACE}:{CHANNEL}");
            let wire = Wire::open(&node, &token, &channel).await.context("the heart's client")?;
            let book = book.clone();
            tasks.push(tokio::spawn(listen(number, wire, book)).abort_handle());
        }
        let key = world.secrets.api_key.clone();
        for number in 0..nodes.len() {
            let way = (number, nodes.clone(), key.clone());
            tasks.push(tokio::spawn(beat(way, book.clone())).abort_handle());
        }
        Ok(Self { book, tasks })
    }

    /// What has happened until now.
    pub fn book(&self) -> MutexGuard<'_, Book> {
        lock(&self.book)
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

/// Each node is published to by a task of its own, so that none waits for another.
async fn beat((node, nodes, key): (usize, Vec<Target>, String), book: Arc<Mutex<Book>>) {
    let (mut connection, mut answer) = (Connection::to(&nodes[node]), Vec::new());
    let mut ticks = interval(BEAT * nodes.len() as u32);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let number = {
            let mut book = lock(&book);
            let heard = vec![None; nodes.len()];
            book.pulses.push(Pulse { node, sent: Instant::now(), taken: None, heard });
            book.pulses.len() - 1
        };
        let body =
            json!({ "channel": format!("{NAMESPACE}:{CHANNEL}"), "data": { "pulse": number } }).to_string();
        let request = format!(
            "POST /api/publish HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {key}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let status = connection.exchange(request.as_bytes(), &mut answer).await;
        // The server API answers 200 to what failed as well, and says so in words.
        if matches!(status, Ok(200)) && answer.starts_with(b"{\"result\"") {
            lock(&book).pulses[number].taken = Some(Instant::now());
        }
    }
}

async fn listen(node: usize, mut wire: Wire, book: Arc<Mutex<Book>>) {
    loop {
        match wire.next().await {
            Ok(messages) => {
                let now = Instant::now();
                for message in messages {
                    let number = message["push"]["pub"]["data"]["pulse"].as_u64();
                    if let Some(number) = number
                        && let Some(pulse) = lock(&book).pulses.get_mut(number as usize)
                    {
                        pulse.heard[node].get_or_insert(now);
                    }
                }
            }
            Err(error) => {
                lock(&book).cuts.push((Instant::now(), format!("{error:#}")));
                return;
            }
        }
    }
}

fn lock(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().expect("nobody panics with the book in hand")
}
