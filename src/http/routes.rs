//! All routes. A handler says its own method and path; what it needs beside its request is in the state of
//! the app.

use std::sync::LazyLock;

use actix_web::error::QueryPayloadError;
use actix_web::http::{Method, StatusCode, header};
use actix_web::web::{self, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse, Route, route};
use serde_json::{Value, json};
use utoipa::OpenApi;

use super::error::{ApiError, ApiResult, Refusal};
use super::{
    auth, builds, client_streams, dashboard, deliveries, event_stream, health, openapi, page, poll, repos,
    server_api, webhooks, websocket,
};

/// Serves and describes each of our own routes. In this order they are tried, so what comes often stands
/// first; the methods of the server API follow the first of the two lists.
macro_rules! routes {
    ($($first:ident::$often:ident),+; $($module:ident::$handler:ident),+ $(,)?) => {
        #[derive(OpenApi)]
        #[openapi(
            paths($($first::$often),+, $($module::$handler),+),
            components(schemas(Refusal)),
        )]
        struct Own;

        pub fn routes(app: &mut ServiceConfig) {
            app.app_data(web::QueryConfig::default().error_handler(|error, _| bad_query(&error).into()))
                $(.service($first::$often))+
                .configure(server_api::routes)
                $(.service($module::$handler))+
                // As it is pasted into GitHub's form. GitHub follows no redirect.
                .route("/webhooks/github/", web::post().to(webhooks::receive_with_slash))
                .default_service(web::to(unrouted));
            for (method, path, route) in client_protocol() {
                app.route(path, route.method(method));
            }
        }
    };
}

routes! {
    poll::list_events, webhooks::receive_github_delivery;
    page::get_home, page::get_sign_in_page, page::get_page_file,
    health::get_liveness, health::get_health, health::get_readiness, health::get_metrics,
    self::get_openapi,
    event_stream::stream_events,
    deliveries::list_deliveries, deliveries::get_delivery, deliveries::process_delivery,
    builds::append_build_event, builds::list_build_events,
    repos::list_repos, repos::get_repo, repos::list_runs,
    auth::create_sign_in_link, auth::use_sign_in_link, auth::sign_out, auth::get_me, auth::create_token,
    dashboard::get_summary, dashboard::list_activity,
}

/// The routes of the client protocol, which `client_streams.json` describes.
fn client_protocol() -> [(Method, &'static str, Route); 9] {
    let (get, post) = (Method::GET, Method::POST);
    [
        (get.clone(), websocket::PATH, web::to(websocket::no_upgrade)),
        (get.clone(), websocket::UNI_PATH, web::to(websocket::no_upgrade)),
        (post.clone(), "/connection/http_stream", web::to(client_streams::http_stream)),
        (get.clone(), "/connection/sse", web::to(client_streams::sse)),
        (post.clone(), "/connection/sse", web::to(client_streams::sse_by_body)),
        (post.clone(), "/connection/uni_http_stream", web::to(client_streams::uni_http_stream)),
        (get, "/connection/uni_sse", web::to(client_streams::uni_sse)),
        (post.clone(), "/connection/uni_sse", web::to(client_streams::uni_sse_by_body)),
        (post, "/emulation", web::to(client_streams::emulate)),
    ]
}

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| openapi::document(&Own::openapi()));

/// The text of the document, as it is committed and served.
static TEXT: LazyLock<String> = LazyLock::new(|| format!("{:#}\n", *DOCUMENT));

/// This document.
#[utoipa::path(responses((status = 200, description = "#Document")), security())]
#[route("/api/openapi.json", method = "GET", method = "HEAD")]
pub async fn get_openapi() -> HttpResponse {
    HttpResponse::Ok()
        .content_type("application/json")
        .insert_header((header::CACHE_CONTROL, "public, max-age=300"))
        .body(TEXT.as_str())
}

