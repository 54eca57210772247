//! `GET /api/events`: pages by cursor, 304 when nothing is new, and a named refusal for everything
//! else.

use serde_json::{Value, json};

use crate::support::app::{Backend, TestApp, on_both, run_of, stream_request, token_by};
use crate::support::client::{Answer, Request};
use crate::support::sse::Stream;

const CHANNEL: &str = "/api/events?channel=repo:acme/api";
const MANY: &str = "limits.polls_per_minute = 10000\n";
/// Namespaces with and without a history.
pub(super) const NEWS: &str = "limits.polls_per_minute = 10000
[[channel.namespaces]]
name = \"news\"
history_size = 3
history_ttl = \"1h\"
allow_history_for_client = true
[[channel.namespaces]]
name = \"closed\"
history_size = 3
history_ttl = \"1h\"
[[channel.namespaces]]
name = \"fleeting\"
allow_history_for_client = true
";

fn runs(page: &Value) -> Vec<u64> {
    let events = page["events"].as_array().expect("a list").iter();
    events.map(|event| event["data"]["runId"].as_u64().expect("a run")).collect()
}

async fn what_makes_no_sense_is_refused_by_name(backend: Backend) {
    let app = TestApp::with(backend, NEWS).await;
    app.post_runs(1..=2).await;
    let (ana, before) = (app.ana(), app.sql().counts().await);
    let long = format!("/api/events?channel=repo:acme/{}", "x".repeat(300));
    let long_cursor = format!("{CHANNEL}&cursor={}", "A".repeat(40_000));
    for (path, status, code) in [
        ("/api/events", 400, "bad_channel"),
        ("/api/events?channel=", 400, "bad_channel"),
        ("/api/events?channel=repo:acme", 400, "bad_channel"),
        ("/api/events?channel=repo:a/b/c", 400, "bad_channel"),
        ("/api/events?channel=$repo:a/b", 400, "bad_channel"),
        ("/api/events?channel=job:1", 400, "bad_channel"),
        ("/api/events?channel=org:%C3%BC", 400, "bad_channel"),
        ("/api/events?channel=a%0Ab", 400, "bad_channel"),
        (&long, 400, "bad_channel"),
        ("/api/events?channel=org:acme&channel=org:acme", 400, "bad_query"),
        ("/api/events?channel=org:other", 403, "forbidden"),
        ("/api/events?channel=repo:other/api", 403, "forbidden"),
        ("/api/events?channel=org:Acme", 403, "forbidden"),
        ("/api/events?channel=job:0195d3a0-0000-7000-8000-000000000000", 403, "forbidden"),
        ("/api/events?channel=nobody:knows", 404, "unknown_channel"),
        ("/api/events?channel=fleeting:x", 404, "not_available"),
        ("/api/events?channel=closed:x", 403, "forbidden"),
        ("/api/events?channel=%23ben", 403, "forbidden"),
        (&format!("{CHANNEL}&limit=0"), 400, "bad_limit"),
        (&format!("{CHANNEL}&limit=101"), 400, "bad_limit"),
        (&format!("{CHANNEL}&limit=-1"), 400, "bad_limit"),
        (&format!("{CHANNEL}&limit=x"), 400, "bad_limit"),
        (&format!("{CHANNEL}&limit="), 400, "bad_limit"),
        (&format!("{CHANNEL}&limit=4294967297"), 400, "bad_limit"),
        (&format!("{CHANNEL}&cursor="), 400, "bad_cursor"),
        (&format!("{CHANNEL}&cursor=x"), 400, "bad_cursor"),
        (&format!("{CHANNEL}&cursor=.1"), 400, "bad_cursor"),
        (&format!("{CHANNEL}&cursor=e."), 400, "bad_cursor"),
        (&format!("{CHANNEL}&cursor=e.01"), 400, "bad_cursor"),
        (&format!("{CHANNEL}&cursor=e.-1"), 400, "bad_cursor"),
        (&format!("{CHANNEL}&cursor=e.99999999999999999999"), 400, "bad_cursor"),
        (&format!("{CHANNEL}&cursor=e.1.2"), 400, "bad_cursor"),
        (&format!("{CHANNEL}&cursor=e%00.1"), 400, "bad_cursor"),
        (&format!("{CHANNEL}&cursor=e30"), 400, "bad_cursor"),
        (&long_cursor, 400, "bad_cursor"),
    ] {
        let (refused, polled) = (app.metric("refusals", code).await, app.metric("polls", code).await);
        app.get(path, &ana).await.refused(status, code);
        assert_eq!(app.metric("refusals", code).await, refused + 1, "{path}");
        let counted = u64::from(code != "bad_query");
        assert_eq!(app.metric("polls", code).await, polled + counted, "{path}");
    }
    assert_eq!(app.sql().counts().await, before);
}

