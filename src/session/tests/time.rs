//! Pings, pongs and expiry, with faked time.

use serde_json::json;

use super::support::*;
use crate::session::ConnectionOptions;
use crate::session::effect::{Outcome, Published};

#[test]
fn pings_come_at_their_interval_and_each_wants_a_pong() {
    let mut client = Client::ana();
    assert_eq!(client.due_in(), Some(25.0));
    assert!(client.wait(24.0).take().is_empty());
    assert_eq!(client.wait(1.0).story(), ["{}"]);
    assert_eq!(client.due_in(), Some(4.0), "half of the time for its pong");
    assert_eq!(client.frame("{}").story(), ["handled"]);
    assert_eq!(client.due_in(), Some(25.0));
    assert_eq!(client.wait(25.0).story(), ["{}"]);
    assert!(client.wait(7.9).take().is_empty());
    assert_eq!(client.wait(0.1).closed(), 3012);
}

#[test]
fn the_first_ping_comes_in_the_second_half_of_the_interval() {
    for (jitter, seconds) in
        [(0.0, 12.5), (0.5, 18.75), (1.0, 25.0), (-1.0, 12.5), (2.0, 25.0), (f64::NAN, 12.5)]
    {
        let mut client = Client::new();
        client.connection =
            crate::session::Connection::new(context(ConnectionOptions::default()), ID, client.now, jitter);
        client.connect(json!({}));
        assert_eq!(client.due_in(), Some(seconds), "{jitter}");
    }
}

#[test]
fn who_slept_through_several_pings_sends_one() {
    let mut client = Client::ana();
    assert_eq!(client.wait(200.0).story(), ["{}"]);
    client.frame("{}").take();
    assert_eq!(client.due_in(), Some(25.0));
}

#[test]
fn pings_may_be_off() {
    let ping_interval = std::time::Duration::ZERO;
    let mut client = Client::with(ConnectionOptions { ping_interval, ..ConnectionOptions::default() });
    let reply = client.ask("connect", json!({"token": token(json!({}))}));
    assert_eq!((reply["connect"].get("ping"), reply["connect"].get("pong")), (None, None));
    assert_eq!(client.due_in(), None);
}

#[test]
fn a_stray_pong_is_ignored() {
    let mut client = Client::ana();
    assert_eq!(client.frame("{}\n{}").story(), ["handled"]);
}

#[test]
fn a_pong_that_waits_behind_a_command_is_not_missing() {
    let mut client = Client::ana();
    client.subscribe("kept:a");
    client.wait(25.0).send("publish", json!({"channel": "kept:a", "data": 1})).frame("{}").take();
    assert!(client.wait(8.0).take().is_empty());
    assert_eq!(client.due_in(), Some(8.0));
    client.outcome(Outcome::Published(Published::Done)).take();
    assert_eq!(client.due_in(), Some(17.0));

    // Without a pong the time that it was given more runs out.
    client.wait(17.0).send("publish", json!({"channel": "kept:a", "data": 1}));
    client.wait(8.0).outcome(Outcome::Published(Published::Done)).take();
    assert!(client.wait(7.9).take().is_empty());
    assert_eq!(client.wait(0.1).closed(), 3012);
}

#[test]
fn a_connection_that_is_not_refreshed_ends_after_a_grace() {
    let mut client = Client::connected(json!({"sub": "42", "exp": NOW + 10}));
    client.wait(25.0).frame("{}").take();
    assert_eq!(client.due_in(), Some(10.0));
    assert!(client.wait(9.9).take().is_empty());
    assert_eq!(client.wait(0.1).closed(), 3005);
}

#[test]
fn a_connection_also_ends_while_a_command_is_under_way() {
    let mut client = Client::connected(json!({"sub": "42", "exp": NOW + 10}));
    client.send("subscribe", json!({"channel": "kept:a"})).take();
    client.wait(34.0).take();
    assert_eq!(client.wait(1.0).closed(), 3005);
    assert!(client.joined("kept:a", fresh()).take().is_empty());
}

