//! Browsers that sign in by a link: what lets them in, what their cookie opens and where it is not
//! taken, and how it ends.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::net::TcpStream;

use crate::support::app::{API_KEY, Backend, TestApp, on_both, stream_request};
use crate::support::client::{Answer, Request};
use crate::support::sse::Stream;
use crate::support::websocket::{Client, upgrade};

/// A request from our own page.
pub(super) fn from_page(app: &TestApp, request: Request) -> Request {
    let own = app.address().to_string();
    let request = request.header("Host", &own).header("Sec-Fetch-Site", "same-origin");
    request.header("Origin", &format!("http://{own}"))
}

fn with_cookie(app: &TestApp, request: Request, cookie: &str) -> Request {
    from_page(app, request).header("Cookie", cookie)
}

/// A new link, as `campanile sign-in` gets it.
async fn link(app: &TestApp) -> String {
    let request = Request::post("/api/auth/links").header("X-API-Key", API_KEY);
    app.send(request).await.expect(201).json()["link"].as_str().expect("a link").to_owned()
}

fn secret_of(link: &str) -> &str {
    link.split_once('#').expect("a secret behind #").1
}

async fn redeem(app: &TestApp, link: &str) -> Answer {
    let request = Request::post("/api/auth/sign-in").json(&json!({ "secret": secret_of(link) }));
    app.send(from_page(app, request)).await
}

/// The cookie of a browser that has just signed in.
async fn signed_in(app: &TestApp) -> String {
    let answer = redeem(app, &link(app).await).await.expect(204);
    let cookie = answer.header("set-cookie").expect("a cookie");
    cookie.split(';').next().expect("name=value").to_owned()
}

async fn get(app: &TestApp, path: &str, cookie: &str) -> Answer {
    app.send(with_cookie(app, Request::get(path), cookie)).await
}

async fn stream_of(app: &TestApp, cookie: &str) -> Stream {
    let request = with_cookie(app, Request::get("/api/events/stream?channels=org:acme"), cookie);
    Stream::open(app.address(), &request).await.expect("a stream")
}

async fn socket(app: &TestApp, request: Request) -> Client {
    let stream = TcpStream::connect(app.address()).await.expect("a connection");
    Client::over(stream, &request.bytes()).await
}

async fn a_link_lets_one_browser_in(backend: Backend) {
    let app = TestApp::start(backend).await;
    let link = link(&app).await;
    assert!(link.starts_with(&format!("http://{}/sign-in#", app.address())), "{link}");
    // A preview of the link changes nothing.
    app.get("/sign-in", "").await.expect(200);

    let answer = redeem(&app, &link).await.expect(204);
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let set = answer.header("set-cookie").expect("a cookie").to_owned();
    let (cookie, attributes) = set.split_once("; ").expect("attributes");
    let mut attributes: Vec<&str> = attributes.split("; ").collect();
    attributes.sort_unstable();
    assert_eq!(attributes, ["HttpOnly", "Max-Age=604800", "Path=/", "SameSite=Lax"]);
    assert!(cookie.starts_with("campanile=") && !cookie.contains(secret_of(&link)), "{cookie}");

    let me = get(&app, "/api/auth/me", cookie).await.expect(200).json();
    assert_eq!((&me["sub"], &me["scopes"]), (&json!("operator"), &json!(["admin"])));
    assert_eq!(me["session"], true);
    for path in ["/api/repos", "/api/deliveries", "/api/dashboard/activity", "/api/events?channel=org:acme"] {
        get(&app, path, cookie).await.expect(200);
    }
    redeem(&app, &link).await.refused(401, "link_invalid");
    assert_eq!(app.metric("sign_ins", "ok").await, 1);
    assert_eq!(app.metric("sign_ins", "link_invalid").await, 1);
    let me = app.get("/api/auth/me", &app.ana()).await.expect(200).json();
    assert_eq!((&me["sub"], &me["orgs"], &me["session"]), (&json!("ana"), &json!(["acme"]), &json!(false)));
}

