//! `GET /api/events?channels=a,b`: one page, one cursor and one tag for several channels.

use serde_json::{Value, json};

use super::poll::NEWS;
use crate::support::app::{Backend, TestApp, on_both, run_of};
use crate::support::client::Request;

/// Channels and offsets, in the order of the page.
fn places(page: &Value) -> Vec<(&str, u64)> {
    let events = page["events"].as_array().expect("a list").iter();
    events
        .map(|event| {
            let channel = event["channel"].as_str().expect("its channel");
            (channel, event["offset"].as_u64().expect("its offset"))
        })
        .collect()
}

fn offsets_of(seen: &[(String, u64)], channel: &str) -> Vec<u64> {
    seen.iter().filter(|(name, _)| name == channel).map(|(_, offset)| *offset).collect()
}

fn cursor(page: &Value) -> String {
    page["cursor"].as_str().expect("a cursor").to_owned()
}

/// All pages from the oldest event on, and how many there were.
async fn read_all(app: &TestApp, channels: &str, limit: u32) -> (Vec<(String, u64)>, u32) {
    let (mut seen, mut from, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let page = app.poll(&format!("channels={channels}&limit={limit}{from}"), &app.ana()).await;
        let places = places(&page);
        assert!(places.len() <= limit as usize, "{page}");
        seen.extend(places.into_iter().map(|(channel, offset)| (channel.to_owned(), offset)));
        from = format!("&cursor={}", cursor(&page));
        pages += 1;
        if page["hasNext"] == false {
            return (seen, pages);
        }
    }
}

async fn every_event_says_its_channel_and_its_offset(backend: Backend) {
    let app = TestApp::with(backend, NEWS).await;
    app.post_runs(1..=2).await;
    app.publish(json!({ "channel": "news:x", "data": { "a": 1 }, "tags": { "k": "v" } })).await.expect(200);
    let ana = app.ana();
    let page = app.poll("channels=repo:acme/api,news:x,repo:acme/empty", &ana).await;
    assert_eq!(places(&page), [("news:x", 1), ("repo:acme/api", 1), ("repo:acme/api", 2)]);
    let of_one = app.poll("channel=repo:acme/api", &ana).await;
    assert_eq!(page["events"][1]["data"], of_one["events"][0], "what the channel itself has");
    let published = json!({ "channel": "news:x", "offset": 1, "data": { "a": 1 }, "tags": { "k": "v" } });
    assert_eq!((&page["events"][0], &page["hasNext"]), (&published, &json!(false)));
    // Of one channel the cursor is that channel's own, and the entries still name it.
    let page = app.poll("channels=repo:acme/api&limit=1", &ana).await;
    assert_eq!((places(&page), &page["hasNext"]), (vec![("repo:acme/api", 1)], &json!(true)));
    let rest = app.poll(&format!("channel=repo:acme/api&cursor={}", cursor(&page)), &ana).await;
    assert_eq!(rest["events"].as_array().map(Vec::len), Some(1), "{rest}");
}

async fn a_long_backlog_does_not_keep_the_others_waiting(backend: Backend) {
    let app = TestApp::with(backend, NEWS).await;
    app.post_runs(1..=40).await;
    app.post_webhook("workflow_run", &run_of("acme/web", 90)).await.expect(202);
    app.post_webhook("workflow_run", &run_of("acme/zoo", 91)).await.expect(202);
    let channels = "repo:acme/api,repo:acme/web,repo:acme/zoo";
    let page = app.poll(&format!("channels={channels}&limit=10"), &app.ana()).await;
    let last: Vec<u64> = places(&page).iter().map(|(_, offset)| *offset).collect();
    assert_eq!(last, [1, 2, 3, 4, 5, 6, 7, 8, 1, 1]);
    for limit in [1, 7, 100] {
        let (seen, pages) = read_all(&app, channels, limit).await;
        assert_eq!(pages, 42u32.div_ceil(limit));
        assert_eq!(offsets_of(&seen, "repo:acme/api"), (1..=40).collect::<Vec<_>>(), "in order, once");
        for other in ["repo:acme/web", "repo:acme/zoo"] {
            assert_eq!(offsets_of(&seen, other), [1]);
            let at = seen.iter().position(|(name, _)| name == other).expect("it was read");
            assert!(limit == 100 || at < 10, "{other} had to wait for {at} others");
        }
    }
}