async fn who_has_no_good_token_is_told_why(backend: Backend) {
    let app = TestApp::start(backend).await;
    let claims = json!({ "sub": "ana", "orgs": ["acme"] });
    let with = |extra: &str, at: i64| {
        let mut claims = claims.clone();
        claims[extra] = json!(chrono::Utc::now().timestamp() + at);
        app.token(claims)
    };
    let good = app.token(claims.clone());
    let (head, signature) = good.rsplit_once('.').expect("a signature");
    let unsigned = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbmEiLCJvcmdzIjpbImFjbWUiXX0.".to_owned();
    for (authorization, code) in [
        (String::new(), "token_missing"),
        ("Basic YTpi".to_owned(), "token_invalid"),
        ("Bearer".to_owned(), "token_invalid"),
        ("Bearer x".to_owned(), "token_invalid"),
        (format!("Bearer {}", token_by("another secret", &claims)), "token_invalid"),
        (format!("Bearer {unsigned}"), "token_invalid"),
        (format!("Bearer {head}.{}", signature.chars().rev().collect::<String>()), "token_invalid"),
        (format!("Bearer {}", app.token(json!({ "sub": "ana", "channel": "org:acme" }))), "token_invalid"),
        (format!("Bearer {}", app.token(json!({ "sub": 7 }))), "token_invalid"),
        (format!("Bearer {}", with("exp", -1)), "token_expired"),
        (format!("Bearer {}", with("nbf", 60)), "token_not_yet_valid"),
        // What is forged and expired is forged.
        (format!("Bearer {}", token_by("x", &json!({ "exp": 1 }))), "token_invalid"),
    ] {
        for path in
            [CHANNEL, "/api/repos", "/api/dashboard/activity", "/api/deliveries", "/api/events/stream"]
        {
            let request = Request::get(path);
            let request = if authorization.is_empty() {
                request
            } else {
                request.header("Authorization", &authorization)
            };
            let refused = app.send(request).await.refused(401, code);
            assert_eq!(refused.header("www-authenticate"), Some("Bearer"), "{path}");
        }
    }
    // A token in the query is for streams alone: elsewhere it is as good as none.
    app.get(&format!("{CHANNEL}&token={good}"), "").await.refused(401, "token_missing");
    assert_eq!(app.metric("refusals", "token_missing").await, 6);
}

async fn pages_give_everything_once_and_in_order(backend: Backend) {
    let app = TestApp::with(backend, MANY).await;
    app.post_runs(1..=23).await;
    let ana = app.ana();
    let (mut seen, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let page = app.poll(&format!("channel=repo:acme/api&limit=7{cursor}"), &ana).await;
        assert!(page["events"].as_array().is_some_and(|events| events.len() <= 7), "{page}");
        seen.extend(runs(&page));
        cursor = format!("&cursor={}", page["cursor"].as_str().expect("a cursor"));
        pages += 1;
        if page["hasNext"] == false {
            break;
        }
    }
    assert_eq!((seen, pages), ((1..=23).collect(), 4));
    let page = app.poll(&format!("channel=repo:acme/api{cursor}"), &ana).await;
    assert_eq!((runs(&page), &page["hasNext"]), (vec![], &json!(false)));
    app.post_runs(24..=24).await;
    assert_eq!(runs(&app.poll(&format!("channel=repo:acme/api{cursor}"), &ana).await), [24]);
    // Nothing was ever told here: an empty page, and its cursor counts.
    let page = app.poll("channel=repo:acme/empty", &ana).await;
    let cursor = page["cursor"].as_str().expect("a cursor").to_owned();
    app.post_webhook("workflow_run", &run_of("acme/empty", 5)).await.expect(202);
    assert_eq!(runs(&app.poll(&format!("channel=repo:acme/empty&cursor={cursor}"), &ana).await), [5]);
    assert_eq!(app.poll("channel=repo:acme/api", &ana).await["events"].as_array().map(Vec::len), Some(24));
}

