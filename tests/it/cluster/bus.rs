//! Events between nodes: over Redis, over NOTIFY, and while one of them is away.

use futures_util::{FutureExt as _, StreamExt as _};
use serde_json::json;
use testkit::process::Signal;
use testkit::proxy::Link;
use testkit::redis::Redis;

use super::{Joined, NAMESPACES, Nodes, next, with_nodes};
use crate::support::process::{self, Gateway, Home};
use crate::support::store::eventually;
use crate::support::websocket::Client;

/// Publishes `count` events from all nodes in turn, beginning with number `first`, and sees that
/// each client gets them in order.
async fn all_hear_all(nodes: &Nodes, clients: &mut [Client], first: u64, count: u64) {
    let order = first..first + count;
    for number in order.clone() {
        nodes.publish(number as usize % nodes.nodes.len(), "news:a", json!(number)).await;
    }
    for client in clients {
        for number in order.clone() {
            assert_eq!(next(client).await, json!(number));
        }
    }
}

async fn one_on_each(nodes: &Nodes) -> Vec<Client> {
    let mut clients = Vec::new();
    for node in 0..nodes.nodes.len() {
        clients.push(nodes.subscriber(node, "ana", "news:a").await);
    }
    clients
}

#[test]
fn what_one_node_accepts_reaches_the_subscribers_of_all_in_order() {
    for joined in [Joined::ByRedis, Joined::ByNotify] {
        with_nodes(joined, 3, async |nodes| {
            let mut clients = one_on_each(&nodes).await;
            all_hear_all(&nodes, &mut clients, 0, 60).await;
        });
    }
}

#[test]
fn what_is_not_kept_reaches_them_too() {
    for joined in [Joined::ByRedis, Joined::ByNotify] {
        with_nodes(joined, 2, async |nodes| {
            let mut client = nodes.subscriber(1, "ana", "talk:a").await;
            // Larger than a notification holds.
            for data in [json!("hello"), json!("x".repeat(30_000))] {
                nodes.publish(0, "talk:a", data.clone()).await;
                assert_eq!(next(&mut client).await, data);
            }
        });
    }
}

