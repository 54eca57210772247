//! The steps: what happens to a command, an event or a webhook between the sockets and the store, each
//! through the API that the rest of the code uses.

use std::hint::black_box;
use std::rc::Rc;
use std::sync::Arc;

use bytes::BytesMut;
use campanile::auth::{KeyRing, Keys};
use campanile::domain::access::{AccessContext, Action, may};
use campanile::domain::channel::ChannelName;
use campanile::domain::cursor::Cursor;
use campanile::domain::event::{Event, Time};
use campanile::domain::options::ChannelOptions;
use campanile::domain::position::{Epoch, Position};
use campanile::domain::principal::Principal;
use campanile::hub::outbox::Outbox;
use campanile::hub::sequencer::Sequencer;
use campanile::protocol::command::Command;
use campanile::protocol::filter::Filter;
use campanile::protocol::{delta, push, sse, websocket};
use campanile::sources::github::signature::{ExpectedMac, WebhookSecrets, sign};
use campanile::sources::github::{RepoMap, body_text, interpret};
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::json;

use super::{step, step_with};

const SECRET: &str = "a secret that is long enough for everybody";
const CONNECT: &str = r#"{"id":1,"connect":{"token":"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI0MiJ9.c2lnbmF0dXJl","name":"js","version":"5.2.0","data":{"theme":"dark"}}}"#;
const SUBSCRIBE: &str = r#"{"id":2,"subscribe":{"channel":"repo:acme/api","recover":true,"epoch":"k3Jf0a","offset":41,"flag":2}}"#;
const FILTER: &str = r#"{"op":"and","nodes":[{"key":"branch","cmp":"in","vals":["main","release"]},{"key":"took","cmp":"gt","val":"30"}]}"#;
const RUN: &str = include_str!("../../tests/fixtures/github/workflow_run_completed_failure.json");
const PUSH: &str = include_str!("../../tests/fixtures/github/push.json");

/// All of them. A name that is changed here begins anew.
pub fn all() {
    commands();
    events();
    rights();
    webhooks();
}

fn commands() {
    step("connect command decoded", || Command::parse(black_box(CONNECT)).unwrap());
    step("subscribe command decoded", || Command::parse(black_box(SUBSCRIBE)).unwrap());
    step("channel name parsed", || ChannelName::parse(black_box("repo:acme/api")).unwrap());

    let one = position(41).to_string();
    let channels = ["org:acme", "repo:acme/api", "repo:acme/web", "repo:octo/cat"].map(channel);
    let many = Cursor::Many(channels.into_iter().map(|channel| (channel, position(41))).collect());
    let text = many.to_string();
    step("cursor of one channel parsed", || Cursor::parse(black_box(&one)).unwrap());
    step("cursor of four channels parsed", || Cursor::parse(black_box(&text)).unwrap());
    step("cursor of four channels printed", || black_box(&many).to_string());
}

fn events() {
    let event = event(42, &document(0));
    let name = push::channel_json(&channel("repo:acme/api"));
    let encoded = || {
        let mut out = String::new();
        push::write_publication_push(&mut out, black_box(&name), black_box(&event));
        out
    };
    step("publication of 4 KiB encoded for sockets", encoded);
    let text = encoded();
    let framed = || {
        let mut out = BytesMut::with_capacity(black_box(&text).len() + 16);
        websocket::push_text(&mut out, &text);
        out
    };
    step("the same framed", framed);
    let id = position(42).to_string();
    let as_sse = || {
        let mut out = String::new();
        sse::write_event(&mut out, true, black_box(&event), Some(&id));
        out
    };
    step("publication of 4 KiB encoded for an event stream", as_sse);
    step_with(
        "event put in order",
        || (Sequencer::at(position(41)), vec![event.clone()], position(0).epoch),
        |(mut sequencer, events, epoch)| (sequencer.accept(&epoch, events), sequencer, epoch),
    );
    let bytes = framed().freeze();
    step_with(
        "frame queued for one subscriber",
        || Rc::new(Outbox::new(1 << 20, || {})),
        |outbox| (outbox.push_shared(black_box(&bytes), None).unwrap(), outbox),
    );
    let (old, new) = (document(0), document(1));
    step("delta between documents of 4 KiB", || delta::between(black_box(&old), black_box(&new)));
    let filter = Filter::parse(FILTER).unwrap();
    step("filter by tags parsed", || Filter::parse(black_box(FILTER)).unwrap());
    step("filter by tags asked", || black_box(&filter).matches_event(black_box(&event)));
}

fn rights() {
    let now = Time::from_timestamp(1_800_000_000, 0).unwrap();
    let claims = json!({"sub": "42", "exp": 1_800_000_600, "iat": 1_800_000_000, "orgs": ["acme", "octo"]});
    let token = encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap();
    let keys = KeyRing::from(Keys::hmac([SECRET], None, None));
    step("HS256 token verified", || keys.authenticate(black_box(&token), now).unwrap());

    let principal = Principal {
        user: "42".into(),
        orgs: ["acme", "octo"].map(str::to_owned).into_iter().collect(),
        ..Principal::default()
    };
    let repo = channel("repo:acme/api");
    let context = AccessContext::default();
    step("access to a repository", || {
        may(black_box(&principal), Action::Subscribe, black_box(&repo), &context).unwrap()
    });
    let options = ChannelOptions { allow_subscribe_for_client: true, ..ChannelOptions::default() };
    let news = channel("news:today");
    let context = AccessContext { options: Some(&options), ..AccessContext::default() };
    step("access to a configured channel", || {
        may(black_box(&principal), Action::Subscribe, black_box(&news), &context).unwrap()
    });
}

fn webhooks() {
    let body = document(0);
    let secrets = WebhookSecrets::new([SECRET]);
    let header = sign(SECRET.as_bytes(), body.as_bytes());
    step("signature of a webhook of 4 KiB", || {
        let mut hasher = secrets.hasher(ExpectedMac::parse(black_box(&header)).unwrap());
        hasher.update(black_box(body.as_bytes()));
        assert!(hasher.matches());
    });
    let map = RepoMap::default();
    step("push webhook mapped to events", || {
        let text = body_text(Some("application/json"), black_box(PUSH).as_bytes()).unwrap();
        interpret("push", text.as_bytes(), &map).unwrap()
    });
    step("workflow_run webhook mapped to events", || {
        let text = body_text(Some("application/json"), black_box(RUN).as_bytes()).unwrap();
        interpret("workflow_run", text.as_bytes(), &map).unwrap()
    });
}

fn channel(name: &str) -> ChannelName {
    ChannelName::parse(name).unwrap()
}

fn position(offset: u64) -> Position {
    Position::new(Epoch::parse("k3Jf0a").unwrap(), offset)
}

fn event(offset: u64, data: &str) -> Event {
    Event {
        offset,
        id: uuid::Uuid::nil(),
        kind: "workflow:completed".into(),
        data: data.into(),
        tags: Some(Arc::from(r#"{"branch":"main","took":"41"}"#)),
        info: None,
        delta: Default::default(),
    }
}

/// Some 4 KiB of JSON, of which a version changes three places.
fn document(version: usize) -> String {
    let line = |at: usize| {
        let state = if at % 20 == 7 { version } else { 0 };
        format!(r#"{{"job":{at},"name":"test on machine {at}","state":{state},"seconds":{}}}"#, at * 7 % 60)
    };
    format!("[{}]", (0..64).map(line).collect::<Vec<_>>().join(","))
}
