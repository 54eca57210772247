//! Every push against literal JSON, much of it from the protocol's own examples, and the fast path
//! against the slow one.

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::protocol::code::DisconnectCode;
use crate::protocol::json::tests::{any_value, check, pretty};
use crate::protocol::reply::ClientInfo;
use crate::protocol::reply::Recovery;
use crate::protocol::reply::tests::{at, channel, event};

fn written(push: Push<'_>) -> String {
    let mut out = String::new();
    push.write(&mut out);
    assert!(!out.contains('\n'));
    // Without the `push` around it, the same.
    let mut bare = String::new();
    push.write_uni(&mut bare);
    assert_eq!(out, format!("{{\"push\":{bare}}}"));
    out
}

#[test]
fn a_publication() {
    let lobby = channel("chat:lobby");
    let info = ClientInfo { user: "42", client: "5b1c", ..Default::default() };
    let said = Event { info: Some(info.to_json().into()), ..event(13, r#"{"t":"hi"}"#) };
    assert_eq!(
        written(Push::Channel(&lobby, ChannelPush::Publication(&said))),
        r#"{"push":{"channel":"chat:lobby","pub":{"data":{"t":"hi"},"offset":13,"info":{"user":"42","client":"5b1c"}}}}"#
    );
    let tagged = Event { tags: Some(r#"{"k":"v"}"#.into()), ..event(0, "null") };
    assert_eq!(
        written(Push::Channel(&lobby, ChannelPush::Publication(&tagged))),
        r#"{"push":{"channel":"chat:lobby","pub":{"data":null,"tags":{"k":"v"}}}}"#
    );
}

#[test]
fn joins_and_leaves() {
    let lobby = channel("chat:lobby");
    let seven = ClientInfo { user: "7", client: "e0aa", ..Default::default() };
    let anonymous = ClientInfo { client: "e0ab", conn_info: Some("1"), ..Default::default() };
    assert_eq!(
        written(Push::Channel(&lobby, ChannelPush::Join(&seven.to_json()))),
        r#"{"push":{"channel":"chat:lobby","join":{"info":{"user":"7","client":"e0aa"}}}}"#
    );
    assert_eq!(
        written(Push::Channel(&lobby, ChannelPush::Leave(&anonymous.to_json()))),
        r#"{"push":{"channel":"chat:lobby","leave":{"info":{"user":"","client":"e0ab","conn_info":1}}}}"#
    );
}

#[test]
fn subscribes_and_unsubscribes() {
    let (lobby, twelve) = (channel("chat:lobby"), at(12));
    assert_eq!(
        written(Push::Channel(&lobby, ChannelPush::Unsubscribe(UnsubscribeCode::Server))),
        r#"{"push":{"channel":"chat:lobby","unsubscribe":{"code":2000,"reason":"server unsubscribe"}}}"#
    );
    let result = SubscribeResult {
        ttl: Some(60),
        recoverable: true,
        positioned: true,
        position: Some(&twelve),
        recovery: Recovery::Lost,
        data: Some("{}"),
        delta: false,
    };
    assert_eq!(
        written(Push::Channel(&lobby, ChannelPush::Subscribe(&result))),
        r#"{"push":{"channel":"chat:lobby","subscribe":{"recoverable":true,"positioned":true,"epoch":"kq1T","offset":12,"data":{}}}}"#
    );
    assert_eq!(
        written(Push::Channel(&lobby, ChannelPush::Subscribe(&SubscribeResult::default()))),
        r#"{"push":{"channel":"chat:lobby","subscribe":{}}}"#
    );
}

#[test]
fn pushes_about_no_channel() {
    let connect = ConnectResult { client: "c", version: "v", ping: 25, session: "s", ..Default::default() };
    for (push, expected) in [
        (Push::Message("{\n\"a\":1}"), r#"{"push":{"message":{"data":{"a":1}}}}"#),
        (
            Push::Connect(&connect),
            r#"{"push":{"connect":{"client":"c","version":"v","ping":25,"session":"s"}}}"#,
        ),
        (
            Push::Disconnect(&DisconnectCode::BadRequest.into()),
            r#"{"push":{"disconnect":{"code":3501,"reason":"bad request"}}}"#,
        ),
        (
            Push::Disconnect(&DisconnectCode::Shutdown.into()),
            r#"{"push":{"disconnect":{"code":3001,"reason":"shutdown","reconnect":true}}}"#,
        ),
        (
            Push::Disconnect(&Disconnect::custom(4500, "").unwrap()),
            r#"{"push":{"disconnect":{"code":4500}}}"#,
        ),
        (Push::Refresh { ttl: Some(600) }, r#"{"push":{"refresh":{"expires":true,"ttl":600}}}"#),
        (Push::Refresh { ttl: None }, r#"{"push":{"refresh":{}}}"#),
    ] {
        assert_eq!(written(push), expected);
    }
}

#[test]
fn the_fast_path_writes_the_same_and_appends() {
    const NAMES: [&str; 5] = ["news", "chat:lobby", "#42", "say:\"hi\\", "repo:acme/site"];
    let strategy = (proptest::sample::select(&NAMES[..]), any::<u64>(), any_value(), any::<bool>());
    check(300, strategy, |(name, offset, value, tagged)| {
        let name = channel(name);
        let mut event = event(offset, &pretty(&value));
        event.tags = tagged.then(|| "{\"k\":\n\"v\"}".into());
        let (slow, json) =
            (written(Push::Channel(&name, ChannelPush::Publication(&event))), channel_json(&name));
        let mut fast = String::from("before ");
        write_publication_push(&mut fast, &json, &event);
        prop_assert_eq!(&fast, &format!("before {slow}"));
        let mut uni = String::new();
        write_publication_uni(&mut uni, &json, &event);
        prop_assert_eq!(&slow, &format!("{{\"push\":{uni}}}"));

        let read: Value = serde_json::from_str(&slow).unwrap();
        prop_assert_eq!(&read["push"]["channel"], name.as_str());
        prop_assert_eq!(&read["push"]["pub"]["data"], &value);
        prop_assert_eq!(read["push"]["pub"]["offset"].as_u64().unwrap_or(0), offset);
        Ok(())
    });
}

#[test]
fn any_custom_disconnect_reads_back() {
    check(200, (3000..5000_u32, any::<String>()), |(code, reason)| {
        let disconnect = Disconnect::custom(code, &reason).unwrap();
        let read: Value = serde_json::from_str(&written(Push::Disconnect(&disconnect))).unwrap();
        let read = &read["push"]["disconnect"];
        prop_assert_eq!(read["code"].as_u64(), Some(code.into()));
        prop_assert_eq!(read["reason"].as_str().unwrap_or(""), disconnect.reason());
        prop_assert_eq!(read["reconnect"] == true, disconnect.client_action() == ClientAction::Reconnect);
        Ok(())
    });
}
