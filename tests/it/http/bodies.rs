//! Bodies share room. Who is slow and has proven nothing takes none from who is quick, or has.

use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::sign_in::from_page;
use crate::support::app::{API_KEY, Backend, TestApp, on_both};
use crate::support::client::{Answer, Request};

on_both!(silent_bodies_keep_no_delivery_out);

/// None is too slow before it has to make way.
const ROOM: &str = "limits.body_grace = \"1m\"\nlimits.webhook_body = \"64KiB\"\nlimits.webhook_in_flight = \"256KiB\"\n\
                    limits.client_bodies_in_flight = \"256KiB\"\nserver.trusted_proxies = [\"127.0.0.1\"]";
const HALF: usize = 30 << 10;

/// A body of which half has come, from `address`.
async fn half(app: &TestApp, request: Request, address: &str) -> TcpStream {
    let request = request.header("X-Forwarded-For", address);
    request.send_beginning(app.address(), 2 * HALF, &vec![b' '; HALF]).await
}

fn delivery(app: &TestApp) -> Request {
    app.webhook("star", format!("\"{}\"", "x".repeat(50 << 10)))
}

async fn silent_bodies_keep_no_delivery_out(backend: Backend) {
    let app = TestApp::with(backend, ROOM).await;
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(half(&app, delivery(&app), "192.0.2.1").await);
    }
    for _ in 0..20 {
        app.send(delivery(&app)).await.expect(202);
    }
    Answer::read(&mut silent[0]).await.refused(503, "body_evicted");
    drop(silent);
    app.until_metric("limit_used", "webhook_bytes", 0).await;
}

#[tokio::test]
async fn whoever_takes_more_than_a_share_makes_way_for_itself() {
    let app = TestApp::with(Backend::Sqlite, ROOM).await;
    let body = format!("\"{}\"", "x".repeat(2 * HALF - 2));
    let slow = app.webhook("star", body.clone()).header("X-Forwarded-For", "198.51.100.7");
    let mut slow = slow.send_beginning(app.address(), body.len(), &body.as_bytes()[..HALF]).await;
    let mut greedy = Vec::new();
    for _ in 0..30 {
        greedy.push(half(&app, delivery(&app), "192.0.2.1").await);
    }
    Answer::read(&mut greedy[0]).await.refused(503, "body_evicted");
    slow.write_all(&body.as_bytes()[HALF..]).await.expect("written");
    Answer::read(&mut slow).await.expect(202);
}

#[tokio::test]
async fn silent_clients_keep_no_client_out() {
    let app = TestApp::with(Backend::Sqlite, ROOM).await;
    let mut silent = Vec::new();
    for number in 0..8 {
        let path = ["/emulation", "/connection/http_stream"][number % 2];
        silent.push(half(&app, Request::post(path), "192.0.2.1").await);
    }
    let post = json!({ "session": "none", "node": "none", "data": "x".repeat(50 << 10) });
    for _ in 0..20 {
        app.send(Request::post("/emulation").json(&post)).await.expect(404);
    }
    Answer::read(&mut silent[0]).await.refused(503, "body_evicted");
}

#[tokio::test]
async fn bodies_of_the_server_api_share_the_room_and_strangers_make_way_for_them() {
    let app = TestApp::with(Backend::Sqlite, ROOM).await;
    let call = || Request::post("/api/publish").header("X-API-Key", API_KEY);
    let stranger = Request::post("/api/publish").header("X-API-Key", "wrong");
    let mut stranger = half(&app, stranger, "192.0.2.1").await;
    Answer::read(&mut stranger).await.refused(401, "api_key");
    app.until_metric("limit_used", "client_bytes", 0).await;

    // Its bytes lie there longest, and it comes from the same address.
    let mut slow = half(&app, call(), "192.0.2.1").await;
    app.until_metric("limit_used", "client_bytes", HALF as u64).await;
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(half(&app, Request::post("/emulation"), "192.0.2.1").await);
    }
    app.until_metric("limit_used", "client_bytes", 8 * HALF as u64).await;
    Answer::read(&mut silent[0]).await.refused(503, "body_evicted");
    app.send(call().body("x".repeat(200 << 10))).await.refused(400, "bad_request");
    slow.write_all(&vec![b' '; HALF]).await.expect("written");
    Answer::read(&mut slow).await.refused(400, "bad_request");
}

#[tokio::test]
async fn slow_bodies_of_one_user_make_way_for_another_and_not_for_strangers() {
    let options = "limits.body_grace = \"1m\"\nlimits.build_events_in_flight = \"64KiB\"\nchannel.max_publication_size = \"32KiB\"";
    let app = TestApp::with(Backend::Sqlite, options).await;
    let path = format!("/api/builds/{}/events", uuid::Uuid::new_v4());
    let mut slow = Vec::new();
    for _ in 0..2 {
        let post = Request::post(&path).bearer(&app.ana());
        slow.push(post.send_beginning(app.address(), 32 << 10, &vec![b' '; 28 << 10]).await);
    }
    let event = json!({ "type": "build:started", "data": { "text": "x".repeat(20 << 10) } });
    app.send(Request::post(&path).bearer(&app.ana()).json(&event)).await.refused(503, "overloaded");
    let ben = app.token(json!({ "sub": "ben", "orgs": ["acme"] }));
    app.send(Request::post(&path).bearer(&ben).json(&event)).await.expect(201);
    Answer::read(&mut slow[0]).await.refused(503, "body_evicted");
}

#[tokio::test]
async fn a_body_that_is_waited_for_has_to_come() {
    let app = TestApp::with(Backend::Sqlite, "limits.body_grace = \"200ms\"").await;
    let build = Request::post(&format!("/api/builds/{}/events", uuid::Uuid::new_v4())).bearer(&app.ana());
    let doors = [app.webhook("star", ""), build, Request::post("/emulation")];
    let others = [
        Request::post("/connection/http_stream"),
        Request::post("/api/publish").header("X-API-Key", API_KEY),
        from_page(&app, Request::post("/api/auth/sign-in")),
    ];
    for request in doors.into_iter().chain(others) {
        let mut slow = request.send_beginning(app.address(), 1000, b"{").await;
        Answer::read(&mut slow).await.refused(408, "body_too_slow");
    }
    assert_eq!(app.metric("webhooks", "body_too_slow").await, 1);
}
