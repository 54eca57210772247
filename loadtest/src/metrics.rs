//! What a gateway says of itself under `/metrics`: one blocking request outside the measured time.
//! Knows names and sums over labels; no types, no labels.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::framing::Head;

const DEADLINE: Duration = Duration::from_secs(10);

/// One look.
pub struct Metrics(String);

impl Metrics {
    /// Asks for them.
    pub fn scrape(address: SocketAddr, host: &str) -> Result<Self> {
        let mut socket = TcpStream::connect_timeout(&address, DEADLINE)?;
        socket.set_read_timeout(Some(DEADLINE))?;
        let request = format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\n\r\n");
        socket.write_all(request.as_bytes())?;
        let (mut input, mut text) = (Vec::new(), Vec::new());
        let mut head: Option<Head> = None;
        let mut buffer = [0; 16 * 1024];
        while !head.as_ref().is_some_and(|head| head.body.is_done()) {
            let read = socket.read(&mut buffer).context("no metrics")?;
            ensure!(read > 0, "the metrics end too early");
            input.extend_from_slice(&buffer[..read]);
            if head.is_none()
                && let Some((parsed, length)) = Head::parse(&input)?
            {
                ensure!(parsed.status == 200, "the metrics were answered {}", parsed.status);
                head = Some(parsed);
                input.drain(..length);
            }
            if let Some(head) = &mut head {
                let used = head.body.take(&input, &mut text)?;
                input.drain(..used);
            }
        }
        Ok(Self(String::from_utf8(text)?))
    }

    /// The sum of all that have this name, whatever their labels; 0 if there is none.
    pub fn sum(&self, name: &str) -> f64 {
        let value = |line: &str| {
            let rest = line.strip_prefix(name)?;
            let rest = match rest.strip_prefix('{') {
                Some(labels) => labels.split_once('}')?.1,
                None => rest,
            };
            rest.strip_prefix(' ')?.split(' ').next()?.parse::<f64>().ok()
        };
        self.0.lines().filter_map(value).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_summed_and_names_are_whole() {
        let text =
            "# TYPE a counter\na_total{kind=\"x\"} 2\na_total{kind=\"y\"} 3\na_total_more 9\nb 1.5 7\n";
        let metrics = Metrics(text.into());
        assert_eq!([metrics.sum("a_total"), metrics.sum("b"), metrics.sum("a")], [5.0, 1.5, 0.0]);
    }
}