/// A lost cursor is told with the place from which everything retained follows.
/// A page is held in memory as a whole.
async fn a_page_ends_after_a_mebibyte_and_the_next_one_goes_on(backend: Backend) {
    let kept = "[[channel.namespaces]]\nname = \"news\"\nhistory_size = 20\nhistory_ttl = \"1h\"\n\
                allow_history_for_client = true";
    let app = TestApp::with(backend, &format!("{MANY}{kept}")).await;
    let text = "x".repeat(200 << 10);
    for n in 0..8 {
        for channel in ["news:a", "news:b"] {
            app.publish(json!({ "channel": channel, "data": { "n": n, "text": text } })).await.expect(200);
        }
    }
    for (channels, sizes) in [("channel=news:a", vec![6, 2]), ("channels=news:a,news:b", vec![6, 6, 4])] {
        let (mut pages, mut from, mut seen) = (Vec::new(), String::new(), Vec::new());
        loop {
            let page = app.poll(&format!("{channels}&limit=100{from}"), &app.ana()).await;
            let events = page["events"].as_array().expect("a list");
            pages.push(events.len());
            seen.extend(events.iter().map(|event| (event["channel"].clone(), event["data"]["n"].clone())));
            if page["hasNext"] == false {
                break;
            }
            from = format!("&cursor={}", page["cursor"].as_str().expect("a cursor"));
        }
        assert_eq!(pages, sizes, "{channels}");
        for channel in [&json!(null), &json!("news:a"), &json!("news:b")] {
            let of_it =
                seen.iter().filter(|(of, _)| of == channel).map(|(_, n)| n.as_u64().expect("a number"));
            assert!(of_it.enumerate().all(|(place, n)| place as u64 == n), "{channel}");
        }
    }
}

async fn is_lost(app: &TestApp, channel: &str, cursor: &str, token: &str, left: usize) {
    let path = format!("/api/events?channel={channel}&cursor={cursor}");
    let lost = app.get(&path, token).await.refused(410, "cursor_lost").json();
    let details = &lost["error"]["details"];
    let oldest = details["oldest"].as_str().expect("oldest");
    let page = app.poll(&format!("channel={channel}&cursor={oldest}"), token).await;
    assert_eq!(page["events"].as_array().map(Vec::len), Some(left), "{page}");
    assert_eq!(page["cursor"], details["head"], "{page}");
}

async fn a_cursor_whose_place_is_gone_gets_410_with_the_oldest(backend: Backend) {
    let app = TestApp::with(backend, NEWS).await;
    let ana = app.ana();
    app.post_runs(1..=4).await;
    let page = app.poll("channel=repo:acme/api", &ana).await;
    let (epoch, _) = page["cursor"].as_str().and_then(|cursor| cursor.split_once('.')).expect("a cursor");
    is_lost(&app, "repo:acme/api", "anotherepoch.2", &ana, 4).await;
    is_lost(&app, "repo:acme/api", &format!("{epoch}.5"), &ana, 4).await;
    is_lost(&app, "repo:acme/api", &format!("{epoch}.9223372036854775807"), &ana, 4).await;
    app.sql().age("repo:acme/api", 2, 8).await;
    is_lost(&app, "repo:acme/api", &format!("{epoch}.0"), &ana, 2).await;
    is_lost(&app, "repo:acme/api", &format!("{epoch}.1"), &ana, 2).await;
    assert_eq!(runs(&app.poll(&format!("channel=repo:acme/api&cursor={epoch}.2"), &ana).await), [3, 4]);
    assert_eq!(runs(&app.poll("channel=repo:acme/api", &ana).await), [3, 4]);
    for n in 1..=5 {
        app.publish(json!({ "channel": "news:x", "data": n })).await.expect(200);
    }
    is_lost(&app, "news:x", &format!("{epoch}.1"), &ana, 3).await;
    assert_eq!(app.metric("polls", "cursor_lost").await, 6);
    // All of it too old: the position is still the one at the head.
    app.sql().age("repo:acme/api", 4, 8).await;
    is_lost(&app, "repo:acme/api", &format!("{epoch}.3"), &ana, 0).await;
}

