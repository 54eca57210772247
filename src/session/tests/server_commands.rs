//! What the server API tells a connection to do, and when it does it.

use std::sync::Arc;

use serde_json::json;

use super::support::*;
use crate::domain::server_command::{Admission, Expiry, ServerCommand};
use crate::session::effect::Effect;
use crate::session::effect::{Joined, Replay, Since};

fn subscribe(name: &str) -> ServerCommand {
    let (channel, claim) = (channel(name), crate::domain::access::SubClaim::default());
    ServerCommand::Subscribe(Box::new(Admission { channel, claim, expires_at: None, since: None }))
}

fn send(client: &mut Client, command: ServerCommand) {
    client.connection.on_server_command(Arc::new(command), client.now, &mut client.effects);
}

#[test]
fn a_server_command_waits_for_the_commands_before_it_and_holds_up_those_behind() {
    let mut client = Client::ana();
    client.send("subscribe", json!({"channel": "chat:a"}));
    send(&mut client, subscribe("kept:b"));
    send(&mut client, ServerCommand::Unsubscribe(Some(channel("chat:a"))));
    client.frame(r#"{"id":9,"unsubscribe":{"channel":"kept:b"}}"#);
    assert_eq!(client.story(), ["join chat:a"]);
    client.joined("chat:a", unkept());
    assert_eq!(client.story(), [r#"{"id":2,"subscribe":{}}"#, "live chat:a", "handled", "join kept:b"]);
    client.joined("kept:b", fresh());
    let begun = r#"{"push":{"channel":"kept:b","subscribe":{"recoverable":true,"positioned":true,"epoch":"e1","offset":5}}}"#;
    let ended = r#"{"push":{"channel":"chat:a","unsubscribe":{"code":2000,"reason":"server unsubscribe"}}}"#;
    let story = [
        begun,
        "live kept:b e1.5",
        "leave chat:a",
        ended,
        "leave kept:b",
        r#"{"id":9,"unsubscribe":{}}"#,
        "handled",
    ];
    assert_eq!(client.story(), story);
}

#[test]
fn server_commands_are_ignored_before_the_connect_and_after_the_end() {
    let mut client = Client::new();
    send(&mut client, subscribe("chat:a"));
    send(&mut client, ServerCommand::Refresh { expiry: Expiry::Expired, info: None });
    assert_eq!(client.take(), []);
    client.connect(json!({"sub": "42"}));
    send(&mut client, ServerCommand::Refresh { expiry: Expiry::Expired, info: None });
    assert_eq!(client.closed(), 3005);
    send(&mut client, subscribe("chat:a"));
    assert_eq!(client.take(), []);
}

#[test]
fn a_channel_that_cannot_be_followed_holds_nothing_up() {
    let mut client = Client::ana();
    send(&mut client, subscribe("kept:a"));
    client.take();
    client.joined("kept:a", None);
    assert_eq!(client.take(), []);
    client.subscribe("kept:a");
}

#[test]
fn what_is_lost_before_the_start_ends_the_connection() {
    let mut client = Client::ana();
    send(&mut client, subscribe("kept:a"));
    client.take();
    client.lost("kept:a").joined("kept:a", fresh());
    assert_eq!(client.story().last().map(String::as_str), Some("close 3010"));
}

#[test]
fn a_build_is_looked_up_so_that_its_history_can_be_read() {
    let name = "build:0195d3a0-0000-7000-8000-000000000001";
    let mut client = Client::ana();
    send(&mut client, subscribe(name));
    assert_eq!(client.story(), [format!("look up {name}")]);
    client.is_build_of(name, "42");
    assert_eq!(client.story(), [format!("join {name}")]);
    client.joined(name, fresh());
    assert_eq!(client.story().len(), 2);
    client.send("history", json!({"channel": name}));
    assert_eq!(client.story(), [format!("history {name}")]);
}

#[test]
fn a_subscription_by_directive_ends_with_its_time() {
    let mut client = Client::ana();
    let claim = crate::domain::access::SubClaim::default();
    let expires_at = chrono::DateTime::from_timestamp(NOW + 10, 0);
    let since = Some(("e1".to_owned(), 3));
    let admission = Admission { channel: channel("kept:a"), claim, expires_at, since };
    send(&mut client, ServerCommand::Subscribe(Box::new(admission)));
    let asked = match client.take().as_slice() {
        [Effect::Join(join)] => join.recover.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(asked, Some(Since { epoch: "e1".into(), offset: 3 }));
    let missed = vec![event(4), event(5)];
    client.joined(
        "kept:a",
        Some(Joined { position: Some(position(5)), replay: Replay::Found(position(3), missed) }),
    );
    let told = |n: u64| {
        format!(r#"replay {{"push":{{"channel":"kept:a","pub":{{"data":{{"n":{n}}},"offset":{n}}}}}}}"#)
    };
    let begun = r#"{"push":{"channel":"kept:a","subscribe":{"recoverable":true,"positioned":true,"epoch":"e1","offset":3}}}"#;
    assert_eq!(client.story(), [begun.to_owned(), told(4), told(5), "live kept:a e1.5".to_owned()]);
    client.wait(30.0).frame("{}").take();
    assert_eq!(client.wait(5.0).closed(), 3006);
}
