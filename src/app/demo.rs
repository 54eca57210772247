//! `serve --demo`: signs realistic GitHub payloads and posts them to its own webhook endpoint, as
//! GitHub would. There is no shortcut, so the demo shows what a webhook does.

use std::net::SocketAddr;
use std::time::Duration;

use crate::config::Secret;
use crate::demo::{Demo, DemoDelivery};
use crate::net::http_client::{Destination, HttpClient};
use crate::sources::github::signature::sign;

/// The account that owns the repositories of the demo.
pub const OWNER: &str = crate::demo::OWNER;

/// Milliseconds between two deliveries.
const PAUSE: std::ops::Range<u64> = 1_000..3_500;
/// How long a delivery may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// Posts for ever.
pub(super) async fn run(address: SocketAddr, secret: Secret) {
    let client = HttpClient::new(Destination::Any);
    let url = format!("http://{address}/webhooks/github");
    let mut demo = Demo::new(rand::random());
    for delivery in demo.setup(chrono::Utc::now()) {
        post(&client, &url, &secret, delivery).await;
    }
    loop {
        tokio::time::sleep(Duration::from_millis(rand::random_range(PAUSE))).await;
        let delivery = demo.next(chrono::Utc::now());
        post(&client, &url, &secret, delivery).await;
    }
}

async fn post(client: &HttpClient, url: &str, secret: &Secret, delivery: DemoDelivery) {
    let signature = sign(secret.expose().as_bytes(), delivery.body.as_bytes());
    let request = client
        .post(url)
        .header("Content-Type", "application/json")
        .header("X-GitHub-Event", delivery.event)
        .header("X-GitHub-Delivery", &delivery.delivery_id)
        .header("X-Hub-Signature-256", &signature);
    match request.body(delivery.body).send(DEADLINE).await {
        Ok(answer) if answer.status().is_success() => {}
        Ok(answer) => tracing::warn!(status = answer.status().as_u16(), "a webhook of the demo was refused"),
        Err(error) => tracing::warn!(%error, "a webhook of the demo could not be delivered"),
    }
}
