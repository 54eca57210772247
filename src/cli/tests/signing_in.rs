//! Asking for a link: what goes out, and what a person is told.

use super::*;

fn ask(server: &Scripted) -> anyhow::Result<String> {
    let remote = server.remote();
    block_on(sign_in::ask(&remote, "the-key"))
}

#[test]
fn the_link_is_printed_as_the_gateway_gave_it() {
    let link = "https://live.example.com/sign-in#abc";
    let body = format!(r#"{{"link":"{link}","expiresAt":"2026-11-21T08:00:00Z"}}"#);
    let server = Scripted::start([json("201 Created", &body)]);
    assert_eq!(ask(&server).unwrap(), link);
    let request = server.requests().remove(0);
    assert!(request.starts_with("POST /api/auth/links HTTP/1.1\r\n"), "{request}");
    assert!(request.to_lowercase().contains("\r\nx-api-key: the-key\r\n"), "{request}");
}

#[test]
fn a_wrong_key_is_explained_without_repeating_it() {
    let refusal = r#"{"error":{"code":"api_key","message":"send the API key"}}"#;
    let error = ask(&Scripted::start([json("401 Unauthorized", refusal)])).unwrap_err().to_string();
    assert!(error.contains("CAMPANILE_API_KEY") && !error.contains("the-key"), "{error}");
    for (status, body) in [("404 Not Found", ""), ("201 Created", "{}"), ("503 Service Unavailable", "")] {
        assert!(ask(&Scripted::start([json(status, body)])).is_err(), "{status}");
    }
}
