//! A client that checks whatever it gets: nothing of a channel before its subscribe reply or after
//! its unsubscribe reply, no gap, no repeat, in order, across connections too. What it saw is
//! compared with the log in the end.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use socket2::SockRef;
use tokio::time::timeout;

use crate::support::websocket::{Client, Received};

pub const CHANNELS: usize = 5;

pub fn channel(at: usize) -> String {
    format!("rush:{at}")
}

/// What a command waits for.
#[derive(Debug)]
enum Asked {
    /// From this offset, or from now on.
    Subscribe(usize, Option<u64>),
    Unsubscribe(usize),
}

/// One channel, as far as the client knows it.
#[derive(Debug, Default)]
struct Place {
    /// Its subscription is confirmed.
    live: bool,
    /// It was asked for last, answered or not.
    wanted: bool,
    epoch: Option<String>,
    offset: Option<u64>,
    seen: Vec<(u64, Value)>,
}

pub struct Watcher {
    address: SocketAddr,
    token: String,
    client: Option<Client>,
    places: [Place; CHANNELS],
    asked: HashMap<u64, Asked>,
    /// How often it came back with a position.
    pub returns: u64,
}

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let places = self.places.iter().map(|place| (place.live, place.wanted, place.offset));
        f.debug_list().entries(places).finish()
    }
}

impl Watcher {
    pub fn new(address: SocketAddr, token: String) -> Self {
        let (places, asked) = (Default::default(), HashMap::new());
        Self { address, token, client: None, places, asked, returns: 0 }
    }

    async fn client(&mut self) -> &mut Client {
        if self.client.is_none() {
            let mut client = Client::open(self.address).await;
            // Its answer comes with the others.
            client.command(json!({ "connect": { "token": self.token } })).await;
            self.client = Some(client);
        }
        self.client.as_mut().expect("just opened")
    }

    /// The connection ends, politely or not; what was under way is lost.
    pub fn drop_socket(&mut self) {
        self.client = None;
        self.asked.clear();
        for place in &mut self.places {
            (place.live, place.wanted) = (false, false);
        }
    }

    pub fn reset_socket(&mut self) {
        if let Some(client) = &self.client {
            let _ = SockRef::from(&client.stream).set_linger(Some(Duration::ZERO));
        }
        self.drop_socket();
    }

    /// Subscribes, behind the last event that was seen if there is one.
    pub async fn subscribe(&mut self, at: usize) {
        let place = &mut self.places[at];
        if std::mem::replace(&mut place.wanted, true) {
            return;
        }
        let from = place.offset;
        let mut wish = json!({ "channel": channel(at) });
        if let Some(offset) = from {
            wish["recover"] = true.into();
            wish["epoch"] = place.epoch.clone().into();
            wish["offset"] = offset.into();
        }
        let id = self.client().await.command(json!({ "subscribe": wish })).await;
        self.asked.insert(id, Asked::Subscribe(at, from));
    }

    pub async fn unsubscribe(&mut self, at: usize) {
        if std::mem::replace(&mut self.places[at].wanted, false) {
            let command = json!({ "unsubscribe": { "channel": channel(at) } });
            let id = self.client().await.command(command).await;
            self.asked.insert(id, Asked::Unsubscribe(at));
        }
    }

    /// Leaves and comes back in one breath: what was seen last is where it goes on, although more
    /// is on its way.
    pub async fn turn_round(&mut self, at: usize) {
        self.unsubscribe(at).await;
        self.subscribe(at).await;
    }

    /// Comes back as if it had never been there.
    pub async fn begin_anew(&mut self, at: usize) {
        self.unsubscribe(at).await;
        // Whatever is still under way belongs to the old place.
        self.settle().await;
        self.places[at].offset = None;
        self.subscribe(at).await;
    }

    /// Reads until everything asked is answered.
    async fn settle(&mut self) {
        while !self.asked.is_empty() {
            self.read_one().await;
        }
    }

    /// Reads whatever comes in this time.
    pub async fn read_for(&mut self, time: Duration) {
        let _ = timeout(time, async {
            while self.client.is_some() {
                self.read_one().await;
            }
        })
        .await;
    }

    /// Follows every channel until each is at its head.
    pub async fn catch_up(&mut self, heads: &[u64]) {
        for at in 0..CHANNELS {
            self.subscribe(at).await;
        }
        self.settle().await;
        while self.places.iter().zip(heads).any(|(place, head)| place.offset != Some(*head)) {
            self.read_one().await;
        }
        self.client.as_mut().expect("it follows channels").is_quiet().await;
    }

    async fn read_one(&mut self) {
        let Some(client) = &mut self.client else { panic!("nothing is asked without a connection") };
        match client.next().await {
            Received::Message(message) if message["push"].is_object() => self.push(&message["push"]),
            Received::Message(message) if message["connect"].is_object() => {}
            Received::Message(message) => self.reply(&message),
            other => panic!("{other:?}: {self:?}"),
        }
    }

    fn push(&mut self, push: &Value) {
        let name = push["channel"].as_str().expect("a channel");
        let at = (0..CHANNELS).find(|at| channel(*at) == name).expect("a channel of ours");
        let place = &mut self.places[at];
        assert!(place.live, "{push} outside of a subscription");
        place.take(&push["pub"]);
    }

    fn reply(&mut self, reply: &Value) {
        let id = reply["id"].as_u64().expect("an id");
        match self.asked.remove(&id) {
            Some(Asked::Subscribe(at, from)) => {
                let (place, result) = (&mut self.places[at], &reply["subscribe"]);
                assert!(result["positioned"] == true && !place.live, "{reply}");
                let epoch = result["epoch"].as_str().expect("an epoch").to_owned();
                assert!(place.epoch.as_ref().is_none_or(|known| *known == epoch), "{reply}");
                let missed = result["publications"].as_array();
                if let Some(from) = from {
                    assert_eq!((&result["recovered"], result["offset"].as_u64()), (&json!(true), Some(from)));
                    self.returns += 1;
                } else {
                    assert!(missed.is_none(), "{reply}");
                }
                // What came between the command and the end of the old subscription comes again.
                place.offset = Some(result["offset"].as_u64().unwrap_or_default());
                (place.live, place.epoch) = (true, Some(epoch));
                missed.into_iter().flatten().for_each(|event| place.take(event));
            }
            Some(Asked::Unsubscribe(at)) => {
                assert_eq!(reply["unsubscribe"], json!({}));
                self.places[at].live = false;
            }
            None => panic!("{reply} answers nothing"),
        }
    }

    /// Compares everything seen with the logs; answers how much that was.
    pub fn check(&self, logs: &[Vec<(u64, String)>]) -> u64 {
        let mut seen = 0;
        for (place, log) in self.places.iter().zip(logs) {
            for (offset, data) in &place.seen {
                let (stored, text) = &log[*offset as usize - 1];
                assert_eq!(stored, offset, "the log has no hole");
                assert_eq!(*data, serde_json::from_str::<Value>(text).expect("JSON"));
                seen += 1;
            }
        }
        seen
    }
}

impl Place {
    fn take(&mut self, publication: &Value) {
        let offset = publication["offset"].as_u64().expect("an offset");
        assert_eq!(Some(offset - 1), self.offset, "{publication} does not follow");
        self.offset = Some(offset);
        self.seen.push((offset, publication["data"].clone()));
    }
}
