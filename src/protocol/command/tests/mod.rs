//! JSON in, typed commands out, or 3501. What any client may say is in `any`.

mod any;

use super::*;

fn parse(json: &str) -> Command<'_> {
    Command::parse(json).unwrap_or_else(|_| panic!("{json}"))
}

fn raw(value: Option<&RawValue>) -> Option<&str> {
    value.map(RawValue::get)
}

/// The ids of a frame, and whether it ended badly.
fn ids(frame: &str) -> (Vec<u32>, bool) {
    let read: Vec<_> = commands(frame).collect();
    let ids = read.iter().flatten().map(|command| command.id).collect();
    (ids, read.iter().any(Result::is_err))
}

#[test]
fn a_frame_is_commands_with_line_feeds_between_them() {
    let ping = r#"{"id":1,"ping":{}}"#;
    for (frame, expected) in [
        (ping.to_owned(), (vec![1], false)),
        (format!("{ping}\n"), (vec![1], false)),
        (format!("{ping}\n{ping}"), (vec![1, 1], false)),
        (format!("{ping}\n{{}}\n{ping}\n"), (vec![1, 0, 1], false)),
        // Carriage returns are white space like others.
        (format!("{ping}\r\n{ping}\r\n"), (vec![1, 1], false)),
        (String::new(), (vec![], true)),
        ("\n".to_owned(), (vec![], true)),
        (" ".to_owned(), (vec![], true)),
        (format!("\n{ping}"), (vec![], true)),
        (format!("{ping}\n\n"), (vec![1], true)),
        (format!("{ping}\n\n{ping}"), (vec![1], true)),
        (format!("{ping}{ping}"), (vec![], true)),
        (format!("{ping}\nno\n{ping}"), (vec![1], true)),
        ("{\"id\":1,\n\"ping\":{}}".to_owned(), (vec![], true)),
    ] {
        assert_eq!(ids(&frame), expected, "{frame:?}");
    }
}

#[test]
fn commands_are_read_one_at_a_time_and_end_with_the_first_bad_one() {
    let mut frame = commands("{\"id\":1,\"ping\":{}}\nno\n{\"id\":3,\"ping\":{}}");
    assert!(frame.next().is_some_and(|command| command.is_ok()));
    assert!(frame.next().is_some_and(|command| command.is_err()));
    assert!(frame.next().is_none() && frame.next().is_none());
}

