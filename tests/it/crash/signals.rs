//! What surrounds a process: who reads its words, and how often it is asked to stop.

use std::fs::File;
use std::process::Command;
use std::time::Duration;

use testkit::process::Signal;

use crate::support::process::{Gateway, Home};
use crate::support::store::eventually;

/// The first line of a shell that becomes the gateway, with its output elsewhere.
async fn with_output(redirections: &str) -> (Home, Gateway) {
    let home = Home::new(None);
    let script = format!("exec \"$@\" {redirections}");
    let gateway = Gateway::start_under(&home, &["bash", "-c", &script, "bash"]).await;
    (home, gateway)
}

async fn works_after_it_said_something(gateway: &mut Gateway) {
    let lost = async |gateway: &Gateway| {
        let metrics = gateway.get("/metrics").await.text().to_owned();
        let line = metrics.lines().find_map(|line| line.strip_prefix("campanile_log_lines_lost_total "));
        line.expect("it is counted").parse::<u64>().expect("a number")
    };
    let before = lost(gateway).await;
    for n in 1..=3 {
        gateway.signal(Signal::HUP).expect("it runs");
        eventually("the line about the reload is lost", async || lost(gateway).await >= before + n).await;
    }
    assert!(gateway.is_running().expect("it did not end"));
    assert_eq!(gateway.get("/readyz").await.status, 200);
}

#[tokio::test]
async fn a_log_that_nobody_reads_any_more_costs_lines_and_nothing_else() {
    let (_home, mut gateway) = with_output("2> >(head -c 100 > /dev/null) > >(true)").await;
    works_after_it_said_something(&mut gateway).await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_log_on_a_full_device_costs_lines_and_nothing_else() {
    // Also what is said at the start.
    let (_home, mut gateway) = with_output("2> /dev/full > /dev/full").await;
    works_after_it_said_something(&mut gateway).await;
    gateway.stop().await;
}

#[tokio::test]
async fn closed_outputs_do_not_keep_it_from_starting() {
    let (_home, gateway) = with_output("2>&- >&-").await;
    gateway.stop().await;
}

#[test]
fn a_start_that_fails_ends_as_documented_if_nobody_can_read_why() {
    let full = File::options().write(true).open("/dev/full").expect("a device");
    let mut serve = Command::new(env!("CARGO_BIN_EXE_campanile"));
    serve.args(["serve", "--config", "/nowhere/campanile.toml"]).env_clear().stderr(full);
    assert_eq!(serve.status().expect("it runs").code(), Some(1));
}

#[tokio::test]
async fn two_signals_within_a_moment_are_one_request_to_stop() {
    for (first, second) in [(Signal::TERM, Signal::TERM), (Signal::TERM, Signal::INT)] {
        let home = Home::new(None);
        let gateway = Gateway::start(&home).await;
        gateway.signal(first).expect("it runs");
        gateway.signal(second).expect("it runs");
        let took = gateway.stop().await;
        assert!(took < Duration::from_secs(10), "{took:?}");
    }
}
