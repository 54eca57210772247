//! The shared counters in a real Redis: the same decisions as in memory, one count for all nodes,
//! and each node by itself while Redis is down.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use campanile::limits::gcra::Rate;
use campanile::limits::rate_limit::RateLimit;
use campanile::limits::shared::{SharedCounters, Timeouts};
use campanile::limits::user_connections::{Capacity, Confirm, OpenConnection, UserConnections};
use futures_util::FutureExt as _;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use redis::aio::MultiplexedConnection;
use testkit::proxy::{Link, Proxy};
use tokio::runtime::Handle;
use tokio::sync::watch;
use uuid::Uuid;

use crate::support::store::eventually;

const SEED: u64 = 20_261_122;

fn server() -> String {
    std::env::var("TEST_REDIS_URL").expect("TEST_REDIS_URL is missing: run tests/run")
}

/// A prefix of its own.
fn prefix() -> String {
    format!("test:{}", Uuid::new_v4().simple())
}

/// So that nothing but what a test does makes Redis late.
const LONG: Timeouts = Timeouts { rate: Duration::from_secs(10), connection: Duration::from_secs(10) };

async fn counters_at(url: &str, prefix: &str, node: Uuid, timeouts: Timeouts) -> SharedCounters {
    let client = redis::Client::open(url).expect("an address of Redis");
    let shared = SharedCounters::shared(
        &client,
        prefix.to_owned(),
        node,
        timeouts,
        Arc::default(),
        &Handle::current(),
    );
    let (counters, work) = shared.expect("a way to Redis");
    tokio::spawn(work);
    counters.status().wait_for(|status| status.up).await.expect("Redis is there");
    counters
}

async fn session() -> MultiplexedConnection {
    let client = redis::Client::open(server()).expect("an address of Redis");
    client.get_multiplexed_async_connection().await.expect("Redis answers")
}

/// A way to Redis that can be cut.
async fn way() -> (Proxy, String) {
    let server = server();
    let server = server.trim_start_matches("redis://").trim_end_matches('/');
    let proxy = Proxy::to(server.parse().expect("an address of Redis")).await.expect("a proxy");
    let url = format!("redis://{}", proxy.address);
    (proxy, url)
}

#[tokio::test]
async fn redis_judges_as_memory_does() {
    let counters = counters_at(&server(), &prefix(), Uuid::new_v4(), LONG).await;
    let mut random = StdRng::seed_from_u64(SEED);
    let (mut allowed, mut refused) = (0, 0);
    for round in 0..40 {
        // So short that much is earned again while Redis is asked, or so long that nothing is.
        let period_us = [300, 1_000, 4_000, 20_000, 60_000_000][round % 5];
        let rate = Rate { burst: random.random_range(1..20), period_us };
        let (name, mut arrivals) = (round.to_string(), HashMap::<u32, u64>::new());
        for _ in 0..60 {
            let key = random.random_range(0..3);
            let (shared, now) =
                counters.check_rate(&name, &key.to_string(), rate).await.expect("Redis decides");
            let own = rate.check(arrivals.entry(key).or_default(), now);
            assert_eq!(shared, own, "round {round}, {rate:?}");
            *if own.allowed { &mut allowed } else { &mut refused } += 1;
        }
    }
    assert!(allowed > 200 && refused > 200, "{allowed} and {refused}");
}

#[tokio::test]
async fn what_was_allowed_before_a_limit_was_lowered_blocks_for_no_more_than_a_period() {
    let counters = counters_at(&server(), &prefix(), Uuid::new_v4(), LONG).await;
    let before = Rate { burst: 1, period_us: 3_600_000_000 };
    assert!(counters.check_rate("polls", "ana", before).await.expect("Redis decides").0.allowed);
    let lowered = counters.check_rate("polls", "ana", Rate::per_minute(2)).await.expect("Redis decides").0;
    assert_eq!((lowered.allowed, lowered.reset_us), (false, 60_000_000));
}

#[tokio::test]
async fn nodes_share_a_rate() {
    let prefix = prefix();
    let mut nodes = Vec::new();
    for _ in 0..3 {
        let counters = counters_at(&server(), &prefix, Uuid::new_v4(), LONG).await;
        nodes.push(RateLimit::new("polls", Rate::per_minute(20), counters));
    }
    let asked = nodes.iter().flat_map(|node| (0..20).map(move |_| node.check("ana")));
    let decisions = futures_util::future::join_all(asked).await;
    assert_eq!(decisions.iter().filter(|decision| decision.allowed).count(), 20);
    assert!(nodes[0].check("ben").await.allowed, "another key");
}

