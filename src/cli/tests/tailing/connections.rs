//! Connections that break or end: when the reader comes back, and from where it reads on.

use tokio_tungstenite::tungstenite::Bytes;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

use super::*;

#[test]
fn a_broken_connection_is_taken_up_where_it_broke() {
    let gateway = Gateway::start([
        turn(|peer| {
            let connect = peer.welcome();
            assert!(connect["token"].as_str().unwrap().starts_with("ey"), "{connect}");
            let asked = peer.answer("subscribe", recovered(0, [1]));
            assert_eq!(asked["channel"], "repo:acme/api");
            assert_eq!(
                (&asked["recover"], &asked["epoch"], &asked["offset"]),
                (&true.into(), &"k".into(), &0.into())
            );
            peer.push(2);
            // Half a frame.
            peer.0.get_mut().write_all(b"\x81\x7d{\"push\":").unwrap();
        }),
        turn(|peer| {
            peer.receive();
        }),
        turn(|peer| {
            peer.welcome();
            let asked = peer.answer("subscribe", recovered(2, [3]));
            assert_eq!(asked["offset"], 2);
            (3..6).for_each(|offset| peer.push(offset));
        }),
    ]);
    let tailed = gateway.tail(own(), Some("k.0"), Some(4));
    tailed.ended.unwrap();
    assert_eq!(tailed.shown, "1\n2\n3\n4\n");
    assert_eq!(tailed.cursor.as_deref(), Some("k.4"));
    assert_eq!(tailed.diagnostics.matches("reconnected").count(), 1, "{}", tailed.diagnostics);
    assert_eq!(tailed.diagnostics.matches("retrying").count(), 2, "{}", tailed.diagnostics);
}

#[test]
fn one_that_broke_before_its_first_event_is_taken_up_where_it_began() {
    let gateway = Gateway::start([
        turn(|peer| {
            peer.welcome();
            assert!(peer.answer("subscribe", at(7)).get("recover").is_none());
        }),
        turn(|peer| {
            peer.welcome();
            assert_eq!(peer.answer("subscribe", recovered(7, [8]))["offset"], 7);
        }),
    ]);
    assert_eq!(gateway.tail(own(), None, Some(1)).shown, "8\n");
}

#[test]
fn pings_are_answered_and_messages_may_come_in_pieces_and_together() {
    let gateway = Gateway::start([turn(|peer| {
        peer.welcome();
        peer.answer("subscribe", at(0));
        peer.send_text("{}");
        assert_eq!(peer.receive(), json!({}));
        peer.write(Message::Ping(Bytes::from_static(b"p")));
        let push = |offset: u64| {
            json!({ "push": { "channel": "repo:acme/api", "pub": publication(offset) } }).to_string()
        };
        peer.send_text(format!("{}\n{}\n", push(1), push(2)));
        let (first, last) = (push(3)[..9].to_owned(), push(3)[9..].to_owned());
        peer.write(Message::Frame(Frame::message(first, OpCode::Data(Data::Text), false)));
        peer.write(Message::Frame(Frame::message(last, OpCode::Data(Data::Continue), true)));
    })]);
    assert_eq!(gateway.tail(own(), None, Some(3)).shown, "1\n2\n3\n");
}

#[test]
fn a_subscription_that_ends_for_a_while_is_begun_again_at_the_position() {
    let unsubscribe = |code: u32| json!({ "push": { "channel": "repo:acme/api", "unsubscribe": { "code": code, "reason": "so" } } });
    let gateway = Gateway::start([
        turn(move |peer| {
            peer.welcome();
            peer.answer("subscribe", at(0));
            peer.push(1);
            peer.send_text(unsubscribe(2500));
            assert_eq!(peer.answer("subscribe", recovered(1, []))["offset"], 1);
            // It brought nothing: a new connection.
            peer.send_text(unsubscribe(2501));
        }),
        turn(move |peer| {
            peer.welcome();
            assert_eq!(peer.answer("subscribe", recovered(1, [2]))["offset"], 1);
            peer.send_text(unsubscribe(2000));
        }),
    ]);
    let tailed = gateway.tail(own(), None, None);
    assert_eq!(tailed.shown, "1\n2\n");
    assert!(tailed.diagnostics.contains("so (code 2501); retrying"), "{}", tailed.diagnostics);
    assert!(tailed.error().contains("so (code 2000)"));
}

#[test]
fn the_code_decides_whether_it_comes_back() {
    let back = [(3001, "is going away"), (3008, "slow (code 3008)"), (3005, "a new one is created")];
    for (code, said) in back {
        let gateway = Gateway::start([
            turn(move |peer| {
                peer.welcome();
                peer.answer("subscribe", at(0));
                peer.close(code, "slow");
            }),
            turn(|peer| {
                peer.welcome();
                peer.answer("subscribe", recovered(0, [1]));
            }),
        ]);
        let tailed = gateway.tail(own(), None, Some(1));
        assert_eq!(tailed.shown, "1\n");
        assert!(tailed.diagnostics.contains(said), "{}", tailed.diagnostics);
    }
    for (code, said) in
        [(3500, "does it belong to this gateway?"), (3503, "so (code 3503)"), (4500, "so (code 4500)")]
    {
        let gateway = Gateway::start([turn(move |peer| {
            peer.receive();
            peer.close(code, "so");
        })]);
        let tailed = gateway.tail(own(), None, None);
        assert_eq!(tailed.diagnostics, "");
        let error = tailed.error();
        assert!(error.contains(said) && !error.contains("hunter2"), "{error}");
    }
}

#[test]
fn an_own_token_is_renewed_and_a_given_one_ends_the_matter() {
    let expiring = || {
        turn(|peer| {
            peer.welcome();
            peer.answer("subscribe", at(0));
            peer.push(1);
            peer.close(3005, "connection expired");
        })
    };
    let too_old = turn(|peer| peer.refuse(109, "token expired"));
    let good = turn(|peer| {
        peer.welcome();
        peer.answer("subscribe", recovered(1, [2]));
    });
    assert_eq!(Gateway::start([expiring(), too_old, good]).tail(own(), None, Some(2)).shown, "1\n2\n");

    let tailed = Gateway::start([expiring()]).tail(Credential::Given(Secret::new("a.b.c")), None, None);
    assert_eq!(tailed.cursor.as_deref(), Some("k.1"));
    assert!(tailed.error().contains("the token has expired"));
}
