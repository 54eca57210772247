//! Clients as the server API and other clients see them, whatever node they are on.

use serde_json::{Value, json};
use testkit::process::Signal;
use testkit::proxy::Link;

use super::{Joined, Nodes, jti_of, next, token, with_nodes};
use crate::support::process::Gateway;
use crate::support::store::eventually;
use crate::support::websocket::Client;

const BOTH: [Joined; 2] = [Joined::ByRedis, Joined::ByNotify];

async fn presence(nodes: &Nodes, node: usize) -> usize {
    let answer = nodes.api(node, "presence", json!({ "channel": "news:a" })).await;
    answer["presence"].as_object().expect("an object").len()
}

#[test]
fn presence_counts_everybody_from_anywhere() {
    for joined in BOTH {
        with_nodes(joined, 3, async |nodes| {
            let mut ana = nodes.subscriber(0, "ana", "news:a").await;
            let ben = nodes.subscriber(1, "ben", "news:a").await;
            let cat = nodes.subscriber(2, "ben", "news:a").await;
            for node in 0..3 {
                assert_eq!(presence(&nodes, node).await, 3);
                let stats = nodes.api(node, "presence_stats", json!({ "channel": "news:a" })).await;
                assert_eq!(stats, json!({ "num_clients": 3, "num_users": 2 }));
                let channels = nodes.api(node, "channels", json!({ "pattern": "news:*" })).await;
                assert_eq!(channels, json!({ "channels": { "news:a": { "num_clients": 3 } } }));
                let found = nodes.api(node, "connections", json!({ "user": "ben" })).await;
                assert_eq!(found["connections"].as_object().expect("an object").len(), 2);
                let info = nodes.api(node, "info", json!({})).await;
                let counted = |key: &str| -> u64 {
                    let nodes = info["nodes"].as_array().expect("a list").iter();
                    nodes.map(|node| node[key].as_u64().expect("a number")).sum()
                };
                assert_eq!([counted("num_clients"), counted("num_subs")], [3, 3]);
                assert_eq!(info["nodes"].as_array().expect("a list").len(), 3);
            }
            let seen = ana.ask(json!({ "presence": { "channel": "news:a" } })).await;
            assert_eq!(seen["presence"]["presence"].as_object().expect("an object").len(), 3);
            drop((ben, cat));
            eventually("who has left is not seen", async || presence(&nodes, 0).await == 1).await;
        });
    }
}

#[test]
fn coming_and_leaving_is_told_on_other_nodes() {
    for joined in BOTH {
        with_nodes(joined, 2, async |nodes| {
            let mut ana = nodes.subscriber(0, "ana", "news:a").await;
            assert_eq!(ana.push().await["join"]["info"]["user"], "ana");
            let ben = nodes.subscriber(1, "ben", "news:a").await;
            assert_eq!(ana.push().await["join"]["info"]["user"], "ben");
            drop(ben);
            assert_eq!(ana.push().await["leave"]["info"]["user"], "ben");
        });
    }
}

#[test]
fn clients_of_all_nodes_are_directed_from_any() {
    for joined in BOTH {
        with_nodes(joined, 3, async |nodes| {
            let mut clients = Vec::new();
            for node in 0..3 {
                let mut client = Client::open(nodes.address(node)).await;
                client.connect(&token("ana")).await;
                clients.push(client);
            }
            nodes.api(0, "subscribe", json!({ "user": "ana", "channel": "news:a" })).await;
            for client in &mut clients {
                assert!(until(client, "subscribe").await.is_object());
            }
            nodes.publish(1, "news:a", json!(1)).await;
            for client in &mut clients {
                assert_eq!(next(client).await, json!(1));
            }
            nodes.api(1, "unsubscribe", json!({ "user": "ana", "channel": "news:a" })).await;
            for client in &mut clients {
                assert_eq!(until(client, "unsubscribe").await["code"], 2000);
            }
            let later = chrono::Utc::now().timestamp() + 600;
            nodes.api(2, "refresh", json!({ "user": "ana", "expire_at": later })).await;
            for client in &mut clients {
                assert!(until(client, "refresh").await["ttl"].as_u64().is_some_and(|ttl| ttl > 500));
            }
            nodes.api(2, "disconnect", json!({ "user": "ana" })).await;
            for client in &mut clients {
                assert_eq!(client.closed_with().await, 3503);
            }
        });
    }
}

/// The next push of a kind.
async fn until(client: &mut Client, kind: &str) -> Value {
    loop {
        let push = client.push().await;
        if push[kind].is_object() {
            return push[kind].clone();
        }
    }
}

#[test]
fn what_is_revoked_on_one_node_ends_at_once_on_all() {
    for joined in BOTH {
        with_nodes(joined, 2, async |nodes| {
            let (mut ana, mut ben) =
                (Client::open(nodes.address(1)).await, Client::open(nodes.address(1)).await);
            let hers = token("ana");
            ana.connect(&hers).await;
            ben.connect(&token("ben")).await;
            nodes.api(0, "revoke_token", json!({ "uid": jti_of(&hers) })).await;
            assert_eq!(ana.closed_with().await, 3500);
            nodes.api(0, "block_user", json!({ "user": "ben" })).await;
            assert_eq!(ben.closed_with().await, 3507);
        });
    }
}

#[test]
fn a_node_that_was_killed_takes_its_clients_with_it() {
    with_nodes(Joined::ByRedis, 2, async |mut nodes| {
        let _here = nodes.subscriber(0, "ana", "news:a").await;
        let _there = nodes.subscriber(1, "ben", "news:a").await;
        assert_eq!(presence(&nodes, 0).await, 2);
        let killed: Gateway = nodes.nodes.pop().expect("two nodes");
        killed.kill9().await;
        eventually("its clients are gone", async || presence(&nodes, 0).await == 1).await;
        nodes.until(0, "campanile_cluster_nodes", 1).await;
    });
}

#[test]
fn a_node_that_stops_says_goodbye() {
    with_nodes(Joined::ByRedis, 2, async |mut nodes| {
        let stopped = nodes.nodes.pop().expect("two nodes");
        stopped.stop().await;
        nodes.until(0, "campanile_cluster_nodes", 1).await;
        assert_eq!(nodes.metric(0, "campanile_cluster_requests_total{outcome=\"incomplete\"}").await, 0);
    });
}

#[test]
fn who_cannot_reach_all_nodes_says_so() {
    with_nodes(Joined::ByRedis, 2, async |nodes| {
        nodes.nodes[1].signal(Signal::STOP).expect("it runs");
        let refused = nodes.call(0, "disconnect", &json!({ "user": "ana" })).await.json();
        assert_eq!(refused["error"]["code"], 100, "{refused}");
        nodes.nodes[1].signal(Signal::CONT).expect("it runs");
        nodes.know_each_other().await;
        nodes.api(0, "disconnect", json!({ "user": "ana" })).await;
    });
}

#[test]
fn nodes_speak_to_each_other_while_redis_is_away() {
    with_nodes(Joined::ByRedis, 2, async |nodes| {
        let mut there = nodes.subscriber(1, "ben", "news:a").await;
        nodes.cut_redis(Link::Refused);
        for node in 0..2 {
            nodes.until(node, "campanile_bus_up", 0).await;
        }
        assert_eq!(presence(&nodes, 0).await, 1);
        nodes.api(0, "disconnect", json!({ "user": "ben" })).await;
        assert_eq!(there.closed_with().await, 3503);
    });
}
