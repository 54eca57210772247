//! Commands that are asked once and answered once.

use serde_json::{Value, json};

use super::support::*;
use crate::session::ConnectionOptions;
use uuid::Uuid;

use crate::domain::presence::Member;
use crate::session::effect::{Effect, Outcome, Published, ReadHistory, Since, Stored};

/// Of a command whose effect is under way: what is said when it ends.
fn answer(client: &mut Client, outcome: Outcome) -> Value {
    let effects = client.outcome(outcome).take();
    match effects.as_slice() {
        [Effect::Send(text), Effect::Handled(_)] => client.reply(text),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_subscriber_publishes_and_is_named_on_the_event() {
    let mut client = Client::connected(json!({"sub": "42", "info": {"name": "Ana"}}));
    let claims = json!({"sub": "42", "channel": "chat:a", "info": 7});
    client.subscribe_with("chat:a", json!({"token": token(claims)}), unkept());
    client.frame("{\"id\":3,\"publish\":{\"channel\":\"chat:a\",\"data\":{\"x\":\r1}}}");
    let effects = client.take();
    let [Effect::Publish(event)] = effects.as_slice() else { panic!("{effects:?}") };
    assert_eq!((event.channel.as_str(), &*event.kind, &*event.data), ("chat:a", "message", r#"{"x":1}"#));
    let info = format!(r#"{{"user":"42","client":"{CLIENT}","conn_info":{{"name":"Ana"}},"chan_info":7}}"#);
    assert_eq!(
        (event.info.as_deref(), event.kept, event.id.get_version_num()),
        (Some(info.as_str()), false, 7)
    );
    client.outcome(Outcome::Published(Published::Done));
    assert_eq!(client.story(), [r#"{"id":3,"publish":{}}"#, "handled"]);
}

#[test]
fn what_is_published_to_a_namespace_with_history_is_kept() {
    let mut client = Client::ana();
    client.subscribe("kept:a");
    client.send("publish", json!({"channel": "kept:a", "data": null}));
    let effects = client.take();
    let [Effect::Publish(event)] = effects.as_slice() else { panic!("{effects:?}") };
    assert_eq!((event.kept, &*event.data), (true, "null"));
    assert_eq!(error(&answer(&mut client, Outcome::Published(Published::Unavailable))), 100);
}

#[test]
fn what_cannot_be_published_says_why() {
    let max_publication = 10;
    let mut client = Client::with(ConnectionOptions { max_publication, ..ConnectionOptions::default() });
    client.connect(json!({"sub": "42", "orgs": ["acme"]}));
    client.subscribe_with("chat:a", json!({}), unkept());
    client.subscribe("repo:acme/api");
    for (fields, code) in [
        (json!({"channel": "chat:a"}), 107),
        (json!({"channel": "chat:a", "data": "123456789"}), 107),
        (json!({"channel": "chat:ä", "data": 1}), 107),
        (json!({"channel": "nope:a", "data": 1}), 102),
        (json!({"channel": "chat:b", "data": 1}), 103),
        (json!({"channel": "repo:acme/api", "data": 1}), 103),
    ] {
        assert_eq!(error(&client.ask("publish", fields.clone())), code, "{fields}");
    }
    client.send("publish", json!({"channel": "chat:a", "data": "12345678"}));
    assert_eq!(client.story(), ["publish chat:a"]);
}

fn members() -> Vec<Member> {
    let member = |client: &str, user: &str, more: &str| Member {
        client: Uuid::from_u128(client.as_bytes()[1].into()),
        user: user.into(),
        info: format!(r#"{{"user":"{user}","client":"{client}"{more}}}"#).into(),
    };
    vec![
        member("c1", "42", r#","conn_info":{"a":1},"chan_info":[2]"#),
        member("c2", "42", ""),
        member("c3", "", ""),
        member("c4", "", ""),
    ]
}

#[test]
fn presence_shows_who_is_there_and_counts_anonymous_ones_as_one_user() {
    let mut client = Client::ana();
    client.subscribe_with("lobby:a", json!({}), unkept());
    client.send("presence", json!({"channel": "lobby:a"}));
    assert_eq!(client.story(), ["presence lobby:a"]);
    let reply = answer(&mut client, Outcome::Presence(members()));
    let expected = json!({
        "00000000-0000-0000-0000-000000000031": {"user": "42", "client": "c1", "conn_info": {"a": 1}, "chan_info": [2]},
        "00000000-0000-0000-0000-000000000032": {"user": "42", "client": "c2"},
        "00000000-0000-0000-0000-000000000033": {"user": "", "client": "c3"},
        "00000000-0000-0000-0000-000000000034": {"user": "", "client": "c4"},
    });
    assert_eq!(reply, json!({"presence": {"presence": expected}}));
    client.send("presence_stats", json!({"channel": "lobby:a"})).take();
    let reply = answer(&mut client, Outcome::Presence(members()));
    assert_eq!(reply, json!({"presence_stats": {"num_clients": 4, "num_users": 2}}));
}

#[test]
fn presence_and_history_are_for_who_may() {
    let mut client = Client::connected(json!({"sub": "42", "orgs": ["acme"]}));
    client.subscribe_with("chat:a", json!({}), unkept());
    for (method, name, code) in [
        ("presence", "chat:a", 108),
        ("presence_stats", "chat:a", 108),
        ("presence", "repo:acme/api", 108),
        ("presence", "lobby:a", 103),
        ("presence", "nope:a", 102),
        ("presence", "repo:acme", 107),
        ("history", "chat:a", 108),
        ("history", "kept:a", 103),
        ("history", "repo:other/api", 103),
        ("history", "nope:a", 102),
        ("history", "repo:acme", 107),
    ] {
        assert_eq!(error(&client.ask(method, json!({"channel": name}))), code, "{method} {name}");
    }
}

#[test]
fn history_is_read_within_bounds() {
    let mut client = Client::ana();
    client.subscribe("kept:a");
    let since = |offset| Some(Since { epoch: "e1".to_owned(), offset });
    for (fields, limit, since, reverse) in [
        (json!({}), 0, None, false),
        (json!({"limit": 0}), 0, None, false),
        (json!({"limit": 7}), 7, None, false),
        (json!({"limit": 301}), 300, None, false),
        (json!({"limit": -1}), 300, None, false),
        (json!({"limit": 5, "since": {"epoch": "e1", "offset": 3}}), 5, since(3), false),
        (json!({"limit": 5, "reverse": true}), 5, None, true),
        (json!({"limit": 5, "reverse": true, "since": {"epoch": "e1", "offset": 3}}), 5, since(3), true),
        (json!({"limit": 5, "since": {"epoch": "e1", "offset": 0}}), 5, since(0), false),
    ] {
        let mut all = fields.clone();
        all["channel"] = json!("kept:a");
        client.send("history", all);
        let expected = ReadHistory { channel: channel("kept:a"), since, limit, reverse };
        assert_eq!(client.take(), [Effect::ReadHistory(expected)], "{fields}");
        answer(&mut client, Outcome::History(Stored::Unavailable));
    }
    let before_all = json!({"channel": "kept:a", "limit": 1, "reverse": true, "since": {"epoch": "e1"}});
    assert_eq!(error(&client.ask("history", before_all)), 107);
}

#[test]
fn history_is_answered_with_events_or_a_reason() {
    let mut client = Client::ana();
    client.subscribe("kept:a");
    let mut ask = |stored| {
        client.send("history", json!({"channel": "kept:a", "limit": 2})).take();
        answer(&mut client, Outcome::History(stored))
    };
    let reply = ask(Stored::Events(vec![event(4), event(5)], position(9)));
    let publications = json!([{"data": {"n": 4}, "offset": 4}, {"data": {"n": 5}, "offset": 5}]);
    assert_eq!(reply, json!({"history": {"publications": publications, "epoch": "e1", "offset": 9}}));
    let reply = ask(Stored::Events(vec![], position(0)));
    assert_eq!(reply, json!({"history": {"publications": [], "epoch": "e1", "offset": 0}}));
    assert_eq!(error(&ask(Stored::OtherEpoch)), 112);
    assert_eq!(error(&ask(Stored::Unavailable)), 100);
}

#[test]
fn what_has_no_backend_is_not_available() {
    let mut client = Client::ana();
    assert_eq!(error(&client.ask("rpc", json!({"method": "sum"}))), 108);
    assert_eq!(client.ask("ping", json!({})), json!({"ping": {}}));
    assert_eq!(client.frame(r#"{"send":{"data":1}}"#).closed(), 3508);
}
