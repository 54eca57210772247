//! Limits that count on all nodes together, and what becomes of them when a node or Redis goes.
//! On a busy machine Redis may be late for once, and a node decides alone: so what is told here is
//! where it ends.

use serde_json::json;
use testkit::proxy::Link;

use super::{Joined, Nodes, token, with_nodes};
use crate::support::client::Request;
use crate::support::sse::Stream;
use crate::support::store::eventually;
use crate::support::websocket::{Client, Received};

/// `client.user_connection_limit` as it is by itself.
const LIMIT: usize = 10;

impl Nodes {
    /// Connects; or the code of the end that comes instead.
    async fn try_connect(&self, node: usize, user: &str) -> Result<Client, u16> {
        let mut client = Client::open(self.address(node)).await;
        client.command(json!({ "connect": { "token": token(user) } })).await;
        match client.next().await {
            Received::Message(reply) if reply["connect"].is_object() => Ok(client),
            Received::Close(code, _) => Err(code),
            other => panic!("{other:?}"),
        }
    }

    /// So many connections on each of two nodes.
    async fn connect_to_both(&self, user: &str, each: usize) -> [Vec<Client>; 2] {
        let mut open = [Vec::new(), Vec::new()];
        for _ in 0..each {
            for (node, open) in open.iter_mut().enumerate() {
                open.push(self.try_connect(node, user).await.expect("there is room"));
            }
        }
        open
    }

    async fn until_full(&self, node: usize, user: &str) {
        eventually("it is full", async || self.try_connect(node, user).await.err() == Some(3504)).await;
    }

    async fn count_together(&self) {
        for node in 0..self.nodes.len() {
            self.until(node, "campanile_limits_redis_up", 1).await;
        }
    }
}

#[test]
fn a_user_has_so_many_connections_wherever_they_are() {
    with_nodes(Joined::ByRedis, 2, async |nodes| {
        nodes.count_together().await;
        let mut open = nodes.connect_to_both("ana", LIMIT / 2).await;
        nodes.until_full(0, "ana").await;
        nodes.until_full(1, "ana").await;
        let stream = Request::get("/api/events/stream?channels=%23ana").bearer(&token("ana"));
        eventually("streams are counted with them", async || {
            match Stream::open(nodes.address(0), &stream).await {
                Ok(_) => false,
                Err(answer) => answer.refused(429, "connection_limit").status == 429,
            }
        })
        .await;
        assert!(nodes.try_connect(1, "ben").await.is_ok(), "another user");
        open[0].pop();
        eventually("there is room again", async || nodes.try_connect(1, "ana").await.is_ok()).await;
    });
}

#[test]
fn the_connections_of_a_killed_node_lock_nobody_out() {
    with_nodes(Joined::ByRedis, 2, async |mut nodes| {
        nodes.count_together().await;
        let open = nodes.connect_to_both("ana", LIMIT / 2).await;
        nodes.nodes.pop().expect("a node").kill9().await;
        let mut moved = Vec::new();
        eventually("all of them are here", async || {
            match nodes.try_connect(0, "ana").await {
                Ok(client) => moved.push(client),
                Err(code) => assert_eq!(code, 3013, "nobody knows yet, so they come back"),
            }
            moved.len() == LIMIT / 2
        })
        .await;
        assert_eq!(nodes.try_connect(0, "ana").await.err(), Some(3504));
        drop(open);
    });
}

#[test]
fn without_redis_each_node_counts_for_itself() {
    with_nodes(Joined::ByRedis, 2, async |nodes| {
        nodes.count_together().await;
        nodes.cut_redis(Link::Refused);
        let open = nodes.connect_to_both("ana", LIMIT).await;
        for node in 0..2 {
            assert_eq!(nodes.try_connect(node, "ana").await.err(), Some(3504));
        }
        nodes.cut_redis(Link::Open);
        nodes.count_together().await;
        drop(open);
        eventually("they count together again", async || {
            let mut open = Vec::new();
            for n in 0..2 * LIMIT {
                open.extend(nodes.try_connect(n % 2, "ana").await);
            }
            open.len() == LIMIT
        })
        .await;
    });
}

#[test]
fn a_rate_counts_on_all_nodes() {
    with_nodes(Joined::ByRedis, 2, async |nodes| {
        nodes.count_together().await;
        let mut user = 0;
        eventually("nodes share the polls of a user", async || {
            user += 1;
            let poll = Request::get("/api/events?channel=org:acme").bearer(&token(&format!("user-{user}")));
            let mut refused = 0;
            // Of 60 a minute each node by itself would judge none of its polls to be too many.
            for n in 0..100 {
                let status = poll.clone().send(nodes.address(n % 2)).await.status;
                assert!([403, 429].contains(&status), "{status}");
                refused += usize::from(status == 429);
            }
            refused > 10
        })
        .await;
    });
}