#[tokio::test]
async fn a_rate_goes_on_without_redis_and_with_it_again() {
    let ((proxy, url), prefix) = (way().await, prefix());
    let near = counters_at(&url, &prefix, Uuid::new_v4(), Timeouts::default()).await;
    let near = RateLimit::new("polls", Rate::per_minute(4), near);
    let far = counters_at(&server(), &prefix, Uuid::new_v4(), LONG).await;
    let far = RateLimit::new("polls", Rate::per_minute(4), far);
    for mode in [Link::Stalled, Link::Refused] {
        let key = format!("{mode:?}");
        assert!(far.check(&key).await.allowed && near.check(&key).await.allowed);
        proxy.set(mode);
        // It has let one through; what the other one has is out of its sight.
        for _ in 0..3 {
            assert!(near.check(&key).await.allowed);
        }
        assert!(!near.check(&key).await.allowed);
        assert!(far.check(&key).await.allowed);
        proxy.set(Link::Open);
        eventually("they count together", async || {
            let key = Uuid::new_v4().to_string();
            for node in [&near, &far, &near, &far] {
                assert!(node.check(&key).await.allowed);
            }
            !near.check(&key).await.allowed && !far.check(&key).await.allowed
        })
        .await;
    }
}

/// Nodes that count users together.
struct Nodes {
    prefix: String,
    ids: Vec<Uuid>,
    users: Vec<UserConnections>,
    /// Those that all think alive.
    alive: watch::Sender<Vec<Uuid>>,
    /// Those that do not answer.
    mute: Arc<Mutex<Vec<Uuid>>>,
}

impl Nodes {
    async fn new(count: usize, limit: u32, url: &str, timeouts: Timeouts) -> Self {
        let (prefix, ids): (_, Vec<_>) = (prefix(), (0..count).map(|_| Uuid::new_v4()).collect());
        let alive = watch::Sender::new(ids.clone());
        let all = Arc::new(Mutex::new(HashMap::<Uuid, UserConnections>::new()));
        let mute = Arc::<Mutex<Vec<Uuid>>>::default();
        let mut users = Vec::new();
        for id in &ids {
            let counters = counters_at(url, &prefix, *id, timeouts).await;
            let (asked, silent) = (all.clone(), mute.clone());
            let confirm: Confirm = Arc::new(move |nodes, user| {
                let (asked, silent) = (asked.lock().unwrap().clone(), silent.lock().unwrap().clone());
                let answer = move |node: Uuid| {
                    let count = asked.get(&node).filter(|_| !silent.contains(&node));
                    (node, count.map(|users| users.count(&user)))
                };
                async move { nodes.into_iter().map(answer).collect() }.boxed()
            });
            let others = others(&alive, *id);
            let (counted, work) = UserConnections::shared(limit, counters, others, confirm);
            tokio::spawn(work);
            all.lock().unwrap().insert(*id, counted.clone());
            users.push(counted);
        }
        Self { prefix, ids, users, alive, mute }
    }

    async fn open(&self, node: usize, user: &str) -> Result<OpenConnection, Capacity> {
        let (open, claim) = self.users[node].open(user).ok_or(Capacity::Exceeded)?;
        match self.users[node].resolve(claim.expect("others have a say")).await {
            Capacity::Available => Ok(open),
            other => Err(other),
        }
    }

    /// What Redis has of a user, by node.
    async fn written(&self, user: &str) -> Vec<Option<u32>> {
        let name = format!("{}:user:{user}", self.prefix);
        let all: HashMap<String, String> =
            redis::cmd("HGETALL").arg(name).query_async(&mut session().await).await.expect("a hash");
        let count =
            |id: &Uuid| all.get(&id.to_string()).map(|text| text.split(':').next().unwrap().parse().unwrap());
        self.ids.iter().map(count).collect()
    }

    async fn until_written(&self, user: &str, expected: &[Option<u32>]) {
        eventually(&format!("{user} has {expected:?}"), async || self.written(user).await == expected).await;
    }
}

/// What a node thinks of the others.
fn others(alive: &watch::Sender<Vec<Uuid>>, own: Uuid) -> watch::Receiver<Vec<Uuid>> {
    let others = move |alive: &[Uuid]| alive.iter().copied().filter(|id| *id != own).collect::<Vec<_>>();
    let mut all = alive.subscribe();
    let told = watch::Sender::new(others(&all.borrow()));
    let heard = told.subscribe();
    tokio::spawn(async move {
        while all.changed().await.is_ok() {
            told.send_replace(others(&all.borrow_and_update()));
        }
    });
    heard
}

