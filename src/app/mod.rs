//! A node is a core and a server: the core is opened, the server is made from its parts, the core is
//! started with what the server handles, and the server with the running core. They stop in reverse.

mod cluster;
pub mod core;
pub mod demo;
mod http_state;
mod internal;
pub mod metrics;
mod reload;
mod serve;
mod server;
mod worker;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::runtime::Handle;

use crate::config::{Config, Secrets};
use crate::hub::Hub;
use crate::sign_in;
use crate::store::{self, Store};
use core::{Core, OpenCore};
use metrics::Metrics;
use server::{OpenServer, Server};

pub use core::core_runtime;
pub use serve::serve;

/// A running node.
pub struct Node {
    core: Core,
    server: Server,
    address: SocketAddr,
    drain_timeout: Duration,
    /// As it was at the start.
    config: Config,
}

impl Node {
    /// Opens the store, starts everything and listens. Must be called inside an actix system;
    /// `runtime` is that of the core.
    pub async fn start(config: &Config, secrets: &Secrets, runtime: &Handle) -> anyhow::Result<Self> {
        let metrics = Arc::new(Metrics::default());
        let store = core::open_store(config, &metrics, runtime).await?;
        let listen = config.server.listen;
        let listener = worker::bind(listen).with_context(|| {
            format!("cannot listen on {listen}: is another server listening there? (--listen)")
        })?;
        let address = listener.local_addr()?;
        let internal = config.server.internal_listen.map(|listen| {
            worker::bind(listen)
                .with_context(|| format!("cannot listen on {listen}, which is server.internal_listen"))
        });
        let internal = internal.transpose()?;
        let core = OpenCore::new(config, secrets, store, metrics, address, runtime)?;
        let server = OpenServer::new(config, &core);
        let mut core = core.start(config, server.handlers()).await?;
        let server = server.start(config, secrets, &mut core, (listener, internal)).await?;
        tracing::info!(%address, store = core.store.backend_name(), "listening");
        let drain_timeout = config.server.drain_timeout.0;
        Ok(Self { core, server, address, drain_timeout, config: config.clone() })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn store(&self) -> &Store {
        &self.core.store
    }

    /// A link that signs one browser in.
    pub async fn sign_in_link(&self) -> store::Result<String> {
        Ok(sign_in::new_link(&self.core.store, &self.server.state().sign_in.base).await?.0)
    }

    pub fn hub(&self) -> &Hub {
        self.server.hub()
    }

    pub fn metrics(&self) -> &Metrics {
        &self.core.metrics
    }

    /// Drains and stops: not ready, no new connections, streams closed, requests finished,
    /// what was accepted committed.
    pub async fn stop(self) {
        // Another node need not wait for what only one may do.
        self.core.lease.release();
        let hub_thread = self.server.drain(self.drain_timeout).await;
        self.core.stop(self.drain_timeout).await;
        hub_thread.stop();
        tracing::info!("stopped");
    }
}
