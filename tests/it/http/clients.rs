//! The operator's hand on clients: who is connected, ending connections, revoked tokens and blocked
//! users, on every transport.

use serde_json::{Value, json};

use crate::support::app::{Backend, TestApp, on_both, run_of, stream_request};
use crate::support::client::Request;
use crate::support::sse::Stream;
use crate::support::store::eventually;
use crate::support::websocket::Client;

fn person(app: &TestApp, user: &str, jti: &str) -> String {
    app.token(json!({ "sub": user, "orgs": ["acme"], "jti": jti }))
}

async fn clients_are_listed_by_user(backend: Backend) {
    let app = TestApp::start(backend).await;
    assert_eq!(app.result("connections", json!({})).await, json!({ "connections": {} }));
    let mut ana = Client::open(app.address()).await;
    let id = ana.connect(&person(&app, "ana", "t-1")).await["client"].as_str().unwrap().to_owned();
    let _bob = Client::connected(&app, &person(&app, "bob", "t-2")).await;
    let _stream = app.stream("org:acme", &person(&app, "ana", "t-3"), None).await;

    let all = app.result("connections", json!({})).await;
    assert_eq!(all["connections"].as_object().unwrap().len(), 3);
    let found = app.result("connections", json!({ "user": "ana" })).await;
    assert_eq!(found["connections"].as_object().unwrap().len(), 2);
    let one = &found["connections"][&id];
    assert_eq!(
        (&one["user"], &one["transport"], &one["token_uid"]),
        (&json!("ana"), &json!("websocket"), &json!("t-1"))
    );
    let since = chrono::DateTime::parse_from_rfc3339(one["connected_at"].as_str().unwrap()).unwrap();
    let age = chrono::Utc::now().signed_duration_since(since);
    assert!((0..60).contains(&age.num_seconds()), "{age}");
    let first = app.result("connections", json!({ "limit": 1 })).await;
    let first = first["connections"].as_object().unwrap().values().next().unwrap().clone();
    assert_eq!((&first["transport"], &first["token_uid"]), (&json!("sse"), &json!("t-3")), "the newest");
    assert_eq!(app.error("connections", json!({ "limit": 5_001 })).await, 107);

    drop(ana);
    app.until_metric("connections", "websocket", 1).await;
    assert_eq!(
        app.result("connections", json!({ "user": "ana" })).await["connections"].as_object().unwrap().len(),
        1
    );
}

async fn a_user_is_disconnected_from_every_transport(backend: Backend) {
    let app = TestApp::start(backend).await;
    let mut kept = Client::open(app.address()).await;
    let id = kept.connect(&person(&app, "ana", "t-1")).await["client"].clone();
    let mut sockets = [
        Client::connected(&app, &person(&app, "ana", "t-2")).await,
        Client::connected(&app, &person(&app, "ana", "t-3")).await,
    ];
    let mut bob = Client::connected(&app, &person(&app, "bob", "t-4")).await;
    let mut stream = app.stream("org:acme", &person(&app, "ana", "t-5"), None).await;

    assert_eq!(app.result("disconnect", json!({ "user": "ana", "whitelist": [id] })).await, json!({}));
    for socket in &mut sockets {
        assert_eq!(socket.closed().await, (3503, "force disconnect".to_owned()));
    }
    assert_eq!(stream.next_event().await.name(), "stream:expired");
    stream.ends().await;
    kept.is_quiet().await;
    bob.is_quiet().await;

    let custom = json!({ "user": "ana", "client": id, "disconnect": { "code": 4321, "reason": "tea time" } });
    app.result("disconnect", custom).await;
    assert_eq!(kept.closed().await, (4321, "tea time".to_owned()));
    for (user, client) in
        [("nobody", Value::Null), ("bob", json!("no id")), ("bob", json!(uuid::Uuid::nil()))]
    {
        let mut body = json!({ "user": user });
        if !client.is_null() {
            body["client"] = client;
        }
        assert_eq!(app.result("disconnect", body).await, json!({}), "no match is no error");
    }
    let bad = json!({ "user": "bob", "disconnect": { "code": 1000, "reason": "" } });
    assert_eq!(app.error("disconnect", bad).await, 107);
    bob.is_quiet().await;
    // They may come back.
    Client::connected(&app, &person(&app, "ana", "t-2")).await;
}

/// What each endpoint answers to `token`.
async fn is_refused(app: &TestApp, token: &str, disconnect: u16, status: u16, code: &str) {
    let mut client = Client::open(app.address()).await;
    client.command(json!({ "connect": { "token": token } })).await;
    assert_eq!(client.closed_with().await, disconnect);
    app.get("/api/events?channel=org:acme", token).await.refused(status, code);
    app.get("/api/repos", token).await.refused(status, code);
    let Err(answer) = Stream::open(app.address(), &stream_request("org:acme", token, None)).await else {
        panic!("a stream for {token}")
    };
    answer.refused(status, code);
}

