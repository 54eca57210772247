//! Latencies and their percentiles, counts over time, and the spread of repeated measurements.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Significant digits: the values of one bucket differ by a thousandth at most.
const DIGITS: u8 = 3;
/// Reports have this many buckets for each doubling of the latency, which is as fine as a chart can show.
const SHOWN: u64 = 16;
/// The narrowest of them, in microseconds.
const NARROWEST: u64 = 8;

/// Latencies in microseconds, in buckets that grow with the latency.
#[derive(Debug, Clone)]
pub struct Histogram(hdrhistogram::Histogram<u64>);

impl Histogram {
    pub fn new() -> Self {
        let histogram = hdrhistogram::Histogram::new_with_bounds(1, u32::MAX.into(), DIGITS);
        Self(histogram.expect("the bounds are valid"))
    }

    /// Adds one; the longest is 71 minutes.
    pub fn record(&mut self, took: Duration) {
        self.0.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    pub fn merge(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all histograms have the same bounds");
    }

    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// What was recorded, shortest first: more than, and at most, this many microseconds, and how many.
    pub fn buckets(&self) -> Vec<(u64, u64, u64)> {
        let mut buckets: Vec<(u64, u64, u64)> = Vec::new();
        for value in self.0.iter_recorded() {
            let (micros, count) = (value.value_iterated_to(), value.count_since_last_iteration());
            let width = ((1 << micros.max(1).ilog2()) / SHOWN).max(NARROWEST);
            let first = micros / width * width;
            match buckets.last_mut() {
                Some((.., last, sum)) if *last >= first => *sum += count,
                _ => buckets.push((first.saturating_sub(1), first + width - 1, count)),
            }
        }
        buckets
    }

    /// This many percent were at most this many milliseconds; none if nothing was recorded.
    pub fn percentile(&self, percent: u64) -> Option<f64> {
        self.quantile(percent as f64)
    }

    /// The same with fractions of a percent.
    pub fn quantile(&self, percent: f64) -> Option<f64> {
        (!self.0.is_empty()).then(|| self.0.value_at_quantile(percent / 100.0) as f64 / 1000.0)
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

/// How often something happened, by slices of time since the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeline {
    began: Instant,
    counts: Vec<u64>,
}

/// One slice of a [`Timeline`].
pub const SLICE: Duration = Duration::from_millis(100);

impl Timeline {
    /// Starts at a moment; what happened before it does not count.
    pub fn since(began: Instant) -> Self {
        Self { began, counts: Vec::new() }
    }

    /// It happened this many times at this moment.
    pub fn count(&mut self, at: Instant, times: u64) {
        let Some(since) = at.checked_duration_since(self.began) else { return };
        let slice = (since.as_nanos() / SLICE.as_nanos()) as usize;
        if slice >= self.counts.len() {
            self.counts.resize(slice + 1, 0);
        }
        self.counts[slice] += times;
    }

    pub fn counts(&self) -> &[u64] {
        &self.counts
    }
}

/// What repeated measurements say: the middle one, and how far the others were from it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Half were at most this.
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

impl Spread {
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut values = values.to_vec();
        values.sort_unstable_by(f64::total_cmp);
        let (low, high) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Some(Self { median, low, high })
    }

    /// From the lowest to the highest, as a share of the median.
    pub fn width(&self) -> f64 {
        if self.low == self.high { 0.0 } else { (self.high - self.low) / self.median.abs() }
    }

    /// Neither is wholly above the other: measured again, either could come out ahead.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.low <= other.high && other.low <= self.high
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_keeps_every_sample() {
        let (mut left, mut right) = (Histogram::new(), Histogram::new());
        left.record(Duration::from_micros(1));
        right.record(Duration::from_secs(7200));
        left.merge(&right);
        assert_eq!((left.count(), left.percentile(50)), (2, Some(0.001)));
        let longest = left.percentile(100).unwrap();
        assert!(longest >= f64::from(u32::MAX) / 1000.0, "the longest one can say is 71 minutes: {longest}");
    }

    #[test]
    fn every_latency_has_a_bucket_that_is_close_to_it() {
        let bits = (12..32).flat_map(|bit| [(1 << bit) - 1, 1 << bit]);
        for micros in (0..4096).chain(bits).chain([u64::from(u32::MAX)]) {
            let mut histogram = Histogram::new();
            histogram.record(Duration::from_micros(micros));
            let top = (histogram.percentile(100).unwrap() * 1000.0).round() as u64;
            assert!(micros <= top && top - micros <= micros / 128, "{micros} in {top}");
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
    fn a_picture_has_fewer_buckets_and_as_many_latencies() {
        let mut both = Histogram::new();
        for range in [1..=100_u64, 5000..=5999] {
            let mut histogram = Histogram::new();
            range.for_each(|micros| histogram.record(Duration::from_micros(micros)));
            both.merge(&histogram);
        }
        let buckets = both.buckets();
        assert_eq!(buckets.iter().map(|(.., count)| count).sum::<u64>(), both.count());
        assert!(buckets.is_sorted_by(|(_, left, _), (right, ..)| left <= right), "{buckets:?}");
        assert_eq!(buckets[0], (0, 7, 7), "1 to 7 microseconds");
        assert!(buckets.len() < 20, "{buckets:?}");
    }

    #[test]
    fn a_timeline_counts_by_slices_from_its_start() {
        let began = Instant::now();
        let mut timeline = Timeline::since(began);
        let at = |ms| began + Duration::from_millis(ms);
        for (ms, times) in [(0, 1), (99, 2), (100, 4), (350, 8)] {
            timeline.count(at(ms), times);
        }
        timeline.count(began - Duration::from_millis(1), 16);
        assert_eq!(timeline.counts(), [3, 4, 0, 8]);
    }

    #[test]
    fn spreads_that_overlap_say_nothing_about_which_is_faster() {
        let spread = |low, high| Spread { median: (low + high) / 2.0, low, high };
        assert!(spread(1.0, 2.0).overlaps(&spread(2.0, 3.0)));
        assert!(!spread(1.0, 2.0).overlaps(&spread(2.1, 3.0)));
        assert_eq!((spread(9.0, 11.0).width(), spread(0.0, 0.0).width()), (0.2, 0.0));
    }

    #[test]
    fn a_spread_is_the_median_between_the_extremes() {
        let spread = |values: &[f64]| Spread::of(values).map(|s| (s.low, s.median, s.high));
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some((1.0, 2.0, 3.0)));
        assert_eq!(spread(&[4.0, 1.0]), Some((1.0, 2.5, 4.0)));
        assert_eq!(spread(&[]), None);
    }
}
