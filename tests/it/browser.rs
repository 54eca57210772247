//! A real browser against the real gateway: the stories are told in `tests/browser/scenarios` and
//! named as the tests here. A story asks for what a browser cannot do: links, webhooks, a restart.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::app::{API_KEY, Backend, TestApp, on_both, run_of};
use crate::support::client::Request;
use crate::support::script::Script;

/// No story takes longer, a slow machine and the start of a browser included.
const DEADLINE: Duration = Duration::from_secs(120);

/// Plays a scenario to its good end.
async fn play(backend: Backend, scenario: &str) {
    let mut app = TestApp::start(backend).await;
    let stage = json!({ "origin": format!("http://{}", app.address()) });
    let script = Script::start_in("tests/browser", "playwright-core", scenario, &stage);
    script.play(DEADLINE, async |request| perform(&request, &mut app).await).await;
    app.stop().await;
}

/// Does what a scenario asks for.
async fn perform(request: &Value, app: &mut TestApp) -> Value {
    let number = |name: &str| request[name].as_u64().unwrap_or_else(|| panic!("no {name}: {request}"));
    match request["ask"].as_str().expect("a word") {
        "link" => {
            let links = Request::post("/api/auth/links").header("X-API-Key", API_KEY);
            return app.send(links).await.expect(201).json()["link"].take();
        }
        "webhooks" => app.post_runs(number("from")..=number("to")).await,
        "namesake" => {
            let mut run = run_of("acme/api", number("run"));
            run["repository"]["id"] = 99.into();
            if request["passed"] == true {
                run["action"] = "completed".into();
                run["workflow_run"]["status"] = "completed".into();
                run["workflow_run"]["conclusion"] = "success".into();
                run["workflow_run"]["updated_at"] = "2026-11-21T08:01:00Z".into();
            }
            app.post_webhook("workflow_run", &run).await.expect(202);
        }
        "publish" => {
            let body = json!({ "channel": "org:acme", "data": request["data"] });
            app.publish(body).await.expect(200);
        }
        "refusals" => return json!(app.metric("refusals", request["code"].as_str().expect("a code")).await),
        "no_streams" => app.until_metric("connections", "sse", 0).await,
        "stop" => app.stop().await,
        "start" => app.restart().await,
        other => panic!("nobody can {other}"),
    }
    Value::Null
}

/// Makes a test of each scenario, where the database does not matter.
macro_rules! on_sqlite {
    ($($name:ident),+ $(,)?) => {
        $(#[tokio::test] async fn $name() { play(Backend::Sqlite, stringify!($name)).await })+
    };
}

async fn a_link_works_once(backend: Backend) {
    play(backend, "a_link_works_once").await;
}

async fn the_feed_is_live_and_outlives_a_restart(backend: Backend) {
    play(backend, "the_feed_is_live_and_outlives_a_restart").await;
}

on_both!(a_link_works_once, the_feed_is_live_and_outlives_a_restart);

on_sqlite!(
    looking_at_a_link_leaves_it_good,
    a_link_without_its_secret_explains_itself,
    signing_out_ends_every_tab,
    other_sites_can_do_nothing,
    the_cookie_alone_opens_no_socket,
    another_name_of_the_address_gets_nothing,
    the_keyboard_is_enough,
    nothing_jumps_and_nothing_sticks_out,
    a_tab_that_nobody_sees_gives_its_connection_back,
    markup_in_an_event_is_text,
    two_repositories_of_one_name_are_two_rows,
);
