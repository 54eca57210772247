//! Channels behind which something stands: whose it is must be known before the rule decides, and
//! everything else waits meanwhile.

use serde_json::json;

use super::support::*;
use crate::domain::access::ResourceInfo;
use crate::session::effect::{Effect, LookedUp};

const BUILD: &str = "build:018f2c3a-0000-7000-8000-000000000001";
const OTHER: &str = "build:018f2c3a-0000-7000-8000-000000000002";
const JOB: &str = "job:018f2c3a-0000-7000-8000-000000000003";

fn unknown() -> LookedUp {
    LookedUp::Found(ResourceInfo::Unknown)
}

/// The story of a subscribe by somebody with these claims, once it is known what stands there.
fn subscribing(claims: serde_json::Value, found: LookedUp) -> Vec<String> {
    let mut client = Client::connected(claims);
    client.send("subscribe", json!({"channel": BUILD}));
    assert_eq!(client.story(), [format!("look up {BUILD}")]);
    client.looked_up(BUILD, found);
    client.story()
}

fn error_in(story: &[String]) -> u64 {
    assert_eq!((story.len(), story[1].as_str()), (2, "handled"), "{story:?}");
    error(&serde_json::from_str(&story[0]).expect("JSON"))
}

#[test]
fn a_build_is_for_its_owner_its_account_and_admins() {
    let build = || LookedUp::Found(ResourceInfo::Build { user: "42".into(), org: Some("acme".into()) });
    for claims in [json!({"sub": "42"}), json!({"sub": "7", "orgs": ["acme"]}), json!({"scope": "admin"})] {
        assert_eq!(subscribing(claims, build()), [format!("join {BUILD}")]);
    }
    for claims in [json!({"sub": "7"}), json!({}), json!({"sub": "7", "orgs": ["other"]})] {
        assert_eq!(error_in(&subscribing(claims, build())), 103);
    }
    // Nobody can tell a stranger's from none.
    for claims in [json!({"sub": "42"}), json!({"scope": "admin"})] {
        assert_eq!(error_in(&subscribing(claims, unknown())), 103);
    }
    assert_eq!(error_in(&subscribing(json!({"sub": "42"}), LookedUp::Unavailable)), 100);
}

#[test]
fn a_job_that_nobody_knows_is_denied() {
    let mut client = Client::connected(json!({"scope": "admin"}));
    client.send("subscribe", json!({"channel": JOB})).looked_up(JOB, unknown());
    assert_eq!(error_in(&client.story()[1..]), 103);
}

