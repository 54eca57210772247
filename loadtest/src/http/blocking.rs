//! One question and its answer, waited for: for what is asked outside the measured time.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::framing::Head;

const DEADLINE: Duration = Duration::from_secs(10);

/// `GET path`: the status and the body.
pub fn get(address: SocketAddr, host: &str, path: &str) -> Result<(u16, Vec<u8>)> {
    let mut socket = TcpStream::connect_timeout(&address, DEADLINE)?;
    socket.set_read_timeout(Some(DEADLINE))?;
    socket.write_all(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())?;
    let (mut input, mut body, mut buffer) = (Vec::new(), Vec::new(), [0; 16 * 1024]);
    let mut head: Option<Head> = None;
    while !head.as_ref().is_some_and(|head| head.body.is_done()) {
        let read = socket.read(&mut buffer).with_context(|| format!("no answer from {path}"))?;
        ensure!(read > 0, "the answer from {path} ends too early");
        input.extend_from_slice(&buffer[..read]);
        if head.is_none()
            && let Some((parsed, length)) = Head::parse(&input)?
        {
            head = Some(parsed);
            input.drain(..length);
        }
        if let Some(head) = &mut head {
            let used = head.body.take(&input, &mut body)?;
            input.drain(..used);
        }
    }
    Ok((head.map_or(0, |head| head.status), body))
}