fn with_subscription(name: &str) -> Client {
    let mut client = Client::ana();
    let sub_token = token(json!({"sub": "42", "channel": name, "exp": NOW + 10}));
    let (_, reply) = client.subscribe_with(name, json!({"token": sub_token}), unkept());
    assert_eq!(reply, json!({"expires": true, "ttl": 10}));
    client
}

#[test]
fn a_subscription_that_is_not_refreshed_ends_after_a_grace() {
    let mut client = with_subscription("shut:a");
    client.subscribe("kept:b");
    client.wait(25.0).frame("{}").take();
    assert_eq!(client.due_in(), Some(10.0));
    client.wait(10.0);
    let push = r#"{"push":{"channel":"shut:a","unsubscribe":{"code":2501,"reason":"subscription expired"}}}"#;
    assert_eq!(client.story(), ["leave shut:a", push]);
    assert_eq!(error(&client.ask("sub_refresh", json!({"channel": "shut:a", "token": "x"}))), 103);
    assert_eq!(client.due_in(), Some(15.0));
}

#[test]
fn a_server_side_subscription_that_expires_ends_the_connection() {
    let mut client = with_subscription("shut:a");
    client.connection.subscriptions.get_mut("shut:a").expect("subscribed").server_side = true;
    client.wait(34.0).frame("{}").take();
    assert_eq!(client.wait(1.0).closed(), 3006);
}

#[test]
fn a_ttl_is_never_longer_than_the_life_that_is_left_nor_zero() {
    for (waited, ttl) in [(0.0, 10), (0.1, 9), (9.0, 1), (9.9, 1)] {
        let mut client = Client::new();
        client.wait(waited);
        let reply = client.ask("connect", json!({"token": token(json!({"exp": NOW + 10}))}));
        assert_eq!(reply["connect"]["ttl"], json!(ttl), "{waited}");
    }
}

#[test]
fn an_end_that_no_clock_reaches_is_no_end_to_fall_over() {
    let mut client = Client::connected(json!({"sub": "42", "exp": 8_000_000_000_000_i64}));
    assert_eq!(client.due_in(), Some(25.0));
    assert_eq!(client.wait(25.0).story(), ["{}"]);
}

#[test]
fn another_ping_gives_no_more_time_for_the_first() {
    let mut client = Client::ana();
    client.subscribe("kept:a");
    client.wait(25.0).send("publish", json!({"channel": "kept:a", "data": 1}));
    client.wait(8.0).wait(8.0).wait(8.0).wait(1.0).outcome(Outcome::Published(Published::Done));
    assert_eq!(client.story().iter().filter(|said| *said == "{}").count(), 2);
    assert_eq!(client.due_in(), Some(7.0));
}

#[test]
fn a_machine_that_slept_does_not_lengthen_a_token() {
    let slept = std::time::Duration::from_secs(3600);
    let mut client = Client::connected(json!({"sub": "42", "exp": NOW + 100}));
    client.now.wall += slept;
    assert_eq!(client.wait(25.0).closed(), 3005);

    let mut client = with_subscription("shut:a");
    client.now.wall += slept;
    assert!(client.wait(25.0).story().iter().any(|said| said.contains("2501")));
}

#[test]
fn who_owes_a_pong_for_half_of_its_time_is_unhealthy_until_it_comes() {
    let mut client = Client::ana();
    client.wait(25.0);
    assert!(!client.connection.is_unhealthy(), "it has just been asked");
    assert_eq!(client.due_in(), Some(4.0));
    client.wait(4.0);
    assert!(client.connection.is_unhealthy());
    assert_eq!(client.due_in(), Some(4.0), "then it is closed");
    client.frame("{}");
    assert!(!client.connection.is_unhealthy());
    client.wait(21.0).wait(4.0).take();
    assert!(client.connection.is_unhealthy());
    assert_eq!(client.wait(4.0).closed(), 3012);
}
