//! What goes out of the gateway: TLS as a client, and HTTP.

pub mod http_client;
pub mod tls;
