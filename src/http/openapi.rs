//! `GET /api/openapi.json`: every route in a form that programs read. Written by hand; a test
//! compares it with the routes, another drives the real binary by it.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use actix_web::HttpResponse;
use actix_web::http::header;
use serde_json::Value;

const DOCUMENT: &str = include_str!("openapi.json");

pub async fn document() -> HttpResponse {
    HttpResponse::Ok()
        .content_type("application/json")
        .insert_header((header::CACHE_CONTROL, "public, max-age=300"))
        .body(DOCUMENT)
}

/// The methods that a route takes, as in `Allow`.
pub(super) fn methods_of(path: &str) -> String {
    static PATHS: LazyLock<BTreeMap<String, String>> = LazyLock::new(|| {
        let document: Value = serde_json::from_str(DOCUMENT).expect("the document is JSON");
        let paths = document["paths"].as_object().into_iter().flatten();
        paths
            .map(|(path, methods)| {
                let methods = methods.as_object().into_iter().flatten();
                let names: Vec<String> = methods.map(|(method, _)| method.to_uppercase()).collect();
                (path.clone(), names.join(", "))
            })
            .collect()
    });
    PATHS.get(path).cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Method and path of every route, as the table in `routes.rs` has them.
    fn routed() -> BTreeSet<(String, String)> {
        let table: String = include_str!("routes.rs").split_whitespace().collect();
        let services: Vec<&str> = table.split(".service(only(").skip(1).collect();
        let routes = services.iter().map(|service| {
            let (path, rest) = service.split_once(')').expect("a path");
            let path = match path {
                "poll::PATH" => crate::http::poll::PATH,
                "websocket::PATH" => crate::http::websocket::PATH,
                "websocket::UNI_PATH" => crate::http::websocket::UNI_PATH,
                path => path.trim_matches('"'),
            };
            let methods =
                rest.split(".route(").skip(1).map(|route| route.split('(').next().expect("a method"));
            let methods = methods.map(|method| if method == "look" { "get" } else { method });
            methods.map(|method| (method.to_owned(), path.to_owned())).collect::<Vec<_>>()
        });
        assert_eq!(services.len(), table.matches(".service(").count(), "a service that is not understood");
        routes.flatten().collect()
    }

    #[test]
    fn every_route_is_described_and_nothing_else() {
        let document: Value = serde_json::from_str(DOCUMENT).expect("the document is JSON");
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
        let paths = document["paths"].as_object().expect("paths").iter();
        let described = paths.flat_map(|(path, methods)| {
            let methods = methods.as_object().expect("methods").keys();
            methods.map(move |method| (method.clone(), path.clone()))
        });
        let (described, routed): (BTreeSet<_>, _) = (described.collect(), routed());
        let missing: Vec<_> = routed.difference(&described).collect();
        let invented: Vec<_> = described.difference(&routed).collect();
        assert!(missing.is_empty() && invented.is_empty(), "missing {missing:?}, invented {invented:?}");
        assert!(routed.len() > 20, "{routed:?}");
    }

    #[test]
    fn a_route_names_its_methods() {
        assert_eq!(methods_of("/api/builds/{id}/events"), "POST");
        assert_eq!(methods_of("/api/events"), "GET");
        assert_eq!(methods_of("/nowhere"), "");
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_part_is_used() {
        let document: Value = serde_json::from_str(DOCUMENT).expect("the document is JSON");
        let parts = DOCUMENT.split("\"$ref\": \"#").skip(1).filter_map(|rest| rest.split('"').next());
        let referred: BTreeSet<&str> = parts.collect();
        for pointer in &referred {
            assert!(document.pointer(pointer).is_some(), "{pointer}");
        }
        for kind in ["parameters", "responses", "schemas"] {
            for name in document["components"][kind].as_object().expect("parts").keys() {
                assert!(referred.contains(format!("/components/{kind}/{name}").as_str()), "{kind} {name}");
            }
        }
    }
}
