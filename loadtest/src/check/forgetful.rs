//! A door for publishers that answers some requests itself, as if they had been committed: what only a
//! server that lies would do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

use crate::framing::Head;
use crate::http::Connection;
use crate::target::Target;

/// It loses every so many requests.
const FORGETS: u64 = 5;

/// The door.
pub struct Forgetful {
    /// Where publishers find it.
    pub address: SocketAddr,
    task: AbortHandle,
}

impl Forgetful {
    /// One in front of `upstream`.
    pub async fn start(upstream: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let asked = Arc::new(AtomicU64::new(0));
        let serve = async move {
            loop {
                let Ok((client, _)) = listener.accept().await else { continue };
                tokio::spawn(answer(client, Target::from(upstream), asked.clone()));
            }
        };
        Ok(Self { address, task: tokio::spawn(serve).abort_handle() })
    }
}

impl Drop for Forgetful {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(mut client: TcpStream, upstream: Target, asked: Arc<AtomicU64>) -> Result<()> {
    let mut upstream = Connection::to(&upstream);
    let (mut input, mut body) = (Vec::new(), Vec::new());
    loop {
        let Some(length) = request_length(&input)? else {
            if client.read_buf(&mut input).await? == 0 {
                return Ok(());
            }
            continue;
        };
        let request: Vec<u8> = input.drain(..length).collect();
        let forgets = asked.fetch_add(1, Ordering::Relaxed) % FORGETS == FORGETS - 1;
        let status = if forgets {
            let is_webhook = request.starts_with(b"POST /webhooks/");
            let said: &[u8] = if is_webhook { b"{\"received\":true}" } else { b"{\"result\":{}}" };
            body = said.to_vec();
            if is_webhook { 202 } else { 200 }
        } else {
            upstream.exchange(&request, &mut body).await?
        };
        let head = format!("HTTP/1.1 {status} Said\r\ncontent-length: {}\r\n\r\n", body.len());
        client.write_all(&[head.as_bytes(), &body].concat()).await?;
    }
}

/// The length of the request at the start of `input`, once all of it is there.
fn request_length(input: &[u8]) -> Result<Option<usize>> {
    let Some(line) = memchr::memchr(b'\n', input) else { return Ok(None) };
    // Headers are framed alike in both directions.
    let as_answer = [b"HTTP/1.1 200 OK\r\n", &input[line + 1..]].concat();
    let Some((head, length)) = Head::parse(&as_answer)? else { return Ok(None) };
    let crate::framing::Body::Length(body) = head.body else { return Err(anyhow::anyhow!("no length")) };
    let length = length - 17 + line + 1 + usize::try_from(body).context("a large request")?;
    Ok((input.len() >= length).then_some(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_as_long_as_its_head_says() {
        let request = b"POST /api/publish HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcPOST";
        let whole = request.len() - 4;
        assert_eq!(request_length(request).unwrap(), Some(whole));
        assert_eq!(request_length(&request[..whole - 1]).unwrap(), None);
        assert_eq!(request_length(b"POST ").unwrap(), None);
    }
}
