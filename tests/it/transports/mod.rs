//! Clients over streamed answers, with posts for what they say; and clients that only listen. What
//! holds for several transports is told once for all of them.

mod admission;
mod emulation;
mod hostile;
mod sessions;
mod streams;
mod token_expiry;
mod uni;

use crate::support::app::{Backend, TestApp};

/// Channels that everybody may have.
const SPACES: &str = r#"
[client]
expired_close_delay = "50ms"
expired_sub_close_delay = "50ms"

[[channel.namespaces]]
name = "news"
history_size = 100
history_ttl = "5m"
force_recovery = true
allow_subscribe_for_client = true
allow_publish_for_subscriber = true
allow_history_for_client = true

[[channel.namespaces]]
name = "room"
presence = true
join_leave = true
force_push_join_leave = true
allow_subscribe_for_client = true
allow_presence_for_client = true
"#;

/// Makes a test of each function for each of these transports, in a module of its name.
macro_rules! over {
    ($($transport:ident),+: $names:tt) => { $(over!(@$transport $names);)+ };
    (@$transport:ident [$($name:ident),+ $(,)?]) => {
        mod $transport {
            $(#[tokio::test] async fn $name() { super::$name(stringify!($transport)).await })+
        }
    };
}
use over;

async fn start() -> TestApp {
    TestApp::with(Backend::Sqlite, SPACES).await
}
