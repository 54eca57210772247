//! Positions that are behind or lost: what is read from the history, and what is said to be missing.

use super::*;

#[test]
fn a_lost_place_is_reported_and_what_follows_is_shown() {
    let gateway = Gateway::start([turn(|peer| {
        peer.welcome();
        peer.answer("subscribe", lost("m", 2));
        // Before the answer about what is retained.
        peer.push(3);
        let asked =
            peer.answer("history", json!({ "publications": publications([2]), "epoch": "m", "offset": 3 }));
        assert_eq!((&asked["limit"], asked.get("since")), (&1.into(), None));
        let asked =
            peer.answer("history", json!({ "publications": publications([3]), "epoch": "m", "offset": 3 }));
        assert_eq!(asked["since"], json!({ "epoch": "m", "offset": 2 }));
        peer.push(4);
    })]);
    let tailed = gateway.tail(own(), Some("k.9"), Some(2));
    assert_eq!(tailed.shown, "3\n4\n");
    let said = "live from m.2. What is retained: campanile tail repo:acme/api --since m.1\n";
    assert!(tailed.diagnostics.ends_with(said), "{}", tailed.diagnostics);
}

#[test]
fn more_than_a_subscription_brings_is_read_from_the_history() {
    let gateway = Gateway::start([turn(|peer| {
        peer.welcome();
        peer.answer("subscribe", lost("k", 5));
        let asked = peer
            .answer("history", json!({ "publications": publications([2, 3]), "epoch": "k", "offset": 5 }));
        assert_eq!(asked["since"], json!({ "epoch": "k", "offset": 1 }));
        peer.push(6);
        let asked =
            peer.answer("history", json!({ "publications": publications(4..=6), "epoch": "k", "offset": 6 }));
        assert_eq!(asked["since"], json!({ "epoch": "k", "offset": 3 }));
        peer.push(7);
    })]);
    let tailed = gateway.tail(own(), Some("k.1"), Some(6));
    assert_eq!((tailed.shown.as_str(), tailed.diagnostics.as_str()), ("2\n3\n4\n5\n6\n7\n", ""));
}

#[test]
fn what_the_history_has_no_more_is_said_to_be_missing() {
    let with = |history: Turn| {
        let gateway = Gateway::start([turn(|peer| {
            peer.welcome();
            peer.answer("subscribe", lost("k", 5));
            history(peer);
            peer.push(6);
        })]);
        let tailed = gateway.tail(own(), Some("k.1"), Some(1));
        assert_eq!(tailed.shown, "6\n");
        tailed.diagnostics
    };
    let trimmed = with(turn(|peer| {
        peer.answer("history", json!({ "publications": publications([4, 5]), "epoch": "k", "offset": 5 }));
    }));
    assert!(
        trimmed.ends_with("live from k.5. What is retained: campanile tail repo:acme/api --since k.3\n"),
        "{trimmed}"
    );
    let hidden = with(turn(|peer| peer.refuse(103, "permission denied")));
    assert!(
        hidden.ends_with(
            "the gateway says: permission denied (code 103); the stream continues live from k.5\n"
        ),
        "{hidden}"
    );
}

#[test]
fn a_connection_that_breaks_before_the_loss_was_told_loses_no_word_of_it() {
    let gateway = Gateway::start([
        turn(|peer| {
            peer.welcome();
            peer.answer("subscribe", lost("m", 2));
            peer.receive();
        }),
        turn(|peer| {
            peer.welcome();
            let asked = peer.answer("subscribe", lost("m", 2));
            assert_eq!((&asked["epoch"], &asked["offset"]), (&"k".into(), &9.into()));
            peer.refuse(108, "not available");
            peer.push(3);
        }),
    ]);
    let tailed = gateway.tail(own(), Some("k.9"), Some(1));
    assert_eq!(tailed.shown, "3\n");
    assert!(
        tailed.diagnostics.ends_with("are missing here; the stream continues live from m.2\n"),
        "{}",
        tailed.diagnostics
    );
}

#[test]
fn a_history_that_fails_for_a_while_is_asked_again() {
    let gateway = Gateway::start([
        turn(|peer| {
            peer.welcome();
            peer.answer("subscribe", lost("k", 3));
            peer.refuse(100, "internal server error");
        }),
        turn(|peer| {
            peer.welcome();
            assert_eq!(peer.answer("subscribe", lost("k", 3))["offset"], 1);
            peer.answer(
                "history",
                json!({ "publications": publications([2, 3]), "epoch": "k", "offset": 3 }),
            );
        }),
    ]);
    assert_eq!(gateway.tail(own(), Some("k.1"), Some(2)).shown, "2\n3\n");
}

#[test]
fn a_channel_without_history_is_followed_live() {
    let gateway = Gateway::start([
        turn(|peer| {
            peer.welcome();
            peer.answer("subscribe", json!({}));
            peer.send_text(r#"{"push":{"channel":"repo:acme/api","pub":{"data":1}}}"#);
        }),
        turn(|peer| {
            peer.welcome();
            assert!(peer.answer("subscribe", json!({})).get("recover").is_none());
            peer.send_text(r#"{"push":{"channel":"repo:acme/api","pub":{"data":2}}}"#);
        }),
    ]);
    let tailed = gateway.tail(own(), Some("k.1"), Some(2));
    assert_eq!((tailed.shown.as_str(), tailed.cursor.as_deref()), ("1\n2\n", None));
    assert!(tailed.diagnostics.contains("keeps no history"), "{}", tailed.diagnostics);
    assert!(tailed.diagnostics.contains(", starting with new events"), "{}", tailed.diagnostics);
}

#[test]
fn what_the_token_subscribed_to_is_subscribed_to_again_with_the_position() {
    let gateway = Gateway::start([turn(|peer| {
        peer.receive();
        peer.send_text(json!({ "id": 1, "connect": { "client": "c", "subs": { "repo:acme/api": {} } } }));
        peer.push(2);
        peer.answer("unsubscribe", json!({}));
        peer.answer("subscribe", recovered(1, [2]));
    })]);
    assert_eq!(gateway.tail(own(), Some("k.1"), Some(1)).shown, "2\n");
}
