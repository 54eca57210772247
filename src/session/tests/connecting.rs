//! The first command, tokens, and what a token brings.

use std::sync::Arc;

use serde_json::{Value, json};

use super::support::*;
use crate::limits::shared::SharedCounters;
use crate::limits::user_connections::{Capacity, Confirm, UserConnections};
use crate::protocol::presence::info_of;
use crate::session::effect::{Effect, Joined, Outcome, Replay, Since};
use crate::session::{ConnectionOptions, effect::Join};

fn insecure() -> ConnectionOptions {
    ConnectionOptions { insecure: true, ..ConnectionOptions::default() }
}

fn without_token() -> ConnectionOptions {
    ConnectionOptions { allow_anonymous_connect_without_token: true, ..ConnectionOptions::default() }
}

#[test]
fn a_connect_is_answered_with_all_that_a_client_needs() {
    let mut client = Client::new();
    let reply =
        client.ask("connect", json!({"token": token(json!({"sub": "42", "exp": NOW + 60})), "name": "js"}));
    let expected = json!({
        "client": CLIENT, "version": env!("CARGO_PKG_VERSION"), "ping": 25, "pong": true,
        "expires": true, "ttl": 60, "time": NOW * 1000,
    });
    assert_eq!(reply["connect"], expected);
    assert_eq!((client.connection.user(), client.connection.id()), ("42", ID));
}

#[test]
fn a_token_decides_whether_there_is_a_connection() {
    let expired = token(json!({"sub": "42", "exp": NOW}));
    let early = token(json!({"sub": "42", "nbf": NOW + 1}));
    for (options, given, outcome) in [
        (ConnectionOptions::default(), json!({}), 3501),
        (ConnectionOptions::default(), json!({"token": ""}), 3501),
        (ConnectionOptions::default(), json!({"token": "nonsense"}), 3500),
        (ConnectionOptions::default(), json!({"token": forged()}), 3500),
        (ConnectionOptions::default(), json!({"token": token(json!({"sub": 42}))}), 3500),
        (ConnectionOptions::default(), json!({"token": token(json!({"channel": "chat:a"}))}), 3500),
        (ConnectionOptions::default(), json!({"token": expired}), 109),
        (ConnectionOptions::default(), json!({"token": early}), 109),
        (ConnectionOptions::default(), json!({"token": token(json!({}))}), 0),
        (without_token(), json!({}), 0),
        (without_token(), json!({"token": forged()}), 3500),
        (without_token(), json!({"token": expired}), 109),
        (insecure(), json!({}), 0),
        (insecure(), json!({"token": expired}), 0),
        (insecure(), json!({"token": forged()}), 3500),
    ] {
        let mut client = Client::with(options);
        let found = if outcome >= 3000 {
            client.ask_closing("connect", given.clone()).into()
        } else {
            let reply = client.ask("connect", given.clone());
            if outcome == 0 { reply["error"]["code"].as_u64().unwrap_or(0) } else { error(&reply) }
        };
        assert_eq!(found, outcome, "{given}");
    }
}

#[test]
fn an_insecure_connection_does_not_expire() {
    let mut client = Client::with(insecure());
    let reply = client.ask("connect", json!({"token": token(json!({"sub": "42", "exp": NOW + 1}))}));
    assert_eq!((&reply["connect"]["expires"], client.connection.user()), (&Value::Null, "42"));
}

