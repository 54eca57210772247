//! The promise as a reader sees it: whatever breaks on the way, a cursor that was given is good on
//! the stream and on the poll alike, and with it everything arrives once and in order.

use std::net::SocketAddr;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use testkit::proxy::Proxy;

use crate::support::app::{Backend, TestApp, on_both, run_of, stream_request};
use crate::support::client::Request;
use crate::support::sse::Stream;

const EVENTS: u64 = 200;
const CHANNEL: &str = "repo:acme/api";
const OPTIONS: &str = "limits.polls_per_minute = 100000\nclient.user_connection_limit = 0";

/// A moment for a server that is not there; nothing tells when it is back.
async fn a_moment() {
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
}

/// Posts the runs in order; whatever got no 2xx is posted again under the same delivery id.
async fn deliver_all(address: SocketAddr, deliveries: Vec<Request>) {
    for delivery in deliveries {
        loop {
            match delivery.try_send(address).await.map(|answer| answer.status) {
                Some(200 | 202) => break,
                None | Some(503) => a_moment().await,
                Some(status) => panic!("a delivery got {status}"),
            }
        }
    }
}

struct Reader {
    dice: SmallRng,
    server: SocketAddr,
    proxy: Proxy,
    token: String,
    cursor: Option<String>,
    seen: Vec<u64>,
}

impl Reader {
    /// Reads in any way that the dice choose, until everything is there.
    async fn read_all(&mut self, seen: &tokio::sync::watch::Sender<u64>) {
        while (self.seen.len() as u64) < EVENTS {
            if self.cursor.is_none() || self.dice.random_bool(0.5) {
                self.stream().await;
            } else {
                self.poll().await;
            }
            seen.send_replace(self.seen.len() as u64);
        }
    }

    /// Streams through the proxy, which cuts somewhere: in a head, in a frame, in a name.
    async fn stream(&mut self) {
        self.proxy.cut_after(self.dice.random_range(0..5_000));
        let request = stream_request(CHANNEL, &self.token, self.cursor.as_deref());
        let mut stream = match Stream::try_open(self.proxy.address, &request).await {
            Some(Ok(stream)) => stream,
            None => return a_moment().await,
            Some(Err(answer)) if answer.status == 503 => return a_moment().await,
            Some(Err(answer)) => panic!("{} {}", answer.status, answer.text()),
        };
        let leave_after = self.dice.random_range(1..20);
        let mut events = 0;
        while events < leave_after && (self.seen.len() as u64) < EVENTS {
            let Some(frame) = stream.next().await else { break };
            if frame.name().starts_with("workflow:") {
                self.seen.push(frame.run());
                events += 1;
            } else {
                assert!(matches!(frame.name(), "" | "stream:closing"), "{frame:?}");
            }
            if frame.id.is_some() {
                self.cursor = frame.id;
            }
        }
    }

    /// Polls a few pages, half of the time through the proxy.
    async fn poll(&mut self) {
        for _ in 0..self.dice.random_range(1..4) {
            let through = self.dice.random_bool(0.5);
            self.proxy.cut_after(self.dice.random_range(0..5_000));
            let address = if through { self.proxy.address } else { self.server };
            let (cursor, limit) = (self.cursor.clone().unwrap_or_default(), self.dice.random_range(1..30));
            let path = format!("/api/events?channel={CHANNEL}&limit={limit}&cursor={cursor}");
            let Some(answer) = Request::get(&path).bearer(&self.token).try_send(address).await else {
                return a_moment().await;
            };
            if answer.status == 503 {
                return a_moment().await;
            }
            let page = answer.expect(200).json();
            let events = page["events"].as_array().expect("events").iter();
            self.seen.extend(events.map(|event| event["data"]["runId"].as_u64().expect("a run")));
            self.cursor = page["cursor"].as_str().map(str::to_owned);
        }
    }
}

async fn everything_arrives_once_and_in_order(backend: Backend, seed: u64) {
    let mut app = TestApp::with(backend, OPTIONS).await;
    let mut reader = Reader {
        dice: SmallRng::seed_from_u64(seed),
        server: app.address(),
        proxy: Proxy::to(app.address()).await.expect("a proxy"),
        token: app.ana(),
        cursor: None,
        seen: Vec::new(),
    };
    // The first cursor, before there is anything.
    let first = app.poll(&format!("channel={CHANNEL}"), &app.ana()).await;
    reader.cursor = first["cursor"].as_str().map(str::to_owned);
    let runs = (1..=EVENTS).map(|run| app.webhook("workflow_run", run_of("acme/api", run).to_string()));
    let (publishing, seen) = (deliver_all(app.address(), runs.collect()), tokio::sync::watch::Sender::new(0));
    let restarting = async {
        let mut seen = seen.subscribe();
        for part in [EVENTS / 4, EVENTS / 2, 3 * EVENTS / 4] {
            seen.wait_for(|seen| *seen >= part).await.expect("the reader goes on");
            app.restart().await;
        }
    };
    tokio::join!(publishing, reader.read_all(&seen), restarting);
    assert_eq!(reader.seen, (1..=EVENTS).collect::<Vec<_>>(), "seed {seed}");
}

async fn a_reader_that_changes_transports_sees_everything_once_1(backend: Backend) {
    everything_arrives_once_and_in_order(backend, 1).await;
}

async fn a_reader_that_changes_transports_sees_everything_once_2(backend: Backend) {
    everything_arrives_once_and_in_order(backend, 2).await;
}

async fn a_reader_that_changes_transports_sees_everything_once_3(backend: Backend) {
    everything_arrives_once_and_in_order(backend, 3).await;
}

on_both!(
    a_reader_that_changes_transports_sees_everything_once_1,
    a_reader_that_changes_transports_sees_everything_once_2,
    a_reader_that_changes_transports_sees_everything_once_3,
);
