//! What a gateway says of itself under `/metrics`: one blocking request outside the measured time.
//! Knows names and sums over labels; no types, no labels.

use std::net::SocketAddr;

use anyhow::{Result, ensure};

use crate::http::blocking;

/// One look.
pub struct Metrics(String);

impl Metrics {
    /// Asks for them.
    pub fn scrape(address: SocketAddr, host: &str) -> Result<Self> {
        let (status, text) = blocking::get(address, host, "/metrics")?;
        ensure!(status == 200, "the metrics were answered {status}");
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
