//! A stream on one node, and what its client says to another one.

use serde_json::{Value, json};

use super::{Joined, token, with_nodes};
use crate::support::client::Request;
use crate::support::lines::{Lines, opening};

#[test]
fn posts_reach_the_stream_over_any_node() {
    for joined in [Joined::ByRedis, Joined::ByNotify] {
        with_nodes(joined, 2, async |nodes| {
            let first = json!({ "id": 1, "connect": { "token": token("ana") } }).to_string();
            let mut lines = Lines::open(nodes.address(0), &opening("http_stream", &first)).await;
            let hello = lines.message().await;
            let (session, node) = (&hello["connect"]["session"], &hello["connect"]["node"]);
            let post = |node: &Value, session: &Value, data: String| {
                Request::post("/emulation").json(&json!({ "session": session, "node": node, "data": data }))
            };
            // Large enough for several notifications.
            let subscribe = json!({ "id": 2, "subscribe": { "channel": "news:a" } }).to_string();
            let spaces = " ".repeat(20_000);
            let sent = post(node, session, format!("{subscribe}{spaces}")).send(nodes.address(1)).await;
            sent.expect(204);
            let reply = lines.message().await;
            assert_eq!(reply["id"], 2, "{reply}");
            // A session that is over is for its client to find out.
            post(node, &json!("nobody"), subscribe.clone()).send(nodes.address(1)).await.expect(204);
            let nowhere = json!("00000000-0000-4000-8000-000000000000");
            post(&nowhere, session, subscribe.clone()).send(nodes.address(1)).await.refused(404, "not_found");
            post(&json!("x"), session, subscribe).send(nodes.address(1)).await.refused(404, "not_found");
        });
    }
}
