//! The HTTP surface. Handlers take what they need, call one operation and shape the answer; who
//! may do what is decided by the extractors and the access rule.

pub mod access;
pub mod auth;
mod body;
pub mod builds;
pub mod client_streams;
pub mod dashboard;
pub mod deliveries;
pub mod error;
mod etag;
pub mod event_stream;
pub mod extract;
pub mod health;
pub mod metrics;
pub mod openapi;
pub mod origin;
pub mod page;
pub mod poll;
mod rate_headers;
pub mod repos;
pub mod routes;
pub mod server_api;
pub mod session;
pub mod state;
pub mod tcp;
pub mod webhooks;
pub mod websocket;

use error::ApiError;
pub use metrics::Metrics;

/// A `limit` in a query: a number from 1 to `max`, `default` if absent.
fn parse_limit(limit: Option<&str>, default: u32, max: u32) -> Result<u32, ApiError> {
    let Some(limit) = limit else { return Ok(default) };
    limit.parse().ok().filter(|limit| (1..=max).contains(limit)).ok_or_else(|| {
        ApiError::bad_request("bad_limit", format!("`limit` must be a number from 1 to {max}"))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("the sources are here") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                sources(&path, found);
            } else if path.extension().is_some_and(|kind| kind == "rs") {
                found.push(path);
            }
        }
    }

    /// What `text` has of the store beside its handle and its error, which are only passed on.
    fn queries(text: &str) -> Vec<&str> {
        let text = text.split("#[cfg(test)]").next().unwrap_or_default();
        let passed_on = ["use crate::store::Store;", "use crate::store::StoreError;"];
        let signs = [
            "store::",
            "use crate::{",
            "diesel",
            "|conn",
            "SELECT ",
            "INSERT INTO",
            "UPDATE ",
            "DELETE FROM",
        ];
        let lines =
            text.lines().filter(|line| !line.trim_start().starts_with("//") && !passed_on.contains(line));
        lines.filter(|line| signs.iter().any(|sign| line.contains(sign))).collect()
    }

    #[test]
    fn no_handler_queries_the_store() {
        let mut files = Vec::new();
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http"), &mut files);
        assert!(files.len() > 20, "these are all of them: {files:?}");
        for file in files {
            let text = fs::read_to_string(&file).expect("a source file");
            assert_eq!(queries(&text), [""; 0], "{}", file.display());
        }
        for planted in
            ["use crate::store::builds;", "use crate::store::{self, Store};", "store.read(|conn| x)"]
        {
            assert_eq!(queries(planted), [planted]);
        }
    }
}