async fn the_cursor_is_that_of_the_event_stream(backend: Backend) {
    let app = TestApp::with(backend, NEWS).await;
    let ana = app.ana();
    let channels = "repo:acme/api,repo:acme/web";
    let mut stream = app.stream(channels, &ana, None).await;
    app.post_runs(1..=1).await;
    app.post_webhook("workflow_run", &run_of("acme/web", 70)).await.expect(202);
    stream.runs(2).await;
    let left = stream.last_id.clone().expect("a cursor");
    app.post_runs(2..=3).await;
    let page = app.poll(&format!("channels={channels}&cursor={left}"), &ana).await;
    assert_eq!(places(&page), [("repo:acme/api", 2), ("repo:acme/api", 3)]);
    app.post_webhook("workflow_run", &run_of("acme/web", 71)).await.expect(202);
    let mut stream = app.stream(channels, &ana, Some(&cursor(&page))).await;
    assert_eq!(stream.runs(1).await, [71]);
    // A channel that the cursor does not name begins with its oldest event.
    let more = format!("{channels},org:acme");
    let page = app.poll(&format!("channels={more}&cursor={}", cursor(&page)), &ana).await;
    let of_org: Vec<_> = (1..=5).map(|offset| ("org:acme", offset)).collect();
    assert_eq!(places(&page), [of_org, vec![("repo:acme/web", 2)]].concat());
}

async fn nothing_new_on_any_of_them_is_304(backend: Backend) {
    let app = TestApp::with(backend, NEWS).await;
    app.post_runs(1..=2).await;
    let ana = app.ana();
    let path = "/api/events?channels=repo:acme/api,repo:acme/web";
    let ask = |path: &str, tag: &str| app.send(Request::get(path).bearer(&ana).header("If-None-Match", tag));
    let first = app.get(path, &ana).await.expect(200);
    let oldest_tag = first.header("etag").expect("a tag").to_owned();
    ask(path, &oldest_tag).await.expect(304);
    let at_end = format!("{path}&cursor={}", cursor(&first.json()));
    let tag = ask(&at_end, &oldest_tag).await.expect(200).header("etag").expect("a tag").to_owned();
    let statements = app.metric("store_statements", "").await;
    for _ in 0..20 {
        ask(&at_end, &tag).await.expect(304);
    }
    if backend == Backend::Sqlite {
        let asked = app.metric("store_statements", "").await - statements;
        assert!(asked < 20, "the ends are in memory, and yet {asked} statements");
    }
    ask(&format!("{at_end}&limit=3"), &tag).await.expect(200);
    app.post_webhook("workflow_run", &run_of("acme/web", 70)).await.expect(202);
    assert_eq!(places(&ask(&at_end, &tag).await.expect(200).json()), [("repo:acme/web", 1)]);
    ask(path, &oldest_tag).await.expect(200);
    // The tag of one channel's page is not that of several with the same end.
    let one = app.get("/api/events?channel=repo:acme/api", &ana).await.expect(200);
    ask("/api/events?channels=repo:acme/api", one.header("etag").expect("a tag")).await.expect(200);
}

