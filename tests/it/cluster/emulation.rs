//! A stream on one node, and what its client says to another one.

use serde_json::{Value, json};
use testkit::process::Signal;

use super::{Joined, token, with_nodes};
use crate::support::client::Request;
use crate::support::store::eventually;
use crate::support::stream_client::{StreamClient, opening};

#[test]
fn posts_reach_the_stream_over_any_node() {
    for joined in [Joined::ByRedis, Joined::ByNotify] {
        with_nodes(joined, 2, async |nodes| {
            let first = json!({ "id": 1, "connect": { "token": token("ana") } }).to_string();
            let mut lines = StreamClient::open(nodes.address(0), &opening("http_stream", &first)).await;
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
            post(node, &json!("0".repeat(32)), subscribe.clone()).send(nodes.address(1)).await.expect(204);
            // What cannot be one is refused without asking the node.
            for impossible in ["nobody".to_owned(), "0".repeat(31), "0".repeat(20_000), "G".repeat(32)] {
                let refused = post(node, &json!(impossible), subscribe.clone()).send(nodes.address(1)).await;
                refused.refused(404, "not_found");
            }
            let nowhere = json!("00000000-0000-4000-8000-000000000000");
            // Whoever has just come does not know yet who is there.
            eventually("it knows that there is no such node", async || {
                let answer = post(&nowhere, session, subscribe.clone()).send(nodes.address(1)).await;
                let known = answer.status == 404;
                if !known {
                    answer.refused(503, "node_silent");
                }
                known
            })
            .await;
            post(&json!("x"), session, subscribe).send(nodes.address(1)).await.refused(404, "not_found");
        });
    }
}

#[test]
fn a_node_that_fell_silent_is_not_said_to_be_gone() {
    with_nodes(Joined::ByNotify, 2, async |nodes| {
        let first = json!({ "id": 1, "connect": { "token": token("ana") } }).to_string();
        let mut lines = StreamClient::open(nodes.address(0), &opening("http_stream", &first)).await;
        let hello = lines.message().await;
        let post = |data: &str| {
            let whose = &hello["connect"];
            let body = json!({ "session": whose["session"], "node": whose["node"], "data": data });
            Request::post("/emulation").json(&body)
        };
        nodes.nodes[0].signal(Signal::STOP).expect("it runs");
        nodes.until(1, "campanile_cluster_nodes", 1).await;
        post("{}").send(nodes.address(1)).await.refused(503, "node_silent");
        nodes.nodes[0].signal(Signal::CONT).expect("it runs");
        nodes.until(1, "campanile_cluster_nodes", 2).await;
        let subscribe = json!({ "id": 2, "subscribe": { "channel": "news:a" } }).to_string();
        post(&subscribe).send(nodes.address(1)).await.expect(204);
        let reply = lines.message().await;
        assert_eq!(reply["id"], 2, "{reply}");
    });
}
