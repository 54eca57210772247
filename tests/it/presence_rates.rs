//! Join and leave messages are bounded by user: one client that comes and goes all the time does not make the
//! node write to everybody all the time.

use serde_json::json;

use crate::support::app::{Backend, TestApp};
use crate::support::websocket::Client;

const ROOM: &str = "limits.joins_per_minute = 3
[[channel.namespaces]]
name = \"room\"
join_leave = true
force_push_join_leave = true
allow_subscribe_for_client = true
";

#[tokio::test]
async fn who_joins_too_often_is_not_announced_any_more() {
    let app = TestApp::with(Backend::Sqlite, ROOM).await;
    let token = |user: &str| app.token(json!({ "sub": user }));
    let mut listener = Client::connected(&app, &token("listener")).await;
    listener.subscribe("room:a").await;
    let mut restless = Client::connected(&app, &token("restless")).await;
    for _ in 0..10 {
        restless.subscribe("room:a").await;
        restless.ask(json!({ "unsubscribe": { "channel": "room:a" } })).await;
    }
    let mut other = Client::connected(&app, &token("other")).await;
    other.subscribe("room:a").await;

    let mut told = Vec::new();
    while told.last().is_none_or(|(_, user)| user != "other") {
        let push = listener.push().await;
        for kind in ["join", "leave"] {
            if let Some(user) = push[kind]["info"]["user"].as_str().filter(|user| *user != "listener") {
                told.push((kind, user.to_owned()));
            }
        }
    }
    let by_restless: Vec<_> =
        told.iter().filter(|(_, user)| user == "restless").map(|(kind, _)| *kind).collect();
    assert_eq!(by_restless, ["join", "leave"].repeat(3), "each join has its leave");
    assert_eq!(app.metric("joins_unannounced", "").await, 7);
}
