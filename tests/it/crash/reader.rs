//! A reader of `org:acme` that comes back with its cursor, whatever became of the server: it must
//! see every offset once and in order.

use std::net::SocketAddr;
use std::time::Duration;

use testkit::http::{self, RequestBuilder as _};
use testkit::sse::Events;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::support::process::token;

/// How long an event may take.
const PATIENCE: Duration = Duration::from_secs(20);
const PATH: &str = "/api/events/stream?channels=org:acme";

/// What the reader has seen, over all its connections.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    pub cursor: Option<String>,
    /// The run ids in the order of their offsets, which begin at 1.
    pub runs: Vec<u64>,
    /// The last stream said that the server goes away, and ended properly.
    pub closed: bool,
}

pub struct Reader {
    reading: JoinHandle<Seen>,
    offset: watch::Receiver<u64>,
}

impl Reader {
    /// Opens the stream where the reader was before; from then on nothing may be missed.
    pub async fn start(address: SocketAddr, seen: Seen) -> Self {
        let request = http::get(PATH).bearer(&token());
        let request =
            seen.cursor.iter().fold(request, |request, cursor| request.header("Last-Event-ID", cursor));
        let stream = http::open(address, request.with("")).await.expect("the stream opens");
        assert_eq!(stream.status(), 200);
        let (sender, offset) = watch::channel(seen.runs.len() as u64);
        Self { reading: tokio::spawn(read(Events::of(stream), seen, sender)), offset }
    }

    /// Waits until the reader has seen everything up to `head`.
    pub async fn reach(&mut self, head: u64) {
        let reached = self.offset.wait_for(|offset| *offset >= head).await.map(|offset| *offset);
        assert_eq!(reached.ok(), Some(head), "the reader gets to the head and no further");
    }

    /// Waits for the end of the stream.
    pub async fn ended(self) -> Seen {
        self.reading.await.expect("the reader does not panic")
    }
}

async fn read(mut events: Events, mut seen: Seen, progress: watch::Sender<u64>) -> Seen {
    seen.closed = false;
    let mut said_goodbye = false;
    loop {
        let next = timeout(PATIENCE, events.next()).await.expect("an event in time");
        let frame = match next {
            Ok(Some(frame)) => frame,
            Ok(None) => {
                seen.closed = said_goodbye;
                return seen;
            }
            Err(_) => return seen,
        };
        let (id, data) = (frame.id.clone().unwrap_or_default(), frame.data.clone().unwrap_or_default());
        match frame.event.as_deref().unwrap_or_default() {
            "stream:closing" => said_goodbye = true,
            "stream:reset" | "stream:expired" => panic!("the server promised otherwise: {frame:?}"),
            // The opening frame has no event; it says where the stream begins.
            "" => drop(seen.cursor.get_or_insert(id)),
            _ => {
                let offset = seen.runs.len() as u64 + 1;
                let (epoch, expected) = (seen.cursor.as_deref().unwrap_or_default(), offset.to_string());
                let same = epoch.rsplit_once('.').map(|(epoch, _)| format!("{epoch}.{expected}"));
                assert_eq!(Some(&id), same.as_ref(), "the next offset of the same epoch");
                let data: serde_json::Value = serde_json::from_str(&data).expect("data is JSON");
                seen.runs.push(data["data"]["runId"].as_u64().expect("a run id"));
                seen.cursor = Some(id);
                progress.send_replace(offset);
            }
        }
    }
}
