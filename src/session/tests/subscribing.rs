//! Subscriptions by command: who may, with which flags, and what a returning client is sent.

use serde_json::{Value, json};

use super::support::*;
use crate::protocol::presence::info_of;
use crate::session::effect::{Joined, Replay, Since};
use crate::session::{ConnectionOptions, effect::Join};

fn sub_token(claims: Value) -> String {
    let mut all = json!({"sub": "42", "channel": "chat:a"});
    for (name, value) in claims.as_object().expect("claims") {
        all[name] = value.clone();
    }
    token(all)
}

/// The code that a subscribe of user 42 is refused with: below 3000 an error, else a disconnect.
fn refused(fields: Value) -> u64 {
    let mut client = Client::ana();
    client.send("subscribe", fields.clone());
    if client.connection.is_closed() {
        return client.closed().into();
    }
    let story = client.story();
    assert_eq!(story.len(), 2, "{fields}: {story:?}");
    error(&serde_json::from_str(&story[0]).unwrap_or_else(|_| panic!("{fields}: {story:?}")))
}

#[test]
fn what_is_not_a_subscription_says_why() {
    let long = format!("chat:{}", "x".repeat(251));
    for (fields, code) in [
        (json!({"channel": ""}), 3501),
        (json!({"channel": long}), 107),
        (json!({"channel": "chat:ä"}), 107),
        (json!({"channel": "repo:acme"}), 107),
        (json!({"channel": "$repo:acme/api"}), 107),
        (json!({"channel": "nope:a"}), 102),
        (json!({"channel": "news"}), 103),
        (json!({"channel": "#43"}), 103),
        (json!({"channel": "shut:a"}), 103),
        (json!({"channel": "$chat:a"}), 103),
        (json!({"channel": "repo:acme/api"}), 103),
        (json!({"channel": "chat:a", "type": 1}), 103),
        (json!({"channel": "chat:a", "tf": {"op": "and"}}), 107),
        (json!({"channel": "chat:a", "delta": "zip"}), 3501),
        (json!({"channel": "chat:a", "token": "nonsense"}), 103),
        (json!({"channel": "chat:a", "token": forged()}), 103),
        (json!({"channel": "chat:a", "token": sub_token(json!({"exp": NOW}))}), 109),
        (json!({"channel": "chat:a", "token": sub_token(json!({"nbf": NOW + 1}))}), 109),
        (json!({"channel": "chat:b", "token": sub_token(json!({}))}), 3500),
        (json!({"channel": "chat:a", "token": sub_token(json!({"sub": "43"}))}), 3500),
        (json!({"channel": "chat:a", "token": sub_token(json!({"sub": ""}))}), 3500),
        (json!({"channel": "chat:a", "token": sub_token(json!({"client": "another"}))}), 3500),
    ] {
        assert_eq!(refused(fields.clone()), code, "{fields}");
    }
}

#[test]
fn a_channel_is_subscribed_to_once() {
    let mut client = Client::ana();
    assert_eq!(client.subscribe("chat:a"), json!({}));
    assert_eq!(error(&client.ask("subscribe", json!({"channel": "chat:a"}))), 105);

    let mut client = Client::new();
    client.send("connect", json!({"token": token(json!({"sub": "42", "channels": ["chat:a"]}))}));
    client.joined("chat:a", unkept()).take();
    assert_eq!(error(&client.ask("subscribe", json!({"channel": "chat:a"}))), 105);
    assert_eq!(client.ask("unsubscribe", json!({"channel": "chat:b"})), json!({"unsubscribe": {}}));
    client.unsubscribe("chat:a");
    assert_eq!(client.subscribe("chat:a"), json!({}));
}

#[test]
fn ten_thousand_subscribes_make_as_many_subscriptions_as_the_limit() {
    let mut client = Client::ana();
    for number in 0..10_000 {
        let name = format!("chat:{number}");
        if number < 128 {
            client.subscribe(&name);
        } else {
            assert_eq!(error(&client.ask("subscribe", json!({"channel": name}))), 106);
        }
    }
    client.unsubscribe("chat:77");
    client.subscribe("chat:another");
}

