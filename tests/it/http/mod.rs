//! The HTTP surface, from outside: every route with good input and with bad.

mod bodies;
mod builds;
mod clients;
mod compatibility;
mod connections;
mod cursor;
mod deliveries;
mod early_answers;
mod health;
mod limits;
mod logs;
mod moves;
mod page;
mod poll;
mod poll_several;
mod repos;
mod server_api;
mod server_batch;
mod server_clients;
mod server_reads;
mod sign_in;
mod stream;
mod stream_life;
mod webhooks;

/// What the server API publishes to: `news` keeps some events, `fleeting` none.
const SPACES: &str = "channel.max_publication_size = \"4KiB\"
[[channel.namespaces]]
name = \"news\"
history_size = 10
history_ttl = \"1h\"
allow_subscribe_for_client = true
allow_history_for_client = true
[[channel.namespaces]]
name = \"fleeting\"
presence = true
allow_subscribe_for_client = true
";