async fn configured_namespaces_are_polled_with_the_history_right(backend: Backend) {
    let app = TestApp::with(backend, NEWS).await;
    let publish = |body: Value| app.publish(body);
    publish(json!({ "channel": "news:x", "data": { "a": "ü\n" } })).await.expect(200);
    publish(json!({ "channel": "news:x", "data": null, "tags": { "k": "v" } })).await.expect(200);
    publish(json!({ "channel": "news:x", "data": [1], "skip_history": true })).await.expect(200);
    let page = app.poll("channel=news:x", &app.ana()).await;
    let expected = json!([{ "offset": 1, "data": { "a": "ü\n" } }]);
    assert_eq!(page["events"], expected, "{page}");
    // The right may come from a capability, and is nothing for strangers without a name.
    let cap = json!({ "sub": "x", "caps": [{ "channels": ["closed:*"], "allow": ["hst"] }] });
    assert_eq!(app.poll("channel=closed:x", &app.token(cap)).await["events"], json!([]));
    app.get("/api/events?channel=news:x", &app.token(json!({}))).await.refused(403, "forbidden");
}

async fn nothing_new_is_304_until_something_is(backend: Backend) {
    let app = TestApp::with(backend, MANY).await;
    app.post_runs(1..=3).await;
    let ana = app.ana();
    let ask = |path: &str, tag: &str| app.send(Request::get(path).bearer(&ana).header("If-None-Match", tag));
    let first = app.get(CHANNEL, &ana).await.expect(200);
    assert_eq!(first.header("cache-control"), Some("private, max-age=0"));
    assert_eq!(first.header("vary"), Some("Authorization, Cookie"));
    let tag = first.header("etag").expect("a tag").to_owned();
    for known in [tag.clone(), format!("W/{tag}"), format!("\"x\", {tag}"), "*".to_owned()] {
        let same = ask(CHANNEL, &known).await.expect(304);
        assert!(same.body.is_empty());
        assert_eq!(same.header("etag"), Some(tag.as_str()), "RFC 9110 asks for the tag on 304 too");
        assert_eq!(same.header("cache-control"), Some("private, max-age=0"));
        assert_eq!(same.header("vary"), Some("Authorization, Cookie"));
        assert!(same.header("ratelimit-remaining").is_some());
    }
    assert_eq!(app.metric("polls", "not_modified").await, 4);
    let other = ask(&format!("{CHANNEL}&limit=2"), &tag).await.expect(200);
    assert_ne!(other.header("etag"), Some(tag.as_str()));
    let cursor = first.json()["cursor"].as_str().expect("a cursor").to_owned();
    let at_head = ask(&format!("{CHANNEL}&cursor={cursor}"), &tag).await.expect(200);
    let head_tag = at_head.header("etag").expect("a tag").to_owned();
    assert_ne!(head_tag, tag);
    ask(&format!("{CHANNEL}&cursor={cursor}"), &head_tag).await.expect(304);
    ask("/api/events?channel=org:acme", &tag).await.expect(200);
    app.post_runs(4..=4).await;
    let new = ask(CHANNEL, &tag).await.expect(200);
    assert_ne!(new.header("etag"), Some(tag.as_str()));
    assert_eq!(runs(&ask(&format!("{CHANNEL}&cursor={cursor}"), &head_tag).await.expect(200).json()), [4]);
    // A tag does not hide that the place is gone.
    ask(&format!("{CHANNEL}&cursor=other.1"), "*").await.refused(410, "cursor_lost");
}

