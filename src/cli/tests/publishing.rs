//! Publishing over HTTP: what goes out, what comes back, and what is said when nothing does.

use super::*;

fn publish(server: &Scripted) -> anyhow::Result<String> {
    let remote = server.remote();
    block_on(publish::send(&remote, "the-key", r#"{"channel":"a","data":1}"#.into(), false))
}

#[test]
fn an_accepted_event_has_a_cursor() {
    let server = Scripted::start([json("200 OK", r#"{"result":{"offset":13,"epoch":"k"}}"#)]);
    assert_eq!(publish(&server).unwrap(), "k.13");
    let request = server.requests().remove(0);
    assert!(request.starts_with("POST /api/publish HTTP/1.1\r\n"), "{request}");
    assert!(request.to_lowercase().contains("\r\nx-api-key: the-key\r\n"), "{request}");
    assert!(request.to_lowercase().contains("\r\ncontent-type: application/json\r\n"), "{request}");
    assert!(request.ends_with("\r\n\r\n{\"channel\":\"a\",\"data\":1}"), "{request}");
}

#[test]
fn an_event_that_is_not_kept_says_so() {
    let server = Scripted::start([json("200 OK", r#"{"result":{}}"#)]);
    assert_eq!(publish(&server).unwrap(), "accepted, not kept");
}

#[test]
fn refusals_are_told_in_the_words_of_the_gateway_and_without_the_key() {
    let cases = [
        ("200 OK", r#"{"error":{"code":102,"message":"unknown channel"}}"#, "unknown channel (code 102)"),
        ("401 Unauthorized", r#"{"error":{"code":"no_key","message":"wrong key"}}"#, "wrong key (no_key)"),
        ("503 Service Unavailable", "", "503 Service Unavailable"),
        ("302 Found", "", "302 Found"),
        ("200 OK", "<html>", "this is not a complete response of a gateway"),
    ];
    for (status, body, said) in cases {
        let error = publish(&Scripted::start([json(status, body)])).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains(said) && !error.contains("the-key"), "{error}");
    }
}

#[test]
fn without_a_gateway_one_is_told_what_to_do() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let remote = Remote::new(format!("http://{free}").parse().unwrap());
    let error = block_on(publish::send(&remote, "the-key", "{}".into(), false)).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with(&format!("cannot reach http://{free}: is `campanile serve` running?")),
        "{text}"
    );
}

#[test]
fn an_answer_that_breaks_off_leaves_the_event_in_doubt() {
    let server = Scripted::start(["HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{".to_owned()]);
    let error = publish(&server).unwrap_err().to_string();
    assert!(error.contains("it is not known whether the event was published"), "{error}");
}