#[test]
fn what_is_no_command() {
    let long = format!(r#"{{"id":1,"subscribe":{{"channel":"x","offset":{}0}}}}"#, u64::MAX);
    for bad in [
        // Not one JSON object.
        "",
        "null",
        "1",
        "[]",
        "\"x\"",
        "[1,{}]",
        "{",
        "{}}",
        "{} {}",
        "nul",
        "{\"id\":1,}",
        // Ids.
        r#"{"id":4294967296,"ping":{}}"#,
        r#"{"id":-1,"ping":{}}"#,
        r#"{"id":-0,"ping":{}}"#,
        r#"{"id":1.0,"ping":{}}"#,
        r#"{"id":1e2,"ping":{}}"#,
        r#"{"id":"1","ping":{}}"#,
        r#"{"id":true,"ping":{}}"#,
        r#"{"id":[1],"ping":{}}"#,
        r#"{"id":01,"ping":{}}"#,
        r#"{"id":1,"id":1,"ping":{}}"#,
        // A method without an id.
        r#"{"ping":{}}"#,
        r#"{"connect":{}}"#,
        r#"{"id":0,"connect":{}}"#,
        r#"{"id":null,"subscribe":{"channel":"x"}}"#,
        // An id without a method.
        r#"{"id":1}"#,
        r#"{"id":1,"ping":null}"#,
        r#"{"id":1,"jump":{}}"#,
        r#"{"id":1,"Ping":{}}"#,
        // More than one method.
        r#"{"id":1,"ping":{},"connect":{}}"#,
        r#"{"id":1,"ping":{},"ping":{}}"#,
        r#"{"id":1,"send":{},"publish":{"channel":"x","data":1}}"#,
        // Methods that are no objects.
        r#"{"id":1,"ping":1}"#,
        r#"{"id":1,"ping":[]}"#,
        r#"{"id":1,"connect":"x"}"#,
        r#"{"id":1,"unsubscribe":["x"]}"#,
        r#"{"id":1,"connect":false}"#,
        // No channel.
        r#"{"id":1,"subscribe":{}}"#,
        r#"{"id":1,"subscribe":{"channel":null}}"#,
        r#"{"id":1,"subscribe":{"channel":""}}"#,
        r#"{"id":1,"unsubscribe":{}}"#,
        r#"{"id":1,"publish":{"data":1}}"#,
        r#"{"id":1,"presence":{}}"#,
        r#"{"id":1,"presence_stats":{}}"#,
        r#"{"id":1,"history":{}}"#,
        r#"{"id":1,"sub_refresh":{"token":"t"}}"#,
        // Fields of another type.
        r#"{"id":1,"connect":{"token":1}}"#,
        r#"{"id":1,"connect":{"name":{}}}"#,
        r#"{"id":1,"connect":{"subs":[]}}"#,
        r#"{"id":1,"connect":{"subs":{"x":[]}}}"#,
        r#"{"id":1,"connect":{"subs":{"x":{"delta":"xor"}}}}"#,
        r#"{"id":1,"connect":{"headers":{"x":1}}}"#,
        r#"{"id":1,"subscribe":{"channel":["x"]}}"#,
        r#"{"id":1,"subscribe":{"channel":"x","recover":1}}"#,
        r#"{"id":1,"subscribe":{"channel":"x","recover":"true"}}"#,
        r#"{"id":1,"subscribe":{"channel":"x","offset":-1}}"#,
        r#"{"id":1,"subscribe":{"channel":"x","offset":1.5}}"#,
        r#"{"id":1,"subscribe":{"channel":"x","offset":18446744073709551616}}"#,
        &long,
        r#"{"id":1,"subscribe":{"channel":"x","delta":"xor"}}"#,
        r#"{"id":1,"subscribe":{"channel":"x","channel":"y"}}"#,
        r#"{"id":1,"subscribe":{"channel":"\ud800"}}"#,
        r#"{"id":1,"history":{"channel":"x","limit":2147483648}}"#,
        r#"{"id":1,"history":{"channel":"x","limit":-2147483649}}"#,
        r#"{"id":1,"history":{"channel":"x","since":[1,"e"]}}"#,
        r#"{"id":1,"history":{"channel":"x","since":5}}"#,
        r#"{"id":1,"publish":{"channel":"x","data":}}"#,
        r#"{"id":1,"publish":{"channel":"x","data":01}}"#,
    ] {
        assert_eq!(Command::parse(bad).err(), Some(BadFrame), "{bad}");
    }
    assert_eq!(DisconnectCode::from(BadFrame).code(), 3501);
    assert_eq!(Refusal::from(BadFrame), Refusal::Disconnect(DisconnectCode::BadRequest));
}

#[test]
fn a_pong_has_neither_id_nor_method() {
    for pong in ["{}", " { } ", r#"{"id":0}"#, r#"{"id":null}"#, r#"{"ping":null}"#, r#"{"jump":{}}"#] {
        assert!(matches!(parse(pong), Command { id: 0, method: Method::Pong }), "{pong}");
    }
}

#[test]
fn ids_reach_to_their_edge() {
    for id in [1, 2, i32::MAX as u32, u32::MAX] {
        let json = format!(r#"{{"ping":{{"x":[1]}},"id":{id}}}"#);
        assert!(matches!(parse(&json), Command { id: read, method: Method::Ping } if read == id));
    }
}

#[test]
fn a_send_may_do_without_an_id() {
    for (json, id) in [(r#"{"send":{"data":{"a": 1}}}"#, 0), (r#"{"id":9,"send":{"data":{"a": 1}}}"#, 9)] {
        let command = parse(json);
        assert_eq!(command.id, id);
        assert!(matches!(command.method, Method::Send(Send { data }) if raw(data) == Some(r#"{"a": 1}"#)));
    }
}

#[test]
fn nulls_count_as_absent_except_in_payloads() {
    let json = r#"{"id":1,"connect":null,"subscribe":{"channel":"x","token":null,"recover":null,"epoch":null,
        "offset":null,"data":null,"positioned":null,"recoverable":null,"join_leave":null,"delta":null,
        "tf":null,"flag":null,"type":null},"rpc":null}"#;
    let Method::Subscribe(given) = parse(json).method else { panic!() };
    assert_eq!((raw(given.data), raw(given.tf)), (Some("null"), None));
    let absent = Subscribe { channel: "x".into(), data: given.data, ..Default::default() };
    assert_eq!(format!("{given:?}"), format!("{absent:?}"));

    let json = r#"{"id":1,"history":{"channel":"x","since":null,"limit":null,"reverse":null}}"#;
    let Method::History(history) = parse(json).method else { panic!() };
    assert_eq!(history, History { channel: "x".into(), ..Default::default() });

    let json = r#"{"id":1,"connect":{"token":null,"subs":{"a":null,"b":{}},"headers":{"a":null,"b":"c"},"name":null}}"#;
    let Method::Connect(connect) = parse(json).method else { panic!() };
    assert_eq!(connect.subs, BTreeMap::from([("b".into(), ResumeSubscription::default())]));
    assert_eq!(connect.headers, BTreeMap::from([("b".into(), "c".into())]));

    let json = r#"{"id":1,"publish":{"channel":"x"}}"#;
    assert!(matches!(parse(json).method, Method::Publish(Publish { data: None, .. })));
}

#[test]
fn connect() {
    let json = r##"{"id":1,"connect":{"token":"eyJ","data":{"a": [1, 2]},"name":"js","version":"5.7","flag":7,
        "subs":{"#42":{"recover":true,"epoch":"e","offset":9007199254740992,"delta":"fossil","x":1}},
        "headers":{"Authorization":"Bearer x"}}}"##;
    let Method::Connect(connect) = parse(json).method else { panic!() };
    assert_eq!((&*connect.token, &*connect.name, &*connect.version), ("eyJ", "js", "5.7"));
    assert_eq!(raw(connect.data), Some(r#"{"a": [1, 2]}"#));
    let resume =
        ResumeSubscription { recover: true, epoch: "e".into(), offset: 1 << 53, delta: Some(Delta::Fossil) };
    assert_eq!(connect.subs, BTreeMap::from([("#42".into(), resume)]));
    assert_eq!(connect.headers, BTreeMap::from([("Authorization".into(), "Bearer x".into())]));
}

#[test]
fn the_last_of_two_equal_channels_counts() {
    let json = r#"{"id":1,"connect":{"subs":{"x":{"offset":1},"x":{"offset":2}}}}"#;
    let Method::Connect(connect) = parse(json).method else { panic!() };
    assert_eq!(connect.subs["x"].offset, 2);
}

#[test]
fn long_labels_are_cut_and_refuse_nothing() {
    let json = format!(
        r#"{{"id":1,"connect":{{"name":"{}","version":"\n{}"}}}}"#,
        "é".repeat(1000),
        "é".repeat(1000)
    );
    let Method::Connect(connect) = parse(&json).method else { panic!() };
    assert_eq!(connect.name, "é".repeat(32));
    assert_eq!(connect.version, format!("\n{}", "é".repeat(31)));
}

#[test]
fn the_request_of_a_unidirectional_client_is_bare() {
    let connect = Connect::parse(r#"{"token":"t","subs":{"news":{"recover":true,"epoch":"e","offset":7}}}"#);
    let connect = connect.unwrap();
    assert_eq!((&*connect.token, connect.subs["news"].offset), ("t", 7));
    assert!(Connect::parse("{}\n").is_ok_and(|connect| connect.token.is_empty()));
    for bad in ["", "null", "[]", "[\"t\"]", "{} {}", "{\"token\":1}", "x"] {
        assert_eq!(Connect::parse(bad).err(), Some(BadFrame), "{bad}");
    }
}

#[test]
fn subscribe() {
    let json = r#"{"id":2,"subscribe":{"channel":"chat:lobby","token":"t","recover":true,"epoch":"kq1T",
        "offset":18446744073709551615,"data":[],"positioned":true,"recoverable":true,"join_leave":true,
        "delta":"fossil","tf":{"key":"a","cmp":"ex"},"flag":3,"type":4,"phase":2}}"#;
    let command = parse(json);
    assert_eq!((command.id, command.method.channel()), (2, Some("chat:lobby")));
    let Method::Subscribe(s) = command.method else { panic!() };
    assert_eq!((&*s.channel, &*s.token, &*s.epoch, s.offset), ("chat:lobby", "t", "kq1T", u64::MAX));
    assert!(s.recover && s.positioned && s.recoverable && s.join_leave);
    assert_eq!((raw(s.data), raw(s.tf)), (Some("[]"), Some(r#"{"key":"a","cmp":"ex"}"#)));
    assert_eq!((s.delta, s.flag, s.kind), (Some(Delta::Fossil), 3, 4));
}

#[test]
fn only_bit_two_of_the_flag_asks_for_112() {
    for (flag, asks) in [(0, false), (1, false), (2, true), (3, true), (4, false), (i64::MAX, true)] {
        let json = format!(r#"{{"id":2,"subscribe":{{"channel":"x","flag":{flag}}}}}"#);
        let Method::Subscribe(subscribe) = parse(&json).method else { panic!() };
        assert_eq!(subscribe.wants_unrecoverable_error(), asks, "{flag}");
    }
}

#[test]
fn history() {
    let json = r#"{"id":6,"history":{"channel":"news","limit":2,"since":{"offset":10,"epoch":"kq1T"}}}"#;
    let Method::History(history) = parse(json).method else { panic!() };
    let since = Some(StreamPosition { offset: 10, epoch: "kq1T".into() });
    assert_eq!(history, History { channel: "news".into(), limit: 2, since, reverse: false });
    for limit in [i32::MIN, -1, 0, i32::MAX] {
        let json =
            format!(r#"{{"id":6,"history":{{"channel":"x","limit":{limit},"since":{{}},"reverse":true}}}}"#);
        let Method::History(history) = parse(&json).method else { panic!() };
        assert_eq!(
            (history.limit, history.since, history.reverse),
            (limit, Some(StreamPosition::default()), true)
        );
    }
}

#[test]
fn the_other_methods() {
    let json = r#"{"id":7,"rpc":{"method":"sum","data":{"a":1}}}"#;
    assert!(
        matches!(parse(json).method, Method::Rpc(Rpc { method, data }) if method == "sum" && data.is_some())
    );
    let json = r#"{"id":4,"unsubscribe":{"channel":"news"}}"#;
    assert!(matches!(parse(json).method, Method::Unsubscribe(u) if u.channel == "news"));
    let json = r#"{"id":4,"presence":{"channel":"news"}}"#;
    assert!(matches!(parse(json).method, Method::Presence(p) if p.channel == "news"));
    let json = r#"{"id":4,"presence_stats":{"channel":"news"}}"#;
    assert!(matches!(parse(json).method, Method::PresenceStats(p) if p.channel == "news"));
    let json = r#"{"id":4,"refresh":{}}"#;
    assert!(matches!(parse(json).method, Method::Refresh(r) if r.token.is_empty()));
    let json = r#"{"id":4,"sub_refresh":{"channel":"news","token":"t","track":[]}}"#;
    assert!(matches!(parse(json).method, Method::SubRefresh(s) if s.channel == "news" && s.token == "t"));
}

#[test]
fn texts_without_escapes_are_not_copied() {
    let json = r#"{"id":1,"subscribe":{"channel":"plain","epoch":"\u0065"}}"#;
    let Method::Subscribe(subscribe) = parse(json).method else { panic!() };
    assert!(matches!(subscribe.channel, Cow::Borrowed("plain")));
    assert!(matches!(subscribe.epoch, Cow::Owned(epoch) if epoch == "e"));
}

#[test]
fn depth_costs_no_stack() {
    let deep = format!("{}{}", "[".repeat(30_000), "]".repeat(30_000));
    let json = format!(r#"{{"id":1,"x":{deep},"publish":{{"channel":"x","data":{deep}}}}}"#);
    assert!(
        matches!(parse(&json).method, Method::Publish(Publish { data: Some(data), .. }) if data.get() == deep)
    );
}