async fn who_waits_at_the_end_is_held_to_what_holds_for_all(backend: Backend) {
    let app = TestApp::with(backend, "limits.polls_per_minute = 6").await;
    app.post_runs(1..=1).await;
    let own = format!("http://{}", app.address());
    let ana = app.token(json!({ "sub": "ana", "jti": "t-ana", "orgs": ["acme"] }));
    let cursor =
        app.poll("channel=repo:acme/api", &ana).await["cursor"].as_str().expect("a cursor").to_owned();
    let path = format!("{CHANNEL}&cursor={cursor}");
    let tag = app.get(&path, &ana).await.expect(200).header("etag").expect("a tag").to_owned();
    let ask = |token: &str| Request::get(&path).bearer(token).header("If-None-Match", &tag);

    // Bare, and by a way that leads through the routes: the same but for what pages are told.
    let bare = app.send(ask(&ana)).await.expect(304);
    let page = app.send(ask(&ana).header("Origin", &own)).await.expect(304);
    let rest = |answer: &Answer| {
        let told = |name: &str| name.starts_with("access-control-") || name.starts_with("ratelimit-");
        let mut rest = answer.headers.clone();
        rest.retain(|(name, value)| !told(name) && name != "date" && value != "Origin");
        rest.sort();
        rest
    };
    assert_eq!(rest(&bare), rest(&page));
    let remaining = |answer: &Answer| answer.header("ratelimit-remaining").map(str::to_owned);
    assert_eq!((remaining(&bare).as_deref(), remaining(&page).as_deref()), (Some("3"), Some("2")));

    let stranger = app.token(json!({ "sub": "eve" }));
    app.send(ask(&stranger)).await.refused(403, "forbidden");
    app.send(ask("no.good.token")).await.refused(401, "token_invalid");
    app.send(Request::post(&path).bearer(&ana).header("If-None-Match", &tag)).await.expect(405);
    for remaining in ["1", "0"] {
        let answer = app.send(ask(&ana)).await.expect(304);
        assert_eq!(answer.header("ratelimit-remaining"), Some(remaining));
    }
    app.send(ask(&ana)).await.refused(429, "rate_limited");
    assert_eq!((app.metric("polls", "not_modified").await, app.metric("polls", "limited").await), (4, 1));

    let ben = app.token(json!({ "sub": "ben", "jti": "t-ben", "orgs": ["acme"] }));
    app.send(ask(&ben)).await.expect(304);
    app.call("revoke_token", json!({ "uid": "t-ben" })).await.expect(200);
    // The revocation was written, so all ends are forgotten: somebody has to ask for this one.
    let carl = app.token(json!({ "sub": "carl", "orgs": ["acme"] }));
    app.get(&path, &carl).await.expect(200);
    app.send(ask(&carl)).await.expect(304);
    app.send(ask(&ben)).await.refused(401, "token_revoked");
}

