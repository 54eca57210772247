//! Whatever is sent: no panic, at most one bad command, and every field of a good one arrives.

use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Map, Value, json};

use super::*;
use crate::protocol::json::tests::{any_value, check};

/// Names that unknown fields and stray methods may have.
const NAMES: [&str; 8] = ["id", "connect", "subscribe", "channel", "data", "since", "offset", "subs"];

fn read_all(frame: &str) {
    let read: Vec<_> = commands(frame).collect();
    assert!(!read.is_empty());
    let bad = read.iter().filter(|command| command.is_err()).count();
    assert!(bad == 0 || (bad == 1 && read.last().is_some_and(Result::is_err)));
    let _ = Connect::parse(frame);
}

#[test]
fn any_bytes_are_read_without_panic() {
    check(500, proptest::collection::vec(any::<u8>(), 0..200), |bytes| {
        read_all(&String::from_utf8_lossy(&bytes));
        Ok(())
    });
    check(1000, r#"[\[\]{}:,"a-z0-9.eE+\-\\ \n]{0,60}"#, |text| {
        read_all(&text);
        Ok(())
    });
}

#[test]
fn any_damage_to_a_frame_is_read_without_panic() {
    let damage = (proptest::collection::vec(command(), 1..4), any::<Index>(), any::<Index>(), ".{0,3}");
    check(300, damage, |(commands, from, to, put)| {
        let mut frame: Vec<char> =
            commands.iter().map(Value::to_string).collect::<Vec<_>>().join("\n").chars().collect();
        let (from, to) = (from.index(frame.len()), to.index(frame.len()));
        frame.splice(from.min(to)..from.max(to), put.chars());
        read_all(&frame.into_iter().collect::<String>());
        Ok(())
    });
}

#[test]
fn every_field_of_every_command_arrives() {
    check(300, proptest::collection::vec(command(), 1..5), |given| {
        let frame = given.iter().map(Value::to_string).collect::<Vec<_>>().join("\n");
        let read: Vec<Value> = commands(&frame).map(|command| encode(&command.unwrap())).collect();
        prop_assert_eq!(read, given);
        Ok(())
    });
}

#[test]
fn unknown_fields_and_nulls_change_nothing() {
    let noise = proptest::collection::vec((select(&NAMES[..]), any_value()), 0..4);
    check(200, (command(), noise), |(given, noise)| {
        let mut noisy = given.clone();
        for (name, value) in noise {
            for (key, object) in noisy.as_object_mut().unwrap() {
                if let Some(object) = object.as_object_mut().filter(|_| key != "id") {
                    object.insert(format!("x-{name}"), value.clone());
                    object.entry("token").or_insert(Value::Null);
                }
            }
            noisy.as_object_mut().unwrap().insert(format!("x-{name}"), value);
            noisy.as_object_mut().unwrap().entry("rpc").or_insert(Value::Null);
        }
        prop_assert_eq!(encode(&Command::parse(&noisy.to_string()).unwrap()), given);
        Ok(())
    });
}

/// Any well-formed command without zero values.
fn command() -> impl Strategy<Value = Value> {
    let text = || any::<String>();
    let channel = || ".{1,20}".prop_map(Value::from);
    let place = || {
        (any::<bool>(), text(), any::<u64>(), any::<bool>()).prop_map(|(recover, epoch, offset, delta)| {
        json!({"recover": recover, "epoch": epoch, "offset": offset, "delta": if delta { "fossil" } else { "" }})
    })
    };
    let connect = (
        (text(), proptest::option::of(any_value()), "[a-z]{0,64}", "[0-9.]{0,64}"),
        proptest::collection::btree_map(text(), place().prop_map(slim), 0..3),
        proptest::collection::btree_map(text(), text(), 0..3),
    )
        .prop_map(|((token, data, name, version), subs, headers)| {
            let connect =
                json!({"token": token, "name": name, "version": version, "subs": subs, "headers": headers});
            ("connect", with_data(connect, data))
        });
    let asks = (any::<bool>(), any::<bool>(), any::<bool>(), any::<i64>(), any::<i32>());
    let filter = proptest::option::of(any_value().prop_filter("null is absent", |tf| !tf.is_null()));
    let subscribe = (channel(), text(), place(), asks, proptest::option::of(any_value()), filter).prop_map(
        |(channel, token, mut object, (positioned, recoverable, join_leave, flag, kind), data, tf)| {
            let more = json!({"channel": channel, "token": token, "positioned": positioned, "tf": tf,
                "recoverable": recoverable, "join_leave": join_leave, "flag": flag, "type": kind});
            object.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            ("subscribe", with_data(object, data))
        },
    );
    let since = proptest::option::of((any::<u64>(), text()));
    let history =
        (channel(), any::<i32>(), since, any::<bool>()).prop_map(|(channel, limit, since, reverse)| {
            let mut history = slim(json!({"channel": channel, "limit": limit, "reverse": reverse}));
            if let Some((offset, epoch)) = since {
                history["since"] = slim(json!({"offset": offset, "epoch": epoch}));
            }
            ("history", history)
        });
    let method = prop_oneof![
        connect,
        subscribe,
        history,
        (select(&["unsubscribe", "presence", "presence_stats"][..]), channel())
            .prop_map(|(method, channel)| (method, json!({"channel": channel}))),
        (channel(), proptest::option::of(any_value()))
            .prop_map(|(channel, data)| ("publish", with_data(json!({"channel": channel}), data))),
        (text(), proptest::option::of(any_value()))
            .prop_map(|(method, data)| ("rpc", with_data(json!({"method": method}), data))),
        proptest::option::of(any_value()).prop_map(|data| ("send", with_data(json!({}), data))),
        text().prop_map(|token| ("refresh", slim(json!({"token": token})))),
        (channel(), text())
            .prop_map(|(channel, token)| ("sub_refresh", slim(json!({"channel": channel, "token": token})))),
        Just(("ping", json!({}))),
    ];
    let id = prop_oneof![1..=u32::MAX, Just(1), Just(u32::MAX)];
    (id, method).prop_map(|(id, (name, object))| json!({"id": id, name: object}))
}

