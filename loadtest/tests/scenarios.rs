//! Each scenario once, small, against a gateway that is started for it: what is checked is that the
//! invariants hold and that figures come out, never how fast anything was. The gateway is the binary
//! beside the tool, as in every run.

use serde_json::Value;
use testkit::tool;

/// Runs a scenario and gives the figures of the gateway by name.
fn figures(arguments: &str) -> Vec<(String, f64)> {
    let arguments = arguments.split(' ').chain(["--cores", "off", "--repeats", "1"]);
    let tool::Ran { output, said, report } = tool::run(env!("CARGO_BIN_EXE_loadtest"), arguments.clone());
    assert!(output.status.success(), "loadtest {}\n{said}", arguments.collect::<Vec<_>>().join(" "));
    let figure = |figure: &Value| {
        let name = figure["name"].as_str().unwrap().to_owned();
        let of_gateway = |cell: &&Value| cell["side"] == "gateway";
        let cell = figure["cells"].as_array().unwrap().iter().find(of_gateway).unwrap();
        (name, cell["rounds"][0].as_f64().unwrap())
    };
    report["scenarios"][0]["figures"].as_array().unwrap().iter().map(figure).collect()
}

fn figure(arguments: &str, name: &str) -> f64 {
    let figures = figures(arguments);
    let found = figures.iter().find(|(known, _)| known == name);
    found.unwrap_or_else(|| panic!("no {name:?} in {figures:?}")).1
}

#[test]
fn pollers_receive_nothing_until_there_is_something() {
    let rate = figure("poll --pollers 4 --pipeline 2 --seconds 1 --warmup 0", "answers 304/s");
    assert!(rate > 0.0);
}

#[test]
fn everybody_comes_back_after_all_lost_their_connection() {
    let all_back = "reconnect --connections 40 --others 3 --channels 4 --window 16 --before 1 --times 2";
    assert!(figure(all_back, "connects/s") > 0.0);
}

#[test]
fn every_channel_keeps_its_order_however_many_there_are() {
    let scaling = "channel-scaling --channels 10 --connections 10 --subscribers 4 --seconds 1 --warmup 0";
    let commits = figure(scaling, "commits per event");
    assert!(commits > 0.0 && commits <= 1.0, "{commits}");
    let statements = figure(scaling, "statements per event");
    assert!(statements >= commits, "a commit is one: {statements}");
}

#[test]
fn every_dashboard_receives_the_events_of_its_repositories() {
    let mixed = "mixed --dashboards 12 --repos 4 --follows 2 --burst 8 --every 200 --connections 4 \
                 --seconds 1 --warmup 0";
    assert!(figure(mixed, "POST to receipt p99, ms") > 0.0);
}

#[test]
fn the_lines_of_the_original_designs_are_measured() {
    let originals = "originals --connections 20 --webhooks 100 --posters 8 --pollers 5 --backing-off 5 \
                     --seconds 1";
    assert_eq!(figure(originals, "of them answered 202"), 100.0);
}

#[test]
fn clients_that_resume_get_what_they_missed() {
    let resume = "resume --connections 40 --channels 4 --missed 30 --window 16";
    assert!(figure(resume, "missed events/s") > 0.0);
}

#[test]
fn readers_that_stop_are_closed_and_resume() {
    let slow = "slow --subscribers 10 --percent 20 --rate 100 --size 60000 --before 1";
    assert_eq!(figure(slow, "closed with 3008"), 2.0);
}

#[test]
fn many_clients_connect_beside_live_traffic() {
    let connect = "connect --connections 100 --channels 3 --others 3 --against gateway";
    assert!(figure(connect, "connects/s") > 0.0);
    assert!(figure(connect, "live longest while they connect, ms") > 0.0);
}

#[test]
fn a_steady_mix_loses_nothing_and_gives_everything_back() {
    let soak = "soak --minutes 0.06 --dashboards 8 --clients 20 --pollers 3 --rate 8";
    assert!(figure(soak, "clients back") > 0.0);
}

#[test]
fn a_gateway_starts_from_nothing_and_after_a_kill() {
    assert!(figure("start --starts 1", "start after a kill p50, ms") > 0.0);
}

#[test]
fn a_gateway_on_a_postgresql_of_its_own_keeps_the_same_promises() {
    let figures = figures("webhooks --deliveries 100 --concurrency 8 --database postgres --against gateway");
    assert!(figures.iter().any(|(name, _)| name == "database CPU, %"), "{figures:?}");
    let missed =
        figure("resume --connections 20 --channels 2 --missed 10 --database postgres", "missed events/s");
    assert!(missed > 0.0);
    let start = figure("start --starts 1 --database postgres", "start after a kill p50, ms");
    assert!(start > 0.0);
}

#[test]
fn a_deep_log_takes_webhooks_too() {
    let webhooks = "webhooks --log-depth 20000 --concurrency 4 --seconds 1 --warmup 0 --against gateway";
    assert_eq!(figure(webhooks, "events in the log"), 20_000.0);
}

#[test]
fn strangers_hurt_no_delivery() {
    let hostile = "hostile --connections 200 --window 16 --half-body 128 \
                   --set CAMPANILE_LIMITS__WEBHOOK_IN_FLIGHT=4MiB --set CAMPANILE_LIMITS__WEBHOOK_BODY=1MiB";
    let latency = figure(hostile, "delivery among strangers p99, ms");
    assert!(latency > 0.0);
}
