//! An operator means one connection of a user by the session that its connect told, whatever carries it.

use serde_json::{Value, json};

use super::SPACES;
use super::uni::Listener;
use crate::support::app::{Backend, TestApp};
use crate::support::stream_client::StreamClient;

/// One more connection of ana's, and its session.
async fn arrive(app: &TestApp, transport: &str) -> (Listener, String) {
    if !transport.starts_with("uni_") {
        let lines = StreamClient::connected(app.address(), transport, &app.ana()).await;
        let session = lines.session.clone();
        return (Listener::StreamClient(lines), session);
    }
    let mut listener = Listener::open(app, transport, &json!({ "token": app.ana() }).to_string()).await;
    let session = listener.message().await["connect"]["session"].as_str().expect("a session").to_owned();
    (listener, session)
}

/// What comes next, without the cover that clients with replies get.
async fn told(listener: &mut Listener) -> Value {
    let mut message = listener.message().await;
    if message["push"].is_object() { message["push"].take() } else { message }
}

async fn one_session_is_meant(transport: &str) {
    let app = TestApp::with(Backend::Sqlite, SPACES).await;
    let (mut ana, session) = arrive(&app, transport).await;
    let (mut other, others) = arrive(&app, transport).await;
    let call = async |method: &str, session: &str, more: Value| {
        let mut body = json!({ "user": "ana", "session": session });
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        assert_eq!(app.call(method, body).await.expect(200).json()["result"], json!({}));
    };
    let channel = json!({ "channel": "news:x" });
    for nobody in ["x", &session.to_uppercase(), &uuid::Uuid::nil().to_string()] {
        call("subscribe", nobody, channel.clone()).await;
    }
    let another_client = json!({ "channel": "news:x", "client": uuid::Uuid::now_v7() });
    call("subscribe", &session, another_client).await;

    call("subscribe", &session, channel.clone()).await;
    let first = told(&mut ana).await;
    assert!(first["channel"] == "news:x" && first["subscribe"].is_object(), "{first}");
    let until = chrono::Utc::now().timestamp() + 600;
    call("refresh", &session, json!({ "expire_at": until })).await;
    assert_eq!(told(&mut ana).await["refresh"]["expires"], true);
    app.publish(json!({ "channel": "news:x", "data": 1 })).await.expect(200);
    assert_eq!(told(&mut ana).await["pub"]["data"], 1);
    call("unsubscribe", &session, channel.clone()).await;
    assert_eq!(told(&mut ana).await["unsubscribe"]["code"], 2000);

    // Whatever the other one had been told would come before this.
    call("subscribe", &others, channel).await;
    let first = told(&mut other).await;
    assert_eq!(first["subscribe"]["offset"], 1, "{first}");
    call("disconnect", &session, json!({})).await;
    assert_eq!(ana.closed_with().await, 3503);
    app.publish(json!({ "channel": "news:x", "data": 2 })).await.expect(200);
    assert_eq!(told(&mut other).await["pub"]["data"], 2);
}

/// Makes a test for each transport that tells a session.
macro_rules! over_each {
    ($($transport:ident),+ $(,)?) => {
        $(#[tokio::test] async fn $transport() { one_session_is_meant(stringify!($transport)).await })+
    };
}
over_each!(http_stream, sse, uni_websocket, uni_http_stream, uni_sse);
