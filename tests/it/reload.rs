//! SIGHUP to the real binary: keys, namespaces and retention change, connections go on, and a mistake changes
//! nothing.

use serde_json::{Value, json};
use testkit::process::Signal;

use crate::support::client::{Answer, DEADLINE, Request};
use crate::support::issuer::{Pair, key_set};
use crate::support::process::{API_KEY, Gateway, Home, on_sqlite};
use crate::support::websocket::Client;

const RELOADED: &str = "keys, namespaces and retention were reloaded";
const REFUSED: &str = "the reload failed";

fn namespace(name: &str, more: &str) -> String {
    format!(
        "[[channel.namespaces]]\nname = \"{name}\"\nallow_subscribe_for_client = true\n\
         allow_publish_for_client = true\n{more}\n"
    )
}

fn with_key(pair: &Pair) -> String {
    format!("[client.token]\ned25519_public_key = '''\n{}'''\n", pair.public)
}

/// Sends the signal and waits for what the log says to it; gives the new lines.
async fn hang_up(gateway: &Gateway, home: &Home, expected: &str) -> String {
    let before = home.log().len();
    gateway.signal(Signal::HUP).expect("it runs");
    let said = async {
        loop {
            let said = home.log()[before..].to_owned();
            if said.contains(RELOADED) || said.contains(REFUSED) {
                return said;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let said = tokio::time::timeout(DEADLINE, said).await.expect("the log says what came of it");
    assert!(said.contains(expected), "{said}");
    said
}

async fn publish(gateway: &Gateway, channel: &str, data: u32) -> Answer {
    let body = json!({ "channel": channel, "data": data });
    let request = Request::post("/api/publish").header("X-API-Key", API_KEY).json(&body);
    request.send(gateway.address).await.expect(200)
}

async fn connect(gateway: &Gateway, token: &str) -> Client {
    let mut client = Client::open(gateway.address).await;
    client.connect(token).await;
    client
}

fn user(name: &str) -> Value {
    json!({ "sub": name })
}

fn subscribe(channel: &str) -> Value {
    json!({ "subscribe": { "channel": channel } })
}

#[test]
fn keys_and_namespaces_change_under_connections_that_go_on() {
    on_sqlite(async |home| {
        let (old, new) = (Pair::ed(""), Pair::ed(""));
        home.configure(&(with_key(&old) + &namespace("chat", "")));
        let gateway = Gateway::start(&home).await;
        let mut ana = connect(&gateway, &old.token(&user("ana"))).await;
        ana.subscribe("chat:x").await;
        assert_eq!(ana.error(subscribe("news:x")).await, 102);
        publish(&gateway, "chat:x", 1).await;
        assert_eq!(ana.push().await["pub"]["data"], 1);

        let limits = "[client]\nchannel_limit = 2\n[http_api]\nkey = \"one that does not count\"\n";
        home.configure(&(limits.to_owned() + &with_key(&new) + &namespace("news", "")));
        let said = hang_up(&gateway, &home, RELOADED).await;
        assert!(
            said.contains("option=\"client.channel_limit\"")
                && said.contains("takes effect at the next start"),
            "{said}"
        );
        assert!(!said.contains("option=\"client.token"), "{said}");
        assert_eq!(ana.error(subscribe("chat:y")).await, 102, "it is no longer declared");
        ana.subscribe("news:x").await;
        let publish_to = |channel: &str| json!({ "publish": { "channel": channel, "data": 1 } });
        assert_eq!(ana.error(publish_to("chat:x")).await, 102);
        publish(&gateway, "news:x", 2).await;
        assert_eq!(ana.push().await["pub"]["data"], 2);

        let mut ben = connect(&gateway, &new.token(&user("ben"))).await;
        ben.subscribe("news:x").await;
        let mut late = Client::open(gateway.address).await;
        late.command(json!({ "connect": { "token": old.token(&user("ana")) } })).await;
        assert_eq!(late.closed_with().await, 3500, "the old key is gone");
        let poll = |token: String| Request::get("/api/events?channel=news:x").bearer(&token);
        poll(old.token(&user("ana"))).send(gateway.address).await.refused(401, "token_invalid");
        poll(new.token(&user("ben"))).send(gateway.address).await.refused(404, "not_available");
        ana.is_quiet().await;
    });
}

#[test]
fn a_mistake_changes_nothing_and_is_said_with_its_place() {
    on_sqlite(async |home| {
        let (old, new) = (Pair::ed("old"), Pair::ed("new"));
        let file = home.data().with_file_name("jwks.json");
        std::fs::write(&file, key_set(&[&old])).expect("written");
        let good = "[client.token]\njwks_file = \"jwks.json\"\n".to_owned() + &namespace("chat", "");
        home.configure(&good);
        let gateway = Gateway::start(&home).await;
        let mut ana = connect(&gateway, &old.token(&user("ana"))).await;
        ana.subscribe("chat:x").await;

        let pem = "ed25519_public_key = \"-----BEGIN PRIVATE KEY-----\\nhunter2\"";
        let mistakes = [
            ("[client", "campanile.toml:1: this is not TOML"),
            ("[client]\nchanel_limit = 3", "campanile.toml:2: client.chanel_limit: there is no such option"),
            (
                &*format!("[client.token]\n{pem}"),
                "campanile.toml:2: client.token.ed25519_public_key: this is a private key",
            ),
            (
                "[client.token]\njwks_file = \"nowhere.json\"",
                "client.token.jwks_file: nowhere.json: the key set cannot be read",
            ),
            ("[[channel.namespaces]]\nname = \"repo\"", "channel.namespaces[0].name"),
        ];
        for (config, wrong) in mistakes {
            home.configure(config);
            let said = hang_up(&gateway, &home, REFUSED).await;
            assert!(said.contains(wrong) && !said.contains("hunter2"), "{wrong}\n{said}");
            ana.subscribe(&format!("chat:{}", wrong.len())).await;
        }
        home.configure(&good);
        std::fs::write(&file, "{}").expect("written");
        let said = hang_up(&gateway, &home, REFUSED).await;
        assert!(said.contains("client.token.jwks_file: jwks.json: this is not a JSON Web Key Set"), "{said}");
        connect(&gateway, &old.token(&user("ana"))).await;

        std::fs::write(&file, key_set(&[&new])).expect("written");
        hang_up(&gateway, &home, RELOADED).await;
        connect(&gateway, &new.token(&user("ana"))).await;
        let mut late = Client::open(gateway.address).await;
        late.command(json!({ "connect": { "token": old.token(&user("ana")) } })).await;
        assert_eq!(late.closed_with().await, 3500);
        ana.is_quiet().await;
    });
}

#[test]
fn a_history_that_is_turned_on_and_off_loses_no_subscriber() {
    on_sqlite(async |home| {
        let pair = Pair::ed("");
        let kept = "history_size = 100\nhistory_ttl = \"1h\"\nforce_recovery = true\n";
        let config = |more: &str| with_key(&pair) + &namespace("chat", more);
        home.configure(&config(""));
        let gateway = Gateway::start(&home).await;
        let mut before = connect(&gateway, &pair.token(&user("ana"))).await;
        assert_eq!(before.subscribe("chat:x").await["recoverable"], Value::Null);
        publish(&gateway, "chat:x", 1).await;

        home.configure(&config(kept));
        hang_up(&gateway, &home, RELOADED).await;
        publish(&gateway, "chat:x", 2).await;
        let mut after = connect(&gateway, &pair.token(&user("ben"))).await;
        let joined = after.subscribe("chat:x").await;
        assert_eq!((&joined["recoverable"], &joined["offset"]), (&json!(true), &json!(1)));
        publish(&gateway, "chat:x", 3).await;
        assert_eq!(after.push().await["pub"]["offset"], 2);

        home.configure(&config(""));
        hang_up(&gateway, &home, RELOADED).await;
        publish(&gateway, "chat:x", 4).await;
        let mut last = connect(&gateway, &pair.token(&user("eve"))).await;
        assert_eq!(last.subscribe("chat:x").await["recoverable"], Value::Null);
        publish(&gateway, "chat:x", 5).await;
        let clients = [(&mut before, 1), (&mut after, 4), (&mut last, 5)];
        for (client, first) in clients {
            for data in first..=5 {
                assert_eq!(client.push().await["pub"]["data"], data);
            }
            client.is_quiet().await;
        }
    });
}

#[test]
fn a_signed_in_browser_gets_tokens_by_the_rules_of_now() {
    on_sqlite(async |home| {
        let gateway = Gateway::start(&home).await;
        let own = gateway.address.to_string();
        let from_page =
            |request: Request| request.header("Host", &own).header("Origin", &format!("http://{own}"));
        let link = Request::post("/api/auth/links").header("X-API-Key", API_KEY).send(gateway.address).await;
        let link = link.expect(201).json()["link"].as_str().expect("a link").to_owned();
        let secret = json!({ "secret": link.split_once('#').expect("a secret").1 });
        let sign_in = from_page(Request::post("/api/auth/sign-in").json(&secret));
        let answer = sign_in.send(gateway.address).await.expect(204);
        let cookie = answer.header("set-cookie").and_then(|set| set.split(';').next()).expect("a cookie");
        let handed = async || {
            let request = from_page(Request::post("/api/auth/token")).header("Cookie", cookie);
            let answer = request.send(gateway.address).await.expect(200).json();
            answer["token"].as_str().expect("a token").to_owned()
        };
        let me = Request::get("/api/auth/me");
        let before = handed().await;
        me.clone().bearer(&before).send(gateway.address).await.expect(200);

        home.configure("[client.token]\naudience = \"us\"\n");
        hang_up(&gateway, &home, RELOADED).await;
        me.clone().bearer(&before).send(gateway.address).await.refused(401, "token_invalid");
        me.clone().bearer(&handed().await).send(gateway.address).await.expect(200);
    });
}

#[test]
fn retention_changes_in_both_directions_while_it_is_used() {
    on_sqlite(async |home| {
        let pair = Pair::ed("");
        let config = |events: u32| with_key(&pair) + &format!("[retention]\nbuild_events = {events}\n");
        home.configure(&config(1000));
        let gateway = Gateway::start(&home).await;
        let ana = pair.token(&user("ana"));
        let build = "0195d3a0-0000-4000-8000-000000000001";
        for step in 1..=5 {
            let event = json!({ "type": "build:step", "data": { "step": step } });
            let post = Request::post(&format!("/api/builds/{build}/events")).bearer(&ana).json(&event);
            post.send(gateway.address).await.expect(201);
        }
        let address = gateway.address;
        let poll = async |query: &str| {
            let path = format!("/api/build-events/{build}?{query}");
            Request::get(&path).bearer(&ana).send(address).await
        };
        let first = poll("limit=1").await.expect(200).json();
        let behind_first = format!("cursor={}", first["cursor"].as_str().expect("a cursor"));
        let steps = async |query: &str| {
            let page = poll(query).await.expect(200).json();
            page["events"].as_array().expect("a list").len()
        };
        assert_eq!((steps("").await, steps(&behind_first).await), (5, 4));

        home.configure(&config(2));
        let said = hang_up(&gateway, &home, RELOADED).await;
        assert!(!said.contains("takes effect at the next start"), "{said}");
        assert_eq!(steps("").await, 2);
        poll(&behind_first).await.refused(410, "cursor_lost");

        home.configure(&config(1000));
        hang_up(&gateway, &home, RELOADED).await;
        assert_eq!(steps("").await, 5, "the janitor has not come yet");
    });
}

#[test]
fn addresses_in_the_log_are_as_long_as_the_operator_wants_them() {
    on_sqlite(async |home| {
        let gateway = Gateway::start(&home).await;
        let forged = Request::post("/webhooks/github")
            .header("X-GitHub-Event", "star")
            .header("X-Hub-Signature-256", &format!("sha256={}", "0".repeat(64)))
            .body("{}");
        let line = async |delivery: &str| {
            let request = forged.clone().header("X-GitHub-Delivery", delivery);
            request.send(gateway.address).await.refused(401, "signature_invalid");
            home.log_line(delivery).await
        };
        let short = line("first-delivery").await;
        assert!(short.contains("127.0.0.0/24") && !short.contains("127.0.0.1"), "{short}");
        for (how, shown, never) in [("full", "127.0.0.1", "/24"), ("none", "signature", "127.0.0")] {
            home.configure(&format!("[telemetry]\nlog_addresses = \"{how}\"\n"));
            hang_up(&gateway, &home, RELOADED).await;
            let line = line(&format!("{how}-delivery")).await;
            assert!(line.contains(shown) && !line.contains(never), "{line}");
        }
    });
}
