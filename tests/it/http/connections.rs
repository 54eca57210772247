//! Connections are bounded, and no address keeps the others out; health has a listener of its own.

use std::net::{Ipv4Addr, SocketAddr};

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::support::app::{Backend, TestApp, stream_request};
use crate::support::client::{Answer, Body, DEADLINE, Request};
use crate::support::stream_client::opening;
use crate::support::websocket;

/// A connection from another loopback address.
async fn from(host: u8, app: &TestApp) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::from((Ipv4Addr::new(127, 0, 0, host), 0))).expect("an address");
    socket.connect(app.address()).await.expect("a connection")
}

async fn ask(socket: &mut TcpStream) -> Answer {
    let head = Request::get("/healthz").head() + "\r\n";
    socket.write_all(head.as_bytes()).await.expect("written");
    Answer::read(socket).await
}

async fn is_over(socket: &mut TcpStream) {
    let read = timeout(DEADLINE, socket.read(&mut [0])).await.expect("an end in time");
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
}

#[tokio::test]
async fn idle_connections_of_one_address_keep_nobody_out() {
    let app = TestApp::with(Backend::Sqlite, "limits.connections = 16").await;
    let mut idle = Vec::new();
    for _ in 0..40 {
        let mut socket = from(2, &app).await;
        ask(&mut socket).await.expect(200);
        idle.push(socket);
    }
    is_over(&mut idle[0]).await;
    ask(&mut idle[39]).await.expect(200);
    let mut others = Vec::new();
    for _ in 0..4 {
        let mut socket = from(3, &app).await;
        ask(&mut socket).await.expect(200);
        others.push(socket);
    }
    ask(&mut others[0]).await.expect(200);
    assert!(app.metric("connections_turned_away", "evicted").await > 20);
    drop((idle, others));
    // The one that asks.
    app.until_metric("limit_used", "connections", 1).await;
}

#[tokio::test]
async fn sockets_of_one_address_leave_room_for_others() {
    let app = TestApp::with(Backend::Sqlite, "limits.connections = 16").await;
    let mut sockets = Vec::new();
    for _ in 0..14 {
        sockets.push(websocket::Client::open(app.address()).await);
    }
    let mut refused = TcpStream::connect(app.address()).await.expect("a connection");
    Answer::read(&mut refused).await.expect(503);
    let mut other = from(9, &app).await;
    ask(&mut other).await.expect(200);
    sockets.pop();
    // Until the node has noticed.
    let accepted = async {
        while ask_anew(&app).await != Some(200) {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, accepted).await.expect("there is room again");
}

async fn ask_anew(app: &TestApp) -> Option<u16> {
    Some(Request::get("/healthz").try_send(app.address()).await?.status)
}

#[tokio::test]
async fn an_address_has_so_many_connections_unless_it_is_a_proxy() {
    let options = "limits.connections_per_address = 3\nserver.trusted_proxies = [\"127.0.0.2\"]";
    let app = TestApp::with(Backend::Sqlite, options).await;
    let mut open = Vec::new();
    for _ in 0..5 {
        let mut socket = from(3, &app).await;
        ask(&mut socket).await.expect(200);
        open.push(socket);
    }
    is_over(&mut open[0]).await;
    is_over(&mut open[1]).await;
    ask(&mut open[2]).await.expect(200);
    let mut proxied = Vec::new();
    for _ in 0..10 {
        let mut socket = from(2, &app).await;
        ask(&mut socket).await.expect(200);
        proxied.push(socket);
    }
    ask(&mut proxied[0]).await.expect(200);
}

#[tokio::test]
async fn the_last_streams_and_sockets_are_for_other_addresses() {
    let options = "limits.sse_connections = 8\nclient.connection_limit = 9\nclient.user_connection_limit = 0\n\
                   server.trusted_proxies = [\"127.0.0.4\"]";
    let app = TestApp::with(Backend::Sqlite, options).await;
    let token = app.ana();
    let open = async |request: &Request, host| {
        let mut socket = from(host, &app).await;
        socket.write_all(&request.bytes()).await.expect("written");
        Body::begin(socket).await.expect("an answer")
    };
    let events = stream_request("org:acme", &token, None);
    let uni = opening("uni_sse", &json!({ "token": token }).to_string());
    let mut streams = Vec::new();
    for request in [&events, &uni].into_iter().cycle().take(7) {
        streams.push(open(request, 2).await.unwrap_or_else(|answer| panic!("{answer:?}")));
    }
    let proxied = events.clone().header("X-Forwarded-For", "127.0.0.2");
    for (request, host) in [(&events, 2), (&uni, 2), (&proxied, 4)] {
        let refused = open(request, host).await.map(drop).expect_err("the last one is for others");
        refused.refused(503, "too_many_streams_of_address");
    }
    streams.push(open(&events, 3).await.unwrap_or_else(|answer| panic!("{answer:?}")));
    open(&events, 3).await.map(drop).expect_err("it is full").refused(503, "too_many_streams");
    drop(streams);

    app.until_metric("connections", "uni_sse", 0).await;
    let mut sockets = Vec::new();
    for _ in 0..8 {
        sockets.push(websocket::Client::over(from(2, &app).await, &websocket::upgrade().bytes()).await);
    }
    let mut socket = from(2, &app).await;
    socket.write_all(&websocket::upgrade().bytes()).await.expect("written");
    Answer::read(&mut socket).await.refused(503, "too_many_connections_of_address");
    websocket::Client::over(from(3, &app).await, &websocket::upgrade().bytes()).await;
}

#[tokio::test]
async fn health_is_on_a_second_listener_and_metrics_are_there_alone() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let options = format!("server.internal_listen = \"{free}\"\nlimits.connections = 8");
    let app = TestApp::with(Backend::Sqlite, &options).await;
    let mut taken = Vec::new();
    for _ in 0..7 {
        taken.push(websocket::Client::open(app.address()).await);
    }
    for path in ["/healthz", "/readyz", "/health"] {
        Request::get(path).send(free).await.expect(200);
    }
    let metrics = Request::get("/metrics").send(free).await.expect(200);
    assert!(metrics.text().contains("campanile_limit_used{limit=\"connections\"} 7"), "{}", metrics.text());
    Request::get("/api/me").send(free).await.refused(404, "not_found");
    drop(taken);
    let elsewhere = async {
        loop {
            if let Some(answer) = Request::get("/metrics").try_send(app.address()).await
                && answer.status != 503
            {
                break answer;
            }
        }
    };
    timeout(DEADLINE, elsewhere).await.expect("there is room again").refused(404, "not_found");
    for method in ["POST", "OPTIONS", "TRACE"] {
        Request::new(method, "/metrics").send(app.address()).await.refused(404, "not_found");
    }
    Request::get("/readyz").send(app.address()).await.expect(200);
}
