//! Webhooks over HTTP: what GitHub would send, and what comes back.

use super::*;
use crate::sources::github::signature::{ExpectedMac, WebhookSecrets};

#[test]
fn a_delivery_is_signed_and_sent_byte_for_byte() {
    let server = Scripted::start([json("202 Accepted", r#"{"received":true}"#)]);
    let (remote, body) = (server.remote(), b"{\"no\": json \n".to_vec());
    let answer =
        block_on(webhook::post(&remote, "push", "d-1", &Secret::new("hunter2"), body.clone())).unwrap();
    assert_eq!((answer.status.as_u16(), answer.body.as_ref()), (202, b"{\"received\":true}".as_slice()));

    let request = server.requests().remove(0);
    let (head, sent) = request.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /webhooks/github HTTP/1.1\r\n"), "{head}");
    assert_eq!(sent.as_bytes(), body);
    let header = |name: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    };
    assert_eq!((header("x-github-event"), header("x-github-delivery")), (Some("push"), Some("d-1")));
    assert_eq!(header("content-type"), Some("application/json"));
    assert!(header("user-agent").unwrap().starts_with("campanile-webhook/"));
    let expected = ExpectedMac::parse(header("x-hub-signature-256").unwrap()).unwrap();
    let mut hasher = WebhookSecrets::new(["hunter2"]).hasher(expected);
    hasher.update(sent.as_bytes());
    assert!(hasher.matches());
}

#[test]
fn a_refusal_is_an_answer_too() {
    let server = Scripted::start([json("401 Unauthorized", r#"{"error":{"code":"x","message":"no"}}"#)]);
    let (remote, secret) = (server.remote(), Secret::new("hunter2"));
    let post = webhook::post(&remote, "push", "d-1", &secret, Vec::new());
    assert_eq!(block_on(post).unwrap().status.as_u16(), 401);
}
