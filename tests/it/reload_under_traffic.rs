//! Options of a namespace in use change by SIGHUP, in both directions, while events keep coming: who follows
//! already hears every event once and in order, whatever the transport, and who comes later gets what the
//! options say now.

use std::net::SocketAddr;

use serde_json::{Value, json};
use testkit::process::Signal;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::support::app::stream_request;
use crate::support::client::{DEADLINE, Request};
use crate::support::process::{API_KEY, Gateway, Home, on_postgres, on_sqlite, token};
use crate::support::sse::Stream;
use crate::support::stream_client::{StreamClient, opening};
use crate::support::websocket::Client;

const CHANNEL: &str = "chat:x";
/// Events between two steps of a story.
const SOME: u64 = 20;

/// The namespace with these options, served by one worker thread.
fn with(options: &str) -> String {
    format!(
        "[server]\nworkers = 1\n[[channel.namespaces]]\nname = \"chat\"\nallow_subscribe_for_client = true\n\
         allow_history_for_subscriber = true\nallow_history_for_client = true\n{options}\n"
    )
}

const KEPT: &str = "history_size = 100000\nhistory_ttl = \"1h\"";
const RECOVERED: &str = "history_size = 100000\nhistory_ttl = \"1h\"\nforce_recovery = true";

/// Publishes 1, 2, 3 … one after the other until it is stopped.
struct Traffic {
    reached: watch::Receiver<u64>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Traffic {
    fn start(address: SocketAddr) -> Self {
        let (reach, reached) = watch::channel(0);
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            let mut next = 1;
            while !*stopped.borrow() {
                let body = json!({ "channel": CHANNEL, "data": next });
                let request = Request::post("/api/publish").header("X-API-Key", API_KEY).json(&body);
                request.send(address).await.expect(200);
                reach.send_replace(next);
                next += 1;
            }
        });
        Self { reached, stop, task }
    }

    /// Waits until some more were published.
    async fn some(&self) {
        let mut reached = self.reached.clone();
        let goal = *reached.borrow() + SOME;
        let waited = tokio::time::timeout(DEADLINE, reached.wait_for(|reached| *reached >= goal));
        waited.await.expect("events are published").expect("the task lives");
    }

    /// Stops, and gives the last number.
    async fn last(self) -> u64 {
        self.stop.send_replace(true);
        self.task.await.expect("every event was taken");
        *self.reached.borrow()
    }
}

/// Checks that each number follows the one before.
struct Sequence {
    who: &'static str,
    last: Option<u64>,
}

impl Sequence {
    fn take(&mut self, data: &Value) {
        let number = data.as_u64().unwrap_or_else(|| panic!("{data} for {}", self.who));
        if let Some(last) = self.last {
            assert_eq!(number, last + 1, "for {}", self.who);
        }
        self.last = Some(number);
    }
}

async fn reload(home: &Home, gateway: &Gateway, options: &str) {
    reload_to(home, gateway, &with(options)).await;
}

async fn connected(gateway: &Gateway) -> Client {
    let mut client = Client::open(gateway.address).await;
    client.connect(&token()).await;
    client
}

