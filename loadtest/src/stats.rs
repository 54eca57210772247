//! Latencies as they were recorded, every one of them, and the figures that people ask for.
//! Percentiles are exact (nearest rank), because at these counts sorting costs nothing. Where there
//! are millions a second, a histogram keeps them to within one percent.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

/// Recorded durations in microseconds.
#[derive(Debug, Default, Clone)]
pub struct Latencies(Vec<u32>);

/// What a set of latencies comes to, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// How many were recorded.
    pub count: usize,
    /// Half were at most this.
    pub p50: f64,
    /// 90 % were at most this.
    pub p90: f64,
    /// 99 % were at most this.
    pub p99: f64,
    /// The longest.
    pub max: f64,
    /// The arithmetic mean.
    pub mean: f64,
}

impl Latencies {
    /// Adds one.
    pub fn record(&mut self, took: Duration) {
        self.0.push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
    }

    /// Adds all of another set.
    pub fn merge(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// The figures, or none if nothing was recorded.
    pub fn summary(mut self) -> Option<Summary> {
        self.0.sort_unstable();
        let max = *self.0.last()?;
        let count = self.0.len();
        let total: u64 = self.0.iter().copied().map(u64::from).sum();
        let ms = |micros: u32| f64::from(micros) / 1000.0;
        let rank = |percent: usize| ms(self.0[(count * percent).div_ceil(100).max(1) - 1]);
        let mean = total as f64 / count as f64 / 1000.0;
        Some(Summary { count, p50: rank(50), p90: rank(90), p99: rank(99), max: ms(max), mean })
    }
}

impl Summary {
    /// For `--json`.
    pub fn to_json(self) -> Value {
        json!({
            "count": self.count, "p50": self.p50, "p90": self.p90, "p99": self.p99,
            "max": self.max, "mean": self.mean,
        })
    }
}

/// Values of one bucket differ by less than one in so many.
const PRECISION: usize = 128;

/// Latencies beyond counting, in buckets that grow with the latency.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Histogram {
    /// Nothing recorded.
    pub fn new() -> Self {
        Self { counts: vec![0; bucket(u32::MAX) + 1], total: 0 }
    }

    /// Adds one.
    pub fn record(&mut self, took: Duration) {
        self.counts[bucket(u32::try_from(took.as_micros()).unwrap_or(u32::MAX))] += 1;
        self.total += 1;
    }

    /// Adds all of another.
    pub fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(sum, count)| *sum += count);
        self.total += other.total;
    }

    /// How many were recorded.
    pub fn count(&self) -> u64 {
        self.total
    }

    /// So many percent were at most this many milliseconds; none if nothing was recorded.
    pub fn percentile(&self, percent: u64) -> Option<f64> {
        let rank = (self.total * percent).div_ceil(100).max(1);
        let mut seen = 0;
        let index = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        })?;
        Some(highest(index) as f64 / 1000.0)
    }
}

fn bucket(micros: u32) -> usize {
    let exact = (2 * PRECISION).ilog2();
    let shift = (u32::BITS - micros.leading_zeros()).saturating_sub(exact) as usize;
    shift * PRECISION + (micros as usize >> shift)
}

/// The highest value of a bucket.
fn highest(index: usize) -> u64 {
    let shift = (index / PRECISION).saturating_sub(1);
    (((index - shift * PRECISION) as u64 + 1) << shift) - 1
}

/// What repeated measurements say: the middle one, and how far the others were from it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// Half were at most this.
    pub median: f64,
    /// The lowest.
    pub low: f64,
    /// The highest.
    pub high: f64,
}

impl Spread {
    /// None of nothing.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut values = values.to_vec();
        values.sort_unstable_by(f64::total_cmp);
        let (low, high) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Some(Self { median, low, high })
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { p50, p90, p99, max, mean, .. } = self;
        write!(f, "p50 {p50:.2} ms  p90 {p90:.2} ms  p99 {p99:.2} ms  max {max:.2} ms  mean {mean:.2} ms")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(millis: impl IntoIterator<Item = u64>) -> Option<Summary> {
        let mut latencies = Latencies::default();
        millis.into_iter().for_each(|ms| latencies.record(Duration::from_millis(ms)));
        latencies.summary()
    }

    #[test]
    fn percentiles_are_the_nearest_rank() {
        let hundred = of((1..=100).rev()).unwrap();
        assert_eq!((hundred.p50, hundred.p90, hundred.p99, hundred.max), (50.0, 90.0, 99.0, 100.0));
        assert_eq!((hundred.count, hundred.mean), (100, 50.5));
        let three = of([30, 10, 20]).unwrap();
        assert_eq!((three.p50, three.p90, three.p99), (20.0, 30.0, 30.0));
    }

    #[test]
    fn one_latency_is_every_percentile_and_none_is_no_summary() {
        let one = of([7]).unwrap();
        assert_eq!((one.p50, one.p99, one.max, one.mean), (7.0, 7.0, 7.0, 7.0));
        assert_eq!(of([]), None);
    }

    #[test]
    fn merging_keeps_every_sample() {
        let mut left = Latencies::default();
        left.record(Duration::from_micros(1));
        let mut right = Latencies::default();
        right.record(Duration::from_secs(7200));
        left.merge(right);
        let both = left.summary().unwrap();
        assert_eq!((both.count, both.p50), (2, 0.001));
        assert_eq!(both.max, f64::from(u32::MAX) / 1000.0, "the longest one can say is 71 minutes");
    }

    #[test]
    fn every_latency_has_a_bucket_that_is_close_to_it() {
        let mut before = 0;
        for micros in (0..4096).chain((12..32).flat_map(|bit| [(1 << bit) - 1, 1 << bit])).chain([u32::MAX]) {
            let index = bucket(micros);
            assert!(index == before || index == before + 1 || micros >= 4096, "{micros}");
            before = index;
            let (value, top) = (u64::from(micros), highest(index));
            assert!(value <= top && top - value <= value / PRECISION as u64, "{micros} in {index}: {top}");
        }
    }

    #[test]
    fn a_histogram_has_the_percentiles_of_what_it_was_given() {
        let mut histogram = Histogram::new();
        assert_eq!(histogram.percentile(50), None);
        (1..=100).for_each(|micros| histogram.record(Duration::from_micros(micros)));
        assert_eq!((histogram.percentile(50), histogram.percentile(99)), (Some(0.05), Some(0.099)));
        histogram.record(Duration::from_secs(1));
        let longest = histogram.percentile(100).unwrap();
        assert!((1000.0..1008.0).contains(&longest), "{longest}");
        assert_eq!(histogram.count(), 101);
    }

    #[test]
    fn a_spread_is_the_median_between_the_extremes() {
        let spread = |values: &[f64]| Spread::of(values).map(|s| (s.low, s.median, s.high));
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some((1.0, 2.0, 3.0)));
        assert_eq!(spread(&[4.0, 1.0]), Some((1.0, 2.5, 4.0)));
        assert_eq!(spread(&[]), None);
    }
}
