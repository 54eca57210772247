//! The frames of a stream, against the protocol; how it begins and how it ends.

use serde_json::{Value, json};

use super::{SPACES, over, start};
use crate::support::app::{Backend, TestApp};
use crate::support::stream_client::{StreamClient, opening};

/// A message with what is another one each time replaced by a word.
fn told(message: &Value, known: &[(&str, &str)]) -> String {
    let mut text = message.to_string();
    for (value, word) in known {
        text = text.replace(value, word);
    }
    text
}

async fn frames_are_those_of_the_protocol(transport: &str) {
    let app = start().await;
    let token = app.token(json!({ "sub": "ana", "channels": ["room:a"], "info": { "name": "Ana" } }));
    let connect = json!({ "id": 1, "connect": { "token": token } });
    let mut lines = StreamClient::open(app.address(), &opening(transport, &connect.to_string())).await;
    let head = |name: &str| lines.head.header(name).map(str::to_owned);
    let kind = if transport == "sse" { "text/event-stream; charset=utf-8" } else { "application/json" };
    assert_eq!(head("content-type").as_deref(), Some(kind));
    let uncached = "private, no-cache, no-store, must-revalidate, max-age=0";
    assert_eq!(head("cache-control").as_deref(), Some(uncached));
    assert_eq!(head("pragma").as_deref(), Some("no-cache"));
    assert_eq!(head("x-accel-buffering").as_deref(), Some("no"));
    assert_eq!(head("transfer-encoding").as_deref(), Some("chunked"));

    let mut reply = lines.message().await;
    assert!(reply["connect"]["time"].take().as_u64() > Some(1_700_000_000_000));
    let text = |name: &str| reply["connect"][name].as_str().expect("a text").to_owned();
    let (client, session, node, version) = (text("client"), text("session"), text("node"), text("version"));
    assert!(session.len() == 32 && node.len() == 36 && client.len() == 36, "{reply}");
    lines.take_session(&reply["connect"]);
    reply["connect"].as_object_mut().expect("an object").remove("time");
    let known: Vec<(&str, &str)> =
        vec![(&client, "CLIENT"), (&session, "SESSION"), (&node, "NODE"), (&version, "VERSION")];
    assert_eq!(
        told(&reply, &known),
        told(
            &json!({ "id": 1, "connect": {
                "client": "CLIENT", "version": "VERSION", "ping": 25, "pong": true,
                "subs": { "room:a": {} }, "session": "SESSION", "node": "NODE",
            } }),
            &[]
        )
    );
    let ana = r#"{"client":"CLIENT","conn_info":{"name":"Ana"},"user":"ana"}"#;
    let push = lines.message().await;
    assert_eq!(told(&push, &known), format!(r#"{{"push":{{"channel":"room:a","join":{{"info":{ana}}}}}}}"#));

    let reply = lines.ask(json!({ "subscribe": { "channel": "news:x" } })).await;
    let epoch = reply["subscribe"]["epoch"].as_str().expect("an epoch").to_owned();
    let known: Vec<_> = known.into_iter().chain([(epoch.as_str(), "EPOCH")]).collect();
    let reply = told(&reply, &known);
    // Offset 0 is a zero value, and left out.
    assert_eq!(reply, r#"{"id":2,"subscribe":{"epoch":"EPOCH","positioned":true,"recoverable":true}}"#);
    lines.send_text(r#"{"id":3,"publish":{"channel":"news:x","data":{"n":1}}}"#).await;
    let mut said = [told(&lines.message().await, &known), told(&lines.message().await, &known)];
    said.sort();
    let pushed = r#"{"push":{"channel":"news:x","pub":{"data":{"n":1},"info":{"client":"CLIENT","conn_info":{"name":"Ana"},"user":"ana"},"offset":1}}}"#;
    assert_eq!(said, [r#"{"id":3,"publish":{}}"#, pushed]);

    let asked = [
        (
            json!({ "presence": { "channel": "room:a" } }),
            format!(r#"{{"id":3,"presence":{{"presence":{{"CLIENT":{ana}}}}}}}"#),
        ),
        (json!({ "presence": { "channel": "room:b" } }), r#"{"id":4,"presence":{"presence":{}}}"#.to_owned()),
        (
            json!({ "presence_stats": { "channel": "room:b" } }),
            r#"{"id":5,"presence_stats":{"num_clients":0,"num_users":0}}"#.to_owned(),
        ),
        (
            json!({ "history": { "channel": "news:x" } }),
            r#"{"history":{"epoch":"EPOCH","offset":1,"publications":[]},"id":6}"#.to_owned(),
        ),
        (
            json!({ "rpc": { "method": "sum" } }),
            r#"{"error":{"code":108,"message":"not available"},"id":7}"#.to_owned(),
        ),
        (
            json!({ "subscribe": { "channel": "nowhere:x" } }),
            r#"{"error":{"code":102,"message":"unknown channel"},"id":8}"#.to_owned(),
        ),
        (json!({ "unsubscribe": { "channel": "news:x" } }), r#"{"id":9,"unsubscribe":{}}"#.to_owned()),
    ];
    for (command, expected) in asked {
        assert_eq!(told(&lines.ask(command).await, &known), expected);
    }
    app.call("disconnect", json!({ "user": "ana" })).await.expect(200);
    let last = lines.message().await;
    let words = r#"{"push":{"disconnect":{"code":3503,"reason":"force disconnect"}}}"#;
    assert_eq!((last.to_string().as_str(), lines.next().await), (words, None));
}

async fn whatever_is_wrong_at_first_ends_the_stream_with_its_code(transport: &str) {
    let app = start().await;
    let connect = |token: &str| json!({ "id": 1, "connect": { "token": token } }).to_string();
    let firsts = [
        ("garbage".to_owned(), 3501),
        (String::new(), 3501),
        ("\n\n".to_owned(), 3501),
        (r#"{"id":1,"subscribe":{"channel":"news:x"}}"#.to_owned(), 3501),
        (r#"{"id":1,"connect":{}}"#.to_owned(), 3501),
        (r#"{"id":0,"connect":{}}"#.to_owned(), 3501),
        (r#"{"id":99999999999,"connect":{}}"#.to_owned(), 3501),
        (connect("no token"), 3500),
        (format!("{}\n{}", connect(&app.ana()), connect(&app.ana())), 3501),
        (format!("{}\nnonsense", connect(&app.ana())), 3501),
        (format!("{}\n{{\"id\":2,\"send\":{{}}}}", connect(&app.ana())), 3508),
    ];
    for (first, code) in firsts {
        let mut lines = StreamClient::open(app.address(), &opening(transport, &first)).await;
        assert_eq!(lines.closed_with().await, code, "{first}");
    }
    // An error is a reply, and the client is late rather than wrong.
    let old = app.token(json!({ "sub": "ana", "exp": 1 }));
    let mut lines = StreamClient::open(app.address(), &opening(transport, &connect(&old))).await;
    assert_eq!(lines.message().await["error"]["code"], 109);
    drop(lines);
    app.until_metric("connections", transport, 0).await;
    assert_eq!(app.metric("subscriptions", "").await, 0);
}

async fn commands_may_come_with_the_first(transport: &str) {
    let app = start().await;
    let connect = json!({ "id": 1, "connect": { "token": app.ana() } });
    let first = format!("{connect}\n{{\"id\":2,\"subscribe\":{{\"channel\":\"news:x\"}}}}\n");
    let mut lines = StreamClient::open(app.address(), &opening(transport, &first)).await;
    assert_eq!(lines.message().await["id"], 1);
    assert_eq!(lines.message().await["id"], 2);
    app.publish(json!({ "channel": "news:x", "data": 1 })).await.expect(200);
    assert_eq!(lines.push().await["pub"]["offset"], 1);
}

async fn who_leaves_is_gone_at_once(transport: &str) {
    let app = start().await;
    let mut stays =
        StreamClient::connected(app.address(), transport, &app.token(json!({ "sub": "ben" }))).await;
    stays.subscribe("room:x").await;
    assert_eq!(stays.push().await["join"]["info"]["user"], "ben");
    let mut leaves = StreamClient::connected(app.address(), transport, &app.ana()).await;
    leaves.subscribe("room:x").await;
    assert_eq!(stays.push().await["join"]["info"]["user"], "ana");
    app.until_metric("connections", transport, 2).await;
    let post = leaves.post_of(r#"{"id":9,"rpc":{"method":"x"}}"#);
    drop(leaves);
    // No ping and no timer comes in between: the end of the connection itself is heard.
    assert_eq!(stays.push().await["leave"]["info"]["user"], "ana");
    let presence = app.call("presence_stats", json!({ "channel": "room:x" })).await.expect(200).json();
    assert_eq!(presence["result"]["num_clients"], 1);
    app.until_metric("connections", transport, 1).await;
    app.until_metric("disconnects", "3000", 1).await;
    // Its session is no more, which nobody is told.
    post.send(app.address()).await.expect(204);
}

async fn a_node_that_stops_says_so(transport: &str) {
    let mut app = start().await;
    let mut lines = StreamClient::connected(app.address(), transport, &app.ana()).await;
    let (code, ()) = tokio::join!(lines.closed_with(), app.stop());
    assert_eq!(code, 3001);
}

async fn pings_are_answered_by_posts(transport: &str) {
    let pings = "[client]\nping_interval = \"1s\"\npong_timeout = \"200ms\"";
    let app = TestApp::with(Backend::Sqlite, &SPACES.replacen("[client]", pings, 1)).await;
    let mut answers = StreamClient::connected(app.address(), transport, &app.ana()).await;
    let mut silent = StreamClient::connected(app.address(), transport, &app.ana()).await;
    for _ in 0..2 {
        assert_eq!(answers.next_of_all().await, Some(json!({})));
        answers.send_text("{}").await;
    }
    assert_eq!(silent.closed_with().await, 3012);
    assert_eq!(answers.ask(json!({ "rpc": { "method": "x" } })).await["error"]["code"], 108);
}

over!(http_stream, sse: [
    frames_are_those_of_the_protocol,
    whatever_is_wrong_at_first_ends_the_stream_with_its_code,
    commands_may_come_with_the_first,
    who_leaves_is_gone_at_once,
    a_node_that_stops_says_so,
    pings_are_answered_by_posts,
]);
