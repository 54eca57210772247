//! The stock JavaScript SDK against the real gateway: the stories are told in `tests/sdk/scenarios`
//! and named as the tests here. A story asks for what a client cannot do, and gets it done: server
//! publications, signed webhooks and tokens, cut connections, restarts.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use testkit::proxy::{Link, Proxy};

use crate::support::app::{self, Backend, TestApp, on_both, token_by};
use crate::support::client::Request;
use crate::support::process::{self, Gateway, Home};
use crate::support::script::Script;

/// No story takes longer.
const DEADLINE: Duration = Duration::from_secs(60);

const CHANNELS: &str = r#"
[client]
expired_close_delay = "1s"
expired_sub_close_delay = "1s"
history_max_publication_limit = 8
recovery_max_publication_limit = 50

[[channel.namespaces]]
name = "news"
history_size = 100
history_ttl = "5m"
force_recovery = true
allow_subscribe_for_client = true
allow_publish_for_subscriber = true
allow_history_for_client = true

[[channel.namespaces]]
name = "brief"
history_size = 2
history_ttl = "5m"
force_recovery = true
allow_subscribe_for_client = true
allow_history_for_client = true

[[channel.namespaces]]
name = "diff"
history_size = 100
history_ttl = "5m"
force_recovery = true
allowed_delta_types = ["fossil"]
delta_publish = true
allow_subscribe_for_client = true

[[channel.namespaces]]
name = "room"
presence = true
join_leave = true
allow_subscribe_for_client = true
allow_presence_for_client = true

[[channel.namespaces]]
name = "lobby"
join_leave = true
force_push_join_leave = true
allow_subscribe_for_client = true

[[channel.namespaces]]
name = "vault"
presence = true
history_size = 100
history_ttl = "5m"
force_recovery = true
allow_presence_for_subscriber = true
"#;

/// The Python SDK, which knows WebSocket alone.
const PYTHON: &str = "python";

/// What the SDKs' own tests run against, as far as it exists (protocol §15.1).
const INSECURE: &str = r#"
client.insecure = true

[channel.without_namespace]
presence = true
history_size = 100
history_ttl = "300s"
force_recovery = true

[[channel.namespaces]]
name = "recovery"
history_size = 100
history_ttl = "300s"
force_recovery = true
allow_subscribe_for_client = true
allow_publish_for_subscriber = true

[[channel.namespaces]]
name = "smallhistory"
history_size = 2
history_ttl = "300s"
force_recovery = true
allow_subscribe_for_client = true
allow_publish_for_subscriber = true
"#;

/// `news` of [`CHANNELS`], as the environment says it.
const NEWS: &str = r#"[{ "name": "news", "history_size": 100, "history_ttl": "5m", "force_recovery": true,
    "allow_subscribe_for_client": true }]"#;

/// What the clients talk to.
enum Server<'h> {
    Inside(Box<TestApp>),
    Process(&'h Home, Option<Box<Gateway>>),
}

impl Server<'_> {
    fn address(&self) -> SocketAddr {
        match self {
            Self::Inside(app) => app.address(),
            Self::Process(_, gateway) => gateway.as_ref().expect("it runs").address,
        }
    }

    /// Secret of tokens, and key of the server API.
    fn secrets(&self) -> (&'static str, &'static str) {
        match self {
            Self::Inside(_) => (app::JWT_SECRET, app::API_KEY),
            Self::Process(..) => (process::JWT_SECRET, process::API_KEY),
        }
    }

    /// Publishes `{ n }` for each number, with `text` if there is one; gives the position of the last.
    async fn publish(&self, channel: &str, numbers: impl Iterator<Item = u64>, text: &Value) -> Value {
        let mut last = Value::Null;
        for n in numbers {
            let data = if text.is_null() { json!({ "n": n }) } else { json!({ "n": n, "text": text }) };
            let body = json!({ "channel": channel, "data": data });
            let request = Request::post("/api/publish").header("X-API-Key", self.secrets().1).json(&body);
            last = request.send(self.address()).await.expect(200).json()["result"].take();
            assert!(last.is_object(), "{channel} takes no event");
        }
        last
    }

    /// Stops and starts again on the same data: gracefully, and the process by `SIGKILL`.
    async fn restart(&mut self) {
        match self {
            Self::Inside(app) => app.restart().await,
            Self::Process(home, gateway) => {
                gateway.take().expect("it runs").kill9().await;
                *gateway = Some(Box::new(Gateway::start(home).await));
            }
        }
    }
}

/// Plays a scenario to its good end.
async fn play(mut server: Server<'_>, transport: &str, scenario: &str) {
    let proxy = Proxy::to(server.address()).await.expect("a proxy");
    let stage = json!({
        "proxy": proxy.address.to_string(), "direct": server.address().to_string(), "transport": transport,
    });
    let script = match transport {
        PYTHON => Script::start_python(scenario, &stage),
        _ => Script::start(scenario, &stage),
    };
    script.play(DEADLINE, async |request| perform(&request, &mut server, &proxy).await).await;
    // While the proxy still runs, so that the server hears that its clients are gone.
    if let Server::Inside(app) = &mut server {
        app.stop().await;
    }
}

