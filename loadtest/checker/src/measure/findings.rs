//! What a measurement found: figures by name, and what broke a promise.

use std::time::Duration;

#[derive(Debug, Default)]
pub struct Findings {
    pub figures: Vec<(String, f64)>,
    pub breaches: Vec<String>,
}

impl Findings {
    pub fn figure(&mut self, name: impl Into<String>, value: f64) {
        self.figures.push((name.into(), value));
    }

    /// A time, and how long it may be.
    pub fn within(&mut self, name: &str, time: Duration, bound: Duration) {
        self.figure(format!("{name}, ms"), millis(time));
        if time > bound {
            self.breaches.push(format!("{name}: {} ms instead of {} at most", millis(time), millis(bound)));
        }
    }

    /// What must never be.
    pub fn never(&mut self, name: &str, count: usize) {
        self.figure(name, count as f64);
        if count > 0 {
            self.breaches.push(format!("{name}: {count}"));
        }
    }
}

pub fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}