async fn a_user_who_polls_too_often_is_told_when_to_come_back(backend: Backend) {
    let app = TestApp::with(backend, "limits.polls_per_minute = 5").await;
    let ana = app.ana();
    let first = app.get(CHANNEL, &ana).await.expect(200);
    let of = |name: &str| first.header(name).and_then(|value| value.parse::<u64>().ok());
    assert_eq!((of("ratelimit-limit"), of("ratelimit-remaining")), (Some(5), Some(4)));
    assert!(of("ratelimit-reset").is_some_and(|reset| (11..=12).contains(&reset)), "{first:?}");
    let tag = first.header("etag").expect("a tag").to_owned();
    for _ in 0..3 {
        app.send(Request::get(CHANNEL).bearer(&ana).header("If-None-Match", &tag)).await.expect(304);
    }
    let fifth = app.get(&format!("{CHANNEL}&limit=0"), &ana).await.refused(400, "bad_limit");
    assert_eq!(fifth.header("ratelimit-remaining"), Some("0"));
    let sixth = app.get(CHANNEL, &ana).await.refused(429, "rate_limited");
    let of = |name: &str| sixth.header(name).and_then(|value| value.parse::<u64>().ok());
    assert!(of("retry-after").is_some_and(|wait| (1..=12).contains(&wait)), "{sixth:?}");
    assert_eq!((of("ratelimit-limit"), of("ratelimit-remaining")), (Some(5), Some(0)));
    assert!(of("ratelimit-reset").is_some_and(|reset| (48..=60).contains(&reset)), "{sixth:?}");
    assert_eq!((app.metric("polls", "limited").await, app.metric("refusals", "rate_limited").await), (1, 1));
    // Others go on, and the same user with another token does not.
    app.get(CHANNEL, &app.token(json!({ "sub": "ben", "orgs": ["acme"] }))).await.expect(200);
    app.get(CHANNEL, &app.token(json!({ "sub": "ana", "repos": ["acme/api"] }))).await.expect(429);
}

async fn a_cursor_of_several_channels_counts_for_each(backend: Backend) {
    let app = TestApp::with(backend, MANY).await;
    let ana = app.ana();
    app.post_runs(1..=2).await;
    let request = stream_request("repo:acme/api,repo:acme/web", &ana, None);
    let mut stream = Stream::open(app.address(), &request).await.expect("a stream");
    app.post_runs(3..=3).await;
    app.post_webhook("workflow_run", &run_of("acme/web", 70)).await.expect(202);
    stream.runs(2).await;
    let cursor = stream.last_id.clone().expect("a cursor");
    app.post_runs(4..=4).await;
    app.post_webhook("workflow_run", &run_of("acme/web", 71)).await.expect(202);
    let page = |channel: &str| format!("channel={channel}&cursor={cursor}");
    assert_eq!(runs(&app.poll(&page("repo:acme/api"), &ana).await), [4]);
    assert_eq!(runs(&app.poll(&page("repo:acme/web"), &ana).await), [71]);
    app.get(&format!("/api/events?{}", page("org:acme")), &ana).await.refused(400, "bad_cursor");
}

#[tokio::test]
async fn polls_at_the_end_are_answered_from_memory_while_other_tables_are_written() {
    let app = TestApp::with(Backend::Sqlite, MANY).await;
    app.post_runs(1..=3).await;
    let ana = app.ana();
    let cursor = app.get(CHANNEL, &ana).await.expect(200).json()["cursor"].as_str().unwrap().to_owned();
    let path = format!("{CHANNEL}&cursor={cursor}");
    let tag = app.get(&path, &ana).await.expect(200).header("etag").expect("a tag").to_owned();
    let poll = || app.send(Request::get(&path).bearer(&ana).header("If-None-Match", &tag));
    let statements = async || app.metric("store_statements", "").await;
    poll().await.expect(304);
    let mut from_memory = 0;
    for n in 0..20 {
        app.call("revoke_token", json!({ "uid": format!("t-{n}") })).await.expect(200);
        let before = statements().await;
        poll().await.expect(304);
        from_memory += u32::from(statements().await == before);
    }
    // A periodic task may have come between a few times.
    assert!(from_memory > 10, "{from_memory} of 20");
}

on_both!(
    what_makes_no_sense_is_refused_by_name,
    who_has_no_good_token_is_told_why,
    pages_give_everything_once_and_in_order,
    a_page_ends_after_a_mebibyte_and_the_next_one_goes_on,
    a_cursor_whose_place_is_gone_gets_410_with_the_oldest,
    configured_namespaces_are_polled_with_the_history_right,
    nothing_new_is_304_until_something_is,
    who_waits_at_the_end_is_held_to_what_holds_for_all,
    a_user_who_polls_too_often_is_told_when_to_come_back,
    a_cursor_of_several_channels_counts_for_each,
);
