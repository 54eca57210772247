//! The short suite, as `make test` runs it: every scenario once, by count, with its invariants on, the
//! real gateway and the real floor. What it measures in a debug build is worth nothing, and it looks
//! at no time.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use testkit::tool;

#[test]
fn the_short_suite_keeps_every_invariant() {
    let tool = Path::new(env!("CARGO_BIN_EXE_loadtest"));
    let gateway = tool.with_file_name("campanile");
    assert!(gateway.exists(), "no {}: cargo build --locked --bin campanile", gateway.display());
    let folder = tempfile::tempdir().unwrap();
    let [json, html] = ["report.json", "report.html"].map(|name| folder.path().join(name));

    let mut command = Command::new(tool);
    command.args(["suite", "--quick", "--json"]).arg(&json).arg("--html").arg(&html);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");

    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let scenarios = report["scenarios"].as_array().unwrap();
    assert!(scenarios.len() >= 8, "{}", scenarios.len());
    for scenario in scenarios {
        let title = &scenario["title"];
        assert!(scenario["failed"].is_null(), "{title}: {}", scenario["failed"]);
        let sides: Vec<&str> =
            scenario["sides"].as_array().unwrap().iter().map(|s| s.as_str().unwrap()).collect();
        assert!(sides.contains(&"gateway"), "{title}: {sides:?}");
        for figure in scenario["figures"].as_array().unwrap() {
            let of_a_database = figure["name"].as_str().unwrap().ends_with(" per event");
            for cell in figure["cells"].as_array().unwrap() {
                // The floor has none.
                let measured = !(of_a_database && cell["side"] == "floor");
                let rounds = cell["rounds"].as_array().unwrap().len();
                assert_eq!(rounds, usize::from(measured), "{title}: {figure}");
            }
        }
    }
    let page = std::fs::read_to_string(&html).unwrap();
    assert_eq!(page.matches("<section").count(), scenarios.len() + 1, "one each, and the summary");

    let diff = Command::new(tool).arg("diff").arg(&json).arg(&json).arg("--fail-on-worse").output().unwrap();
    let text = String::from_utf8_lossy(&diff.stdout);
    assert!(diff.status.success() && text.contains(" same"), "{text}");
    assert!(!text.contains("WORSE") && !text.contains("only in"), "{text}");
}

#[test]
fn a_scenario_that_cannot_run_fails_the_suite_and_says_why() {
    let arguments = "suite --quick --only connect --binary /nowhere/campanile".split(' ');
    let ran = tool::run(env!("CARGO_BIN_EXE_loadtest"), arguments);
    assert_eq!(ran.output.status.code(), Some(1));
    let reason = ran.report["scenarios"][0]["failed"].as_str().unwrap();
    assert!(reason.contains("/nowhere/campanile"), "{reason}");
}
