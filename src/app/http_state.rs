//! What each endpoint needs, made from the configuration.

use std::net::SocketAddr;
use std::time::Duration;

use actix_web::web;
use anyhow::Context as _;
use tokio::sync::watch;

use super::metrics::Metrics;
use crate::config::{Config, Secrets};
use crate::dashboard::Summaries;
use crate::http::access::{Access, Origins};
use crate::http::auth::SignInEndpoint;
use crate::http::builds::BuildEndpoint;
use crate::http::client_streams::ClientStreamEndpoints;
use crate::http::event_stream::StreamEndpoint;
use crate::http::health::HealthEndpoint;
use crate::http::poll::PollEndpoint;
use crate::http::server_api::ServerApiEndpoint;
use crate::http::state::Budgets;
use crate::http::webhooks::WebhookEndpoint;
use crate::http::websocket::WebSocketEndpoint;
use crate::limits::gcra::Rate;
use crate::limits::persistence::PersistentRates;
use crate::limits::rate_limit::RateLimit;
use crate::limits::shared::SharedCounters;
use crate::session::SessionContext;
use crate::transport::emulation::Sessions;

/// What each endpoint needs.
#[derive(Clone)]
pub(super) struct Endpoints {
    pub(super) access: web::Data<Access>,
    pub(super) webhooks: web::Data<WebhookEndpoint>,
    pub(super) polls: web::Data<PollEndpoint>,
    pub(super) builds: web::Data<BuildEndpoint>,
    pub(super) streams: web::Data<StreamEndpoint>,
    pub(super) transports: web::Data<ClientStreamEndpoints>,
    pub(super) sign_in: web::Data<SignInEndpoint>,
    pub(super) summaries: web::Data<Summaries>,
    pub(super) sockets: WebSocketEndpoint,
    pub(super) health: web::Data<HealthEndpoint>,
    pub(super) api: web::Data<ServerApiEndpoint>,
}

impl Endpoints {
    #[expect(clippy::too_many_arguments, reason = "the next step makes one state of it")]
    pub(super) fn new(
        config: &Config,
        secrets: &Secrets,
        address: SocketAddr,
        counters: &SharedCounters,
        context: &SessionContext,
        sessions: Sessions,
        bus: watch::Receiver<bool>,
        stopping: &watch::Sender<Option<Duration>>,
        metrics: &Metrics,
    ) -> anyhow::Result<Self> {
        let limits = &config.limits;
        let rate = |name, limit: u32| RateLimit::new(name, Rate::per_minute(limit.into()), counters.clone());
        let budgets = Budgets::from(config);
        let signatures = rate("invalid_signatures", limits.invalid_signatures_per_minute);
        let webhooks = WebhookEndpoint::new(config, secrets, budgets.webhook_bytes.clone(), signatures);
        let (users, streams) = (context.users.clone(), budgets.streams.clone());
        let sign_ins = rate("invalid_sign_ins", limits.invalid_sign_ins_per_minute);
        let max_publication = config.channel.max_publication_size.bytes();
        Ok(Self {
            access: web::Data::new(Access {
                keys: context.keys.clone(),
                revocations: context.revocations.clone(),
                api_key: secrets.api_key.clone(),
                namespaces: context.namespaces.clone(),
                trusted_proxies: config.server.trusted_proxies.clone(),
                origins: Origins::new(config, address),
            }),
            webhooks: web::Data::new(webhooks.context("github.repos")?),
            polls: web::Data::new(PollEndpoint { rate: rate("polls", limits.polls_per_minute) }),
            builds: web::Data::new(BuildEndpoint::new(
                config,
                budgets.build_bytes.clone(),
                rate("build_events", limits.build_events_per_minute),
            )),
            streams: web::Data::new(StreamEndpoint::new(config, streams, users, stopping.subscribe())),
            transports: web::Data::new(ClientStreamEndpoints::new(
                config,
                &budgets,
                sessions,
                stopping.subscribe(),
            )),
            sign_in: web::Data::new(SignInEndpoint::new(config, secrets, address, sign_ins)),
            summaries: web::Data::new(Summaries::new(limits.stream_channels)),
            sockets: WebSocketEndpoint {
                enabled: config.websocket.enabled,
                uni_enabled: config.uni_websocket.enabled,
                open: budgets.sockets.clone(),
                metrics: metrics.http.clone(),
                stopping: stopping.subscribe(),
            },
            health: web::Data::new(HealthEndpoint {
                stopping: stopping.subscribe(),
                bus,
                limits: budgets.named(),
                publish: metrics.publish.clone(),
                registry: metrics.registry.clone(),
            }),
            api: web::Data::new(ServerApiEndpoint { max_publication }),
        })
    }

    /// The rates that a restart must not reset, by the names that they have in the store.
    pub(super) fn rates(&self) -> PersistentRates {
        let rates =
            [&self.polls.rate, &self.builds.rate, &self.webhooks.invalid_signatures, &self.sign_in.failures];
        rates.into_iter().map(|rate| (rate.name(), Box::new(rate.clone()) as _)).collect()
    }
}