async fn the_command_prints_a_link_that_works(backend: Backend) {
    let app = TestApp::start(backend).await;
    let url = format!("http://{}", app.address());
    let ask = |key: &'static str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_campanile"));
        command.args(["sign-in", "--url", &url]).env_clear().env("CAMPANILE_API_KEY", key);
        async move {
            tokio::task::spawn_blocking(move || command.output()).await.expect("ended").expect("it runs")
        }
    };
    let printed = ask(API_KEY).await;
    assert!(printed.status.success(), "{printed:?}");
    let link = String::from_utf8(printed.stdout).expect("text");
    redeem(&app, link.trim()).await.expect(204);
    let refused = ask("another key of the tests").await;
    let said = String::from_utf8(refused.stderr).expect("text");
    assert_eq!((refused.status.code(), refused.stdout.len()), (Some(1), 0));
    assert!(said.contains("does it belong to this gateway?") && !said.contains("another key"), "{said}");
}

async fn of_many_who_use_a_link_at_once_one_gets_in(backend: Backend) {
    let app = TestApp::start(backend).await;
    let link = link(&app).await;
    let all = futures_util::future::join_all((0..8).map(|_| redeem(&app, &link))).await;
    let mut statuses: Vec<u16> = all.iter().map(|answer| answer.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [204, 401, 401, 401, 401, 401, 401, 401]);
    assert_eq!((app.sql().count("sessions").await, app.sql().count("sign_in_links").await), (1, 0));
}

async fn only_the_key_makes_links(backend: Backend) {
    let app = TestApp::start(backend).await;
    let cookie = signed_in(&app).await;
    for request in [
        Request::post("/api/auth/links"),
        Request::post("/api/auth/links").bearer(&app.admin()),
        Request::post("/api/auth/links").header("X-API-Key", "another key"),
        with_cookie(&app, Request::post("/api/auth/links"), &cookie),
    ] {
        app.send(request).await.refused(401, "api_key");
    }
    assert_eq!(app.sql().count("sign_in_links").await, 0);
}

async fn links_and_sessions_end_by_themselves(backend: Backend) {
    let app = TestApp::start(backend).await;
    let (late, cookie) = (link(&app).await, signed_in(&app).await);
    app.sql().execute("UPDATE sign_in_links SET expires_at = created_at").await;
    app.sql().execute("UPDATE sessions SET expires_at = created_at").await;
    redeem(&app, &late).await.refused(401, "link_invalid");
    get(&app, "/api/auth/me", &cookie).await.refused(401, "session_over");
}

async fn a_session_is_not_longer_than_it_is_kept(backend: Backend) {
    let app = TestApp::with(backend, "retention.sessions = \"30m\"").await;
    let answer = redeem(&app, &link(&app).await).await.expect(204);
    let set = answer.header("set-cookie").expect("a cookie");
    assert!(set.split("; ").any(|attribute| attribute == "Max-Age=1800"), "{set}");
}

async fn the_store_knows_hashes_alone(backend: Backend) {
    let app = TestApp::start(backend).await;
    let (link, cookie) = (link(&app).await, signed_in(&app).await);
    for (table, secret) in [("sign_in_links", secret_of(&link)), ("sessions", &cookie["campanile=".len()..])]
    {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let row = |hash: &str| match backend {
            Backend::Sqlite => format!("{table} WHERE secret_hash = x'{hash}'"),
            Backend::Postgres => format!("{table} WHERE secret_hash = '\\x{hash}'"),
        };
        let hash = <sha2::Sha256 as sha2::Digest>::digest(secret);
        assert_eq!(app.sql().count(&row(&hex(&hash))).await, 1, "{table}");
        assert_eq!(app.sql().count(&row(&hex(secret.as_bytes()))).await, 0, "{table}");
    }
}

async fn wrong_links_are_limited_and_right_ones_never(backend: Backend) {
    let app = TestApp::with(backend, "limits.invalid_sign_ins_per_minute = 3").await;
    let good = link(&app).await;
    let wrong = format!("#{}", "A".repeat(43));
    for _ in 0..3 {
        redeem(&app, &wrong).await.refused(401, "link_invalid");
    }
    let limited = redeem(&app, &wrong).await.refused(429, "too_many_sign_ins");
    assert!(limited.header("retry-after").is_some());
    for bad in ["", "{}", "[\"x\"]", "{\"secret\":7}", &"x".repeat(1000)] {
        let request = from_page(&app, Request::post("/api/auth/sign-in").body(bad));
        app.send(request).await.refused(400, "bad_request");
    }
    let long = from_page(&app, Request::post("/api/auth/sign-in").body("x".repeat(1025)));
    app.send(long).await.refused(413, "body_too_large");
    redeem(&app, &good).await.expect(204);
    assert_eq!(app.metric("sign_ins", "too_many_sign_ins").await, 1);
    assert_eq!(app.metric("sign_ins", "link_invalid").await, 3);
}

