//! `serve --demo`: signs realistic GitHub payloads and posts them to the node's own door, as
//! GitHub would. Nothing takes a short cut, so what the demo shows is what a webhook does.

use std::net::SocketAddr;
use std::time::Duration;

use crate::config::Secret;
use crate::sources::demo::{Demo, DemoDelivery};
use crate::sources::github::signature::sign;

/// The account whose repositories the demo plays.
pub const OWNER: &str = crate::sources::demo::OWNER;

/// Milliseconds between two deliveries.
const PAUSE: std::ops::Range<u64> = 1_000..3_500;

/// Posts for ever.
pub(super) async fn run(address: SocketAddr, secret: Secret) {
    let client = awc::Client::default();
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

async fn post(client: &awc::Client, url: &str, secret: &Secret, delivery: DemoDelivery) {
    let signature = sign(secret.expose().as_bytes(), delivery.body.as_bytes());
    let request = client
        .post(url)
        .insert_header(("Content-Type", "application/json"))
        .insert_header(("X-GitHub-Event", delivery.event))
        .insert_header(("X-GitHub-Delivery", delivery.delivery_id))
        .insert_header(("X-Hub-Signature-256", signature));
    match request.send_body(delivery.body).await {
        Ok(answer) if answer.status().is_success() => {}
        Ok(answer) => tracing::warn!(status = answer.status().as_u16(), "the demo's webhook was refused"),
        Err(error) => tracing::warn!(%error, "the demo's webhook did not get through"),
    }
}
