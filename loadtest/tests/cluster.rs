//! The load generator against several nodes, with fixed counts.

use testkit::tool;

#[test]
fn delivery_is_measured_at_the_node_that_was_published_to_and_at_the_others() {
    let arguments =
        "cluster --nodes 2 --subscribers 6 --channels 5 --rate 20 --seconds 1 --warmup 0".split(' ');
    let tool::Ran { output, said, report } = tool::run(env!("CARGO_BIN_EXE_loadtest"), arguments);
    assert!(output.status.success(), "{said}");
    // Six subscribers at each of two nodes, each with one of five channels with four events.
    let heard = ["same node", "other nodes"].map(|place| report[place]["deliveries"].as_u64().unwrap());
    assert_eq!((heard[0] + heard[1], &report["events"]), (48, &20.into()));
    assert!(heard[1] > 0 && report["ratio"]["p50"].as_f64() > Some(0.0), "{report}");
}
