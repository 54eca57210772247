//! What surrounds a process: who reads its words, and how often it is asked to stop.

use std::fs::File;
use std::io::{PipeReader, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use testkit::process::Signal;

use crate::support::client::Request;
use crate::support::process::{API_KEY, Gateway, Home};
use crate::support::store::eventually;

/// The first line of a shell that becomes the gateway, with its output elsewhere.
async fn with_output(redirections: &str) -> (Home, Gateway) {
    with_output_of(Home::new(None), redirections).await
}

async fn with_output_of(home: Home, redirections: &str) -> (Home, Gateway) {
    let script = format!("exec \"$@\" {redirections}");
    let gateway = Gateway::start_under(&home, &["bash", "-c", &script, "bash"]).await;
    (home, gateway)
}

/// A pipe that takes nothing more until somebody reads it, and a path by which others write to it.
fn full_pipe() -> (PipeReader, File, String) {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let path = format!("/proc/{}/fd/{}", std::process::id(), writer.as_raw_fd());
    let mut filling = File::options();
    let mut filling = filling.write(true).custom_flags(libc::O_NONBLOCK).open(&path).expect("the same pipe");
    while filling.write(b"\n").is_ok() {}
    (reader, File::from(std::os::fd::OwnedFd::from(writer)), path)
}

async fn lost(gateway: &Gateway) -> u64 {
    let metrics = gateway.get("/metrics").await.text().to_owned();
    let line = metrics.lines().find_map(|line| line.strip_prefix("campanile_log_lines_lost_total "));
    line.expect("it is counted").parse().expect("a number")
}

async fn works_after_it_said_something(gateway: &mut Gateway) {
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
async fn a_log_whose_reader_stands_still_holds_nobody_up() {
    let (_reader, _writer, pipe) = full_pipe();
    let (_home, mut gateway) = with_output(&format!("2> {pipe}")).await;
    gateway.signal(Signal::HUP).expect("it runs");
    let event = json!({ "channel": "repo:acme/api", "data": { "type": "build:done", "data": {} } });
    let publish = Request::post("/api/publish").header("X-API-Key", API_KEY).json(&event);
    publish.send(gateway.address).await.expect(200);
    let polled = gateway.get("/api/events?channel=repo:acme/api").await.expect(200);
    assert!(polled.text().contains("build:done"), "{}", polled.text());
    assert_eq!(gateway.get("/readyz").await.status, 200);
    assert!(gateway.is_running().expect("it did not end"));
    let took = gateway.stop().await;
    assert!(took < Duration::from_secs(20), "{took:?}");
}

#[tokio::test]
async fn a_reader_of_the_log_that_comes_back_hears_how_much_it_missed_and_then_all_to_the_end() {
    let (mut reader, writer, pipe) = full_pipe();
    // A line for each step of each request: what waits is soon too much.
    let home = Home::new(None).with("CAMPANILE_LOG", "trace");
    let (_home, gateway) = with_output_of(home, &format!("2> {pipe}")).await;
    let full = async { while lost(&gateway).await == 0 {} };
    tokio::time::timeout(Duration::from_secs(60), full).await.expect("lines are lost");
    let missed = lost(&gateway).await;
    drop(writer);
    let reading = tokio::task::spawn_blocking(move || {
        let mut log = String::new();
        reader.read_to_string(&mut log).map(|_| log)
    });
    gateway.stop().await;
    let log = reading.await.expect("no panic").expect("text");
    let notice = log.lines().find(|line| line.contains("lines were lost")).expect("it is said");
    let said = notice.rsplit_once("lines=").expect("a number").1.parse::<u64>().expect("a number");
    assert!(said >= missed, "{notice}: {missed}");
    let end = log.lines().rev().take(50).any(|line| line.ends_with(" stopped"));
    assert!(end, "what was said at the end: {}", log.lines().next_back().unwrap_or_default());
}

#[tokio::test]
async fn a_start_that_fails_ends_although_the_reader_of_its_words_stands_still() {
    let (_reader, writer, _) = full_pipe();
    let mut serve = tokio::process::Command::new(env!("CARGO_BIN_EXE_campanile"));
    serve
        .args(["serve", "--config", "/nowhere/campanile.toml"])
        .env_clear()
        .stderr(writer)
        .kill_on_drop(true);
    let ended = tokio::time::timeout(Duration::from_secs(60), serve.status()).await;
    assert_eq!(ended.expect("it ends").expect("it runs").code(), Some(1));
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
