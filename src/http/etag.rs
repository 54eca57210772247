//! Entity tags: what a caller knows already is answered with 304.

use std::hash::{DefaultHasher, Hash, Hasher as _};

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderMap, HeaderValue};

/// The tag of an answer that depends on nothing but `content`. It is no secret: a forged tag deceives only
/// its forger.
pub fn of(content: &(impl Hash + ?Sized)) -> String {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    let mut tag = [b'"'; 18];
    hex::encode_to_slice(hasher.finish().to_be_bytes(), &mut tag[1..17]).expect("two digits a byte");
    str::from_utf8(&tag).expect("digits and quotes").to_owned()
}

/// The tags that the caller knows.
pub fn known(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::IF_NONE_MATCH)?.to_str().ok()
}

/// `If-None-Match` (RFC 9110, section 13.1.2): a list of tags, perhaps weak, or `*`.
pub fn matches(header: &str, tag: &str) -> bool {
    let matches = |known: &str| known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag;
    // The usual form first.
    header == tag || header.split(',').map(str::trim).any(matches)
}

/// 304.
pub fn not_modified(tag: &str) -> HttpResponse {
    let mut answer = HttpResponse::new(StatusCode::NOT_MODIFIED);
    cacheable(answer.headers_mut(), tag);
    answer
}

/// 200 with a JSON text that may be kept under `tag`.
pub fn json(tag: &str, body: String) -> HttpResponse {
    let mut answer = HttpResponse::Ok().content_type("application/json").body(body);
    cacheable(answer.headers_mut(), tag);
    answer
}

fn cacheable(headers: &mut HeaderMap, tag: &str) {
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, max-age=0"));
    headers.insert(header::VARY, HeaderValue::from_static("Authorization, Cookie"));
    headers.insert(header::ETAG, HeaderValue::from_str(tag).expect("digits and quotes"));
}