#[test]
fn events_go_on_while_redis_is_away_and_when_it_comes_back() {
    for mode in [Link::Refused, Link::Stalled] {
        with_nodes(Joined::ByRedis, 2, async |nodes| {
            let mut clients = one_on_each(&nodes).await;
            all_hear_all(&nodes, &mut clients, 0, 10).await;
            nodes.cut_redis(mode);
            // At once, when nobody may have noticed.
            all_hear_all(&nodes, &mut clients, 10, 10).await;
            for node in 0..2 {
                nodes.until(node, "campanile_bus_up", 0).await;
            }
            let ready = nodes.nodes[1].get("/readyz").await;
            assert_eq!(
                (ready.status, ready.text().contains(r#""degraded":["bus"]"#)),
                (200, true),
                "{}",
                ready.text()
            );
            all_hear_all(&nodes, &mut clients, 20, 10).await;
            // Who comes now is let in as well.
            clients.push(nodes.subscriber(1, "ben", "news:a").await);
            all_hear_all(&nodes, &mut clients, 30, 10).await;
            nodes.cut_redis(Link::Open);
            all_hear_all(&nodes, &mut clients, 40, 10).await;
            nodes.know_each_other().await;
            let said = nodes.metric(0, "campanile_bus_messages_sent_total{carrier=\"redis\"}").await;
            all_hear_all(&nodes, &mut clients, 50, 10).await;
            eventually("Redis carries again", async || {
                nodes.metric(0, "campanile_bus_messages_sent_total{carrier=\"redis\"}").await >= said + 5
            })
            .await;
        });
    }
}

#[test]
fn a_node_that_alone_does_not_hear_redis_misses_nothing() {
    for mode in [Link::Refused, Link::Stalled] {
        with_nodes(Joined::ByRedis, 3, async |nodes| {
            let mut clients = one_on_each(&nodes).await;
            let mut talks = nodes.subscriber(2, "ana", "talk:a").await;
            nodes.ways[2].set(mode);
            all_hear_all(&nodes, &mut clients, 0, 30).await;
            nodes.until(2, "campanile_bus_up", 0).await;
            all_hear_all(&nodes, &mut clients, 30, 30).await;
            // The others send by NOTIFY too, also what is not kept.
            eventually("it hears what is not kept", async || {
                nodes.publish(0, "talk:a", json!("hello")).await;
                !talks.pushes.is_empty() || {
                    let asked = talks.ask(json!({ "ping": {} }));
                    let _ = tokio::time::timeout(std::time::Duration::from_millis(100), asked).await;
                    !talks.pushes.is_empty()
                }
            })
            .await;
            // And they still know of each other.
            for node in 0..3 {
                assert_eq!(nodes.metric(node, "campanile_cluster_nodes").await, 3);
            }
            nodes.ways[2].set(Link::Open);
            nodes.know_each_other().await;
            all_hear_all(&nodes, &mut clients, 60, 30).await;
        });
    }
}

#[test]
fn a_node_that_was_frozen_catches_up() {
    with_nodes(Joined::ByRedis, 2, async |nodes| {
        let mut clients = one_on_each(&nodes).await;
        all_hear_all(&nodes, &mut clients, 0, 10).await;
        nodes.nodes[1].signal(Signal::STOP).expect("it runs");
        for number in 10..20 {
            nodes.publish(0, "news:a", json!(number)).await;
        }
        // So long that it counts as gone.
        nodes.until(0, "campanile_cluster_nodes", 1).await;
        nodes.nodes[1].signal(Signal::CONT).expect("it runs");
        for client in &mut clients {
            for number in 10..20 {
                assert_eq!(next(client).await, json!(number));
            }
        }
        nodes.know_each_other().await;
        all_hear_all(&nodes, &mut clients, 20, 10).await;
    });
}

#[test]
fn what_a_newer_version_says_makes_a_node_look_into_the_log() {
    with_nodes(Joined::ByRedis, 2, async |nodes| {
        let mut client = nodes.subscriber(1, "ana", "news:a").await;
        nodes.publish(0, "news:a", json!(1)).await;
        assert_eq!(next(&mut client).await, json!(1));
        let url = format!("redis://{}", nodes.ways[0].address);
        let redis = redis::Client::open(url).unwrap();
        let mut redis = redis.get_multiplexed_async_connection().await.unwrap();
        // Unheard by the other one: its way is cut for the moment, and nobody checks by the clock.
        let names: Vec<String> =
            redis::cmd("PUBSUB").arg("CHANNELS").arg("*:c:news:a").query_async(&mut redis).await.unwrap();
        for name in names {
            for text in ["9 from the future", "1 nonsense", "", "\n\n"] {
                let _: i64 = redis::cmd("PUBLISH")
                    .arg(&name)
                    .arg(format!("{text}\n{{}}"))
                    .query_async(&mut redis)
                    .await
                    .unwrap();
            }
        }
        nodes.publish(0, "news:a", json!(2)).await;
        assert_eq!(next(&mut client).await, json!(2));
        eventually("it has seen them", async || {
            nodes.metric(1, "campanile_bus_messages_unreadable_total").await >= 4
        })
        .await;
    });
}

/// Somebody at Redis who is no node: hears every message and repeats or invents some.
struct Stranger {
    heard: redis::aio::PubSub,
    writes: redis::aio::MultiplexedConnection,
}

impl Stranger {
    async fn at(nodes: &Nodes) -> Self {
        let redis = redis::Client::open(format!("redis://{}", nodes.ways[0].address)).unwrap();
        let mut heard = redis.get_async_pubsub().await.unwrap();
        heard.psubscribe("*").await.unwrap();
        Self { heard, writes: redis.get_multiplexed_async_connection().await.unwrap() }
    }

    /// The next message that contains `text`: where it went, and what it was.
    async fn hears(&mut self, text: &str) -> (String, String) {
        let mut messages = self.heard.on_message();
        let heard = async {
            loop {
                let message = messages.next().await.expect("Redis goes on");
                let packet: String = message.get_payload().unwrap();
                if packet.contains(text) {
                    return (message.get_channel_name().to_owned(), packet);
                }
            }
        };
        tokio::time::timeout(crate::support::client::DEADLINE, heard).await.expect("it is said in time")
    }

    async fn says(&mut self, topic: &str, packet: &str) {
        let publish = redis::cmd("PUBLISH").arg(topic).arg(packet).query_async(&mut self.writes).await;
        let heard: i64 = publish.unwrap();
        assert!(heard > 1, "nobody but us hears {topic}");
    }
}

#[test]
fn whoever_can_write_to_redis_cannot_speak_for_a_node() {
    with_nodes(Joined::ByRedis, 2, async |nodes| {
        let mut stranger = Stranger::at(&nodes).await;
        let mut ana = nodes.subscriber(1, "ana", "news:a").await;
        let mut ben = nodes.subscriber(1, "ben", "news:a").await;
        nodes.publish(0, "news:a", json!("first")).await;
        for client in [&mut ana, &mut ben] {
            assert_eq!(next(client).await, json!("first"));
        }

        // The next event, before it happens.
        let (topic, packet) = stranger.hears("\"first\"").await;
        let invented = packet.replace("\"first\"", "\"forged\"").replace("\"offset\":1", "\"offset\":2");
        assert_ne!(packet, invented);
        stranger.says(&topic, &invented).await;
        stranger.says(&topic, &packet).await;
        nodes.publish(0, "news:a", json!("second")).await;
        for client in [&mut ana, &mut ben] {
            assert_eq!(next(client).await, json!("second"));
        }

        // A command, for somebody else and a second time.
        let command = json!({ "user": "ben", "channel": "news:b" });
        nodes.api(0, "subscribe", command.clone()).await;
        let (topic, packet) = stranger.hears("\"ben\"").await;
        assert!(packet.contains("news:b"), "{packet}");
        nodes.api(0, "unsubscribe", command).await;
        stranger.says(&topic, &packet).await;
        stranger.says(&topic, &packet.replace("\"ben\"", "\"ana\"")).await;
        nodes.publish(0, "news:a", json!("third")).await;
        assert_eq!(next(&mut ana).await, json!("third"), "she was subscribed to nothing else");
        let members = nodes.api(0, "presence", json!({ "channel": "news:b" })).await;
        assert_eq!(members["presence"], json!({}), "and nobody is there");
        assert_eq!(nodes.metric(1, "campanile_bus_messages_refused_total{reason=\"forged\"}").await, 2);
        assert!(stranger.heard.on_message().next().now_or_never().is_some(), "nodes go on talking");
    });
}

/// One line to a Redis.
async fn tell(redis: &Redis, line: &str) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(redis.address).await.expect("Redis");
    stream.write_all(format!("{line}\r\n").as_bytes()).await.expect("it listens");
    let mut answer = [0; 3];
    stream.read_exact(&mut answer).await.expect("it answers");
    assert_eq!(&answer, b"+OK");
}

#[test]
fn a_redis_that_does_not_reach_the_others_counts_as_none() {
    process::on_postgres(async |home| {
        let (first, second) = (Redis::start().await.expect("Redis"), Redis::start().await.expect("Redis"));
        let replica = format!("REPLICAOF 127.0.0.1 {}", first.address.port());
        tell(&second, &replica).await;
        let mut nodes = Nodes { nodes: Vec::new(), ways: Vec::new() };
        let mut homes = Vec::new();
        for redis in [&first, &second] {
            let own = Home::new(home.database().map(str::to_owned))
                .with("CAMPANILE_CHANNEL__NAMESPACES", NAMESPACES)
                .with("CAMPANILE_CHANNEL__POSITION_CHECK_INTERVAL", "1h")
                .with("REDIS_URL", &format!("redis://{}", redis.address));
            nodes.nodes.push(Gateway::start(&own).await);
            homes.push(own);
        }
        let degraded = async |node: usize| {
            nodes.until(node, "campanile_bus_up", 0).await;
            let ready = nodes.nodes[node].get("/readyz").await;
            assert!(
                ready.status == 200 && ready.text().contains(r#""degraded":["bus"]"#),
                "{}",
                ready.text()
            );
        };
        let mut clients = one_on_each(&nodes).await;
        // A replica hears its master, and nobody hears what is published there.
        nodes.until(0, "campanile_bus_up", 1).await;
        degraded(1).await;
        homes[1].log_line("read only replica").await;
        all_hear_all(&nodes, &mut clients, 0, 20).await;

        // A Redis of its own: the node hears itself, and not the other.
        tell(&second, "REPLICAOF NO ONE").await;
        nodes.until(1, "campanile_bus_up", 1).await;
        for (node, home) in homes.iter().enumerate() {
            degraded(node).await;
            home.log_line("is not heard over Redis").await;
        }
        all_hear_all(&nodes, &mut clients, 20, 20).await;

        // While it is used it becomes a replica again.
        tell(&second, &replica).await;
        nodes.until(0, "campanile_bus_up", 1).await;
        degraded(1).await;
        all_hear_all(&nodes, &mut clients, 40, 20).await;
    });
}
