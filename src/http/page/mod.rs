//! `GET /`: the page that a build without the dashboard serves, and the one that signs browsers
//! in. Written by hand and compiled in: no build step, nothing from elsewhere. A program that asks
//! for `/` gets plain words.
//!
//! Must hold: no script and no style stands in the HTML, so that the policy can forbid both; what
//! comes over the wire becomes text and never markup.

use std::sync::LazyLock;

use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, route, web};
use sha2::{Digest as _, Sha256};

use super::error::{ApiError, ApiResult};
use super::etag;

/// Our own files and nothing else; what would turn text into markup is an error.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types 'none'";

/// For whoever asks without a browser.
const WORDS: &str = concat!(
    "Campanile ",
    env!("CARGO_PKG_VERSION"),
    "\n\n\
     GET  /api/events/stream?channels=repo:OWNER/NAME   live events (SSE), resumes by Last-Event-ID\n\
     GET  /connection/websocket                         the same over WebSocket, for centrifuge SDKs\n\
     GET  /api/events?channel=repo:OWNER/NAME           the same by polling, same cursor\n\
     GET  /api/repos, /api/dashboard/activity           what is known\n\
     POST /webhooks/github                              where GitHub delivers\n\
     GET  /readyz, /metrics                             how it is\n\n\
     Tokens: `campanile token --sub you --org OWNER`, sent as Authorization: Bearer …\n\
     Browsers: open the link that `campanile sign-in` prints\n"
);

struct File {
    name: &'static str,
    kind: &'static str,
    text: &'static str,
}

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

const HOME: File = File { name: "", kind: HTML, text: include_str!("index.html") };
const SIGN_IN: File = File { name: "", kind: HTML, text: include_str!("sign-in.html") };
const FILES: [File; 8] = [
    File { name: "page.css", kind: "text/css; charset=utf-8", text: include_str!("page.css") },
    File { name: "page.js", kind: SCRIPT, text: include_str!("page.js") },
    File { name: "feed.js", kind: SCRIPT, text: include_str!("feed.js") },
    File { name: "keys.js", kind: SCRIPT, text: include_str!("keys.js") },
    File { name: "stream.js", kind: SCRIPT, text: include_str!("stream.js") },
    File { name: "words.js", kind: SCRIPT, text: include_str!("words.js") },
    File { name: "sign-in.js", kind: SCRIPT, text: include_str!("sign-in.js") },
    File { name: "icon.svg", kind: "image/svg+xml", text: include_str!("icon.svg") },
];

/// One tag for all files: they change together, with the binary.
static TAG: LazyLock<String> = LazyLock::new(|| {
    let mut digest = Sha256::new();
    for file in [&HOME, &SIGN_IN].into_iter().chain(&FILES) {
        digest.update(file.text);
    }
    format!("\"{}\"", hex::encode(&digest.finalize()[..12]))
});

/// A page for browsers, words for programs.
///
/// The page is for whoever accepts `text/html`.
#[utoipa::path(
    responses(
        (status = 200, description = "By `Accept`.", content((String = "text/html"), (String = "text/plain"))),
        (status = 304),
    ),
    security(),
)]
#[route("/", method = "GET", method = "HEAD")]
pub async fn get_home(request: HttpRequest) -> HttpResponse {
    let accepted = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let mut answer = if accepted.is_some_and(|accepted| accepted.contains("text/html")) {
        serve(&request, &HOME)
    } else {
        HttpResponse::Ok().content_type("text/plain; charset=utf-8").body(WORDS)
    };
    answer.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    answer
}

/// The page that a sign-in link opens.
///
/// The secret stands behind `#` and is not sent: the page's button does that.
#[utoipa::path(
    responses((status = 200, description = "The page.", body = String, content_type = "text/html"), (status = 304)),
    security(),
)]
#[route("/sign-in", method = "GET", method = "HEAD")]
pub async fn get_sign_in_page(request: HttpRequest) -> HttpResponse {
    serve(&request, &SIGN_IN)
}

/// What the pages load.
#[utoipa::path(
    params(("file" = String, Path, min_length = 1, example = "page.js")),
    responses(
        (
            status = 200,
            description = "A script, a style or a picture.",
            content((String = "text/javascript"), (String = "text/css"), (String = "image/svg+xml")),
        ),
        (status = 304),
    ),
    security(),
)]
#[route("/page/{file}", method = "GET", method = "HEAD")]
pub async fn get_page_file(request: HttpRequest, name: web::Path<String>) -> ApiResult {
    let file = FILES.iter().find(|file| file.name == name.as_str());
    Ok(serve(&request, file.ok_or_else(|| ApiError::not_found("file"))?))
}

fn serve(request: &HttpRequest, file: &File) -> HttpResponse {
    let fresh = etag::known(request.headers()).is_some_and(|known| etag::matches(known, &TAG));
    let mut answer = if fresh { HttpResponse::NotModified() } else { HttpResponse::Ok() };
    answer.insert_header((header::ETAG, TAG.as_str()));
    // Asked for each time, so that an upgrade shows at once; mostly the answer is 304.
    answer.insert_header((header::CACHE_CONTROL, "no-cache"));
    answer.insert_header((header::CONTENT_SECURITY_POLICY, POLICY));
    answer.insert_header(("Cross-Origin-Opener-Policy", "same-origin"));
    if fresh { answer.finish() } else { answer.content_type(file.kind).body(file.text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_hold_no_script_and_no_style_and_name_files_that_exist() {
        for page in [&HOME, &SIGN_IN] {
            for never in [" style=", "<style", "<script>", " onclick=", "javascript:", "http://", "https://"]
            {
                assert!(!page.text.contains(never), "{never}");
            }
            for path in page.text.split("\"/page/").skip(1) {
                let name = path.split('"').next().expect("a quote");
                assert!(FILES.iter().any(|file| file.name == name), "{name}");
            }
        }
        for file in &FILES {
            for never in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
                assert!(!file.text.contains(never), "{}: {never}", file.name);
            }
        }
    }
}
