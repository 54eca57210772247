//! What the handlers share, made from the configuration, the core and the server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::core::Core;
use crate::config::{Config, Secrets};
use crate::dashboard::Summaries;
use crate::http::HttpState;
use crate::http::access::{Access, Origins};
use crate::http::auth::SignInEndpoint;
use crate::http::builds::BuildEndpoint;
use crate::http::client_streams::ClientStreamEndpoints;
use crate::http::event_stream::StreamEndpoint;
use crate::http::health::HealthEndpoint;
use crate::http::lingering::Lingering;
use crate::http::poll::PollEndpoint;
use crate::http::state::Budgets;
use crate::http::webhooks::WebhookEndpoint;
use crate::http::websocket::WebSocketEndpoint;
use crate::limits::address_budget::AddressBudget;
use crate::limits::connections::Connections;
use crate::limits::gcra::Rate;
use crate::limits::persistence::PersistentRates;
use crate::limits::rate_limit::RateLimit;
use crate::limits::replies::Replies;
use crate::limits::room::Room;
use crate::limits::shared::SharedCounters;
use crate::session::SessionContext;
use crate::transport::emulation::Sessions;
use crate::transport::worker::UserLimits;

/// What the state needs of the server beside the core.
pub(super) struct ServerParts {
    pub(super) sessions: Sessions,
    pub(super) session_context: Arc<SessionContext>,
    pub(super) counters: SharedCounters,
    /// Whether messages of other nodes arrive without delay.
    pub(super) bus_live: watch::Receiver<bool>,
}

/// The state of a server that listens on `address`.
pub(super) fn new(
    config: &Config,
    secrets: &Secrets,
    address: SocketAddr,
    core: &Core,
    server: &ServerParts,
    stopping: &watch::Sender<Option<Duration>>,
) -> anyhow::Result<HttpState> {
    let limits = &config.limits;
    let rate =
        |name, limit: u32| RateLimit::new(name, Rate::per_minute(limit.into()), server.counters.clone());
    let budgets = Budgets::from(config);
    let context = &server.session_context;
    // What costs this node alone.
    let own_rate =
        |name, limit: u32| RateLimit::new(name, Rate::per_minute(limit.into()), SharedCounters::none());
    let signatures = rate("invalid_signatures", limits.invalid_signatures_per_minute);
    let webhooks =
        WebhookEndpoint::new(config, secrets, Room::new(budgets.webhook_bytes.clone()), signatures);
    let by_address = |budget| AddressBudget::new(budget, config.server.trusted_proxies.clone());
    let (users, streams) = (context.users.clone(), by_address(budgets.streams.clone()));
    let open = budgets.sockets.clone().map(by_address);
    let sign_ins = rate("invalid_sign_ins", limits.invalid_sign_ins_per_minute);
    let build_events = rate("build_events", limits.build_events_per_minute);
    Ok(HttpState {
        store: core.store.clone(),
        publisher: core.publisher.clone(),
        cluster: core.cluster.clone(),
        revoker: core.revoker.clone(),
        sessions: core.sessions.clone(),
        metrics: core.metrics.http.clone(),
        access: Access {
            keys: context.keys.clone(),
            revocations: context.revocations.clone(),
            api_key: secrets.api_key.clone(),
            namespaces: context.namespaces.clone(),
            trusted_proxies: config.server.trusted_proxies.clone(),
            forwarded_header: config.server.forwarded_header,
            log_addresses: ArcSwap::from_pointee(config.telemetry.log_addresses),
            origins: Origins::new(config, address),
        },
        summaries: Summaries::new(limits.stream_channels),
        max_publication: config.channel.max_publication_size.bytes(),
        webhooks: webhooks.context("github.repos")?,
        polls: PollEndpoint {
            rate: rate("polls", limits.polls_per_minute),
            max_channels: limits.stream_channels as usize,
        },
        builds: BuildEndpoint::new(config, Room::new(budgets.build_bytes.clone()), build_events),
        event_streams: StreamEndpoint::new(config, streams.clone(), users, stopping.subscribe()),
        client_streams: ClientStreamEndpoints::new(
            config,
            &budgets,
            (streams, open.clone()),
            server.sessions.clone(),
            stopping.subscribe(),
        ),
        websocket: WebSocketEndpoint {
            enabled: config.websocket.enabled,
            uni_enabled: config.uni_websocket.enabled,
            open,
            stopping: stopping.subscribe(),
        },
        sign_in: SignInEndpoint::new(config, secrets, address, sign_ins),
        user_limits: UserLimits {
            new_channels: own_rate("new_channels", limits.new_channels_per_minute),
            joins: own_rate("joins", limits.joins_per_minute),
            replies: Replies::new(
                budgets.replies.clone(),
                config.client.recovery_max_size.bytes(),
                limits.replies_waiting as usize,
            ),
        },
        connections: Connections::new(
            budgets.connections.clone(),
            limits.connections_per_address,
            config.server.trusted_proxies.clone(),
        ),
        lingering: Arc::new(Lingering::new(limits, budgets.lingering.clone(), core.metrics.http.clone())),
        health: HealthEndpoint {
            stopping: stopping.subscribe(),
            bus: server.bus_live.clone(),
            limits: budgets.named(),
            publish: core.metrics.publish.clone(),
            registry: core.metrics.registry.clone(),
            internal: config.server.internal_listen.is_some(),
        },
    })
}

/// The rates that a restart must not reset, by the names that they have in the store.
pub(super) fn persistent_rates(state: &HttpState) -> PersistentRates {
    let HttpState { polls, builds, webhooks, sign_in, .. } = state;
    let rates = [&polls.rate, &builds.rate, &webhooks.invalid_signatures, &sign_in.failures];
    rates.into_iter().map(|rate| (rate.name(), Box::new(rate.clone()) as _)).collect()
}