async fn histories_come_and_go(home: Home) {
    home.configure(&with(""));
    let gateway = Gateway::start(&home).await;
    let mut socket = connected(&gateway).await;
    assert_eq!(socket.subscribe(CHANNEL).await, json!({}), "nothing is kept");
    let mut sse =
        Stream::open(gateway.address, &stream_request(CHANNEL, &token(), None)).await.expect("open");
    let mut stream = StreamClient::connected(gateway.address, "http_stream", &token()).await;
    stream.subscribe(CHANNEL).await;
    let poll = format!("/api/events?channel={CHANNEL}");
    gateway.get(&poll).await.refused(404, "not_available");

    let traffic = Traffic::start(gateway.address);
    traffic.some().await;
    let mut later = Vec::new();
    for round in 0..2 {
        reload(&home, &gateway, RECOVERED).await;
        traffic.some().await;
        // On a worker thread that follows already.
        let mut returning = connected(&gateway).await;
        let begun = returning.subscribe(CHANNEL).await;
        assert_eq!((&begun["recoverable"], &begun["positioned"]), (&json!(true), &json!(true)), "{begun}");
        let (epoch, mut offset) = (begun["epoch"].clone(), begun["offset"].as_u64().unwrap_or(0));
        let mut seen = Sequence { who: "who returns", last: None };
        for _ in 0..3 {
            let publication = returning.push().await["pub"].clone();
            offset = publication["offset"].as_u64().expect("an offset");
            seen.take(&publication["data"]);
        }
        drop(returning);
        traffic.some().await;
        let mut returned = connected(&gateway).await;
        let back =
            json!({ "subscribe": { "channel": CHANNEL, "recover": true, "epoch": epoch, "offset": offset } });
        let reply = returned.ask(back).await["subscribe"].clone();
        assert_eq!(reply["recovered"], true, "{reply}");
        reply["publications"]
            .as_array()
            .expect("what it missed")
            .iter()
            .for_each(|one| seen.take(&one["data"]));
        later.push((returned, seen));
        assert!(
            !gateway.get(&poll).await.expect(200).json()["events"].as_array().expect("events").is_empty()
        );

        // Other options of the history change nothing for anybody who is there.
        reload(&home, &gateway, KEPT).await;
        traffic.some().await;
        reload(&home, &gateway, if round == 0 { "" } else { RECOVERED }).await;
        traffic.some().await;
        if round == 0 {
            let mut fresh = connected(&gateway).await;
            assert_eq!(fresh.subscribe(CHANNEL).await, json!({}), "nothing is kept any more");
            later.push((fresh, Sequence { who: "who comes after", last: None }));
            gateway.get(&poll).await.refused(404, "not_available");
        }
    }
    let last = traffic.last().await;

    later.push((socket, Sequence { who: "the first socket", last: Some(0) }));
    for (mut client, mut seen) in later {
        while seen.last != Some(last) {
            seen.take(&client.push().await["pub"]["data"]);
        }
    }
    let mut seen = Sequence { who: "the HTTP stream", last: Some(0) };
    while seen.last != Some(last) {
        seen.take(&stream.push().await["pub"]["data"]);
    }
    let mut seen = Sequence { who: "the event stream", last: Some(0) };
    while seen.last != Some(last) {
        seen.take(&sse.next_event().await.json()["data"]);
    }
}

async fn publish(gateway: &Gateway, channel: &str, data: u64) {
    let body = json!({ "channel": channel, "data": data });
    let request = Request::post("/api/publish").header("X-API-Key", API_KEY).json(&body);
    request.send(gateway.address).await.expect(200);
}

/// Nothing is published between the reload and whoever comes then.
async fn a_quiet_channel_gets_a_history(home: Home) {
    home.configure(&with(""));
    let gateway = Gateway::start(&home).await;
    let mut first = connected(&gateway).await;
    first.subscribe(CHANNEL).await;
    reload(&home, &gateway, RECOVERED).await;
    let mut second = connected(&gateway).await;
    let begun = second.subscribe(CHANNEL).await;
    assert_eq!((&begun["recoverable"], begun["epoch"].is_string()), (&json!(true), true), "{begun}");
    drop(second);
    publish(&gateway, CHANNEL, 1).await;
    publish(&gateway, CHANNEL, 2).await;
    let mut second = connected(&gateway).await;
    let back =
        json!({ "subscribe": { "channel": CHANNEL, "recover": true, "epoch": begun["epoch"], "offset": 0 } });
    let reply = second.ask(back).await["subscribe"].clone();
    let missed: Vec<_> = reply["publications"].as_array().into_iter().flatten().collect();
    assert_eq!((missed.len(), &reply["recovered"]), (2, &json!(true)), "{reply}");
    publish(&gateway, CHANNEL, 3).await;
    for number in 1..=3 {
        assert_eq!(first.push().await["pub"]["data"], number);
    }
    assert_eq!(second.push().await["pub"]["data"], 3);

    // Who was away when the history went hears that it has missed something.
    let end = reply["offset"].as_u64().map_or(0, |offset| offset + 1);
    drop(second);
    publish(&gateway, CHANNEL, 4).await;
    reload(&home, &gateway, "").await;
    let mut second = connected(&gateway).await;
    let position = json!({ "channel": CHANNEL, "recover": true, "epoch": begun["epoch"], "offset": end });
    let mut strict = position.clone();
    strict["flag"] = json!(2);
    assert_eq!(second.ask(json!({ "subscribe": strict })).await["error"]["code"], 112);
    let reply = second.ask(json!({ "subscribe": position })).await["subscribe"].clone();
    assert_eq!(reply, json!({ "was_recovering": true }), "not recovered, and no position");
    publish(&gateway, CHANNEL, 5).await;
    assert_eq!(second.push().await["pub"]["data"], 5);
}

#[test]
fn a_quiet_channel_gets_a_history_on_sqlite() {
    on_sqlite(a_quiet_channel_gets_a_history);
}

#[test]
fn a_quiet_channel_gets_a_history_on_postgres() {
    on_postgres(a_quiet_channel_gets_a_history);
}

#[test]
fn histories_come_and_go_under_traffic_on_sqlite() {
    on_sqlite(histories_come_and_go);
}

#[test]
fn histories_come_and_go_under_traffic_on_postgres() {
    on_postgres(histories_come_and_go);
}

