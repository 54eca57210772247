//! Three nodes on a PostgreSQL and a Redis of their own, behind one address: while nodes, database and
//! Redis come and go and messages are lost, nobody misses anything. Short, with fixed counts.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

const FAULTS: [&str; 6] = ["kill", "term", "stop", "redis-restart", "postgres-restart", "redis-drop"];

#[test]
fn nobody_misses_anything_of_a_cluster() {
    let tool = Path::new(env!("CARGO_BIN_EXE_checker"));
    let gateway = tool.with_file_name("campanile");
    assert!(gateway.is_file(), "no {}: cargo build --workspace --locked", gateway.display());
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("report.json");
    let mut command = Command::new(tool);
    command.args("--seed 20261122 --database cluster --nodes 3".split(' '));
    command.args("--scenario churn --subscribers 24 --events 160 --at-once 2".split(' '));
    command.args(FAULTS.iter().flat_map(|fault| ["--fault", fault]));
    let output = command.arg("--json").arg(&json).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stdout));

    let report: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    let cases = report["cases"].as_array().unwrap();
    let faults: Vec<&str> = cases.iter().map(|case| case["fault"].as_str().unwrap()).collect();
    assert_eq!(faults.len(), FAULTS.len(), "{faults:?}");
    for case in cases {
        assert_eq!((&case["violated"], &case["actions"]), (&0.into(), &3.into()), "{case}");
        assert!(case["checked"].as_u64() > Some(500) && case["logged"].as_u64() > Some(160), "{case}");
    }
}
