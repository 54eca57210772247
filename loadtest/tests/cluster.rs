//! The load generator against several nodes, with fixed counts.

use std::process::Command;

use serde_json::Value;

#[test]
fn delivery_is_measured_at_the_node_that_was_published_to_and_at_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("figures.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    command
        .args("cluster --nodes 2 --subscribers 6 --channels 5 --rate 20 --seconds 1 --warmup 0".split(' '));
    let output = command.arg("--json").arg(&json).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let figures: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    // Six subscribers at each of two nodes, each with one of five channels with four events.
    let heard = ["same node", "other nodes"].map(|place| figures[place]["deliveries"].as_u64().unwrap());
    assert_eq!((heard[0] + heard[1], &figures["events"]), (48, &20.into()));
    assert!(heard[1] > 0 && figures["ratio"]["p50"].as_f64() > Some(0.0), "{figures}");
}