#[test]
fn the_first_command_is_a_connect_and_no_other_is() {
    for frame in [
        "",
        "\n",
        "no",
        "{}",
        r#"{"id":1,"ping":{}}"#,
        r#"{"id":1,"subscribe":{"channel":"chat:a"}}"#,
        r#"{"id":1,"refresh":{"token":"x"}}"#,
        r#"{"send":{}}"#,
        r#"{"id":0,"connect":{}}"#,
    ] {
        assert_eq!(Client::new().frame(frame).closed(), 3501, "{frame:?}");
        assert_eq!(Client::with(insecure()).frame(frame).closed(), 3501, "{frame:?}");
    }
    assert_eq!(Client::ana().ask_closing("connect", json!({"token": token(json!({}))})), 3501);
    assert_eq!(Client::ana().frame("").closed(), 3501);
    assert_eq!(Client::ana().frame("{\"id\":5}").closed(), 3501);
    assert_eq!(Client::ana().frame(r#"{"id":5,"subscribe":{"channel":""}}"#).closed(), 3501);
}

#[test]
fn after_a_failed_connect_the_frame_is_dropped_and_nothing_else_is_heard() {
    let expired = token(json!({"exp": NOW}));
    let connect = json!({"id": 1, "connect": {"token": expired}});
    let subscribe = json!({"id": 2, "subscribe": {"channel": "chat:a"}});
    let mut client = Client::new();
    client.frame(&format!("{connect}\n{subscribe}\nno"));
    let story = client.story();
    assert!(story.len() == 2 && story[0].contains("109") && story[1] == "handled", "{story:?}");
    assert_eq!(client.connection.user(), "");
    assert_eq!(client.frame("{}").closed(), 3501);

    let mut silent = Client::new();
    silent.frame(&connect.to_string()).take();
    assert_eq!(silent.due_in(), Some(10.0));
    assert_eq!(silent.wait(10.0).closed(), 3502);
}

#[test]
fn who_says_nothing_is_stale() {
    let mut client = Client::new();
    assert!(client.wait(9.9).take().is_empty());
    assert_eq!(client.wait(0.1).closed(), 3502);
}

#[test]
fn a_user_has_so_many_connections_and_a_closed_one_counts_no_more() {
    let context = context(ConnectionOptions::default());
    let connect = || {
        let mut client = Client::of(context.clone());
        client.send("connect", json!({"token": token(json!({"sub": "42"}))}));
        client
    };
    let (mut first, _second) = (connect(), connect());
    assert_eq!(connect().closed(), 3504);
    first.take();
    first.frame("no").closed();
    assert!(!connect().connection.is_closed());
    for _ in 0..5 {
        Client::of(context.clone()).connect(json!({}));
    }
}

#[test]
fn where_other_nodes_count_a_connect_waits_for_its_place() {
    let nobody = tokio::sync::watch::channel(Vec::new()).1;
    let confirm: Confirm = Arc::new(|_, _| panic!("nobody is asked here"));
    let (users, _) = UserConnections::shared(2, SharedCounters::none(), nobody, confirm);
    let context = context_with(users.clone(), ConnectionOptions::default());
    let connect = || {
        let mut client = Client::of(context.clone());
        client.send("connect", json!({"token": token(json!({"sub": "42", "channels": ["kept:a"]}))}));
        client.send("ping", json!({}));
        assert_eq!((client.story(), client.due_in()), (vec!["claim".to_owned()], None));
        client
    };
    let mut client = connect();
    assert_eq!(client.outcome(Outcome::Claimed(Capacity::Available)).story(), ["join kept:a"]);
    assert!(client.joined("kept:a", fresh()).story()[0].contains("\"connect\""));
    for (capacity, code) in [(Capacity::Exceeded, 3504), (Capacity::Unknown, 3013)] {
        assert_eq!(connect().outcome(Outcome::Claimed(capacity)).closed(), code);
        assert_eq!(users.count("42"), 1, "it counts no more");
    }
    let waiting = connect();
    let mut third = Client::of(context.clone());
    third.send("connect", json!({"token": token(json!({"sub": "42"}))}));
    assert_eq!(third.closed(), 3504, "those that wait are counted here");
    drop(waiting);
    let mut anonymous = Client::of(context);
    anonymous.send("connect", json!({"token": token(json!({}))}));
    assert!(anonymous.connection.is_open(), "nobody is not counted");
}

#[test]
fn a_connect_refused_after_all_does_not_count() {
    let context = context(ConnectionOptions::default());
    let connect = |claims| {
        let mut client = Client::of(context.clone());
        client.send("connect", json!({"token": token(claims)}));
        client
    };
    let mut failed: Vec<_> = (0..3).map(|_| connect(json!({"sub": "42", "channels": ["kept:a"]}))).collect();
    assert_eq!(failed.pop().map(|mut third| third.closed()), Some(3504));
    for client in &mut failed {
        client.joined("kept:a", None);
        assert!(!client.connection.is_closed());
    }
    assert!(!connect(json!({"sub": "42"})).connection.is_closed());
}

fn server_side(claims: Value, request: Value) -> (Client, Vec<Join>) {
    let mut client = Client::new();
    let mut fields = request;
    fields["token"] = json!(token(claims));
    client.send("connect", fields);
    let joins = client.take().into_iter().map(|effect| match effect {
        Effect::Join(join) => join,
        other => panic!("{other:?}"),
    });
    let joins = joins.collect();
    (client, joins)
}

#[test]
fn all_subscriptions_of_the_token_begin_before_the_reply() {
    let claims = json!({
        "sub": "42", "info": {"name": "Ana"}, "channels": ["kept:a", "chat:b", "#42"],
        "subs": {"lobby:c": {"info": {"seat": 1}, "data": {"x": 1}, "override": {"join_leave": {"value": false}}}},
    });
    let (mut client, joins) = server_side(claims, json!({}));
    let names: Vec<_> = joins.iter().map(|join| join.channel.as_str()).collect();
    assert_eq!(names, ["#42", "chat:b", "kept:a", "lobby:c"]);
    let info = format!(
        r#"{{"user":"42","client":"{CLIENT}","conn_info":{{"name":"Ana"}},"chan_info":{{"seat":1}}}}"#
    );
    let seen = joins[3].presence_info.as_ref().unwrap();
    assert_eq!((&*info_of(seen), seen.listed, seen.announced), (info.as_str(), true, false));
    client.joined("kept:a", fresh()).joined("lobby:c", unkept()).joined("chat:b", unkept());
    assert!(client.take().is_empty());
    client.frame("{}").joined("#42", unkept());
    let effects = client.take();
    let Effect::Send(reply) = &effects[0] else { panic!("{effects:?}") };
    let expected = json!({
        "#42": {}, "chat:b": {}, "lobby:c": {"data": {"x": 1}},
        "kept:a": {"recoverable": true, "positioned": true, "epoch": "e1", "offset": 5},
    });
    assert_eq!(client.reply(reply)["connect"]["subs"], expected);
    let rest: Vec<_> = effects[1..].iter().map(short).collect();
    assert_eq!(rest, ["live #42", "live chat:b", "live kept:a e1.5", "live lobby:c", "handled", "handled"]);
}

#[test]
fn a_returning_client_recovers_what_its_token_brings_and_nothing_else() {
    let subs = json!({
        "kept:a": {"recover": true, "epoch": "e1", "offset": 3},
        "kept:b": {"recover": false, "epoch": "e1", "offset": 3},
        "chat:c": {"recover": true, "epoch": "e1", "offset": 3},
        "kept:not-mine": {"recover": true, "offset": 3},
    });
    let claims = json!({"sub": "42", "channels": ["kept:a", "kept:b", "chat:c", "repo:acme/api"]});
    let (mut client, joins) = server_side(claims, json!({"subs": subs}));
    let recover: Vec<_> = joins.iter().map(|join| join.recover.clone()).collect();
    let since = Some(Since { epoch: "e1".into(), offset: 3 });
    assert_eq!(recover, [since.clone(), since, None, None]);
    assert!(!joins[0].recoverable && joins[1].recoverable, "one in vain");
    let found =
        Joined { position: Some(position(5)), replay: Replay::Found(position(3), vec![event(4), event(5)]) };
    client.joined("kept:a", Some(found)).joined("kept:b", fresh()).joined("chat:c", unkept());
    client.joined("repo:acme/api", fresh());
    let effects = client.take();
    let Effect::SendReplay(reply) = &effects[0] else { panic!("{effects:?}") };
    let expected = json!({
        "recoverable": true, "positioned": true, "epoch": "e1", "offset": 3, "recovered": true, "was_recovering": true,
        "publications": [{"data": {"n": 4}, "offset": 4}, {"data": {"n": 5}, "offset": 5}],
    });
    assert_eq!(client.reply(reply)["connect"]["subs"]["kept:a"], expected);
    let rest: Vec<_> = effects[1..].iter().map(short).collect();
    assert_eq!(
        rest,
        ["live chat:c", "live kept:a e1.5", "live kept:b e1.5", "live repo:acme/api e1.5", "handled"]
    );
}

#[test]
fn a_token_with_channels_that_cannot_be_makes_no_connection() {
    let many: Vec<_> = (0..129).map(|number| format!("chat:{number}")).collect();
    let unknown_among_many: Vec<_> = many.iter().cloned().chain(["nope:x".to_owned()]).collect();
    for (channels, outcome) in [
        (json!(["nope:x", "chat:a"]), 102),
        (json!(unknown_among_many), 102),
        (json!(many), 3505),
        (json!(["#43"]), 103),
    ] {
        let mut client = Client::new();
        let fields = json!({"token": token(json!({"sub": "42", "channels": channels}))});
        let found = if outcome > 3000 {
            client.ask_closing("connect", fields).into()
        } else {
            error(&client.ask("connect", fields))
        };
        assert_eq!(found, outcome, "{channels}");
    }
}

#[test]
fn a_returning_client_names_channels_that_can_exist() {
    for name in ["nope:x", "repo:acme", "", "chat:ä"] {
        let mut client = Client::new();
        let fields = json!({"token": token(json!({"sub": "42"})), "subs": {name: {}}});
        assert_eq!(client.ask_closing("connect", fields), 3501, "{name}");
    }
}

#[test]
fn if_one_channel_cannot_be_joined_none_is() {
    let (mut client, _) = server_side(json!({"channels": ["kept:a", "kept:b", "kept:c"]}), json!({}));
    client.joined("kept:a", fresh()).joined("kept:b", None);
    assert!(client.take().is_empty());
    client.frame("{}").joined("kept:c", fresh());
    let story = client.story();
    assert_eq!(story[..2], ["leave kept:a", "leave kept:c"]);
    assert!(story[2].contains("100") && story[2].contains("temporary"), "{story:?}");
    // What waited comes after the failure.
    assert_eq!(story[3..], ["handled", "close 3501"]);
}

#[test]
fn a_connection_that_waits_for_its_channels_is_not_stale() {
    let (mut client, _) = server_side(json!({"channels": ["kept:a"]}), json!({}));
    assert_eq!(client.due_in(), None);
    assert!(client.wait(60.0).joined("kept:a", fresh()).story()[0].contains("connect"));
}

#[test]
fn events_lost_before_the_reply_are_not_lost_in_silence() {
    let (mut client, _) = server_side(json!({"channels": ["kept:a", "chat:b"]}), json!({}));
    client.joined("kept:a", fresh()).lost("kept:a").joined("chat:b", unkept());
    assert_eq!(client.closed(), 3010);
    let (mut client, _) = server_side(json!({"channels": ["chat:b"]}), json!({}));
    client.lost("chat:b").joined("chat:b", unkept());
    assert!(!client.connection.is_closed());
}

#[test]
fn a_connect_that_fails_late_drops_the_rest_of_its_frame_too() {
    let mut client = Client::new();
    let connect = json!({"id": 1, "connect": {"token": token(json!({"channels": ["kept:a"]}))}});
    client.frame(&format!("{connect}\n{}", r#"{"id":2,"ping":{}}"#)).take();
    client.joined("kept:a", None);
    let story = client.story();
    assert!(story.len() == 2 && story[0].contains("100") && story[1] == "handled", "{story:?}");
}

#[test]
fn a_join_is_answered_once() {
    let (mut client, _) = server_side(json!({"channels": ["kept:a", "kept:b"]}), json!({}));
    client.joined("kept:a", fresh()).joined("kept:a", None).joined("kept:b", fresh());
    assert_eq!(client.story()[1..], ["live kept:a e1.5", "live kept:b e1.5", "handled"]);
}
