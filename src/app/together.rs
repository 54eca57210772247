//! What joins a node to others: the bus, and what all count together.

use std::sync::Arc;

use anyhow::Context as _;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use uuid::Uuid;

use crate::bus::shared::Redis;
use crate::bus::{Bus, Shared};
use crate::cluster::Cluster;
use crate::config::{BusBackend, Config};
use crate::connection::users::{Confirm, UserConnections};
use crate::counts::{Counts, Patience};
use crate::store::Store;
use crate::telemetry::Metrics;
use crate::tls;

/// The bus that the config asks for, and its work.
pub(super) fn open_bus(
    config: &Config,
    uid: Uuid,
    store: &Store,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<(Bus, BoxFuture<'static, ()>)> {
    if config.bus_backend() == BusBackend::InProcess {
        metrics.bus_up.set(1);
        return Ok((Bus::local(uid), std::future::pending().boxed()));
    }
    let (shared, work) = Shared::new(uid, store.clone(), open_redis(config, store)?, metrics.clone());
    Ok((Bus::shared(shared), work.boxed()))
}

/// What the nodes count together, and the work for that.
pub(super) fn open_counts(
    config: &Config,
    uid: Uuid,
    store: &Store,
    metrics: &Arc<Metrics>,
    core: &Handle,
) -> anyhow::Result<(Counts, BoxFuture<'static, ()>)> {
    let Some(Redis { client, prefix }) = open_redis(config, store)? else {
        return Ok((Counts::none(), std::future::ready(()).boxed()));
    };
    let (counts, work) = Counts::shared(&client, prefix, uid, Patience::default(), metrics.clone(), core)?;
    Ok((counts, work.boxed()))
}

/// How many connections each user has, and the work that tells other nodes of it.
pub(super) fn count_users(
    config: &Config,
    counts: &Counts,
    cluster: &Cluster,
) -> (UserConnections, BoxFuture<'static, ()>) {
    let limit = config.client.user_connection_limit;
    let (users, work) = if counts.is_shared() {
        let asked = cluster.clone();
        let confirm: Confirm = Arc::new(move |nodes, user| {
            let asked = asked.clone();
            async move { asked.connections_on(&nodes, &user).await }.boxed()
        });
        let (users, work) = UserConnections::shared(limit, counts.clone(), cluster.others(), confirm);
        (users, work.boxed())
    } else {
        (UserConnections::new(limit), std::future::ready(()).boxed())
    };
    cluster.users_are_counted_by(users.counter());
    (users, work)
}

/// The way to Redis, if there is one, and what all names begin with.
fn open_redis(config: &Config, store: &Store) -> anyhow::Result<Option<Redis>> {
    let BusBackend::Redis { url, ca_file, prefix } = config.bus_backend() else { return Ok(None) };
    let client = tls::redis(url.expose(), ca_file.as_deref()).context("Redis cannot be reached")?;
    Ok(Some(Redis { client, prefix: format!("{prefix}:{}", store.id().unwrap_or_default()) }))
}
