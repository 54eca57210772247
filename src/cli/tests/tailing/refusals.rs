//! What the gateway refuses, and what is no gateway.

use super::*;

#[test]
fn a_refusal_says_what_would_help() {
    let cases = [
        (
            102,
            "unknown channel",
            "unknown channel (code 102): the namespace of repo:acme/api is not declared",
        ),
        (103, "permission denied", "`campanile token --repo acme/api` or `--org acme`"),
        (106, "limit exceeded", "the gateway says: limit exceeded (code 106)"),
    ];
    for (code, message, said) in cases {
        let gateway = Gateway::start([turn(move |peer| {
            peer.welcome();
            peer.refuse(code, message);
        })]);
        let tailed = gateway.tail(own(), None, None);
        assert_eq!(tailed.diagnostics, "");
        let error = tailed.error();
        assert!(error.contains(said), "{error}");
    }
    let gateway = Gateway::start([
        turn(|peer| {
            peer.welcome();
            peer.refuse(100, "internal server error");
        }),
        turn(|peer| {
            peer.welcome();
            peer.answer("subscribe", recovered(0, [1]));
        }),
    ]);
    assert_eq!(gateway.tail(own(), Some("k.0"), Some(1)).shown, "1\n");
}

#[test]
fn an_answer_that_is_no_websocket_is_final_or_waited_out() {
    let cases = [
        ("401 Unauthorized", "401 Unauthorized"),
        ("404 Not Found", "`websocket.enabled`"),
        ("301 Moved Permanently", "301 Moved Permanently"),
        ("200 OK", "this is not a WebSocket"),
    ];
    for (status, said) in cases {
        let tailed = tail(&Scripted::start([json(status, "{}")]).base, own(), None, None);
        assert_eq!(tailed.diagnostics, "");
        let error = tailed.error();
        assert!(error.contains(said) && !error.contains("hunter2"), "{error}");
    }
    let busy = Scripted::start([json("503 Service Unavailable", "{}"), json("403 Forbidden", "{}")]);
    let tailed = tail(&busy.base, own(), None, None);
    assert!(tailed.diagnostics.contains("503 Service Unavailable; retrying"), "{}", tailed.diagnostics);
    assert!(tailed.error().contains("403"));
    let strange = Gateway::start([turn(|peer| {
        peer.receive();
        peer.send_text("<html>");
    })]);
    assert!(strange.tail(own(), None, None).error().contains("not the client protocol"));
}

#[test]
fn a_gateway_that_was_never_there_is_not_waited_for() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = tail(&format!("http://{free}"), own(), None, None).ended.unwrap_err().to_string();
    assert!(error.contains("is `campanile serve` running?"), "{error}");
}
