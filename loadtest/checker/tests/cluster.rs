//! Three nodes on a PostgreSQL and a Redis of their own, behind one address: while nodes, database and
//! Redis come and go and messages are lost, nobody misses anything. Short, with fixed counts.

use testkit::tool;

const FAULTS: [&str; 9] = [
    "kill",
    "term",
    "stop",
    "redis-restart",
    "postgres-restart",
    "redis-drop",
    "redis-forge",
    "reload",
    "block",
];

#[test]
fn nobody_misses_anything_of_a_cluster() {
    let options = "--seed 20261122 --database cluster --nodes 3 \
                   --scenario churn --subscribers 24 --events 160 --at-once 2";
    let options = options.split(' ').chain(FAULTS.iter().flat_map(|fault| ["--fault", fault]));
    let tool::Ran { output, said, report } = tool::run(env!("CARGO_BIN_EXE_checker"), options);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stdout));
    let cases = report["cases"].as_array().unwrap();
    let faults: Vec<&str> = cases.iter().map(|case| case["fault"].as_str().unwrap()).collect();
    assert_eq!(faults.len(), FAULTS.len(), "{faults:?}");
    for case in cases {
        assert_eq!((&case["violated"], &case["actions"]), (&0.into(), &3.into()), "{case}");
        assert!(case["checked"].as_u64() > Some(500) && case["logged"].as_u64() > Some(160), "{case}");
    }
}
