//! `make instructions`: how many instructions the pure parts take, one run of each. Time on a shared machine
//! says little about a change of a few percent; a count says it exactly.
//!
//! This program has two lives. Called by cargo it runs itself twice under callgrind, which executes
//! everything on a simulated processor, and prints what was counted. Called with [`UNDER_CALLGRIND`]
//! it does the steps. Counting is on only while [`count_this`] runs, and each time it ends callgrind
//! writes a file: the names that are printed and the files have the same order.

mod steps;

use std::collections::BTreeMap;
use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::process::{Command, ExitCode};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// One step after the other, instead of counting them.
const UNDER_CALLGRIND: &str = "--steps";
/// What was counted last time, to compare with.
const LAST: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/instructions.txt");
const FOLDER: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/callgrind");

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == UNDER_CALLGRIND) {
        steps::all();
        return ExitCode::SUCCESS;
    }
    match compare() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("instructions: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Prints the counts, and how far they are from those before.
fn compare() -> Result<()> {
    let counts = count()?;
    if count()? != counts {
        return Err("the same build gave other counts the second time: a step is not pure".into());
    }
    let last = fs::read_to_string(LAST).unwrap_or_default();
    let last: BTreeMap<&str, &str> = last.lines().filter_map(|line| line.split_once(' ')).map(swap).collect();
    println!("{:>12}  {:>8}  step", "instructions", "change");
    let mut kept = String::new();
    for (name, count) in &counts {
        let before = last.get(&name[..]).and_then(|text| text.parse::<f64>().ok());
        let change = before.map_or("new".to_owned(), |before| match *count as f64 - before {
            0.0 => "same".to_owned(),
            more => format!("{:+.1} %", more * 100.0 / before),
        });
        println!("{count:>12}  {change:>8}  {name}");
        kept += &format!("{count} {name}\n");
    }
    fs::write(LAST, kept)?;
    Ok(())
}

fn swap<T>((a, b): (T, T)) -> (T, T) {
    (b, a)
}

/// Runs the steps under callgrind.
fn count() -> Result<Vec<(String, u64)>> {
    let _ = fs::remove_dir_all(FOLDER);
    fs::create_dir_all(FOLDER)?;
    let mut command = Command::new("valgrind");
    command.args([
        "--tool=callgrind",
        "--toggle-collect=instructions::count_this",
        "--dump-after=instructions::count_this",
    ]);
    command.arg(format!("--callgrind-out-file={FOLDER}/out")).arg(std::env::current_exe()?);
    // The environment lies on the stack and would move what is on it.
    let path = std::env::var_os("PATH").unwrap_or_default();
    command.arg(UNDER_CALLGRIND).env_clear().env("PATH", path);
    let output = command.output().map_err(|error| format!("cannot run valgrind, install it: {error}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    let names = String::from_utf8(output.stdout)?;
    let mut counts = Vec::new();
    for (index, name) in names.lines().enumerate() {
        counts.push((name.to_owned(), read(Path::new(&format!("{FOLDER}/out.{}", index + 1)))?));
    }
    if counts.is_empty() {
        return Err("nothing was counted".into());
    }
    Ok(counts)
}

/// The sum of one of callgrind's files.
fn read(file: &Path) -> Result<u64> {
    let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
    let total: u64 = total.ok_or("callgrind wrote no total")?.trim().parse()?;
    if total == 0 { Err("callgrind counted nothing".into()) } else { Ok(total) }
}

/// Counts what `act` does. What it makes of the heap and of what is computed once has been made by a
/// run before, and what it leaves behind is dropped uncounted.
fn step<T>(name: &str, act: impl Fn() -> T) {
    step_with(name, || (), |()| act());
}

/// The same with something that is used up.
fn step_with<S, T>(name: &str, prepare: impl Fn() -> S, act: impl Fn(S) -> T) {
    drop(black_box(act(prepare())));
    println!("{name}");
    let (mut prepared, mut outcome) = (Some(prepare()), None);
    count_this(&mut || outcome = prepared.take().map(|prepared| black_box(act(prepared))));
    drop(outcome);
}

/// Callgrind knows it by its name.
#[inline(never)]
fn count_this(act: &mut dyn FnMut()) {
    act();
}