#[test]
fn what_comes_during_a_lookup_waits_and_is_answered_in_order() {
    let mut client = Client::ana();
    let subscribe = json!({"id": 2, "subscribe": {"channel": BUILD}});
    let unsubscribe = json!({"id": 4, "unsubscribe": {"channel": BUILD}});
    let first = format!("{{\"id\":9,\"ping\":{{}}}}\n{subscribe}\n{{\"id\":3,\"ping\":{{}}}}");
    let second = format!("{unsubscribe}\n{subscribe}");
    client.frame(&first).frame(&second).frame("{}");
    assert_eq!(client.story(), [r#"{"id":9,"ping":{}}"#.to_owned(), format!("look up {BUILD}")]);
    client.is_build_of(BUILD, "42");
    assert_eq!(client.story(), [format!("join {BUILD}")]);
    client.joined(BUILD, fresh());
    let effects = client.take();
    let story: Vec<_> = effects.iter().map(short).collect();
    let begin = |line: &String| line.split(',').next().map(str::to_owned).unwrap_or_default();
    let (live, leave) = (format!("live {BUILD} e1.5"), format!("leave {BUILD}"));
    let again = format!("look up {BUILD}");
    let expected = [r#"{"id":2"#, &live, r#"{"id":3"#, "handled", &leave, r#"{"id":4"#, &again];
    assert_eq!(story.iter().map(begin).collect::<Vec<_>>(), expected, "asked again, for it may be gone");
    let handled = effects.iter().find(|effect| matches!(effect, Effect::Handled(_)));
    assert_eq!(handled, Some(&Effect::Handled(first.len())));
    client.looked_up(BUILD, unknown());
    let story = client.story();
    assert!(story[0].contains("\"code\":103"), "{story:?}");
    assert_eq!(story[1..], ["handled", "handled"]);
}

#[test]
fn an_answer_about_another_channel_changes_nothing() {
    let mut client = Client::ana();
    client.is_build_of(BUILD, "42");
    client.send("subscribe", json!({"channel": BUILD})).take();
    client.is_build_of(OTHER, "42").joined(BUILD, fresh());
    assert!(client.take().is_empty());
    client.is_build_of(BUILD, "7");
    assert_eq!(error_in(&client.story()), 103);
}

#[test]
fn a_connection_that_ends_during_a_lookup_hears_nothing_of_it() {
    let mut client = Client::connected(json!({"sub": "42", "exp": NOW + 5}));
    client.send("subscribe", json!({"channel": BUILD})).take();
    client.wait(40.0);
    assert_eq!(client.closed(), 3005);
    client.is_build_of(BUILD, "42");
    assert!(client.take().is_empty());
}

#[test]
fn whoever_is_subscribed_reads_the_log_without_another_lookup() {
    let mut client = Client::ana();
    client.send("history", json!({"channel": BUILD}));
    assert_eq!(client.story(), [format!("look up {BUILD}")]);
    client.is_build_of(BUILD, "7");
    assert_eq!(error_in(&client.story()), 103);
    client
        .send("subscribe", json!({"channel": BUILD}))
        .is_build_of(BUILD, "42")
        .joined(BUILD, fresh())
        .take();
    client.send("history", json!({"channel": BUILD}));
    assert_eq!(client.story(), [format!("history {BUILD}")]);
}

#[test]
fn nobody_publishes_to_a_build_or_sees_who_listens() {
    let mut client = Client::connected(json!({"scope": "admin"}));
    assert_eq!(error(&client.ask("publish", json!({"channel": BUILD, "data": 1}))), 103);
    assert_eq!(error(&client.ask("presence", json!({"channel": BUILD}))), 108);
}

#[test]
fn a_token_may_bring_builds_that_exist() {
    let connect = |claims| json!({"id": 1, "connect": {"token": token(claims)}}).to_string();
    let claims = || json!({"sub": "42", "channels": [BUILD, OTHER]});
    let mut client = Client::new();
    client.frame(&connect(claims()));
    assert_eq!(client.story(), [format!("look up {BUILD}")]);
    client.is_build_of(BUILD, "7");
    assert_eq!(client.story(), [format!("look up {OTHER}")]);
    client.is_build_of(OTHER, "42");
    assert_eq!(client.story(), [format!("join {BUILD}"), format!("join {OTHER}")]);
    client.joined(BUILD, fresh()).joined(OTHER, fresh());
    assert_eq!(client.story().len(), 4);

    // One that is gone refuses the connect; what the client said behind it is out of order.
    let mut client = Client::new();
    client.frame(&connect(claims())).frame("{\"id\":2,\"ping\":{}}");
    client.is_build_of(BUILD, "42").looked_up(OTHER, unknown());
    let story = client.story();
    assert!(story[2].contains("\"code\":103"), "{story:?}");
    assert_eq!(story[3..], ["handled", "close 3501"]);
}

#[test]
fn a_new_token_that_does_not_see_a_build_ends_its_subscription() {
    let mut client = Client::connected(json!({"sub": "7", "exp": NOW + 60, "orgs": ["acme"]}));
    client
        .send("subscribe", json!({"channel": BUILD}))
        .is_build_of(BUILD, "42")
        .joined(BUILD, fresh())
        .take();
    client.send("refresh", json!({"token": token(json!({"sub": "7", "exp": NOW + 90, "orgs": ["acme"]}))}));
    assert_eq!(client.story().len(), 2, "it goes on");
    client.send("refresh", json!({"token": token(json!({"sub": "7", "exp": NOW + 90}))}));
    assert_eq!(client.story()[1], format!("leave {BUILD}"));
}
