//! An issuer of tokens, as others run one: key pairs made anew by `openssl`, tokens signed by them,
//! and a real HTTP server on loopback that hands out the public keys, or fails in the ways in which
//! servers fail.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::client::DEADLINE;

/// A namespace that anybody with a token may use.
pub const OPEN: &str = "[[channel.namespaces]]
name = \"open\"
history_size = 100
history_ttl = \"1h\"
allow_subscribe_for_client = true
allow_history_for_client = true
";

/// A key pair with its name.
#[derive(Clone)]
pub struct Pair {
    pub kid: &'static str,
    pub algorithm: Algorithm,
    pub private: String,
    /// In PEM.
    pub public: String,
}

impl Pair {
    pub fn new(kid: &'static str, algorithm: Algorithm) -> Self {
        let made: &[&str] = match algorithm {
            Algorithm::EdDSA => &["-algorithm", "ed25519"],
            Algorithm::ES256 => &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
            Algorithm::ES384 => &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"],
            _ => &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
        };
        let private = openssl(&[&["genpkey"], made].concat(), "");
        let public = openssl(&["pkey", "-pubout"], &private);
        Self { kid, algorithm, private, public }
    }

    pub fn ed(kid: &'static str) -> Self {
        Self::new(kid, Algorithm::EdDSA)
    }

    fn signer(&self) -> EncodingKey {
        let pem = self.private.as_bytes();
        match self.algorithm {
            Algorithm::EdDSA => EncodingKey::from_ed_pem(pem),
            Algorithm::ES256 | Algorithm::ES384 => EncodingKey::from_ec_pem(pem),
            _ => EncodingKey::from_rsa_pem(pem),
        }
        .expect("a private key")
    }

    /// A token with these claims. It names the key, unless the key has no name.
    pub fn token(&self, claims: &Value) -> String {
        let kid = (!self.kid.is_empty()).then(|| self.kid.to_owned());
        let header = Header { kid, ..Header::new(self.algorithm) };
        jsonwebtoken::encode(&header, claims, &self.signer()).expect("claims are JSON")
    }

    fn jwk(&self) -> Value {
        let jwk = Jwk::from_encoding_key(&self.signer(), self.algorithm).expect("a JWK");
        let mut jwk = serde_json::to_value(jwk).expect("JSON");
        jwk["use"] = "sig".into();
        jwk["kid"] = self.kid.into();
        jwk
    }
}

/// These public keys as a key set.
pub fn key_set(pairs: &[&Pair]) -> String {
    json!({ "keys": pairs.iter().map(|pair| pair.jwk()).collect::<Vec<_>>() }).to_string()
}

/// What the server does with a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Mood {
    /// Answers this body.
    Says(String),
    /// Answers this status, with this body.
    Status(u16, String),
    /// Sends elsewhere.
    Redirects(String),
    HangsUp,
    /// Never answers.
    Sleeps,
    /// Begins an answer and never ends it.
    Stalls,
    /// Sends a body without end.
    Floods,
    /// Sends this body without a word about its length, and hangs up.
    NeverSaysHowMuch(String),
}

pub struct Issuer {
    pub address: SocketAddr,
    mood: watch::Sender<Mood>,
    asked: Arc<watch::Sender<usize>>,
    serving: JoinHandle<()>,
}

impl Issuer {
    /// Hands out the keys of `pairs`.
    pub async fn of(pairs: &[&Pair]) -> Self {
        Self::start(Mood::Says(key_set(pairs))).await
    }

    pub async fn start(mood: Mood) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (mood, moods) = watch::channel(mood);
        let asked = Arc::new(watch::Sender::new(0));
        let count = asked.clone();
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.send_modify(|asked| *asked += 1);
                tokio::spawn(answer(stream, moods.borrow().clone()));
            }
        });
        Self { address, mood, asked, serving }
    }

    pub fn url(&self) -> String {
        format!("http://{}/jwks", self.address)
    }

    /// The options that make a gateway fetch from here.
    pub fn config(&self) -> String {
        let url = self.url();
        format!("[client.token]\njwks_public_endpoint = \"{url}\"\njwks_allow_http = true\n")
    }

    pub fn turns(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }

    /// Hands out the keys of `pairs` from now on.
    pub fn publishes(&self, pairs: &[&Pair]) {
        self.turns(Mood::Says(key_set(pairs)));
    }

    pub fn asked(&self) -> usize {
        *self.asked.borrow()
    }

    pub async fn until_asked(&self, times: usize) {
        let mut asked = self.asked.subscribe();
        let waited = tokio::time::timeout(DEADLINE, asked.wait_for(|asked| *asked >= times)).await;
        waited.expect("it is asked in time").expect("it lives");
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn answer(mut stream: TcpStream, mood: Mood) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if mood == Mood::HangsUp || !matches!(stream.read_buf(&mut request).await, Ok(1..)) {
            return;
        }
    }
    let head = |status: &str, length: usize| format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n");
    let text = match &mood {
        Mood::HangsUp => return,
        Mood::Sleeps => return std::future::pending().await,
        Mood::Says(body) => format!("{}\r\n{body}", head("200 OK", body.len())),
        Mood::Status(status, body) => format!("{}\r\n{body}", head(&format!("{status} So"), body.len())),
        Mood::Redirects(to) => format!("{}Location: {to}\r\n\r\n", head("302 Found", 0)),
        Mood::Stalls => format!("{}\r\n{{\"keys\":[", head("200 OK", 500)),
        Mood::Floods => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
        Mood::NeverSaysHowMuch(body) => format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{body}"),
    };
    if stream.write_all(text.as_bytes()).await.is_err() {
        return;
    }
    match mood {
        Mood::Floods => while stream.write_all(b"8\r\n{\"keys\":\r\n").await.is_ok() {},
        Mood::Stalls => std::future::pending().await,
        _ => {}
    }
}

fn openssl(args: &[&str], input: &str) -> String {
    let mut command = Command::new("openssl");
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().expect("openssl is installed");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "openssl {args:?}");
    String::from_utf8(output.stdout).expect("PEM is text")
}
