//! Unidirectional clients: one connect, pushes without an envelope, and every error closes the
//! connection. Also what a client is sent whose commands come by emulation requests.

use serde_json::{Value, json};

use super::support::*;
use crate::domain::access::ResourceInfo;
use crate::session::effect::{Effect, LookedUp, Replay};
use crate::session::{Connection, ConnectionOptions, SessionMode};

const BUILD: &str = "build:0195d3a0-1111-7000-8000-000000000001";

fn unidirectional() -> Client {
    let mut client = Client::new();
    let silent = Connection::new(context(ConnectionOptions::default()), ID, client.now, 1.0);
    client.connection = silent.with_mode(SessionMode { uni: true, session: "s1".into(), node: "".into() });
    client
}

fn connect(claims: Value, more: Value) -> String {
    let mut connect = more;
    connect["token"] = token(claims).into();
    connect.to_string()
}

#[test]
fn the_first_push_says_what_a_reply_would() {
    let mut client = unidirectional();
    let story = client.frame(&connect(json!({"sub": "42"}), json!({}))).story();
    let version = env!("CARGO_PKG_VERSION");
    let time = NOW * 1000;
    assert_eq!(
        story,
        [
            format!(
                r#"{{"connect":{{"client":"{CLIENT}","version":"{version}","ping":25,"session":"s1","time":{time}}}}}"#
            ),
            "handled".to_owned(),
        ]
    );
}

#[test]
fn whoever_posts_is_told_where_to() {
    let mut client = Client::new();
    let silent = Connection::new(context(ConnectionOptions::default()), ID, client.now, 1.0);
    client.connection = silent.with_mode(SessionMode { uni: false, session: "s1".into(), node: "n1".into() });
    let connected = client.ask("connect", json!({"token": token(json!({}))}))["connect"].take();
    assert_eq!((&connected["session"], &connected["node"]), (&json!("s1"), &json!("n1")));
    assert_eq!(connected["pong"], true);
    assert_eq!(error(&client.ask("rpc", json!({"method": "x"}))), 108);
}

#[test]
fn a_listener_is_pinged_and_owes_no_pong() {
    let mut client = unidirectional();
    client.frame(&connect(json!({"sub": "42"}), json!({}))).take();
    assert_eq!(client.wait(25.0).story(), ["{}"]);
    assert_eq!(client.due_in(), Some(25.0));
    assert_eq!(client.wait(25.0).story(), ["{}"]);
}

#[test]
fn a_listener_is_heard_once() {
    let mut client = unidirectional();
    client.frame(&connect(json!({"sub": "42"}), json!({}))).take();
    for frame in ["garbage", "", "{}", r#"{"id":2,"subscribe":{"channel":"chat:x"}}"#] {
        assert_eq!(client.frame(frame).story(), ["handled"], "{frame}");
    }
}

#[test]
fn every_error_is_an_end() {
    let ends: [(String, u16); 7] = [
        ("garbage".into(), 3501),
        (String::new(), 3501),
        ("[]".into(), 3501),
        ("{}".into(), 3501),
        (json!({"token": forged()}).to_string(), 3500),
        // 109
        (connect(json!({"sub": "42", "exp": NOW}), json!({})), 3005),
        // 102
        (connect(json!({"sub": "42", "channels": ["nowhere:x"]}), json!({})), 3004),
    ];
    for (frame, code) in ends {
        assert_eq!(unidirectional().frame(&frame).closed(), code, "{frame}");
    }
    let unknown = json!({"subs": {"nowhere:x": {}}});
    assert_eq!(unidirectional().frame(&connect(json!({}), unknown)).closed(), 3501);
    assert_eq!(unidirectional().wait(10.0).closed(), 3502);
    let mut denied = unidirectional();
    denied.frame(&connect(json!({"sub": "42", "channels": [BUILD]}), json!({}))).take();
    assert_eq!(denied.looked_up(BUILD, LookedUp::Found(ResourceInfo::Unknown)).closed(), 3507);
}

#[test]
fn it_is_subscribed_to_what_it_asks_for_and_may_have() {
    let mut client = unidirectional();
    let asked = json!({"subs": {"chat:x": {}, "kept:x": {"recover": true, "epoch": "e1", "offset": 3},
        "shut:x": {}, "repo:acme/api": {}}});
    let claims = json!({"sub": "42", "channels": ["lobby:x"]});
    let joins = client.frame(&connect(claims, asked)).take();
    let joined: Vec<String> = joins.iter().map(short).collect();
    assert_eq!(joined, ["join lobby:x", "join chat:x", "join kept:x"]);
    let [_, _, Effect::Join(kept)] = joins.as_slice() else { panic!("{joined:?}") };
    assert_eq!(kept.recover.as_ref().map(|since| since.offset), Some(3));
    client.joined("lobby:x", unkept()).joined("chat:x", unkept());
    let mut missed = fresh();
    if let Some(joined) = &mut missed {
        joined.replay = Replay::Found(position(3), vec![event(4), event(5)]);
    }
    client.joined("kept:x", missed);
    let story = client.story();
    let said: Value =
        serde_json::from_str(story[0].strip_prefix("replay ").expect("a replay")).expect("JSON");
    let subs = &said["connect"]["subs"];
    assert_eq!(subs["chat:x"], json!({}));
    assert_eq!(subs["lobby:x"], json!({}));
    assert_eq!(subs["kept:x"]["recovered"], true);
    assert_eq!(subs["kept:x"]["publications"][1], json!({"data": {"n": 5}, "offset": 5}));
    assert_eq!(story[1..], ["live lobby:x", "live chat:x", "live kept:x e1.5", "handled"]);
    // A loss cannot be told otherwise.
    assert_eq!(client.lost("kept:x").closed(), 3010);
}

#[test]
fn what_stands_behind_a_channel_is_looked_up_first() {
    let asked = json!({"subs": {BUILD: {}}});
    let mut client = unidirectional();
    assert_eq!(
        client.frame(&connect(json!({"sub": "42"}), asked.clone())).story(),
        [format!("look up {BUILD}")]
    );
    assert_eq!(client.is_build_of(BUILD, "42").story(), [format!("join {BUILD}")]);
    let mut other = unidirectional();
    other.frame(&connect(json!({"sub": "43"}), asked.clone())).take();
    let story = other.looked_up(BUILD, LookedUp::Found(ResourceInfo::Unknown)).story();
    assert!(story[0].starts_with(r#"{"connect":"#) && !story[0].contains("subs"), "{story:?}");
    let mut unlucky = unidirectional();
    unlucky.frame(&connect(json!({"sub": "42"}), asked)).take();
    assert_eq!(unlucky.looked_up(BUILD, LookedUp::Unavailable).closed(), 3004);
}

#[test]
fn it_may_not_ask_for_more_than_a_connection_may_have() {
    let options = ConnectionOptions { channel_limit: 2, ..ConnectionOptions::default() };
    let mut client = unidirectional();
    client.connection = Connection::new(context(options), ID, client.now, 1.0)
        .with_mode(SessionMode { uni: true, ..SessionMode::default() });
    let asked = json!({"subs": {"chat:1": {}, "chat:2": {}, "shut:3": {}}});
    assert_eq!(client.frame(&connect(json!({"sub": "42"}), asked)).closed(), 3505);
}
