//! `[retention]` down to half an hour: who is away for longer is told so by every transport, and nothing that
//! is younger is lost.

use serde_json::json;

use crate::support::app::{Backend, TestApp, on_both};
use crate::support::websocket::Client;

const HALF_AN_HOUR: &str = "limits.polls_per_minute = 10000
[retention]
repo_age = \"30m\"
org_age = \"30m\"
build_age = \"30m\"
personal_age = \"30m\"
delivery_payloads = \"30m\"
delivery_ids = \"30m\"
sessions = \"30m\"
";

async fn what_is_older_is_gone_for_every_transport_and_says_so(backend: Backend) {
    let app = TestApp::with(backend, HALF_AN_HOUR).await;
    app.post_runs(1..=4).await;
    let ana = app.ana();
    let first = app.poll("channel=repo:acme/api&limit=1", &ana).await["cursor"].clone();
    let first = first.as_str().expect("a cursor");
    app.sql().age_by_minutes("repo:acme/api", 2, 29).await;
    let page = app.poll("channel=repo:acme/api", &ana).await;
    assert_eq!(page["events"].as_array().map(Vec::len), Some(4), "half an hour is kept whole");
    app.sql().age_by_minutes("repo:acme/api", 2, 2).await;

    let page = app.poll("channel=repo:acme/api", &ana).await;
    assert_eq!(page["events"].as_array().map(Vec::len), Some(2));
    let lost = app.get(&format!("/api/events?channel=repo:acme/api&cursor={first}"), &ana).await;
    let lost = lost.refused(410, "cursor_lost").json();
    let oldest = lost["error"]["details"]["oldest"].as_str().expect("a cursor").to_owned();
    assert_eq!(
        app.poll(&format!("channel=repo:acme/api&cursor={oldest}"), &ana).await["cursor"],
        page["cursor"]
    );

    let mut stream = app.stream("repo:acme/api", &ana, Some(first)).await;
    assert_eq!(stream.next_event().await.name(), "stream:reset");
    let mut client = Client::connected(&app, &ana).await;
    let (epoch, _) = first.split_once('.').expect("a position");
    let recover = |offset: u64| json!({ "subscribe": { "channel": "repo:acme/api", "recover": true, "epoch": epoch, "offset": offset } });
    let reply = client.ask(recover(1)).await;
    assert_eq!(
        (&reply["subscribe"]["was_recovering"], &reply["subscribe"]["recovered"]),
        (&json!(true), &json!(null))
    );
    let mut other = Client::connected(&app, &ana).await;
    let reply = other.ask(recover(2)).await;
    assert_eq!(reply["subscribe"]["publications"].as_array().map(Vec::len), Some(2), "{reply}");

    app.post_runs(5..=5).await;
    assert_eq!(stream.runs(1).await, [5]);
    assert_eq!(client.push().await["pub"]["offset"], 5);
}

on_both!(what_is_older_is_gone_for_every_transport_and_says_so);
