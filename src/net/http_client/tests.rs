//! The client against a server that writes what it is told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;

const DEADLINE: Duration = Duration::from_secs(10);
const LIMIT: usize = 1000;

/// Answers each request, and what is none, with the same bytes, and leaves the connection open.
struct Server {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    serving: JoinHandle<()>,
}

impl Server {
    async fn start(response: impl Into<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, connections) = (listener.local_addr().unwrap(), Arc::<AtomicUsize>::default());
        let (response, accepted) = (Arc::new(response.into()), connections.clone());
        let serving = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                accepted.fetch_add(1, Ordering::SeqCst);
                let response = response.clone();
                tokio::spawn(async move {
                    let mut request = Vec::new();
                    while stream.read_buf(&mut request).await.is_ok_and(|read| read > 0) {
                        if request.ends_with(b"\r\n\r\n") || !request.starts_with(b"GET") {
                            request.clear();
                            stream.write_all(response.as_bytes()).await.unwrap();
                        }
                    }
                });
            }
        });
        Self { address, connections, serving }
    }

    fn url(&self) -> String {
        format!("http://{}/", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn response(length: usize) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{}", "x".repeat(length))
}

async fn get(destination: Destination, url: &str, deadline: Duration) -> Result<(u16, usize), HttpError> {
    let response = HttpClient::new(destination).get(url).send(deadline).await?;
    Ok((response.status().as_u16(), response.read(LIMIT).await?.len()))
}

#[tokio::test]
async fn a_connection_serves_several_requests() {
    let server = Server::start(response(LIMIT)).await;
    let client = HttpClient::new(Destination::Any);
    for _ in 0..2 {
        let response = client.get(&server.url()).send(DEADLINE).await.unwrap();
        assert_eq!(response.read(LIMIT).await.unwrap().len(), LIMIT);
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused() {
    let announced = Server::start(response(LIMIT + 1)).await;
    let error = get(Destination::Any, &announced.url(), DEADLINE).await.unwrap_err();
    assert!(matches!(error, HttpError::TooLarge(LIMIT)), "{error:?}");

    let chunks = "1f4\r\n".to_owned() + &"x".repeat(500) + "\r\n";
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let endless = Server::start(head.to_owned() + &chunks.repeat(3)).await;
    let error = get(Destination::Any, &endless.url(), DEADLINE).await.unwrap_err();
    assert!(matches!(error, HttpError::TooLarge(LIMIT)), "{error:?}");
}

#[tokio::test]
async fn the_deadline_holds_to_the_end_of_the_body() {
    for unfinished in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nx"] {
        let server = Server::start(unfinished).await;
        let error = get(Destination::Any, &server.url(), Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(error, HttpError::Timeout), "{error:?}");
    }
}

#[tokio::test]
async fn a_redirect_is_a_response_like_others() {
    let location = "HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n";
    let server = Server::start(location).await;
    let client = HttpClient::new(Destination::Any);
    let response = client.get(&server.url()).send(DEADLINE).await.unwrap();
    assert_eq!((response.status().as_u16(), response.header("Location")), (302, Some("/elsewhere")));
}

#[tokio::test]
async fn only_public_addresses_are_connected_to_where_this_is_asked_for() {
    let server = Server::start(response(0)).await;
    let port = server.address.port();
    for host in ["127.0.0.1", "localhost", "2130706433", "[::1]", "[::ffff:127.0.0.1]"] {
        let url = format!("http://{host}:{port}/");
        let error = get(Destination::Public, &url, DEADLINE).await.unwrap_err();
        assert!(matches!(error, HttpError::Refused(_)), "{host}: {error:?}");
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 0);
    assert_eq!(get(Destination::Any, &server.url(), DEADLINE).await.unwrap(), (200, 0));
}

#[test]
fn addresses_of_special_purpose_are_not_public() {
    let public = "1.1.1.1 100.63.255.255 172.32.0.0 192.0.1.0 223.255.255.255 2606:4700::1111 ::ffff:1.1.1.1 \
                  64:ff9b::1.1.1.1 2002:101:101::1";
    for public in public.split(' ') {
        assert!(is_public(public.parse().unwrap()), "{public}");
    }
    let special = "0.0.0.0 10.1.2.3 100.64.0.1 127.8.8.8 169.254.169.254 172.31.255.255 192.0.2.1 192.168.0.1 \
                   198.19.0.1 203.0.113.9 224.0.0.1 255.255.255.255 :: ::1 ::127.0.0.1 ::ffff:10.0.0.1 \
                   64:ff9b::a9fe:a9fe 64:ff9b:1::1 2001::1 2001:db8::1 2002:7f00:1::1 3fff::1 fc00::1 fe80::1 \
                   ff02::1";
    for special in special.split(' ') {
        assert!(!is_public(special.parse().unwrap()), "{special}");
    }
}

#[tokio::test]
async fn no_error_repeats_a_secret() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let plain = Server::start(response(0)).await;
    let error = async |url: String, key: &str| {
        let client = HttpClient::new(Destination::Any);
        let error = client.get(&url).header("X-Key", key).send(DEADLINE).await.unwrap_err();
        let (text, details) = (error.to_string(), format!("{error:?}"));
        assert!(!text.contains("hunter2") && !details.contains("hunter2"), "{text}: {details}");
        error
    };
    let unreachable = error(format!("http://ana:hunter2@{closed}/hunter2?token=hunter2"), "hunter2").await;
    assert!(matches!(unreachable, HttpError::Connect(_)), "{unreachable:?}");
    let no_tls = error(format!("https://ana:hunter2@{}/hunter2", plain.address), "hunter2").await;
    assert!(matches!(no_tls, HttpError::Tls(_)), "{no_tls:?}");
    for (url, key) in
        [("hunter2", ""), ("ftp://hunter2/", ""), ("http://hunter2:x/", ""), ("http://a/", "hunter2\n")]
    {
        let malformed = error(url.to_owned(), key).await;
        assert!(matches!(malformed, HttpError::Exchange(_) | HttpError::Connect(_)), "{malformed:?}");
    }
}