async fn the_oldest_make_room(backend: Backend) {
    let app = TestApp::with(backend, "limits.sessions = 2").await;
    let first = signed_in(&app).await;
    let second = signed_in(&app).await;
    let third = signed_in(&app).await;
    get(&app, "/api/auth/me", &first).await.refused(401, "session_over");
    for cookie in [second, third] {
        get(&app, "/api/auth/me", &cookie).await.expect(200);
    }
    let oldest = link(&app).await;
    for _ in 0..100 {
        link(&app).await;
    }
    assert_eq!(app.sql().count("sign_in_links").await, 100);
    redeem(&app, &oldest).await.refused(401, "link_invalid");
}

async fn a_token_wins_over_the_cookie(backend: Backend) {
    let app = TestApp::start(backend).await;
    let cookie = signed_in(&app).await;
    let me = Request::get("/api/auth/me");
    let as_ana = app.send(with_cookie(&app, me.clone(), &cookie).bearer(&app.ana())).await.expect(200);
    assert_eq!(as_ana.json()["sub"], "ana");
    app.send(with_cookie(&app, me.clone(), &cookie).bearer("x")).await.refused(401, "token_invalid");
    // No name and no origin matter where a token speaks.
    app.send(me.header("Cookie", &cookie).bearer(&app.ana())).await.expect(200);
    let query = format!("/api/events/stream?channels=org:acme&token={}", app.token(json!({ "sub": "x" })));
    let refused = Stream::open(app.address(), &with_cookie(&app, Request::get(&query), &cookie)).await;
    refused.expect_err("no stream").refused(403, "forbidden");
}

async fn the_cookie_opens_neither_the_server_api_nor_sockets(backend: Backend) {
    let app = TestApp::start(backend).await;
    let cookie = signed_in(&app).await;
    let publish = Request::post("/api/publish").json(&json!({ "channel": "org:acme", "data": {} }));
    for request in [publish, Request::post("/api/history"), Request::post("/api/presence")] {
        app.send(with_cookie(&app, request, &cookie)).await.refused(401, "api_key");
    }
    let mut socket = socket(&app, with_cookie(&app, upgrade(), &cookie)).await;
    socket.command(json!({ "connect": {} })).await;
    assert_eq!(socket.closed_with().await, 3501);
}

async fn the_cookie_counts_under_our_own_name_alone(backend: Backend) {
    let app = TestApp::start(backend).await;
    let (cookie, link) = (signed_in(&app).await, link(&app).await);
    let port = app.address().port();
    let named = |host: &str| Request::get("/api/auth/me").header("Host", host).header("Cookie", &cookie);
    for host in [format!("127.0.0.1:{port}"), format!("localhost:{port}"), format!("LOCALHOST:{port}")] {
        app.send(named(&host)).await.expect(200);
    }
    for host in [
        "evil.example".to_owned(),
        format!("evil.example:{port}"),
        "127.0.0.1".to_owned(),
        format!("127.0.0.1:{port}.evil.example"),
        format!("127.0.0.1:{port}@evil.example"),
        String::new(),
    ] {
        app.send(named(&host)).await.refused(421, "wrong_host");
        let stream = stream_request("org:acme", "", None).without("Authorization");
        let stream = stream.header("Host", &host).header("Cookie", &cookie);
        let refused = Stream::open(app.address(), &stream).await.expect_err("no stream");
        refused.refused(421, "wrong_host");
        let body = json!({ "secret": secret_of(&link) });
        let sign_in = Request::post("/api/auth/sign-in").json(&body).header("Host", &host);
        app.send(sign_in).await.refused(421, "wrong_host");
    }
    // Who sends no cookie is asked for a token, under any name.
    app.send(Request::get("/api/auth/me").header("Host", "evil.example")).await.refused(401, "token_missing");
    redeem(&app, &link).await.expect(204);
}