async fn a_revoked_token_is_worth_nothing_at_once(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    let (bad, good) = (person(&app, "ana", "t-bad"), person(&app, "ana", "t-good"));
    let mut by_bad = Client::connected(&app, &bad).await;
    let mut by_good = Client::connected(&app, &good).await;
    let mut stream = app.stream("org:acme", &bad, None).await;
    let mut renewing =
        Client::connected(&app, &app.token(json!({ "sub": "ana", "exp": 4_000_000_000u64 }))).await;

    assert_eq!(app.result("revoke_token", json!({ "uid": "t-bad" })).await, json!({}));
    assert_eq!(by_bad.closed().await, (3500, "invalid token".to_owned()));
    assert_eq!(stream.next_event().await.name(), "stream:expired");
    stream.ends().await;
    by_good.is_quiet().await;
    renewing.command(json!({ "refresh": { "token": bad } })).await;
    assert_eq!(renewing.closed_with().await, 3500);
    is_refused(&app, &bad, 3500, 401, "token_revoked").await;

    app.restart().await;
    is_refused(&app, &bad, 3500, 401, "token_revoked").await;
    Client::connected(&app, &good).await;
    for body in [json!({ "uid": "" }), json!({ "uid": "x", "expire_at": 1 }), json!({ "uid": "a\u{0}b" })] {
        assert_eq!(app.error("revoke_token", body).await, 107);
    }
}

