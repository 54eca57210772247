//! Every reply against literal JSON, much of it from the protocol's own examples, and any reply
//! read back by somebody else's parser.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::Value;
use uuid::Uuid;

use super::*;
use crate::domain::position::Epoch;
use crate::protocol::json::tests::{any_value, check, pretty};

/// An event of the log.
pub(in crate::protocol) fn event(offset: u64, data: &str) -> Event {
    Event::plain(offset, data)
}

pub(in crate::protocol) fn channel(name: &str) -> ChannelName {
    ChannelName::parse(name).unwrap()
}

pub(in crate::protocol) fn at(offset: u64) -> Position {
    Position::new(Epoch::parse("kq1T").unwrap(), offset)
}

fn written(reply: Reply<'_>, id: u32) -> String {
    let mut out = String::new();
    reply.write(&mut out, id);
    out
}

#[test]
fn connect() {
    let (personal, three) = (channel("#42"), at(3));
    let sub = SubscribeResult { recoverable: true, position: Some(&three), ..Default::default() };
    let result = ConnectResult {
        client: "5b1c",
        version: "0.1.0",
        ping: 25,
        pong: true,
        ttl: Some(3600),
        subs: &[(&personal, sub)],
        ..Default::default()
    };
    assert_eq!(
        written(Reply::Connect(&result), 1),
        r##"{"id":1,"connect":{"client":"5b1c","version":"0.1.0","ping":25,"pong":true,"expires":true,"ttl":3600,"subs":{"#42":{"recoverable":true,"epoch":"kq1T","offset":3}}}}"##
    );
}

