//! `hostile`: bad connections of every kind and over every transport: no protocol, forged tokens, too
//! long, half a request. Invariant: each is answered as the protocol demands, the server stays ready,
//! keeps no connection, and grows by no more than the limit; and deliveries are taken meanwhile (`attack`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use testkit::http::{self, RequestBuilder as _};
use testkit::metrics::Metrics;
use testkit::target::Target;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{MEBI, attack, count};
use crate::compare::Scenario;
use crate::compare::session::Session;
use crate::report::table::{Figure, aside, figure};
use crate::ws::frame::{self, Kind};

/// No answer takes longer.
const TIMEOUT: Duration = Duration::from_secs(20);
/// How long the last connections may take to be forgotten.
const SETTLING: Duration = Duration::from_secs(20);

/// Opens bad connections of every kind, and checks that nothing of them stays.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  loadtest hostile --repeats 1
  loadtest hostile --url http://127.0.0.1:8080 --token T --connections 10000")]
#[group(skip)]
pub struct Options {
    /// Bad connections.
    #[arg(long = "connections", default_value_t = 200_000, value_parser = count(100..=1_000_000))]
    total: usize,
    /// Connections under way at once.
    #[arg(long, default_value_t = super::WINDOW, value_parser = count(1..=1024))]
    window: usize,
    /// MiB that the server may grow by after the first tenth, if its process is known.
    #[arg(long, default_value_t = 32)]
    growth: u64,
    /// KiB that a stranger sends of a webhook before it stops half-way.
    #[arg(long, default_value_t = 8192, value_parser = count(1..=12_288))]
    half_body: usize,
}

/// One kind: what is sent, and what must be answered.
struct BadConnection {
    name: &'static str,
    sent: Vec<u8>,
    /// Some bytes of the answer; empty where the client leaves without one.
    answer: &'static [u8],
}

impl Scenario for Options {
    const GATEWAY_ALONE: bool = true;

    fn title(&self) -> String {
        format!("hostile: {} bad connections, {} under way", self.total, self.window)
    }

    fn connections(&self) -> usize {
        self.window
    }

    fn measure(&self, session: &Session) -> Result<Vec<Figure>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(measure(session, self))
    }
}

async fn measure(session: &Session, options: &Options) -> Result<Vec<Figure>> {
    let Options { total, window, growth, half_body } = *options;
    let target = session.target();
    let kinds: Arc<[BadConnection]> = bad_connections(&target).into();
    let first = total / 10;
    open_all(&target, &kinds, 0..first, window).await?;
    let before = session.resident();
    let began = Instant::now();
    open_all(&target, &kinds, first..total, window).await?;
    let took = began.elapsed().as_secs_f64();
    settle(&target).await?;

    let mut figures = vec![figure("bad connections/s", (total - first) as f64 / took)];
    if let (Some(before), Some(after)) = (before, session.resident()) {
        let [before, after] = [before, after].map(|bytes| bytes as f64 / MEBI);
        ensure!(after - before <= growth as f64, "the server grew by {:.1} MiB", after - before);
        figures.push(aside("resident after a tenth, MiB", before));
        figures.push(aside("resident at the end, MiB", after));
    }
    figures.extend(attack::deliver_among_strangers(session, half_body << 10).await?);
    settle(&target).await?;
    Ok(figures)
}

async fn open_all(
    target: &Target,
    kinds: &Arc<[BadConnection]>,
    numbers: std::ops::Range<usize>,
    window: usize,
) -> Result<()> {
    let next = Arc::new(AtomicUsize::new(numbers.start));
    let mut workers: JoinSet<Result<()>> = JoinSet::new();
    for _ in 0..window {
        let (target, kinds, next) = (target.clone(), kinds.clone(), next.clone());
        workers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= numbers.end {
                    return Ok(());
                }
                let bad = &kinds[number % kinds.len()];
                let done = timeout(TIMEOUT, one(&target, bad)).await;
                done.context("no answer in time").and_then(|done| done).with_context(|| bad.name)?;
            }
        });
    }
    while let Some(done) = workers.join_next().await {
        done.context("a worker panicked")??;
    }
    Ok(())
}

