//! One command after the other, whatever the frames, and nothing after the end.

use serde_json::json;

use super::support::*;
use crate::session::effect::{Effect, Outcome, Published, Stored};

fn ids(story: &[String]) -> Vec<&str> {
    story.iter().map(|line| line.split(',').next().unwrap_or(line)).collect()
}

#[test]
fn the_first_frame_of_an_sdk_connects_and_subscribes() {
    let mut client = Client::new();
    let connect = json!({"id": 1, "connect": {"token": token(json!({"sub": "42", "channels": ["#42"]}))}});
    let frame = format!(
        "{connect}\n{}\n{}\n{}\n",
        r#"{"id":2,"subscribe":{"channel":"kept:a"}}"#,
        r#"{"id":3,"subscribe":{"channel":"nope:b"}}"#,
        r#"{"id":4,"unsubscribe":{"channel":"kept:a"}}"#,
    );
    client.frame(&frame);
    assert_eq!(client.story(), ["join #42"]);
    client.joined("#42", unkept());
    let story = client.story();
    assert_eq!(ids(&story), [r#"{"id":1"#, "live #42", "join kept:a"]);
    client.joined("kept:a", fresh());
    let effects = client.take();
    let story: Vec<_> = effects.iter().map(short).collect();
    let expected = [r#"{"id":2"#, "live kept:a e1.5", r#"{"id":3"#, "leave kept:a", r#"{"id":4"#, "handled"];
    assert_eq!(ids(&story), expected);
    assert_eq!(effects.last(), Some(&Effect::Handled(frame.len())));
}

#[test]
fn frames_wait_while_an_effect_is_under_way_and_are_handled_in_order() {
    let mut client = Client::ana();
    client.subscribe("kept:a");
    let (first, second, third) = (
        "{\"id\":3,\"publish\":{\"channel\":\"kept:a\",\"data\":1}}\n{\"id\":4,\"history\":{\"channel\":\"kept:a\"}}",
        "{}",
        "{\"id\":5,\"ping\":{}}\n{\"id\":6,\"ping\":{}}",
    );
    client.frame(first).frame(second).frame(third);
    assert_eq!(client.story(), ["publish kept:a"]);
    client.outcome(Outcome::Published(Published::Done));
    assert_eq!(client.story(), [r#"{"id":3,"publish":{}}"#, "history kept:a"]);
    client.outcome(Outcome::History(Stored::Unavailable));
    let effects = client.take();
    let handled = effects.iter().filter_map(|effect| match effect {
        Effect::Handled(bytes) => Some(*bytes),
        _ => None,
    });
    let handled: Vec<_> = handled.collect();
    assert_eq!(handled, [first.len(), second.len(), third.len()]);
    let story: Vec<_> = effects.iter().map(short).collect();
    assert_eq!(ids(&story), [r#"{"id":4"#, "handled", "handled", r#"{"id":5"#, r#"{"id":6"#, "handled"]);
}

#[test]
fn an_outcome_that_nobody_waits_for_changes_nothing() {
    let mut client = Client::ana();
    let strangers = || {
        [
            Outcome::Published(Published::Done),
            Outcome::History(Stored::Unavailable),
            Outcome::Presence(vec![]),
            Outcome::Joined(channel("kept:b"), fresh()),
        ]
    };
    for outcome in strangers() {
        client.outcome(outcome);
    }
    client.send("subscribe", json!({"channel": "kept:a"}));
    assert_eq!(client.story(), ["join kept:a"]);
    for outcome in strangers() {
        client.outcome(outcome);
    }
    assert!(client.take().is_empty());
    client.joined("kept:a", fresh());
    assert_eq!(client.story().len(), 3);
}

#[test]
fn what_stands_before_a_bad_command_is_done_and_nothing_behind_it() {
    let mut client = Client::ana();
    client.frame("{\"id\":2,\"ping\":{}}\nno\n{\"id\":3,\"ping\":{}}");
    assert_eq!(client.story(), [r#"{"id":2,"ping":{}}"#, "close 3501"]);
}

#[test]
fn a_connection_is_small() {
    let size = size_of::<crate::session::Connection>() + size_of::<crate::domain::access::Principal>();
    assert!(size <= 512, "{size}");
}

#[test]
fn nothing_happens_after_the_end() {
    let mut client = Client::ana();
    client.subscribe("kept:a");
    client
        .frame("{\"id\":3,\"publish\":{\"channel\":\"kept:a\",\"data\":1}}\n{\"id\":4,\"ping\":{}}")
        .frame("{}");
    client.take();
    client.wait(25.0).wait(8.0).wait(8.0);
    // The pong may be among what waits, so the connection lives until an answer makes it speak.
    assert!(!client.connection.is_closed());
    client.outcome(Outcome::Published(Published::Done)).take();
    client.frame("no");
    assert_eq!(client.closed(), 3501);
    client
        .frame("{\"id\":5,\"ping\":{}}")
        .outcome(Outcome::Published(Published::Done))
        .lost("kept:a")
        .wait(100.0);
    assert!(client.take().is_empty());
}
