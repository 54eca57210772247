//! A small HTTP/1.1 client: one connection for each request, every wait bounded. It sends what a
//! test wants to send, well-formed or not, and tolerates a server that answers before it has read
//! the whole body.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// No answer takes longer.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A request in the making.
#[derive(Debug, Clone)]
pub struct Request {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    chunked: bool,
}

impl Request {
    pub fn new(method: &str, path: &str) -> Self {
        let (method, path) = (method.to_owned(), path.to_owned());
        Self { method, path, headers: Vec::new(), body: Vec::new(), chunked: false }
    }

    pub fn get(path: &str) -> Self {
        Self::new("GET", path)
    }

    pub fn post(path: &str) -> Self {
        Self::new("POST", path)
    }

    /// Sets a header, in place of one of the same name.
    pub fn header(self, name: &str, value: &str) -> Self {
        let mut request = self.without(name);
        request.headers.push((name.to_owned(), value.to_owned()));
        request
    }

    /// The same to another path.
    pub fn to(self, path: &str) -> Self {
        Self { path: path.to_owned(), ..self }
    }

    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self
    }

    pub fn bearer(self, token: &str) -> Self {
        self.header("Authorization", &format!("Bearer {token}"))
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub fn json(self, body: &Value) -> Self {
        self.header("Content-Type", "application/json").body(body.to_string())
    }

    /// Sends the body in chunks, so that its length is not announced.
    pub fn chunked(mut self) -> Self {
        self.chunked = true;
        self
    }

    /// The head without the blank line that ends it, so that a test may go on by itself.
    pub fn head(&self) -> String {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.path);
        if !self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("Host")) {
            head.push_str("Host: campanile.test\r\n");
        }
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut head = self.head();
        let named = |name: &str| self.headers.iter().any(|(known, _)| known.eq_ignore_ascii_case(name));
        if !named("Connection") {
            head.push_str("Connection: close\r\n");
        }
        let mut bytes;
        if self.chunked {
            head.push_str("Transfer-Encoding: chunked\r\n\r\n");
            bytes = head.into_bytes();
            for chunk in self.body.chunks(64 * 1024) {
                bytes.extend(format!("{:x}\r\n", chunk.len()).bytes());
                bytes.extend(chunk);
                bytes.extend(b"\r\n");
            }
            bytes.extend(b"0\r\n\r\n");
        } else {
            if (!self.body.is_empty() || self.method == "POST") && !named("Content-Length") {
                head.push_str(&format!("Content-Length: {}\r\n", self.body.len()));
            }
            head.push_str("\r\n");
            bytes = head.into_bytes();
            bytes.extend(&self.body);
        }
        bytes
    }

    pub async fn send(&self, address: SocketAddr) -> Answer {
        send_raw(address, &self.bytes()).await
    }

    /// Announces a body of this length and sends the beginning of it; the node is reading it then.
    pub async fn send_beginning(self, address: SocketAddr, announced: usize, sent: &[u8]) -> TcpStream {
        let request = self.header("Content-Length", &announced.to_string()).header("Expect", "100-continue");
        let mut socket = TcpStream::connect(address).await.expect("a connection");
        let bytes = [request.head().as_bytes(), b"\r\n", sent].concat();
        socket.write_all(&bytes).await.expect("written");
        let mut sign = [0; 25];
        socket.read_exact(&mut sign).await.expect("a sign of life");
        assert_eq!(&sign, b"HTTP/1.1 100 Continue\r\n\r\n");
        socket
    }

    /// Like [`Request::send`] for a server that may be gone.
    pub async fn try_send(&self, address: SocketAddr) -> Option<Answer> {
        try_send_raw(address, &self.bytes()).await
    }
}

/// Sends `bytes` as they are and reads one answer.
pub async fn send_raw(address: SocketAddr, bytes: &[u8]) -> Answer {
    try_send_raw(address, bytes).await.expect("the server answers")
}

async fn try_send_raw(address: SocketAddr, bytes: &[u8]) -> Option<Answer> {
    let exchange = async {
        let mut socket = TcpStream::connect(address).await.ok()?;
        let (mut reader, mut writer) = socket.split();
        let mut read = Vec::new();
        // Whoever answers early may stop reading: then the answer counts, not the write.
        let (_written, _read) = tokio::join!(writer.write_all(bytes), read_answer(&mut reader, &mut read));
        Answer::is_whole(&read).then(|| Answer::parse(&read))?
    };
    tokio::time::timeout(DEADLINE, exchange).await.expect("an answer within the deadline")
}

/// Reads until the answer is whole or the connection ends.
async fn read_answer(reader: &mut (impl tokio::io::AsyncRead + Unpin), read: &mut Vec<u8>) {
    while matches!(reader.read_buf(read).await, Ok(1..)) && !Answer::is_whole(read) {}
}