#[test]
fn a_token_admits_where_the_rule_does_not_and_says_more() {
    let claims = json!({
        "sub": "42", "channel": "shut:a", "client": CLIENT, "exp": NOW + 90, "info": {"seat": 1}, "data": {"x": [1]},
        "override": {"presence": {"value": true}, "join_leave": {"value": true}},
    });
    let mut client = Client::connected(json!({"sub": "42", "info": "Ana"}));
    let (join, reply) = client.subscribe_with("shut:a", json!({"token": token(claims)}), unkept());
    assert_eq!(reply, json!({"expires": true, "ttl": 90, "data": {"x": [1]}}));
    let info = format!(r#"{{"user":"42","client":"{CLIENT}","conn_info":"Ana","chan_info":{{"seat":1}}}}"#);
    let seen = join.presence_info.unwrap();
    assert_eq!((&*info_of(&seen), seen.listed, seen.announced), (info.as_str(), true, true));
    for name in ["$chat:a", "repo:acme/api", "org:acme"] {
        let sub_token = token(json!({"sub": "42", "channel": name}));
        let (_, reply) = client.subscribe_with(name, json!({"token": sub_token}), unkept());
        assert_eq!(reply, json!({}), "{name}");
    }
}

#[test]
fn namespaces_and_requested_flags_decide_the_subscription_flags() {
    type Flags = fn(&Join) -> (bool, bool, bool);
    let ours: Flags = |join| {
        let seen = join.presence_info.as_ref();
        (
            seen.is_some_and(|seen| seen.listed),
            seen.is_some_and(|seen| seen.announced),
            join.receives_join_leave,
        )
    };
    for (name, requested, (recoverable, positioned), social) in [
        ("chat:a", json!({"recoverable": true, "positioned": true}), (false, false), (false, false, false)),
        ("kept:a", json!({}), (true, true), (false, false, false)),
        ("watched:a", json!({}), (false, true), (false, false, false)),
        ("ask:a", json!({}), (false, false), (false, false, false)),
        ("ask:a", json!({"positioned": true}), (false, true), (false, false, false)),
        ("ask:a", json!({"recoverable": true}), (true, true), (false, false, false)),
        ("read:a", json!({"recoverable": true}), (true, true), (false, false, false)),
        ("silent:a", json!({"recoverable": true, "positioned": true}), (false, false), (false, false, false)),
        ("repo:acme/api", json!({}), (true, true), (false, false, false)),
        ("lobby:a", json!({}), (false, false), (true, true, false)),
        ("lobby:a", json!({"join_leave": true}), (false, false), (true, true, true)),
        ("loud:a", json!({}), (false, false), (false, true, true)),
        ("chat:a", json!({"join_leave": true}), (false, false), (false, false, false)),
    ] {
        let mut client = Client::connected(json!({"sub": "42", "orgs": ["acme"]}));
        let kept =
            if ["chat", "lobby", "loud"].iter().any(|ns| name.starts_with(ns)) { unkept() } else { fresh() };
        let (join, reply) = client.subscribe_with(name, requested.clone(), kept);
        let found = (reply["recoverable"] == true, reply["positioned"] == true);
        assert_eq!(found, (recoverable, positioned), "{name} {requested}");
        assert_eq!(reply.get("offset").is_some(), positioned, "{name} {requested}: {reply}");
        assert_eq!((join.positioned, ours(&join)), (positioned, social), "{name} {requested}");
    }
}

#[test]
fn recovery_is_asked_of_the_log_only_where_it_can_be_had() {
    let wish = json!({"recover": true, "epoch": "e1", "offset": 3});
    for (name, asked) in [("kept:a", true), ("watched:a", false), ("chat:a", false), ("ask:a", false)] {
        let (join, reply) = Client::ana().subscribe_with(name, wish.clone(), fresh());
        assert_eq!((join.recover.is_some(), join.recoverable), (true, asked), "{name}");
        assert!(reply.get("was_recovering").is_none(), "{name}");
    }
    let (join, _) = Client::ana().subscribe_with("kept:a", json!({"recover": true}), fresh());
    assert_eq!(join.recover, Some(Since { epoch: String::new(), offset: 0 }));
    let (join, _) = Client::ana().subscribe_with("kept:a", json!({"epoch": "e1", "offset": 3}), fresh());
    assert_eq!(join.recover, None);
}

/// What a client at offset 3 of `e1` is told and where it goes live.
fn returning(joined: Joined, flag: i64) -> Vec<String> {
    let mut client = Client::ana();
    let fields = json!({"channel": "kept:a", "recover": true, "epoch": "e1", "offset": 3, "flag": flag});
    client.send("subscribe", fields).take();
    client.joined("kept:a", Some(joined));
    client.story()
}

#[test]
fn a_returning_client_is_told_what_it_missed_or_that_it_cannot_be_told() {
    let replied = |offset, rest: &str| {
        let place = format!(r#""recoverable":true,"positioned":true,"epoch":"e1","offset":{offset}"#);
        format!(r#"{{"id":2,"subscribe":{{{place},{rest}}}}}"#)
    };
    let recovered = r#""recovered":true,"was_recovering":true"#;
    let missed = r#""publications":[{"data":{"n":4},"offset":4},{"data":{"n":5},"offset":5}]"#;
    let replay = format!("replay {}", replied(3, &format!("{recovered},{missed}")));
    let refused = r#"{"id":2,"error":{"code":112,"message":"unrecoverable position"}}"#.to_owned();
    let live = |offset| format!("live kept:a e1.{offset}");
    let found = |missed: Vec<_>, head| Joined {
        position: Some(position(head)),
        replay: Replay::Found(position(3), missed),
    };
    let lost = Joined { position: Some(position(5)), replay: Replay::Lost };
    for (joined, flag, expected) in [
        (found(vec![event(4), event(5)], 5), 1, [replay, live(5)]),
        (found(vec![], 3), 0, [replied(3, recovered), live(3)]),
        (lost.clone(), 1, [replied(5, r#""was_recovering":true"#), live(5)]),
        (found(vec![], 3), 2, [replied(3, recovered), live(3)]),
        (lost, 3, ["leave kept:a".to_owned(), refused]),
    ] {
        let story = returning(joined, flag);
        assert_eq!(story[..2], expected);
        assert_eq!(story[2..], ["handled"]);
    }
}

#[test]
fn a_lost_position_with_the_flag_leaves_no_subscription() {
    let mut client = Client::ana();
    client.send("subscribe", json!({"channel": "kept:a", "recover": true, "flag": 2}));
    client.joined("kept:a", Some(Joined { position: Some(position(5)), replay: Replay::Lost })).take();
    client.subscribe("kept:a");
}

#[test]
fn a_channel_that_cannot_be_followed_now_is_worth_another_try() {
    let mut client = Client::ana();
    client.send("subscribe", json!({"channel": "chat:a"})).take();
    client.joined("chat:a", None);
    let story = client.story();
    let expected = r#"{"id":2,"error":{"code":100,"message":"internal server error","temporary":true}}"#;
    assert_eq!(story, [expected, "handled"]);
    client.subscribe("chat:a");
}

#[test]
fn a_subscription_goes_live_where_it_joined_even_if_it_is_not_told() {
    let mut client = Client::ana();
    client.send("subscribe", json!({"channel": "silent:a"})).take();
    client.joined("silent:a", fresh());
    assert_eq!(client.story(), [r#"{"id":2,"subscribe":{}}"#, "live silent:a e1.5", "handled"]);
}

#[test]
fn lost_events_end_a_positioned_subscription_and_no_other() {
    let mut client = Client::ana();
    client.subscribe("kept:a");
    client.subscribe_with("chat:b", json!({}), unkept());
    client.lost("chat:b").lost("chat:never");
    assert!(client.take().is_empty());
    client.lost("kept:a").lost("kept:a");
    let push = r#"{"push":{"channel":"kept:a","unsubscribe":{"code":2500,"reason":"insufficient state"}}}"#;
    assert_eq!(client.story(), ["leave kept:a", push]);
    client.subscribe("kept:a");

    let mut client = Client::new();
    client.send("connect", json!({"token": token(json!({"channels": ["kept:a"]}))}));
    client.joined("kept:a", fresh()).take();
    assert_eq!(client.lost("kept:a").closed(), 3010);
}

#[test]
fn events_lost_before_a_subscription_began_end_it_at_once() {
    let mut client = Client::ana();
    client.send("subscribe", json!({"channel": "kept:a"})).take();
    client.lost("kept:a").joined("kept:a", fresh());
    let story = client.story();
    assert!(story[0].contains("subscribe") && story[3].contains("2500"), "{story:?}");
    assert_eq!([&story[1], &story[2], &story[4]], ["live kept:a e1.5", "leave kept:a", "handled"]);
}

#[test]
fn insecure_opens_configured_namespaces_and_nothing_built_in() {
    let mut client = Client::with(ConnectionOptions { insecure: true, ..ConnectionOptions::default() });
    client.ask("connect", json!({}));
    client.subscribe_with("shut:a", json!({}), unkept());
    assert_eq!(error(&client.ask("subscribe", json!({"channel": "repo:acme/api"}))), 103);
    assert_eq!(error(&client.ask("subscribe", json!({"channel": "#42"}))), 103);
}

#[test]
fn who_watches_no_order_loses_nothing() {
    let mut client = Client::ana();
    client.send("subscribe", json!({"channel": "chat:a"})).take();
    client.lost("chat:a").joined("chat:a", unkept());
    assert_eq!(client.story()[1..], ["live chat:a", "handled"]);
}