#[test]
fn connect_with_little_and_with_emulation() {
    let little = ConnectResult { client: "c", version: "v", ..Default::default() };
    assert_eq!(written(Reply::Connect(&little), 1), r#"{"id":1,"connect":{"client":"c","version":"v"}}"#);
    let (quoted, plain) = (channel("say:\"hi\\\""), channel("news"));
    let much = ConnectResult {
        data: Some("{\"a\":\n1}"),
        subs: &[(&quoted, SubscribeResult::default()), (&plain, SubscribeResult::default())],
        session: "s",
        node: "n",
        time: 1_700_000_000_000,
        ..little
    };
    assert_eq!(
        written(Reply::Connect(&much), u32::MAX),
        r#"{"id":4294967295,"connect":{"client":"c","version":"v","data":{"a":1},"subs":{"say:\"hi\\\"":{},"news":{}},"session":"s","node":"n","time":1700000000000}}"#
    );
}

#[test]
fn subscribe() {
    let twelve = at(12);
    let fresh = SubscribeResult {
        recoverable: true,
        positioned: true,
        position: Some(&twelve),
        ..Default::default()
    };
    let missed = [event(13, r#"{"n":13}"#), event(14, r#"{"n":14}"#)];
    let recovered = SubscribeResult { recovery: Recovery::Recovered(&missed), ..fresh };
    let nothing_missed = SubscribeResult { recovery: Recovery::Recovered(&[]), ..fresh };
    let lost = SubscribeResult { recovery: Recovery::Lost, ..fresh };
    let zero = at(0);
    let first = SubscribeResult { position: Some(&zero), ..fresh };
    let granted = SubscribeResult { ttl: Some(600), data: Some("[1]"), ..Default::default() };
    for (result, expected) in [
        (SubscribeResult::default(), r#"{"id":2,"subscribe":{}}"#),
        (fresh, r#"{"id":2,"subscribe":{"recoverable":true,"positioned":true,"epoch":"kq1T","offset":12}}"#),
        (first, r#"{"id":2,"subscribe":{"recoverable":true,"positioned":true,"epoch":"kq1T"}}"#),
        (
            recovered,
            r#"{"id":2,"subscribe":{"recoverable":true,"positioned":true,"epoch":"kq1T","offset":12,"recovered":true,"was_recovering":true,"publications":[{"data":{"n":13},"offset":13},{"data":{"n":14},"offset":14}]}}"#,
        ),
        (
            nothing_missed,
            r#"{"id":2,"subscribe":{"recoverable":true,"positioned":true,"epoch":"kq1T","offset":12,"recovered":true,"was_recovering":true}}"#,
        ),
        (
            lost,
            r#"{"id":2,"subscribe":{"recoverable":true,"positioned":true,"epoch":"kq1T","offset":12,"was_recovering":true}}"#,
        ),
        (granted, r#"{"id":2,"subscribe":{"expires":true,"ttl":600,"data":[1]}}"#),
    ] {
        assert_eq!(written(Reply::Subscribe(&result), 2), expected);
    }
}

#[test]
fn small_results() {
    let refresh = Reply::Refresh { client: "c", version: "v", ttl: Some(600) };
    for (reply, expected) in [
        (Reply::Unsubscribe, r#"{"id":4,"unsubscribe":{}}"#),
        (Reply::Publish, r#"{"id":4,"publish":{}}"#),
        (Reply::Ping, r#"{"id":4,"ping":{}}"#),
        (
            Reply::PresenceStats { clients: 2, users: 1 },
            r#"{"id":4,"presence_stats":{"num_clients":2,"num_users":1}}"#,
        ),
        (
            Reply::PresenceStats { clients: 0, users: 0 },
            r#"{"id":4,"presence_stats":{"num_clients":0,"num_users":0}}"#,
        ),
        (Reply::Rpc { data: None }, r#"{"id":4,"rpc":{}}"#),
        (Reply::Rpc { data: Some("{\"sum\":\n 3}") }, r#"{"id":4,"rpc":{"data":{"sum": 3}}}"#),
        (refresh, r#"{"id":4,"refresh":{"client":"c","version":"v","expires":true,"ttl":600}}"#),
        (
            Reply::Refresh { client: "c", version: "v", ttl: None },
            r#"{"id":4,"refresh":{"client":"c","version":"v"}}"#,
        ),
        (Reply::SubRefresh { ttl: Some(600) }, r#"{"id":4,"sub_refresh":{"expires":true,"ttl":600}}"#),
        (Reply::SubRefresh { ttl: None }, r#"{"id":4,"sub_refresh":{}}"#),
    ] {
        assert_eq!(written(reply, 4), expected);
    }
}

#[test]
fn presence() {
    assert_eq!(written(Reply::Presence(&[]), 5), r#"{"id":5,"presence":{"presence":{}}}"#);
    let named = ClientInfo {
        user: "42",
        client: "a",
        conn_info: Some("{\"name\":\"Ana\"}"),
        chan_info: Some("{\"role\":1}"),
    };
    let anonymous = ClientInfo { client: "b", ..Default::default() };
    let (first, second) = (named.to_json(), anonymous.to_json());
    assert_eq!(
        written(Reply::Presence(&[(Uuid::from_u128(1), &first), (Uuid::from_u128(2), &second)]), 5),
        r#"{"id":5,"presence":{"presence":{"00000000-0000-0000-0000-000000000001":{"user":"42","client":"a","conn_info":{"name":"Ana"},"chan_info":{"role":1}},"00000000-0000-0000-0000-000000000002":{"user":"","client":"b"}}}}"#
    );
    assert_eq!(anonymous.to_json(), r#"{"user":"","client":"b"}"#);
}

#[test]
fn history() {
    let (forty, zero) = (at(40), at(0));
    let page = [event(11, "1"), event(12, "2")];
    assert_eq!(
        written(Reply::History { publications: &page, position: &forty }, 6),
        r#"{"id":6,"history":{"publications":[{"data":1,"offset":11},{"data":2,"offset":12}],"epoch":"kq1T","offset":40}}"#
    );
    assert_eq!(
        written(Reply::History { publications: &[], position: &zero }, 6),
        r#"{"id":6,"history":{"publications":[],"epoch":"kq1T","offset":0}}"#
    );
}

#[test]
fn errors_say_temporary_only_where_a_retry_helps() {
    assert_eq!(
        written(Reply::Error(ErrorCode::PermissionDenied), 2),
        r#"{"id":2,"error":{"code":103,"message":"permission denied"}}"#
    );
    assert_eq!(
        written(Reply::Error(ErrorCode::Internal), 2),
        r#"{"id":2,"error":{"code":100,"message":"internal server error","temporary":true}}"#
    );
    for code in ErrorCode::ALL {
        let read: Value = serde_json::from_str(&written(Reply::Error(*code), 1)).unwrap();
        assert_eq!(read["error"]["temporary"], if code.is_temporary() { true.into() } else { Value::Null });
    }
}

#[test]
fn the_ping_is_the_empty_object() {
    assert_eq!(PING, "{}");
}

/// Texts and payloads of all kinds, a ttl and two offsets.
fn anything() -> impl Strategy<Value = (String, String, Value, u32, u64, u64)> {
    (any::<String>(), any::<String>(), any_value(), any::<u32>(), any::<u64>(), any::<u64>())
}

#[test]
fn any_connect_reads_back() {
    let news = channel("news \"x\"");
    check(200, anything(), |(client, session, value, id, time, offset)| {
        let (data, place) = (pretty(&value), at(offset));
        let events = [event(offset, &data)];
        let sub = SubscribeResult {
            position: Some(&place),
            recovery: Recovery::Recovered(&events),
            data: Some(&data),
            ..Default::default()
        };
        let result = ConnectResult {
            client: &client,
            session: &session,
            time,
            data: Some(&data),
            subs: &[(&news, sub)],
            ..Default::default()
        };
        let out = written(Reply::Connect(&result), id);
        prop_assert!(!out.contains('\n'));
        let read: Value = serde_json::from_str(&out).unwrap();
        prop_assert_eq!(read["id"].as_u64().unwrap_or(0), u64::from(id));
        let connect = &read["connect"];
        prop_assert_eq!(connect["client"].as_str().unwrap_or(""), client);
        prop_assert_eq!(connect["session"].as_str().unwrap_or(""), session);
        prop_assert_eq!(connect["time"].as_u64().unwrap_or(0), time);
        prop_assert_eq!(&connect["data"], &value);
        let sub = &connect["subs"]["news \"x\""];
        prop_assert_eq!(sub["offset"].as_u64().unwrap_or(0), offset);
        prop_assert_eq!(&sub["publications"][0]["data"], &value);
        prop_assert_eq!(sub["publications"][0]["offset"].as_u64().unwrap_or(0), offset);
        Ok(())
    });
}

#[test]
fn any_presence_and_history_read_back() {
    check(200, anything(), |(user, client, value, id, head, offset)| {
        let (data, place) = (pretty(&value), at(head));
        let info =
            ClientInfo { user: &user, client: &client, conn_info: Some(&data), chan_info: Some(&data) };
        let json = info.to_json();
        let out = written(Reply::Presence(&[(Uuid::nil(), &json)]), id);
        prop_assert!(!out.contains('\n'));
        let read: Value = serde_json::from_str(&out).unwrap();
        let read = &read["presence"]["presence"]["00000000-0000-0000-0000-000000000000"];
        prop_assert_eq!(read["user"].as_str(), Some(user.as_str()));
        prop_assert_eq!(read["client"].as_str(), Some(client.as_str()));
        prop_assert_eq!((&read["conn_info"], &read["chan_info"]), (&value, &value));

        let publication = Event {
            info: Some(info.to_json().into()),
            tags: Some(Arc::from("{\n\"k\": \"v\"}")),
            ..event(offset, &data)
        };
        let out = written(Reply::History { publications: &[publication], position: &place }, id);
        prop_assert!(!out.contains('\n'));
        let read: Value = serde_json::from_str(&out).unwrap();
        let read = &read["history"];
        prop_assert_eq!(read["offset"].as_u64(), Some(head));
        prop_assert_eq!(&read["publications"][0]["data"], &value);
        prop_assert_eq!(&read["publications"][0]["info"]["conn_info"], &value);
        prop_assert_eq!(&read["publications"][0]["tags"]["k"], "v");
        Ok(())
    });
}
