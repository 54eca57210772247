//! All metrics of a node.

use std::sync::Arc;

use crate::telemetry::metrics::Registry;
use crate::{bus, cluster, http, hub, limits, publish, session, store, tasks, telemetry, transport};

macro_rules! modules {
    ($($module:ident),*) => {
        /// The metrics of every module, and the registry that shows them.
        pub struct Metrics {
            $(pub $module: Arc<$module::Metrics>,)*
            pub registry: Arc<Registry>,
        }

        impl Default for Metrics {
            fn default() -> Self {
                let mut registry = Registry::default();
                Self { $($module: registry.add(),)* registry: Arc::new(registry) }
            }
        }
    };
}

modules!(telemetry, store, publish, bus, hub, cluster, limits, tasks, session, transport, http);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_in_the_manual() {
        let manual = include_str!("../../docs/OPERATIONS.md");
        let text = Metrics::default().registry.encode();
        for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE campanile_")) {
            let (name, kind) = line.split_once(' ').expect("a name and a type");
            let suffix = match kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            let written = [format!("`{name}{suffix}`"), format!("`{name}{suffix}{{")];
            assert!(
                written.iter().any(|written| manual.contains(written)),
                "{name}{suffix} is not described"
            );
        }
    }
}