#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    /// The next answer on a connection.
    pub async fn read(socket: &mut TcpStream) -> Self {
        let mut bytes = Vec::new();
        let reading = read_answer(socket, &mut bytes);
        tokio::time::timeout(DEADLINE / 2, reading).await.expect("an answer in time");
        Self::parse(&bytes).expect("a head")
    }

    /// The head of an answer, and how long it is.
    pub fn parse_head(bytes: &[u8]) -> Option<(Self, usize)> {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
        let head = std::str::from_utf8(&bytes[..end]).ok()?;
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        Some((Self { status, headers, body: Vec::new() }, end + 4))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (mut answer, start) = Self::parse_head(bytes)?;
        answer.body = bytes[start..].to_vec();
        if answer.header("transfer-encoding") == Some("chunked") {
            answer.body = unchunk(&answer.body).0;
        }
        Some(answer)
    }

    fn is_whole(bytes: &[u8]) -> bool {
        let Some((answer, start)) = Self::parse_head(bytes) else { return false };
        let announced = answer.header("content-length").and_then(|length| length.parse::<usize>().ok());
        match announced {
            Some(length) => bytes.len() - start >= length,
            None if answer.header("transfer-encoding").is_some() => bytes.ends_with(b"0\r\n\r\n"),
            None => matches!(answer.status, 204 | 304),
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("answers are UTF-8")
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {} {}", self.status, self.text()))
    }

    /// The stable code of a refusal.
    #[track_caller]
    pub fn code(&self) -> String {
        let json = self.json();
        json["error"]["code"].as_str().unwrap_or_else(|| panic!("no error code in {json}")).to_owned()
    }

    /// Fails unless the status is this one.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }

    /// Fails unless it is this refusal.
    #[track_caller]
    pub fn refused(self, status: u16, code: &str) -> Self {
        assert_eq!((self.status, self.code().as_str()), (status, code), "{}", self.text());
        let json = self.json();
        assert!(json["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{json}");
        self
    }
}

/// The bytes in a chunked body as far as it goes, how many bytes of `body` that took, and whether
/// it is at its end.
pub fn unchunk(body: &[u8]) -> (Vec<u8>, usize, bool) {
    let (mut bytes, mut at) = (Vec::new(), 0);
    while let Some(line) = body[at..].windows(2).position(|two| two == b"\r\n") {
        let size = std::str::from_utf8(&body[at..at + line]).expect("the size of a chunk is text");
        let size = usize::from_str_radix(size, 16).expect("the size of a chunk is a number");
        let start = at + line + 2;
        if body.len() < start + size + 2 {
            break;
        }
        bytes.extend(&body[start..start + size]);
        at = start + size + 2;
        if size == 0 {
            return (bytes, at, true);
        }
    }
    (bytes, at, false)
}

/// The body of a streamed answer, as it comes.
#[derive(Debug)]
pub struct Body {
    pub socket: TcpStream,
    raw: Vec<u8>,
    /// What has come and was not taken.
    pub text: Vec<u8>,
    over: bool,
}

impl Body {
    /// Waits for the answer to what was sent: its head and its body, or all of a refusal. `None`: nobody
    /// answers.
    pub async fn begin(mut socket: TcpStream) -> Option<Result<(Answer, Self), Answer>> {
        let mut raw = Vec::new();
        let (head, length) = loop {
            if let Some(found) = Answer::parse_head(&raw) {
                break found;
            }
            if socket.read_buf(&mut raw).await.ok()? == 0 {
                return None;
            }
        };
        if head.status != 200 {
            read_answer(&mut socket, &mut raw).await;
            return Some(Err(Answer { body: raw[length..].to_vec(), ..head }));
        }
        raw.drain(..length);
        Some(Ok((head, Self { socket, raw, text: Vec::new(), over: false })))
    }

    /// What comes up to `end`, without it; `None` when the body has ended or was cut.
    pub async fn until(&mut self, end: &[u8]) -> Option<String> {
        loop {
            if let Some(at) = self.text.windows(end.len()).position(|bytes| bytes == end) {
                let mut bytes: Vec<u8> = self.text.drain(..at + end.len()).collect();
                bytes.truncate(at);
                return Some(String::from_utf8(bytes).expect("UTF-8"));
            }
            let (bytes, taken, end) = unchunk(&self.raw);
            self.raw.drain(..taken);
            self.text.extend(bytes);
            self.over |= end;
            if taken > 0 {
                continue;
            }
            if self.over {
                return None;
            }
            self.over = matches!(self.socket.read_buf(&mut self.raw).await, Ok(0) | Err(_));
        }
    }
}
