//! The requests between nodes: each with its fields, the type of its response, and what a node does
//! about it for its own clients.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use uuid::Uuid;

use super::Cluster;
use crate::clients::{ConnectionInfo, Target};
use crate::domain::channel::ChannelName;
use crate::domain::presence::Member;
use crate::domain::server_command::ServerCommand;
use crate::protocol::code;

/// A request that a node can make of others, and of itself.
pub(super) trait Request: Clone + Into<AnyRequest> {
    type Response: Serialize + DeserializeOwned;

    /// Handles the request for this node alone.
    fn handle(self, cluster: &Cluster) -> impl Future<Output = Self::Response> + Send;
}

macro_rules! requests {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* })*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Serialize, Deserialize)]
            pub(super) struct $name {
                $(pub(super) $field: $type),*
            }

            impl From<$name> for AnyRequest {
                fn from(request: $name) -> Self {
                    Self::$name(request)
                }
            }
        )*

        /// Any request, as it is sent.
        #[derive(Debug, Clone, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub(super) enum AnyRequest {
            $($name($name)),*
        }

        impl AnyRequest {
            /// Handles the request, and answers its response as it is sent.
            pub(super) async fn respond(self, cluster: &Cluster) -> serde_json::Result<Box<RawValue>> {
                match self {
                    $(Self::$name(request) => to_raw_value(&request.handle(cluster).await)),*
                }
            }
        }
    };
}

requests! {
    /// End connections. Answered with their number.
    Disconnect { target: Target, disconnect: code::Disconnect }
    /// Apply a command to connections.
    Command { target: Target, command: ServerCommand }
    /// Describe the node.
    Info {}
    /// List the channels that have subscribers.
    Channels { pattern: Option<String> }
    /// List connections.
    Connected { user: Option<String>, limit: usize }
    /// List the clients on a channel.
    Members { channel: ChannelName }
    /// Count the connections of a user.
    Connections { user: String }
    /// Pass a client's frame to a session. Answered with `false` if the session's queue is full.
    Post { session: String, frame: String }
}

impl Request for Disconnect {
    type Response = usize;

    async fn handle(self, cluster: &Cluster) -> usize {
        cluster.0.handlers.clients.disconnect(self.target, &self.disconnect).await
    }
}

impl Request for Command {
    type Response = ();

    async fn handle(self, cluster: &Cluster) {
        cluster.0.handlers.clients.send_command(self.target, self.command).await;
    }
}

impl Request for Info {
    type Response = NodeInfo;

    async fn handle(self, cluster: &Cluster) -> NodeInfo {
        cluster.info().await
    }
}

impl Request for Channels {
    type Response = Vec<(ChannelName, usize)>;

    async fn handle(self, cluster: &Cluster) -> Self::Response {
        cluster.own_channels(self.pattern.as_deref()).await.into_iter().collect()
    }
}

impl Request for Connected {
    type Response = Vec<ConnectionInfo>;

    async fn handle(self, cluster: &Cluster) -> Self::Response {
        cluster.0.handlers.clients.connected(self.user.as_deref(), self.limit).await
    }
}

impl Request for Members {
    type Response = Vec<Member>;

    async fn handle(self, cluster: &Cluster) -> Self::Response {
        match &cluster.0.handlers.hub {
            Some(hub) => hub.members(&self.channel).await,
            None => Vec::new(),
        }
    }
}

impl Request for Connections {
    type Response = u32;

    async fn handle(self, cluster: &Cluster) -> u32 {
        (cluster.0.handlers.count_connections)(&self.user)
    }
}

impl Request for Post {
    type Response = bool;

    async fn handle(self, cluster: &Cluster) -> bool {
        (cluster.0.handlers.post)(&self.session, self.frame)
    }
}

/// A node as the server API shows it (protocol §12.2, `info`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// New after each start.
    pub uid: Uuid,
    pub name: String,
    /// Version of the binary.
    pub version: String,
    pub num_clients: usize,
    /// Users of these connections.
    pub num_users: usize,
    /// Channels with subscribers.
    pub num_channels: usize,
    pub num_subs: usize,
    /// Seconds since it started.
    pub uptime: u64,
}