/// One bad connection, until its answer has come.
async fn one(target: &Target, bad: &BadConnection) -> Result<()> {
    let mut socket = TcpStream::connect(target.address).await?;
    // A reset, so that no port of ours waits: there are more connections than ports.
    socket.set_zero_linger()?;
    socket.write_all(&bad.sent).await?;
    if bad.answer.is_empty() {
        return Ok(());
    }
    let mut read = Vec::new();
    while !read.windows(bad.answer.len()).any(|bytes| bytes == bad.answer) {
        // Whoever refuses a long body may end the connection while we still write.
        if !matches!(socket.read_buf(&mut read).await, Ok(1..)) {
            let shown = String::from_utf8_lossy(&read[..read.len().min(400)]).into_owned();
            bail!("the answer is {shown:?}");
        }
    }
    Ok(())
}

/// Waits until the server has forgotten all of them; it must be ready meanwhile.
async fn settle(target: &Target) -> Result<()> {
    let began = Instant::now();
    loop {
        let open = Metrics::scrape(target.address).await?.sum("campanile_connections");
        if open == 0.0 {
            let status = http::send(target.address, http::get("/readyz").with("")).await?.status;
            ensure!(status == 200, "/readyz answers {status}");
            return Ok(());
        }
        ensure!(began.elapsed() < SETTLING, "{open} connections are still open");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn bad_connections(target: &Target) -> Vec<BadConnection> {
    let host = &target.host;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let post = |path: &str, body: &str| {
        let length = body.len();
        let head = format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
        format!("{head}Content-Length: {length}\r\n\r\n{body}")
    };
    let upgrade = |path: &str, version: u8| {
        format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: {version}\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
    };
    let socket = |path: &str, frame: &[u8]| [upgrade(path, 13).as_bytes(), frame].concat();
    let text = |text: &str| frame::masked(Kind::Text, text.as_bytes());
    let forged = r#"{"id":1,"connect":{"token":"eyJhbGciOiJIUzI1NiJ9.e30.AAAA"}}"#;
    let nobody = r#"{"session":"x","node":"x","data":"{}"}"#;
    let long = "x".repeat(70_000);
    let deep = "[".repeat(60_000);
    let (bad_request, invalid_token) = (b"\"code\":3501".as_slice(), b"\"code\":3500".as_slice());
    // The codes as Close frames have them.
    let (close_bad, close_invalid, close_long) =
        (b"\x0d\xadbad request", b"\x0d\xacinvalid token", b"\x03\xf1");
    let bad = |name, sent: Vec<u8>, answer| BadConnection { name, sent, answer };
    vec![
        bad("websocket, no command", socket("/connection/websocket", &text("garbage")), close_bad.as_slice()),
        bad("websocket, nested", socket("/connection/websocket", &text(&deep)), close_bad.as_slice()),
        bad("websocket, forged", socket("/connection/websocket", &text(forged)), close_invalid.as_slice()),
        bad("websocket, too long", socket("/connection/websocket", &text(&long)), close_long.as_slice()),
        bad("websocket, no mask", socket("/connection/websocket", b"\x81\x02{}"), b"\x88"),
        bad("websocket, old", upgrade("/connection/websocket", 8).into(), b" 426 "),
        bad("websocket, left", socket("/connection/websocket", b"\x81\xfe"), b""),
        bad("uni_websocket, no request", socket("/connection/uni_websocket", &text("[]")), bad_request),
        bad("http_stream, no command", post("/connection/http_stream", "garbage").into(), bad_request),
        bad("http_stream, nested", post("/connection/http_stream", &deep).into(), bad_request),
        bad("http_stream, forged", post("/connection/http_stream", forged).into(), invalid_token),
        bad("http_stream, too long", post("/connection/http_stream", &long).into(), b" 413 "),
        bad("http_stream, left", post("/connection/http_stream", "{}")[..90].into(), b""),
        bad("sse, no command", get("/connection/sse?cf_connect=garbage").into(), bad_request),
        bad("sse, nothing", get("/connection/sse").into(), b" 400 "),
        bad("uni_sse, nobody", get("/connection/uni_sse").into(), bad_request),
        bad(
            "uni_http_stream, forged",
            post("/connection/uni_http_stream", r#"{"token":"x.y.z"}"#).into(),
            invalid_token,
        ),
        bad("emulation, nobody", post("/emulation", nobody).into(), b" 404 "),
        bad("emulation, no post", post("/emulation", "{").into(), b" 400 "),
        bad("no HTTP", b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n".to_vec(), b" 400 "),
        bad("nothing at all", Vec::new(), b""),
    ]
}