/// A parameter that means nothing here is refused: whoever sends it believes in its effect.
fn bad_query(error: &QueryPayloadError) -> ApiError {
    let text = error.to_string();
    // serde's words: unknown field `x`, expected one of `a`, `b`; or: expected `a`; or: there are no fields.
    let mut quoted =
        text.split_once("unknown field `").map(|(_, rest)| rest.split('`')).into_iter().flatten();
    let Some(unknown) = quoted.next() else {
        return ApiError::bad_request("bad_query", format!("the query string cannot be read: {error}"));
    };
    let unknown: String = unknown.chars().take(MAX_SHOWN).collect();
    let known: Vec<&str> = quoted.skip(1).step_by(2).collect();
    let meant = MEANT.iter().find(|(wrong, right)| {
        known.contains(right) && unknown.replace(['-', '_'], "").eq_ignore_ascii_case(wrong)
    });
    let hint = meant.map(|(_, right)| format!(": did you mean `{right}`?")).unwrap_or_default();
    let message = format!("there is no parameter `{unknown}` here{hint} (there are {})", known.join(", "));
    ApiError::bad_request("bad_query", message)
}

/// Names that parameters have elsewhere, without hyphens, and how they are called here.
const MEANT: [(&str, &str); 10] = [
    ("lasteventid", "cursor"),
    ("since", "cursor"),
    ("after", "cursor"),
    ("from", "cursor"),
    ("channel", "channels"),
    ("topic", "channels"),
    ("topics", "channels"),
    ("accesstoken", "token"),
    ("jwt", "token"),
    ("count", "limit"),
];

/// How much of a name is repeated.
const MAX_SHOWN: usize = 100;

