//! Asking whether a gateway is ready.

use super::*;

fn ask(status: &str, body: &str) -> anyhow::Result<String> {
    let server = Scripted::start([json(status, body)]);
    let said = block_on(ready::ask(&server.remote()));
    assert!(server.requests().remove(0).starts_with("GET /readyz HTTP/1.1\r\n"));
    said
}

#[test]
fn a_gateway_is_ready_when_it_says_so() {
    assert_eq!(ask("200 OK", r#"{"status":"ready","store":"sqlite"}"#).unwrap(), "ready");
    assert_eq!(ask("200 OK", r#"{"status":"ready","degraded":["bus"]}"#).unwrap(), "ready, without bus");
    let stopping = ask("503 Service Unavailable", r#"{"status":"stopping"}"#).unwrap_err().to_string();
    assert!(stopping.contains("503") && stopping.contains("stopping"), "{stopping}");
    assert!(ask("200 OK", "<html>").is_err());
}
