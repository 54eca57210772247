//! What a gateway reports under `/metrics`. Knows names and sums over labels; no types, no labels.

use std::net::SocketAddr;

use anyhow::{Result, ensure};

use crate::http::{self, RequestBuilder as _};

/// One scrape.
pub struct Metrics(String);

impl Metrics {
    /// Asks for them.
    pub async fn scrape(address: SocketAddr) -> Result<Self> {
        let answer = http::send(address, http::get("/metrics").with("")).await?;
        ensure!(answer.status == 200, "the metrics were answered {}", answer.status);
        Ok(Self(String::from_utf8(answer.body.into())?))
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

impl From<String> for Metrics {
    fn from(text: String) -> Self {
        Self(text)
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