/// The options of a namespace that keeps its events and lets everybody in, beside one that comes and goes.
const OPEN: [&str; 3] = [KEPT, "allow_subscribe_for_client = true", "allow_history_for_client = true"];
const COME_AND_GO: [&str; 23] = [
    "presence = true",
    "presence = true\njoin_leave = true",
    "presence = true\njoin_leave = true\nforce_push_join_leave = true",
    "force_positioning = true",
    "force_recovery = true",
    "force_recovery = true\nforce_recovery_mode = \"cache\"",
    "force_recovery = true\nforce_recovery_mode = \"cache\"\nauto_cache_recover = true",
    "allow_positioning = true",
    "allow_recovery = true",
    "allow_subscribe_for_anonymous = true",
    "allow_publish_for_client = true",
    "allow_publish_for_subscriber = true",
    "allow_publish_for_anonymous = true",
    "allow_history_for_subscriber = true",
    "allow_history_for_anonymous = true",
    "allow_presence_for_client = true",
    "allow_presence_for_subscriber = true",
    "allow_presence_for_anonymous = true",
    "allow_user_limited_channels = true",
    "channel_regex = \"^x$\"",
    "publication_data_format = \"json\"",
    "allowed_delta_types = [\"fossil\"]\ndelta_publish = true",
    "allow_tags_filter = true",
];

fn only(options: &[&str]) -> String {
    format!(
        "[client]\nping_interval = \"1h\"\n[[channel.namespaces]]\nname = \"chat\"\n{}\n",
        options.join("\n")
    )
}

async fn reload_to(home: &Home, gateway: &Gateway, config: &str) {
    home.configure(config);
    let before = home.log().len();
    gateway.signal(Signal::HUP).expect("it runs");
    let said = async {
        while !home.log()[before..].contains("were reloaded") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, said).await.expect("the log says that it was reloaded");
}

/// Whatever an option says, it changes for those who come, and nothing for those who are there.
async fn every_option_comes_and_goes(home: Home) {
    home.configure(&only(&OPEN));
    let gateway = Gateway::start(&home).await;
    let address = gateway.address;
    let mut socket = connected(&gateway).await;
    socket.subscribe(CHANNEL).await;
    let mut events = Stream::open(address, &stream_request(CHANNEL, &token(), None)).await.expect("open");
    let mut streams = Vec::new();
    for transport in ["http_stream", "sse"] {
        let mut stream = StreamClient::connected(address, transport, &token()).await;
        stream.subscribe(CHANNEL).await;
        streams.push((transport, stream));
    }
    for transport in ["uni_http_stream", "uni_sse"] {
        let connect = json!({ "token": token(), "subs": { CHANNEL: {} } }).to_string();
        let mut stream = StreamClient::open(address, &opening(transport, &connect)).await;
        assert!(stream.message().await["connect"]["subs"][CHANNEL].is_object());
        streams.push((transport, stream));
    }
    let traffic = Traffic::start(address);
    traffic.some().await;
    let without: Vec<String> = (1..OPEN.len())
        .map(|left_out| {
            let kept = OPEN.iter().enumerate().filter(|(place, _)| *place != left_out);
            only(&kept.map(|(_, option)| *option).collect::<Vec<_>>())
        })
        .collect();
    let with = COME_AND_GO.iter().map(|option| only(&[&OPEN[..], &[option]].concat()));
    for config in with.chain(without) {
        reload_to(&home, &gateway, &config).await;
        traffic.some().await;
        reload_to(&home, &gateway, &only(&OPEN)).await;
        traffic.some().await;
    }
    let last = traffic.last().await;
    let begun = |who| Sequence { who, last: Some(0) };

    let mut seen = begun("the socket");
    while seen.last != Some(last) {
        seen.take(&socket.push().await["pub"]["data"]);
    }
    let mut seen = begun("the event stream");
    while seen.last != Some(last) {
        seen.take(&events.next_event().await.json()["data"]);
    }
    for (transport, stream) in &mut streams {
        let mut seen = begun(transport);
        while seen.last != Some(last) {
            let message = match transport.starts_with("uni") {
                true => stream.message().await,
                false => stream.push().await,
            };
            seen.take(&message["pub"]["data"]);
        }
    }
    // And who comes now gets what the options say now.
    let mut fresh = connected(&gateway).await;
    assert_eq!(fresh.subscribe(CHANNEL).await, json!({}));
}

#[test]
fn every_option_comes_and_goes_under_traffic_on_sqlite() {
    on_sqlite(every_option_comes_and_goes);
}

#[test]
fn every_option_comes_and_goes_under_traffic_on_postgres() {
    on_postgres(every_option_comes_and_goes);
}