/// A request that no route takes: its path is unknown, or known with other methods.
async fn unrouted(request: HttpRequest) -> ApiResult {
    let asks = *request.method() == Method::OPTIONS;
    // Of the server as a whole (RFC 9110, section 9.3.7).
    if asks && request.path() == "*" {
        return Ok(HttpResponse::NoContent().finish());
    }
    let is_hidden = |path: &String| path == "/metrics" && health::are_metrics_elsewhere(&request);
    let Some(path) = request.match_pattern().filter(|path| !is_hidden(path)) else {
        return Err(ApiError::not_found("route").details(json!({ "path": request.path() })));
    };
    let path = if path.len() > 1 { path.trim_end_matches('/') } else { &path };
    let methods = openapi::methods_of(&DOCUMENT, path);
    // Load balancers ask so whether a server is there; some by default.
    if asks {
        let methods = format!("{methods}, OPTIONS");
        return Ok(HttpResponse::NoContent().insert_header((header::ALLOW, methods)).finish());
    }
    let message = "this route does not support the method";
    Err(ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
        .header(header::ALLOW, methods))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::Path;
    use std::{env, fs};

    use actix_web::App;
    use actix_web::test::{TestRequest, call_service, init_service};
    use regex_lite::Regex;

    use super::*;

    fn read(path: &str) -> String {
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
            .expect("a file of this repository")
    }

    /// The methods of every path in the document, as in `Allow`.
    fn described() -> BTreeMap<&'static str, String> {
        let paths = DOCUMENT["paths"].as_object().expect("paths").keys();
        paths.map(|path| (path.as_str(), openapi::methods_of(&DOCUMENT, path))).collect()
    }

    #[test]
    fn the_committed_document_is_what_the_code_says() {
        if env::var_os("UPDATE_OPENAPI").is_some() {
            fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json"), &*TEXT)
                .expect("it is written");
        }
        assert!(
            read("docs/openapi.json") == *TEXT,
            "docs/openapi.json differs from what the code says: write it anew with `make openapi`"
        );
    }

    #[test]
    fn every_route_is_described_and_nothing_else() {
        let own = serde_json::to_value(Own::openapi()).expect("the description is JSON");
        let pairs = |document: &Value| {
            let paths = document["paths"].as_object().expect("paths").clone();
            let methods = |(path, methods): (String, Value)| {
                let names: Vec<String> =
                    methods.as_object().expect("methods").keys().map(|name| name.to_uppercase()).collect();
                names.into_iter().map(move |name| (path.clone(), name))
            };
            paths.into_iter().flat_map(methods).collect::<BTreeSet<_>>()
        };
        let mut served = pairs(&own);
        // GET implies them.
        served.retain(|(_, method)| !matches!(method.as_str(), "HEAD" | "OPTIONS"));
        served.extend(server_api::paths().map(|path| (path, "POST".to_owned())));
        let protocol = client_protocol().into_iter();
        served.extend(protocol.map(|(method, path, _)| (path.to_owned(), method.to_string())));
        assert_eq!(served, pairs(&DOCUMENT));
    }

    #[actix_web::test]
    async fn other_methods_are_refused_with_those_that_there_are() {
        let app = init_service(App::new().configure(routes)).await;
        let paths = described();
        for (path, methods) in &paths {
            let request = TestRequest::with_uri(&path.replace(['{', '}'], "")).method(Method::PATCH);
            let answer = call_service(&app, request.to_request()).await;
            assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED, "{path}");
            assert_eq!(answer.headers().get(header::ALLOW).expect("methods"), methods.as_str(), "{path}");
        }
        assert_eq!(paths["/api/builds/{id}/events"], "POST");
        assert_eq!(paths["/connection/sse"], "GET, POST");
        for path in [poll::PATH, websocket::PATH, websocket::UNI_PATH] {
            assert_eq!(paths[path], "GET");
        }
        for path in server_api::paths() {
            assert_eq!(paths[path.as_str()], "POST");
        }
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_shared_part_is_used() {
        let parts = TEXT.split("\"$ref\": \"#").skip(1).filter_map(|rest| rest.split('"').next());
        let referred: BTreeSet<&str> = parts.collect();
        for pointer in &referred {
            assert!(DOCUMENT.pointer(pointer).is_some(), "{pointer}");
        }
        for kind in ["parameters", "responses", "schemas"] {
            for name in DOCUMENT["components"][kind].as_object().expect("parts").keys() {
                assert!(referred.contains(format!("/components/{kind}/{name}").as_str()), "{kind} {name}");
            }
        }
    }

    /// Texts name a route as `GET /path`, as `/path`, or as `/path` and methods in the next cell of a table.
    /// A path that ends in a slash stands for all that begin with it.
    fn named(text: &str) -> Vec<(&str, String)> {
        let pattern = r"(?:\b(GET|POST|DELETE) |`)(/[a-z][a-z0-9_/{}.-]*)(?:` \| ([A-Z, ]+))?";
        let pattern = Regex::new(pattern).expect("a pattern");
        let found = pattern.captures_iter(text).map(|found| {
            let methods = [1, 3].map(|group| found.get(group).map_or("", |methods| methods.as_str()));
            (found.get(2).expect("a path").as_str(), methods.concat())
        });
        found.collect()
    }

    #[test]
    fn the_routes_that_the_documents_name_exist() {
        // A route of GitHub, and files.
        let foreign = ["/repos/"];
        let paths = described();
        let unknown = |text: &str| {
            let wrong = named(text).into_iter().filter(|(path, wanted)| {
                let wanted: Vec<&str> =
                    wanted.split([',', ' ']).filter(|method| !method.is_empty()).collect();
                !paths.iter().any(|(known, methods)| {
                    (known == path || path.ends_with('/') && known.starts_with(path))
                        && wanted.iter().all(|method| methods.contains(method))
                })
            });
            wrong.map(|(path, wanted)| format!("{wanted} {path}")).collect::<Vec<_>>()
        };
        let documents = ["ARCHITECTURE", "CHECKER", "DECISIONS", "OPERATIONS", "PERFORMANCE", "PROTOCOL"]
            .into_iter()
            .chain(["SCALING", "SECURITY", "TRANSPORTS"])
            .map(|name| format!("docs/{name}.md"));
        for file in documents.chain(["README.md", "CHANGELOG.md", "CONTRIBUTING.md"].map(String::from)) {
            let mut unknown = unknown(&read(&file));
            unknown.retain(|route| !foreign.iter().any(|start| route.contains(start)));
            assert_eq!(unknown, [""; 0], "{file}");
        }
        for (text, wrong) in [
            ("`GET /api/events?channel=`, `/api/repos/{id}/runs`, POST /api/publish {}", ""),
            ("| `/connection/sse` | GET, POST |", ""),
            ("`/connection/`", ""),
            ("`POST /api/events`", "POST /api/events"),
            ("`/api/event`", " /api/event"),
            ("| `/emulation` | GET, POST |", "GET, POST  /emulation"),
        ] {
            assert_eq!(unknown(text).concat(), wrong, "{text}");
        }
    }
}