/// Without zero values, and with `data` even if it is one.
fn with_data(object: Value, data: Option<Value>) -> Value {
    let mut object = slim(object);
    if let Some(data) = data {
        object["data"] = data;
    }
    object
}

/// Without fields that are zero values.
fn slim(object: Value) -> Value {
    let zero = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    let Value::Object(map) = object else { panic!("{object}") };
    // A filter is raw: an empty one is still there.
    map.into_iter()
        .filter(|(key, value)| !zero(value) || (key == "tf" && !value.is_null()))
        .collect::<Map<_, _>>()
        .into()
}

/// A naive encoder: what was understood, as JSON.
fn encode(command: &Command<'_>) -> Value {
    let value = |raw: &RawValue| serde_json::from_str::<Value>(raw.get()).unwrap();
    let data = |raw: Option<&RawValue>| raw.map(value);
    let delta = |delta: Option<Delta>| delta.map_or("", |Delta::Fossil| "fossil");
    let channel = |channel: &str| json!({"channel": channel});
    let (name, object) = match &command.method {
        Method::Connect(c) => {
            let resume = |r: &ResumeSubscription<'_>| {
                slim(
                    json!({"recover": r.recover, "epoch": r.epoch, "offset": r.offset, "delta": delta(r.delta)}),
                )
            };
            let subs: Map<_, _> = c.subs.iter().map(|(name, sub)| (name.to_string(), resume(sub))).collect();
            let object = json!({"token": c.token, "name": c.name, "version": c.version, "subs": subs,
                "headers": c.headers});
            ("connect", with_data(object, data(c.data)))
        }
        Method::Subscribe(s) => {
            let object = json!({"channel": s.channel, "token": s.token, "recover": s.recover, "epoch": s.epoch,
                "offset": s.offset, "positioned": s.positioned, "recoverable": s.recoverable,
                "join_leave": s.join_leave, "delta": delta(s.delta), "tf": data(s.tf), "flag": s.flag,
                "type": s.kind});
            ("subscribe", with_data(object, data(s.data)))
        }
        Method::History(h) => {
            let mut object = slim(json!({"channel": h.channel, "limit": h.limit, "reverse": h.reverse}));
            if let Some(since) = &h.since {
                object["since"] = slim(json!({"offset": since.offset, "epoch": since.epoch}));
            }
            ("history", object)
        }
        Method::Unsubscribe(u) => ("unsubscribe", channel(&u.channel)),
        Method::Publish(p) => ("publish", with_data(channel(&p.channel), data(p.data))),
        Method::Presence(p) => ("presence", channel(&p.channel)),
        Method::PresenceStats(p) => ("presence_stats", channel(&p.channel)),
        Method::Rpc(r) => ("rpc", with_data(json!({"method": r.method}), data(r.data))),
        Method::Send(s) => ("send", with_data(json!({}), data(s.data))),
        Method::Refresh(r) => ("refresh", slim(json!({"token": r.token}))),
        Method::SubRefresh(s) => ("sub_refresh", slim(json!({"channel": s.channel, "token": s.token}))),
        Method::Ping => ("ping", json!({})),
        Method::Pong => return json!({}),
    };
    json!({"id": command.id, name: object})
}
