//! How metrics are declared. Each module declares its own in one `metrics!` struct, where the doc
//! comment of a field is its help text, and the labels of its families with `label!`. `app` adds all
//! of them to one [`Registry`] at start.

use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};

pub use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Unit};

pub use prometheus_client::metrics::histogram::Histogram;

pub type Counter = prometheus_client::metrics::counter::Counter<u64, AtomicU64>;
pub type Gauge = prometheus_client::metrics::gauge::Gauge<i64, AtomicI64>;

/// The type of a label, declared by `label!`.
pub trait Label: EncodeLabelSet + Debug + Copy + Eq + Hash + Send + Sync + 'static {
    /// A counter that appears with its first event looks as if it had always been there, and whoever
    /// watches its growth misses that event. So these values are present from the start.
    const USUAL: &'static [Self];
}

/// A metric for each value of a label.
#[derive(Debug, Clone)]
pub struct Family<L, M>(prometheus_client::metrics::family::Family<L, M>);

impl<L: Label, M: Default + Clone> Family<L, M> {
    /// The metric of one value. Keep it where the family would be asked often.
    pub fn with(&self, label: L) -> M {
        self.0.get_or_create(&label).clone()
    }
}

impl<L: Label> Family<L, Counter> {
    /// Counts one.
    pub fn inc(&self, label: L) {
        self.0.get_or_create(&label).inc();
    }
}

impl<L: Label, M: Default + Clone> Default for Family<L, M> {
    fn default() -> Self {
        let family = Self(Default::default());
        L::USUAL.iter().for_each(|label| drop(family.with(*label)));
        family
    }
}

impl<L, M> EncodeMetric for Family<L, M>
where
    prometheus_client::metrics::family::Family<L, M>: EncodeMetric,
{
    fn encode(&self, encoder: MetricEncoder<'_>) -> std::fmt::Result {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        self.0.metric_type()
    }
}

/// A histogram of durations in seconds, from half a millisecond to five seconds.
pub fn durations() -> Histogram {
    Histogram::new([0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0])
}

/// A struct declared by `metrics!`.
pub trait Metrics: Default {
    /// Adds each of its metrics to the registry.
    fn register(&self, registry: &mut Registry);
}

/// All metrics of a node by name, for `/metrics`.
pub struct Registry(prometheus_client::registry::Registry);

impl Default for Registry {
    fn default() -> Self {
        let mut registry = prometheus_client::registry::Registry::with_prefix("campanile");
        registry.register(
            "build",
            "The version that runs",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        Self(registry)
    }
}

impl Registry {
    /// The metrics of one module, at zero.
    pub fn add<M: Metrics>(&mut self) -> Arc<M> {
        let metrics = M::default();
        metrics.register(self);
        Arc::new(metrics)
    }

    /// Adds one metric. `help` is its doc comment; a name that ends with `_seconds` or `_bytes` has that
    /// unit.
    pub fn register(&mut self, name: &str, help: &str, metric: impl Metric) {
        let help = help.trim().trim_end_matches('.');
        match name.rsplit_once('_') {
            Some((name, "seconds")) => self.0.register_with_unit(name, help, Unit::Seconds, metric),
            Some((name, "bytes")) => self.0.register_with_unit(name, help, Unit::Bytes, metric),
            _ => self.0.register(name, help, metric),
        }
    }

    /// The text that `/metrics` answers (OpenMetrics 1.0).
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = text::encode(&mut text, &self.0);
        text
    }
}

/// Declares a struct of metrics. The name of a metric is that of its field behind `campanile_` and the
/// prefix of the struct. A type without a default is given its first value.
macro_rules! metrics {
    ($(#[$meta:meta])* $name:ident($prefix:literal) {
        $($(#[doc = $help:literal])+ $field:ident: $type:ty $(= $first:expr)?,)+
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone)]
        pub struct $name { $($(#[doc = $help])+ pub $field: $type,)+ }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $crate::telemetry::metrics::metrics!(@first $($first)?),)+ }
            }
        }

        impl $crate::telemetry::metrics::Metrics for $name {
            fn register(&self, registry: &mut $crate::telemetry::metrics::Registry) {
                $(registry.register(
                    concat!($prefix, stringify!($field)),
                    concat!($($help),+),
                    self.$field.clone(),
                );)+
            }
        }
    };
    (@first) => { Default::default() };
    (@first $first:expr) => { $first };
}
pub(crate) use metrics;

/// Declares the type of a label: a word or number with the values that are present from the start, or
/// an enum, all of whose values are.
macro_rules! label {
    ($(#[$meta:meta])* $name:ident($key:literal): $type:ty = [$($usual:expr),*]) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $name(pub $type);

        $crate::telemetry::metrics::label!(@encode $name, $key, |label| label.0, [$($name($usual)),*]);
    };
    ($(#[$meta:meta])* enum $name:ident($key:literal) {
        $($(#[$about:meta])* $variant:ident = $value:literal,)+
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$about])* $variant,)+ }

        $crate::telemetry::metrics::label!(@encode $name, $key, |label| match label {
            $($name::$variant => $value,)+
        }, [$($name::$variant),+]);
    };
    (@encode $name:ident, $key:literal, |$label:ident| $value:expr, $usual:expr) => {
        impl $crate::telemetry::metrics::EncodeLabelSet for $name {
            fn encode(
                &self,
                encoder: &mut prometheus_client::encoding::LabelSetEncoder<'_>,
            ) -> std::fmt::Result {
                use prometheus_client::encoding::EncodeLabel as _;
                let $label = self;
                ($key, $value).encode(encoder.encode_label())
            }
        }

        impl $crate::telemetry::metrics::Label for $name {
            const USUAL: &'static [Self] = &$usual;
        }
    };
}
pub(crate) use label;

#[cfg(test)]
mod tests {
    use super::*;

    label! {
        enum Side("side") {
            Left = "left",
            Right = "right",
        }
    }

    label! {
        Outcome("outcome"): &'static str = ["ok"]
    }

    metrics! {
        Sample("sample_") {
            /// What has
            /// happened.
            events: Family<Side, Counter>,
            /// What was tried.
            attempts: Family<Outcome, Counter>,
            /// How long it took.
            wait_seconds: Histogram = durations(),
        }
    }

    #[test]
    fn usual_values_are_shown_from_the_start_with_help_and_unit() {
        let mut registry = Registry::default();
        let sample: Arc<Sample> = registry.add();
        sample.events.inc(Side::Right);
        sample.attempts.inc(Outcome("late"));
        sample.wait_seconds.observe(0.1);
        let text = registry.encode();
        for line in [
            "# HELP campanile_sample_events What has happened.",
            "campanile_sample_events_total{side=\"left\"} 0",
            "campanile_sample_events_total{side=\"right\"} 1",
            "campanile_sample_attempts_total{outcome=\"ok\"} 0",
            "campanile_sample_attempts_total{outcome=\"late\"} 1",
            "# UNIT campanile_sample_wait_seconds seconds",
            "campanile_sample_wait_seconds_count 1",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} is not in\n{text}");
        }
    }
}