#[tokio::test]
async fn a_user_has_so_many_connections_on_all_nodes_together() {
    let nodes = Nodes::new(2, 3, &server(), LONG).await;
    let first = nodes.open(0, "ana").await.unwrap();
    let _second = nodes.open(1, "ana").await.unwrap();
    let _third = nodes.open(1, "ana").await.unwrap();
    assert_eq!(nodes.open(0, "ana").await.err(), Some(Capacity::Exceeded));
    assert_eq!(nodes.open(1, "ana").await.err(), Some(Capacity::Exceeded));
    let _other = nodes.open(0, "ben").await.unwrap();
    nodes.until_written("ana", &[Some(1), Some(2)]).await;
    drop(first);
    nodes.until_written("ana", &[None, Some(2)]).await;
    let _again = nodes.open(0, "ana").await.unwrap();
    assert!(nodes.users[0].open("").is_some_and(|(_, claim)| claim.is_none()), "nobody is exempt");
}

#[tokio::test]
async fn connections_that_come_together_never_get_more_than_the_limit() {
    let nodes = Nodes::new(3, 5, &server(), LONG).await;
    for round in 0..15 {
        let user = format!("user {round}");
        let asked = (0..24).map(|n| nodes.open(n % 3, &user));
        let opened: Vec<_> = futures_util::future::join_all(asked).await.into_iter().flatten().collect();
        assert!((1..=5).contains(&opened.len()), "round {round}: {}", opened.len());
        let own: Vec<_> =
            nodes.users.iter().map(|node| Some(node.count(&user)).filter(|count| *count > 0)).collect();
        nodes.until_written(&user, &own).await;
        drop(opened);
        nodes.until_written(&user, &[None, None, None]).await;
    }
}

#[tokio::test]
async fn what_a_dead_node_has_left_locks_nobody_out() {
    let nodes = Nodes::new(2, 1, &server(), LONG).await;
    let lost = nodes.open(1, "ana").await.unwrap();
    // It is killed, and nobody has noticed yet.
    nodes.mute.lock().unwrap().push(nodes.ids[1]);
    assert_eq!(nodes.open(0, "ana").await.err(), Some(Capacity::Unknown));
    nodes.alive.send_replace(vec![nodes.ids[0]]);
    eventually("the dead one does not count", async || nodes.open(0, "ana").await.is_ok()).await;
    assert_eq!(nodes.written("ana").await[1], Some(1), "its field is only not looked at");
    drop(lost);
}

#[tokio::test]
async fn who_is_refused_for_others_is_refused_by_their_word() {
    let nodes = Nodes::new(2, 2, &server(), LONG).await;
    let _one = nodes.open(1, "ana").await.unwrap();
    // Of a write that was lost, and newer than all that the node may still write.
    let field = (format!("{}:user:ana", nodes.prefix), nodes.ids[1].to_string());
    let _: () = redis::cmd("HSET")
        .arg(&field.0)
        .arg(&field.1)
        .arg("9:900000000000000")
        .query_async(&mut session().await)
        .await
        .unwrap();
    let _two = nodes.open(0, "ana").await.unwrap();
    nodes.until_written("ana", &[Some(1), Some(9)]).await;
    // One alone makes it too much: the other one need not be asked for that.
    nodes.mute.lock().unwrap().push(nodes.ids[0]);
    assert_eq!(nodes.open(1, "ana").await.err(), Some(Capacity::Unknown));
}

#[tokio::test]
async fn what_redis_loses_is_written_anew() {
    let nodes = Nodes::new(2, 3, &server(), LONG).await;
    let mut open = Vec::new();
    for (node, user) in [(0, "ana"), (0, "ana"), (1, "ana"), (1, "ben")] {
        open.push(nodes.open(node, user).await.unwrap());
    }
    nodes.until_written("ana", &[Some(2), Some(1)]).await;
    let mut session = session().await;
    let names: Vec<String> =
        redis::cmd("KEYS").arg(format!("{}:*", nodes.prefix)).query_async(&mut session).await.unwrap();
    let _: () = redis::cmd("DEL").arg(&names).query_async(&mut session).await.unwrap();
    nodes.until_written("ana", &[Some(2), Some(1)]).await;
    nodes.until_written("ben", &[None, Some(1)]).await;
}

#[tokio::test]
async fn without_redis_each_node_counts_alone_and_makes_up_for_it_later() {
    let (proxy, url) = way().await;
    let nodes = Nodes::new(2, 2, &url, Timeouts::default()).await;
    let early = nodes.open(0, "ana").await.unwrap();
    for mode in [Link::Stalled, Link::Refused] {
        nodes.until_written("ana", &[Some(1), None]).await;
        proxy.set(mode);
        let held = [nodes.open(1, "ana").await.unwrap(), nodes.open(1, "ana").await.unwrap()];
        assert_eq!(nodes.open(1, "ana").await.err(), Some(Capacity::Exceeded), "its own are enough");
        proxy.set(Link::Open);
        nodes.until_written("ana", &[Some(1), Some(2)]).await;
        eventually("Redis decides", async || nodes.open(0, "ana").await.err() == Some(Capacity::Exceeded))
            .await;
        drop(held);
    }
    drop(early);
}
