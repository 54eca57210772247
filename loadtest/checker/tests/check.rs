//! The checker itself, in its short form and with fixed counts: it convicts servers with a known defect,
//! finds nothing wrong with the gateway under faults on either database, and its exit code says so.

use testkit::tool;

fn check(options: &str) -> tool::Ran {
    tool::run(env!("CARGO_BIN_EXE_checker"), ["--seed", "20261121"].into_iter().chain(options.split(' ')))
}

#[test]
fn the_promise_holds_under_faults_and_defects_are_noticed() {
    // All at once: each mostly waits.
    let tool::Ran { output, said, report } = check(
        "--subscribers 12 --events 96 --scenario churn --fault kill --fault cut --at-once 4 \
         --database sqlite --database postgres",
    );
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{shown}");

    let defects = report["self_test"].as_array().expect("defects");
    assert!(defects.len() >= 6 && defects.iter().all(|defect| defect["convicted"] == true), "{defects:?}");
    let cases = report["cases"].as_array().expect("cases");
    assert_eq!(cases.len(), 4, "two faults on two databases");
    for case in cases {
        assert_eq!((&case["violated"], &case["actions"]), (&0.into(), &3.into()), "{case}");
        // Twelve subscribers with a good part of 144 events each.
        assert!(case["checked"].as_u64() > Some(240) && case["logged"].as_u64() > Some(120), "{case}");
        assert!(case["connections"].as_u64() > Some(12), "{case}");
    }
    let carried = report["checked_over"].as_object().expect("transports");
    assert!(carried.len() == 8 && carried.values().all(|events| events.as_u64() > Some(0)), "{carried:?}");
}

#[test]
fn a_violation_fails_the_run_and_says_how_to_see_it_again() {
    let options =
        "--defect drop --scenario stay --fault none --subscribers 12 --events 120 --database sqlite";
    let tool::Ran { output, said, .. } = check(options);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("VIOLATION Gap: "), "{said}");
    assert!(said.contains("again with: checker --seed 20261121 --scenario stay --fault none"), "{said}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("VIOLATIONS"), "{said}");
}
