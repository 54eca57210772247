//! What connects a node to others: the bus, and the shared counters.

use std::sync::Arc;

use anyhow::Context as _;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use uuid::Uuid;

use super::metrics::Metrics;
use crate::bus::{Bus, BusKeys, ClusterBus, ClusterBusLoop, RedisOptions};
use crate::cluster::Peers;
use crate::config::{BusBackend, Config, Secret, Secrets};
use crate::limits::shared::{SharedCounters, Timeouts};
use crate::limits::user_connections::{Confirm, UserConnections};
use crate::net::tls;
use crate::store::Store;

/// The bus that is configured, and its task if it needs one.
pub(super) fn open_bus(
    config: &Config,
    secrets: &Secrets,
    uid: Uuid,
    store: &Store,
    metrics: &Metrics,
) -> anyhow::Result<(Bus, Option<ClusterBusLoop>)> {
    if config.bus_backend() == BusBackend::InProcess {
        metrics.bus.up.set(1);
        return Ok((Bus::local(uid), None));
    }
    let keys = BusKeys::new(secrets.bus.iter().map(Secret::expose));
    let redis = open_redis(config, store)?;
    let (cluster_bus, bus_loop) = ClusterBus::new(uid, keys, store.clone(), redis, metrics.bus.clone());
    Ok((Bus::clustered(cluster_bus), Some(bus_loop)))
}

/// The shared counters, and their task.
pub(super) fn open_counters(
    config: &Config,
    uid: Uuid,
    store: &Store,
    metrics: &Metrics,
    core: &Handle,
) -> anyhow::Result<(SharedCounters, BoxFuture<'static, ()>)> {
    let Some(RedisOptions { client, prefix }) = open_redis(config, store)? else {
        return Ok((SharedCounters::none(), std::future::ready(()).boxed()));
    };
    let (counters, work) =
        SharedCounters::shared(&client, prefix, uid, Timeouts::default(), metrics.limits.clone(), core)?;
    Ok((counters, work.boxed()))
}

/// The connections of each user, and the task that shares their number with other nodes.
pub(super) fn count_users(
    config: &Config,
    counters: &SharedCounters,
    peers: &Peers,
) -> (UserConnections, BoxFuture<'static, ()>) {
    let limit = config.client.user_connection_limit;
    if counters.is_shared() {
        let asked = peers.clone();
        let confirm: Confirm = Arc::new(move |nodes, user| {
            let asked = asked.clone();
            async move { asked.connections_on(&nodes, &user).await }.boxed()
        });
        let (users, work) = UserConnections::shared(limit, counters.clone(), peers.others(), confirm);
        (users, work.boxed())
    } else {
        (UserConnections::new(limit), std::future::ready(()).boxed())
    }
}

/// How Redis is reached, if it is configured.
fn open_redis(config: &Config, store: &Store) -> anyhow::Result<Option<RedisOptions>> {
    let BusBackend::Redis { url, ca_file, prefix } = config.bus_backend() else { return Ok(None) };
    let client = tls::redis(url.expose(), ca_file.as_deref()).context("Redis cannot be reached")?;
    Ok(Some(RedisOptions { client, prefix: format!("{prefix}:{}", store.id().unwrap_or_default()) }))
}