async fn what_changes_something_must_come_from_our_own_page(backend: Backend) {
    let app = TestApp::with(backend, "client.allowed_origins = [\"https://friend.example\"]").await;
    let cookie = signed_in(&app).await;
    let own = app.address().to_string();
    let bare = |request: Request| request.header("Host", &own).header("Cookie", &cookie);
    let token = || bare(Request::post("/api/auth/token"));
    let cross = |request: Request| request.header("Sec-Fetch-Site", "cross-site");

    app.send(token()).await.refused(403, "origin_forbidden");
    app.send(token().header("Sec-Fetch-Site", "none")).await.refused(403, "origin_forbidden");
    app.send(token().header("Sec-Fetch-Site", "same-site")).await.refused(403, "origin_forbidden");
    for origin in ["https://evil.example", "null", "https://friend.example", "http://localhost:1"] {
        app.send(token().header("Origin", origin)).await.refused(403, "origin_forbidden");
        let out = bare(Request::new("DELETE", "/api/auth/session")).header("Origin", origin);
        app.send(out).await.refused(403, "origin_forbidden");
        // Reading neither, although a token of the friend's would do.
        let refused = app.send(bare(Request::get("/api/auth/me")).header("Origin", origin)).await;
        refused.refused(403, "origin_forbidden");
        let body = json!({ "secret": secret_of(&link(&app).await) });
        let sign_in = bare(Request::post("/api/auth/sign-in").json(&body)).header("Origin", origin);
        app.send(sign_in).await.refused(403, "origin_forbidden");
    }
    app.send(cross(bare(Request::get("/api/auth/me")))).await.refused(403, "origin_forbidden");
    app.send(cross(token().header("Origin", &format!("http://{own}"))))
        .await
        .refused(403, "origin_forbidden");

    app.send(token().header("Origin", &format!("http://{own}"))).await.expect(200);
    app.send(token().header("Sec-Fetch-Site", "same-origin")).await.expect(200);
    app.send(bare(Request::get("/api/auth/me"))).await.expect(200);
}

async fn over_https_the_cookie_belongs_to_the_host(backend: Backend) {
    let app = TestApp::with(backend, "server.public_url = \"https://live.example.com\"").await;
    let link = link(&app).await;
    assert!(link.starts_with("https://live.example.com/sign-in#"), "{link}");
    let request = Request::post("/api/auth/sign-in").json(&json!({ "secret": secret_of(&link) }));
    let request = request.header("Host", "live.example.com").header("Origin", "https://live.example.com");
    let answer = app.send(request).await.expect(204);
    let set = answer.header("set-cookie").expect("a cookie");
    assert!(set.starts_with("__Host-campanile=") && set.contains("; Secure"), "{set}");
    let value = set.split(['=', ';']).nth(1).expect("a value");
    let me = |name: &str| {
        let me = Request::get("/api/auth/me").header("Host", "live.example.com:443");
        me.header("Cookie", &format!("{name}={value}"))
    };
    app.send(me("__Host-campanile")).await.expect(200);
    // The plain name could be set by a neighbour, so it means nothing here.
    app.send(me("campanile")).await.refused(401, "token_missing");
}

async fn a_browser_gets_tokens_for_its_socket(backend: Backend) {
    let app = TestApp::with(backend, "client.token.audience = \"us\"").await;
    let cookie = signed_in(&app).await;
    let handed = app.send(with_cookie(&app, Request::post("/api/auth/token"), &cookie)).await.expect(200);
    let handed = handed.json();
    let token = handed["token"].as_str().expect("a token");
    let me = app.get("/api/auth/me", token).await.expect(200).json();
    assert_eq!(
        (&me["sub"], &me["scopes"], &me["session"]),
        (&json!("operator"), &json!(["admin"]), &json!(false))
    );
    assert_eq!(
        me["expiresAt"].as_str().map(|at| &at[..16]),
        handed["expiresAt"].as_str().map(|at| &at[..16])
    );
    // A token makes no further token, or it would never end.
    app.send(Request::post("/api/auth/token").bearer(token)).await.refused(403, "session_needed");
    let mut socket = socket(&app, upgrade()).await;
    socket.connect(token).await;
}