/// Does what a scenario asks for.
async fn perform(request: &Value, server: &mut Server<'_>, proxy: &Proxy) -> Value {
    let number = |name: &str| request[name].as_u64().unwrap_or_else(|| panic!("no {name}: {request}"));
    match request["ask"].as_str().expect("a word") {
        "token" => return json!(token_by(server.secrets().0, &request["claims"])),
        "publish" => {
            let channel = request["channel"].as_str().expect("a channel");
            return server.publish(channel, number("from")..=number("to"), &request["text"]).await;
        }
        "webhooks" => {
            let Server::Inside(app) = server else { panic!("no webhooks there") };
            app.post_runs(number("from")..=number("to")).await;
        }
        "cut" => proxy.set(Link::Refused),
        "cut_after" => proxy.cut_after(u32::try_from(number("bytes")).expect("a few bytes")),
        "silence" => proxy.set(Link::Stalled),
        "mend" => proxy.set(Link::Open),
        "restart" => {
            server.restart().await;
            proxy.lead_to(server.address());
        }
        other => panic!("nobody can {other}"),
    }
    Value::Null
}

async fn on_gateway(backend: Backend, config: &str, transport: &str, scenario: &str) {
    play(Server::Inside(Box::new(TestApp::with(backend, config).await)), transport, scenario).await;
}

/// Makes two tests of each scenario over WebSocket, where the database matters.
macro_rules! scenarios {
    ($($name:ident),+ $(,)?) => {
        $(async fn $name(backend: Backend) {
            on_gateway(backend, CHANNELS, "websocket", stringify!($name)).await;
        })+
        on_both!($($name),+);
    };
}

/// Makes a test of each scenario over one transport, where the database does not matter.
macro_rules! on_sqlite {
    ($config:ident, $transport:expr; $($name:ident),+ $(,)?) => {
        $(#[tokio::test] async fn $name() {
            on_gateway(Backend::Sqlite, $config, $transport, stringify!($name)).await;
        })+
    };
}

/// The one table of what every transport does. Those that `on_both` lists are played on both databases
/// over WebSocket; all but the last two lists are told in Python too.
macro_rules! over_all_transports {
    ($($name:ident),+; on_both: $($other:ident),+; not_in_python: $($own:ident),+; on_both: $($last:ident),+) => {
        scenarios!($($other),+, $($last),+);
        on_sqlite!(CHANNELS, "websocket"; $($name),+, $($own),+);
        on_sqlite!(INSECURE, "websocket"; without_tokens_everything_that_is_on_is_open);
        mod http_stream {
            use super::*;
            on_sqlite!(CHANNELS, "http_stream"; $($name),+, $($other),+, $($own),+, $($last),+);
            on_sqlite!(INSECURE, "http_stream"; without_tokens_everything_that_is_on_is_open);
        }
        mod sse {
            use super::*;
            on_sqlite!(CHANNELS, "sse"; $($name),+, $($other),+, $($own),+, $($last),+);
            on_sqlite!(INSECURE, "sse"; without_tokens_everything_that_is_on_is_open);
        }
        mod python {
            use super::*;
            on_sqlite!(CHANNELS, PYTHON; $($name),+, $($other),+);
            on_sqlite!(INSECURE, PYTHON; without_tokens_everything_that_is_on_is_open);
        }
    };
}

over_all_transports!(
    a_client_connects,
    two_subscriptions_share_a_connection,
    presence_is_exact,
    joins_and_leaves_are_told,
    calls_need_a_backend,
    unsubscribing_may_race_connecting,
    a_connection_outlives_its_token,
    a_connection_that_is_not_renewed_ends,
    an_expired_token_is_replaced,
    who_gets_no_token_stays_out,
    a_wrong_token_is_the_end,
    a_token_opens_one_channel,
    a_subscription_outlives_its_token;
    on_both: publications_arrive,
    history_comes_in_pages,
    publications_survive_a_cut,
    differences_come_out_whole,
    a_returning_client_outlives_restarts,
    who_missed_too_much_is_told,
    who_unsubscribes_can_come_back,
    state_and_stream_fit_together,
    the_server_subscribes_and_recovers;
    not_in_python: a_subscription_that_is_not_renewed_ends,
    a_subscription_is_not_renewed_for_another_channel;
    on_both: webhooks_survive_a_cut
);

on_sqlite!(CHANNELS, "websocket"; a_message_that_is_too_long_is_the_end);

#[tokio::test]
async fn blocked_transports_are_passed_over() {
    let off = |sections: &[&str]| {
        let sections = sections.iter().map(|name| format!("[{name}]\nenabled = false\n"));
        format!("{CHANNELS}\n{}", sections.collect::<String>())
    };
    for (blocked, transport) in [
        (&[][..], "websocket"),
        (&["websocket"][..], "http_stream"),
        (&["websocket", "http_stream"][..], "sse"),
    ] {
        on_gateway(Backend::Sqlite, &off(blocked), transport, "blocked_transports_are_passed_over").await;
    }
}

#[tokio::test]
async fn a_silent_network_is_noticed() {
    let pings = "[client]\nping_interval = \"1s\"\npong_timeout = \"900ms\"";
    let config = CHANNELS.replacen("[client]", pings, 1);
    on_gateway(Backend::Sqlite, &config, "websocket", "a_silent_network_is_noticed").await;
}

async fn on_process(home: Home) {
    let home = home.with("CAMPANILE_CHANNEL__NAMESPACES", NEWS);
    let gateway = Gateway::start(&home).await;
    play(Server::Process(&home, Some(Box::new(gateway))), "websocket", "a_returning_client_outlives_crashes")
        .await;
}

#[test]
fn a_returning_client_outlives_crashes_on_sqlite() {
    process::on_sqlite(on_process);
}

#[test]
fn a_returning_client_outlives_crashes_on_postgres() {
    process::on_postgres(on_process);
}