async fn a_blocked_user_stays_out_until_it_is_taken_back(backend: Backend) {
    let app = TestApp::start(backend).await;
    let ana = person(&app, "ana", "t-1");
    let mut socket = Client::connected(&app, &ana).await;
    let mut bob = Client::connected(&app, &person(&app, "bob", "t-2")).await;
    let mut stream = app.stream("org:acme", &ana, None).await;
    app.result("block_user", json!({ "user": "ana" })).await;
    assert_eq!(socket.closed().await, (3507, "permission denied".to_owned()));
    assert_eq!(stream.next_event().await.name(), "stream:expired");
    bob.is_quiet().await;
    is_refused(&app, &person(&app, "ana", "another"), 3507, 403, "user_blocked").await;
    assert_eq!(app.sql().count("revocations WHERE kind = 'user'").await, 1);

    app.result("unblock_user", json!({ "user": "ana" })).await;
    app.result("unblock_user", json!({ "user": "nobody" })).await;
    let mut stream = app.stream("org:acme", &ana, None).await;
    app.post_webhook("workflow_run", &run_of("acme/api", 7)).await.expect(202);
    assert_eq!(stream.runs(1).await, [7]);

    // Blocked for a time that is over by itself.
    let soon = chrono::Utc::now().timestamp() + 2;
    app.result("block_user", json!({ "user": "ana", "expire_at": soon })).await;
    assert_eq!(stream.next_event().await.name(), "stream:expired");
    app.get("/api/repos", &ana).await.refused(403, "user_blocked");
    while app.get("/api/repos", &ana).await.status != 200 {
        assert!(chrono::Utc::now().timestamp() <= soon + 5, "still blocked");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    for method in ["block_user", "unblock_user"] {
        for nobody in ["", "a\0b"] {
            assert_eq!(app.error(method, json!({ "user": nobody })).await, 107, "{method} {nobody:?}");
        }
    }
}

async fn a_block_that_ran_out_and_comes_again_disconnects(backend: Backend) {
    let app = TestApp::start(backend).await;
    let ana = person(&app, "ana", "t-1");
    let soon = chrono::Utc::now().timestamp() + 1;
    app.result("block_user", json!({ "user": "ana", "expire_at": soon })).await;
    eventually("she is let in again", async || app.get("/api/repos", &ana).await.status == 200).await;
    let mut socket = Client::connected(&app, &ana).await;
    let mut stream = app.stream("org:acme", &ana, None).await;
    app.result("block_user", json!({ "user": "ana" })).await;
    assert_eq!(socket.closed_with().await, 3507);
    assert_eq!(stream.next_event().await.name(), "stream:expired");
}

async fn a_revoked_subscription_token_admits_nobody(backend: Backend) {
    let app = TestApp::with(backend, "[[channel.namespaces]]\nname = \"news\"\n").await;
    let grant = |channel: &str, jti: &str| {
        app.token(json!({ "sub": "ana", "channel": channel, "jti": jti, "exp": 4_000_000_000u64 }))
    };
    let subscribe = |channel: &str, jti: &str| json!({ "subscribe": { "channel": channel, "token": grant(channel, jti) } });
    let connect = async || Client::connected(&app, &person(&app, "ana", "t-1")).await;
    let mut ana = connect().await;
    for (channel, jti) in [("news:a", "s-1"), ("news:b", "s-2"), ("news:c", "s-3")] {
        assert!(ana.ask(subscribe(channel, jti)).await["subscribe"].is_object());
    }
    // The token that counts is the one of the last refresh.
    let renew = json!({ "sub_refresh": { "channel": "news:c", "token": grant("news:c", "s-1") } });
    assert!(ana.ask(renew).await["sub_refresh"].is_object());

    app.result("revoke_token", json!({ "uid": "s-3" })).await;
    ana.is_quiet().await;
    app.result("revoke_token", json!({ "uid": "s-1" })).await;
    let mut ended = [ana.push().await, ana.push().await];
    ended.sort_by_key(|push| push["channel"].to_string());
    for (push, channel) in ended.iter().zip(["news:a", "news:c"]) {
        assert_eq!((&push["channel"], &push["unsubscribe"]["code"]), (&json!(channel), &json!(2000)));
    }
    app.result("publish", json!({ "channel": "news:b", "data": 1 })).await;
    assert_eq!(ana.push().await["channel"], "news:b", "the other token is as good as ever");

    ana.command(subscribe("news:a", "s-1")).await;
    assert_eq!(ana.closed_with().await, 3500);
    let mut ana = connect().await;
    assert!(ana.ask(subscribe("news:b", "s-2")).await["subscribe"].is_object());
    ana.command(json!({ "sub_refresh": { "channel": "news:b", "token": grant("news:b", "s-1") } })).await;
    assert_eq!(ana.closed_with().await, 3500);
}

async fn who_could_not_be_blocked_is_not_let_in(backend: Backend) {
    let app = TestApp::start(backend).await;
    let long = "x".repeat(1_025);
    for claims in [json!({ "sub": long }), json!({ "sub": "a\0b" }), json!({ "sub": "ana", "jti": long })] {
        is_refused(&app, &app.token(claims), 3500, 401, "token_invalid").await;
    }
    let longest = "x".repeat(1_024);
    Client::connected(&app, &person(&app, &longest, &longest)).await;
    app.result("block_user", json!({ "user": longest })).await;
}

/// The stream waits for the store to say whose build it is, and meanwhile its reader is blocked.
#[tokio::test]
async fn a_stream_that_opens_while_its_reader_is_blocked_is_refused() {
    let app = TestApp::start(Backend::Postgres).await;
    const BUILD: &str = "6f1c7f0a-3f52-4f7e-9d0e-0c7c2ad0b6aa";
    let ana = person(&app, "ana", "t-1");
    let first = json!({ "type": "build:started", "data": {} });
    let path = format!("/api/builds/{BUILD}/events");
    app.send(Request::post(&path).bearer(&ana).json(&first)).await.expect(201);
    let (mut blocker, watcher) = (app.session().await, app.session().await);
    let lock = blocker.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE builds IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let request = stream_request(&format!("build:{BUILD}"), &ana, None);
    let address = app.address();
    let opening = tokio::spawn(async move { Stream::open(address, &request).await.map(drop) });
    eventually("the stream waits for the table", async || {
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'builds'::regclass";
        watcher.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) > 0
    })
    .await;
    app.result("block_user", json!({ "user": "ana" })).await;
    lock.rollback().await.unwrap();
    let Err(answer) = opening.await.unwrap() else { panic!("a blocked reader has a stream") };
    answer.refused(403, "user_blocked");
}

async fn only_the_key_opens_these_endpoints(backend: Backend) {
    let app = TestApp::start(backend).await;
    for method in ["connections", "disconnect", "revoke_token", "block_user", "unblock_user"] {
        let request = || Request::post(&format!("/api/{method}")).json(&json!({ "user": "ana", "uid": "1" }));
        app.send(request()).await.refused(401, "api_key");
        app.send(request().bearer(&app.admin())).await.refused(401, "api_key");
        app.call(method, json!([])).await.refused(400, "bad_request");
    }
    assert_eq!(app.sql().count("revocations").await, 0);
}

on_both!(
    clients_are_listed_by_user,
    a_user_is_disconnected_from_every_transport,
    a_revoked_token_is_worth_nothing_at_once,
    a_blocked_user_stays_out_until_it_is_taken_back,
    a_block_that_ran_out_and_comes_again_disconnects,
    a_revoked_subscription_token_admits_nobody,
    who_could_not_be_blocked_is_not_let_in,
    only_the_key_opens_these_endpoints,
);