async fn signing_out_ends_what_is_open(backend: Backend) {
    let app = TestApp::start(backend).await;
    let (cookie, other) = (signed_in(&app).await, signed_in(&app).await);
    let (mut stream, mut untouched) = (stream_of(&app, &cookie).await, stream_of(&app, &other).await);
    app.post_runs(1..=1).await;
    assert_eq!(stream.runs(1).await, [1]);

    let out = with_cookie(&app, Request::new("DELETE", "/api/auth/session"), &cookie);
    let answer = app.send(out.clone()).await.expect(204);
    let set = answer.header("set-cookie").expect("the cookie goes");
    assert!(set.starts_with("campanile=; ") && set.contains("Max-Age=0"), "{set}");
    let began = Instant::now();
    assert_eq!(stream.next_event().await.name(), "stream:expired");
    stream.ends().await;
    assert!(began.elapsed() < Duration::from_secs(5), "only after {:?}", began.elapsed());
    get(&app, "/api/auth/me", &cookie).await.refused(401, "session_over");
    app.send(out).await.expect(204);

    app.post_runs(2..=2).await;
    assert_eq!(untouched.runs(2).await, [1, 2]);
}

async fn a_blocked_operator_is_out(backend: Backend) {
    let app = TestApp::start(backend).await;
    let cookie = signed_in(&app).await;
    let mut stream = stream_of(&app, &cookie).await;
    assert_eq!(
        app.call("block_user", json!({ "user": "operator" })).await.expect(200).json(),
        json!({ "result": {} })
    );
    get(&app, "/api/auth/me", &cookie).await.refused(403, "user_blocked");
    assert_eq!(stream.next_event().await.name(), "stream:expired");
    stream.ends().await;
    app.call("unblock_user", json!({ "user": "operator" })).await.expect(200);
    get(&app, "/api/auth/me", &cookie).await.expect(200);
}

async fn a_session_that_another_node_ends_is_noticed(backend: Backend) {
    let app = TestApp::start(backend).await;
    let mut stream = stream_of(&app, &signed_in(&app).await).await;
    app.sql().execute("DELETE FROM sessions").await;
    let began = Instant::now();
    assert_eq!(stream.next_event().await.name(), "stream:expired");
    assert!(began.elapsed() < Duration::from_secs(5), "only after {:?}", began.elapsed());
}

async fn a_stream_ends_with_its_session(backend: Backend) {
    let app = TestApp::with(backend, "server.session_ttl = \"2s\"").await;
    let cookie = signed_in(&app).await;
    let mut stream = stream_of(&app, &cookie).await;
    app.post_runs(1..=1).await;
    assert_eq!(stream.runs(1).await, [1]);
    assert_eq!(stream.next_event().await.name(), "stream:expired");
    stream.ends().await;
    get(&app, "/api/auth/me", &cookie).await.refused(401, "session_over");
}

async fn sessions_outlive_a_restart(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    let (cookie, link) = (signed_in(&app).await, link(&app).await);
    app.restart().await;
    get(&app, "/api/auth/me", &cookie).await.expect(200);
    redeem(&app, &link).await.expect(204);
}

on_both!(
    a_link_lets_one_browser_in,
    the_command_prints_a_link_that_works,
    of_many_who_use_a_link_at_once_one_gets_in,
    only_the_key_makes_links,
    links_and_sessions_end_by_themselves,
    a_session_is_not_longer_than_it_is_kept,
    the_store_knows_hashes_alone,
    wrong_links_are_limited_and_right_ones_never,
    the_oldest_make_room,
    a_token_wins_over_the_cookie,
    the_cookie_opens_neither_the_server_api_nor_sockets,
    the_cookie_counts_under_our_own_name_alone,
    what_changes_something_must_come_from_our_own_page,
    over_https_the_cookie_belongs_to_the_host,
    a_browser_gets_tokens_for_its_socket,
    signing_out_ends_what_is_open,
    a_blocked_operator_is_out,
    a_session_that_another_node_ends_is_noticed,
    a_stream_ends_with_its_session,
    sessions_outlive_a_restart,
);
