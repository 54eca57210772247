//! Tokens with a short life, over every transport that has commands: renewed, not renewed, renewed
//! as somebody else, revoked. Clients that only listen cannot renew theirs.

use serde_json::{Value, json};

use super::uni::Listener;
use super::{over, start};
use crate::support::app::{TestApp, in_seconds};
use crate::support::stream_client::StreamClient;
use crate::support::websocket::Client;

const LISTENING: [&str; 3] = ["uni_websocket", "uni_http_stream", "uni_sse"];

/// A client with commands.
enum Speaker {
    Socket(Client),
    StreamClient(StreamClient),
}

impl Speaker {
    async fn connected(app: &TestApp, transport: &str, claims: Value) -> Self {
        let token = app.token(claims);
        match transport {
            "websocket" => Self::Socket(Client::connected(app, &token).await),
            _ => Self::StreamClient(StreamClient::connected(app.address(), transport, &token).await),
        }
    }

    async fn ask(&mut self, command: Value) -> Value {
        match self {
            Self::Socket(client) => client.ask(command).await,
            Self::StreamClient(lines) => lines.ask(command).await,
        }
    }

    /// The code of the end that a command comes to, or that comes by itself.
    async fn ends(&mut self, command: Option<Value>) -> u64 {
        match self {
            Self::Socket(client) => {
                if let Some(command) = command {
                    client.command(command).await;
                }
                client.closed_with().await.into()
            }
            Self::StreamClient(lines) => {
                if let Some(mut command) = command {
                    command["id"] = 1000.into();
                    lines.send_text(&command.to_string()).await;
                }
                lines.closed_with().await
            }
        }
    }

    async fn push(&mut self) -> Value {
        match self {
            Self::Socket(client) => client.push().await,
            Self::StreamClient(lines) => lines.push().await,
        }
    }
}

async fn a_connection_lives_as_long_as_its_token(transport: &str) {
    let app = start().await;
    let (short, long) =
        (json!({ "sub": "ana", "exp": in_seconds(2) }), json!({ "sub": "ana", "exp": in_seconds(60) }));
    let mut renewed = Speaker::connected(&app, transport, short.clone()).await;
    let mut other = Speaker::connected(&app, transport, short).await;
    let reply = renewed.ask(json!({ "refresh": { "token": app.token(long) } })).await;
    assert!(reply["refresh"]["ttl"].as_u64() > Some(30), "{reply}");
    assert_eq!(other.ends(None).await, 3005);
    assert_eq!(renewed.ask(json!({ "rpc": { "method": "x" } })).await["error"]["code"], 108);
}

async fn a_token_is_not_renewed_with_a_wrong_one(transport: &str) {
    let app = start().await;
    let soon = in_seconds(60);
    for (token, code) in [
        (app.token(json!({ "sub": "ben", "exp": soon })), 3500),
        ("x".to_owned(), 3500),
        (app.token(json!({ "sub": "ana", "exp": 1 })), 3005),
        (String::new(), 3501),
        (app.token(json!({ "sub": "ana", "exp": soon, "channels": ["news:x"] })), 3010),
    ] {
        let mut client = Speaker::connected(&app, transport, json!({ "sub": "ana", "exp": soon })).await;
        assert_eq!(client.ends(Some(json!({ "refresh": { "token": token } }))).await, code);
    }
}

async fn a_subscription_lives_as_long_as_its_token(transport: &str) {
    let app = start().await;
    let token = |channel: &str, sub: &str, seconds: i64| {
        app.token(json!({ "sub": sub, "channel": channel, "exp": in_seconds(seconds) }))
    };
    let subscribe = |channel: &str, seconds: i64| json!({ "subscribe": { "channel": channel, "token": token(channel, "ana", seconds) } });
    let mut client = Speaker::connected(&app, transport, json!({ "sub": "ana" })).await;
    for channel in ["$news:x", "$news:y"] {
        assert_eq!(client.ask(subscribe(channel, 2)).await["subscribe"]["expires"], true);
    }
    let renew =
        |channel: &str, token: String| json!({ "sub_refresh": { "channel": channel, "token": token } });
    let reply = client.ask(renew("$news:x", token("$news:x", "ana", 60))).await;
    assert!(reply["sub_refresh"]["ttl"].as_u64() > Some(30), "{reply}");
    let expired = json!({ "code": 2501, "reason": "subscription expired" });
    assert_eq!(client.push().await, json!({ "channel": "$news:y", "unsubscribe": expired }));
    let late = client
        .ask(renew("$news:x", app.token(json!({ "sub": "ana", "channel": "$news:x", "exp": 1 }))))
        .await;
    assert_eq!(late["error"]["code"], 110);
    assert_eq!(client.ask(renew("$news:x", String::new())).await["error"]["code"], 107);
    assert_eq!(client.ask(renew("$news:y", token("$news:y", "ana", 60))).await["error"]["code"], 103);
    let foreign = renew("$news:x", token("$news:y", "ana", 60));
    assert_eq!(client.ends(Some(foreign)).await, 3500, "of another channel");
    let mut client = Speaker::connected(&app, transport, json!({ "sub": "ana" })).await;
    client.ask(subscribe("$news:x", 60)).await;
    assert_eq!(
        client.ends(Some(renew("$news:x", token("$news:x", "ben", 60)))).await,
        3500,
        "of another user"
    );
}

async fn a_revoked_token_ends_its_connections(transport: &str) {
    let app = start().await;
    let mut revoked = Speaker::connected(&app, transport, json!({ "sub": "ana", "jti": "t-1" })).await;
    let mut blocked = Speaker::connected(&app, transport, json!({ "sub": "ben" })).await;
    let mut stays = Speaker::connected(&app, transport, json!({ "sub": "ana", "jti": "t-2" })).await;
    app.call("revoke_token", json!({ "uid": "t-1" })).await.expect(200);
    assert_eq!(revoked.ends(None).await, 3500);
    app.call("block_user", json!({ "user": "ben" })).await.expect(200);
    assert_eq!(blocked.ends(None).await, 3507);
    assert_eq!(stays.ask(json!({ "rpc": { "method": "x" } })).await["error"]["code"], 108);
}

over!(websocket, http_stream, sse: [
    a_connection_lives_as_long_as_its_token,
    a_token_is_not_renewed_with_a_wrong_one,
    a_subscription_lives_as_long_as_its_token,
    a_revoked_token_ends_its_connections,
]);

#[tokio::test]
async fn a_listener_ends_with_its_token() {
    let app = start().await;
    for transport in LISTENING {
        let connect = |claims: Value| json!({ "token": app.token(claims) }).to_string();
        let short = connect(json!({ "sub": "ana", "exp": in_seconds(2) }));
        let mut expires = Listener::open(&app, transport, &short).await;
        let jti = format!("t-{transport}");
        let mut revoked =
            Listener::open(&app, transport, &connect(json!({ "sub": "ana", "jti": jti }))).await;
        assert_eq!(expires.message().await["connect"]["expires"], true);
        assert!(revoked.message().await["connect"]["expires"].is_null());
        app.call("revoke_token", json!({ "uid": jti })).await.expect(200);
        assert_eq!(revoked.closed_with().await, 3500, "{transport}");
        assert_eq!(expires.closed_with().await, 3005, "{transport}");
    }
}
