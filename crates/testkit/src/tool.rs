//! The tools of this workspace, as their own tests run them: with the gateway that was built beside them,
//! and with a report.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// What a tool did.
pub struct Ran {
    pub output: Output,
    /// What stands on its standard error.
    pub said: String,
    /// What it wrote for `--json`; null if nothing.
    pub report: Value,
}

/// Runs a tool to its end.
pub fn run<'a>(tool: &str, arguments: impl IntoIterator<Item = &'a str>) -> Ran {
    let gateway = Path::new(tool).with_file_name("campanile");
    assert!(gateway.is_file(), "no {}: cargo build --workspace --locked", gateway.display());
    let folder = tempfile::tempdir().expect("a folder");
    let json = folder.path().join("report.json");
    let output = Command::new(tool).args(arguments).arg("--json").arg(&json).output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let report = std::fs::read(json).map_or(Value::Null, |json| serde_json::from_slice(&json).expect("JSON"));
    Ran { output, said, report }
}