async fn a_lost_channel_is_named_and_the_others_go_on(backend: Backend) {
    let app = TestApp::with(backend, NEWS).await;
    let ana = app.ana();
    let news = async |numbers: std::ops::RangeInclusive<u32>| {
        for n in numbers {
            app.publish(json!({ "channel": "news:x", "data": n })).await.expect(200);
        }
    };
    app.post_runs(1..=1).await;
    news(1..=1).await;
    let channels = "news:x,repo:acme/api";
    let at = cursor(&app.poll(&format!("channels={channels}"), &ana).await);
    news(2..=6).await;
    app.post_runs(2..=2).await;
    let path = format!("/api/events?channels={channels}&cursor={at}");
    let lost = app.get(&path, &ana).await.refused(410, "cursor_lost").json()["error"]["details"].clone();
    let epoch = lost["lost"][0]["head"].as_str().and_then(|head| head.split_once('.')).expect("a head").0;
    let (oldest, head) = (format!("{epoch}.3"), format!("{epoch}.6"));
    assert_eq!(lost["lost"], json!([{ "channel": "news:x", "oldest": oldest, "head": head }]));
    let page = app.poll(&format!("channels={channels}&cursor={}", cursor(&lost)), &ana).await;
    assert_eq!(places(&page), [("news:x", 4), ("news:x", 5), ("news:x", 6), ("repo:acme/api", 2)]);
    // With a tag that fits anything it is lost all the same; without any place left there is no cursor.
    let of_one = format!("/api/events?channels=news:x&cursor={epoch}.1");
    let lost = app.send(Request::get(&of_one).bearer(&ana).header("If-None-Match", "*")).await;
    let lost = lost.refused(410, "cursor_lost").json()["error"]["details"].clone();
    assert_eq!((&lost["lost"][0]["channel"], &lost["cursor"]), (&json!("news:x"), &Value::Null));
    assert_eq!(app.metric("polls", "cursor_lost").await, 2);
}

async fn what_makes_no_sense_for_several_is_refused_by_name(backend: Backend) {
    let app = TestApp::with(backend, NEWS).await;
    app.post_runs(1..=1).await;
    let ana = app.ana();
    let of_two = cursor(&app.poll("channels=repo:acme/api,repo:acme/web", &ana).await);
    let of_one = cursor(&app.poll("channels=repo:acme/api", &ana).await);
    let many: Vec<String> = (0..33).map(|n| format!("repo:acme/r{n}")).collect();
    for (query, status, code) in [
        ("channels=", 400, "bad_channel"),
        ("channels=org:acme,", 400, "bad_channel"),
        ("channels=org:acme,repo:acme", 400, "bad_channel"),
        ("channels=org:acme&channel=org:acme", 400, "bad_channel"),
        (&format!("channels={}", many.join(",")), 400, "too_many_channels"),
        ("channels=org:acme,org:other", 403, "forbidden"),
        ("channels=org:acme,nobody:knows", 404, "unknown_channel"),
        ("channels=org:acme,fleeting:x", 404, "not_available"),
        ("channels=org:acme&limit=0", 400, "bad_limit"),
        ("channels=org:acme&limit=101", 400, "bad_limit"),
        ("channels=org:acme&cursor=x", 400, "bad_cursor"),
        (&format!("channels=org:acme,repo:acme/api&cursor={of_one}"), 400, "bad_cursor"),
        (&format!("channels=org:acme,repo:acme/api&cursor={of_two}"), 400, "bad_cursor"),
    ] {
        let refused = app.get(&format!("/api/events?{query}"), &ana).await.refused(status, code).json();
        if matches!(status, 403 | 404) {
            let channel = query.rsplit_once(',').expect("two channels").1;
            assert_eq!(refused["error"]["details"]["channel"], channel, "{refused}");
        }
    }
    app.get(&format!("/api/events?channels={}", many[1..].join(",")), &ana).await.expect(200);
    app.get("/api/events?channels=org:acme", "").await.refused(401, "token_missing");
}

async fn all_of_them_are_one_request_of_the_limit(backend: Backend) {
    let app = TestApp::with(backend, "limits.polls_per_minute = 3").await;
    let path = "/api/events?channels=org:acme,repo:acme/a,repo:acme/b,repo:acme/c";
    for remaining in ["2", "1", "0"] {
        let answer = app.get(path, &app.ana()).await.expect(200);
        assert_eq!(answer.header("ratelimit-remaining"), Some(remaining));
    }
    app.get(path, &app.ana()).await.refused(429, "rate_limited");
}

on_both!(
    every_event_says_its_channel_and_its_offset,
    a_long_backlog_does_not_keep_the_others_waiting,
    the_cursor_is_that_of_the_event_stream,
    nothing_new_on_any_of_them_is_304,
    a_lost_channel_is_named_and_the_others_go_on,
    what_makes_no_sense_for_several_is_refused_by_name,
    all_of_them_are_one_request_of_the_limit,
);
