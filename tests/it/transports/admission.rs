//! Who gets in, by what stands in the request alone; and what browsers are told.

use crate::support::app::{Backend, TestApp};
use crate::support::client::Request;
use crate::support::stream_client::{StreamClient, opening};

use super::SPACES;

const ENDPOINTS: [&str; 5] = [
    "/connection/http_stream",
    "/connection/sse",
    "/connection/uni_http_stream",
    "/connection/uni_sse",
    "/emulation",
];
const STREAMS: [&str; 4] = ["http_stream", "sse", "uni_http_stream", "uni_sse"];

#[tokio::test]
async fn pages_of_allowed_origins_get_in_and_others_do_not() {
    let config = SPACES.replacen("[client]", "[client]\nallowed_origins = [\"https://*.example.com\"]", 1);
    let app = TestApp::with(Backend::Sqlite, &config).await;
    for endpoint in ENDPOINTS {
        let preflight = Request::new("OPTIONS", endpoint)
            .header("Access-Control-Request-Method", "POST")
            .header("Access-Control-Request-Headers", "content-type, x-mine");
        let page = preflight.clone().header("Origin", "https://app.example.com");
        let answer = app.send(page).await.expect(204);
        assert_eq!(
            answer.header("access-control-allow-origin"),
            Some("https://app.example.com"),
            "{endpoint}"
        );
        assert_eq!(answer.header("access-control-allow-credentials"), Some("true"));
        assert_eq!(answer.header("access-control-allow-headers"), Some("content-type, x-mine"));
        assert_eq!(answer.header("access-control-max-age"), Some("300"));
        let methods = if endpoint.ends_with("sse") { "GET, POST, OPTIONS" } else { "POST, OPTIONS" };
        assert_eq!(answer.header("access-control-allow-methods"), Some(methods), "{endpoint}");
        let stranger = preflight.clone().header("Origin", "https://example.org");
        app.send(stranger).await.refused(403, "origin_forbidden");
        // No page, but a tool: it has no origin.
        app.send(preflight).await.expect(204);
        let stranger = Request::post(endpoint).header("Origin", "https://example.org").body("{}");
        app.send(stranger).await.refused(403, "origin_forbidden");
        assert_eq!(app.send(Request::new("PUT", endpoint)).await.status, 405, "{endpoint}");
    }
    for transport in STREAMS {
        let request = opening(transport, "{}").header("Origin", "https://app.example.com");
        let stream = StreamClient::open(app.address(), &request).await;
        let allowed = stream.head.header("access-control-allow-origin");
        assert_eq!(allowed, Some("https://app.example.com"), "{transport}");
    }
    let get = Request::get("/connection/http_stream");
    assert_eq!(app.send(get).await.status, 405);
}

#[tokio::test]
async fn what_is_too_long_or_no_text_is_refused() {
    let mut app = TestApp::with(Backend::Sqlite, SPACES).await;
    let long = "x".repeat(64 * 1024 + 1);
    for endpoint in ENDPOINTS {
        let post = Request::post(endpoint).header("Content-Type", "application/json");
        app.send(post.clone().body(long.clone())).await.refused(413, "body_too_large");
        app.send(post.clone().body(long.clone()).chunked()).await.refused(413, "body_too_large");
        app.send(post.clone().body([b'"', 0xff, b'"'])).await.refused(400, "body_not_utf8");
        let binary = post.header("Content-Type", "application/octet-stream").body("{}");
        app.send(binary).await.refused(415, "unsupported_format");
    }
    // No address is that long.
    let short = "[sse]\nmax_request_body_size = \"1KiB\"\n[uni_sse]\nmax_request_body_size = \"1KiB\"";
    app.restart_with(short).await;
    for transport in ["sse", "uni_sse"] {
        let refused = StreamClient::try_open(app.address(), &opening(transport, &"x".repeat(1025))).await;
        refused.expect_err("it is too long").refused(413, "body_too_large");
    }
    app.send(Request::get("/connection/sse")).await.refused(400, "cf_connect_missing");
    assert_eq!(app.metric("connections", "").await, 0);
}

#[tokio::test]
async fn each_transport_can_be_switched_off() {
    let sections = STREAMS.map(|name| format!("[{name}]\nenabled = false\n")).concat();
    let app = TestApp::with(Backend::Sqlite, &sections).await;
    for transport in STREAMS {
        let refused = StreamClient::try_open(app.address(), &opening(transport, "{}")).await;
        refused.expect_err("it is off").refused(404, "transport_disabled");
    }
    app.send(Request::post("/emulation").body("{}")).await.refused(404, "transport_disabled");
    assert_eq!(app.metric("refusals", "transport_disabled").await, 5);
}

#[tokio::test]
async fn a_node_has_room_for_so_many() {
    let app = TestApp::with(Backend::Sqlite, "limits.sse_connections = 1\nclient.insecure = true").await;
    let first = StreamClient::connected(app.address(), "http_stream", "").await;
    let again = StreamClient::try_open(app.address(), &opening("sse", "{}")).await;
    again.expect_err("there is no room").refused(503, "too_many_streams");
    drop(first);
    app.until_metric("connections", "http_stream", 0).await;
    StreamClient::connected(app.address(), "sse", "").await;
}
