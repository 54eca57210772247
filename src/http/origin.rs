//! Browsers and foreign sites. A request that carries an `Origin` which is not allowed is refused
//! where it could act or listen (unsafe methods, streams); an allowed one gets its CORS headers.

use actix_web::body::{EitherBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::{Error, HttpResponse};

use super::State;
use super::error::ApiError;

/// Headers for every answer, and the judgement on `Origin`.
pub async fn guard(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<EitherBody<impl MessageBody>>, Error> {
    let origin = request.headers().get(header::ORIGIN).cloned();
    let allowed = origin.as_ref().is_some_and(|origin| {
        origin.to_str().is_ok_and(|text| State::of(request.request()).access.origins.allow(text))
    });
    let preflight = *request.method() == Method::OPTIONS;
    // As the router sees it, so that no escape in the path leads past this.
    let path = request.match_info().as_str();
    let listens = path.ends_with("/stream") || path.starts_with("/connection/");
    let refused = origin.is_some() && !allowed && (preflight || listens || !request.method().is_safe());
    let mut response = if refused {
        ServiceResponse::new(request.into_parts().0, HttpResponse::from_error(forbidden()))
            .map_into_right_body()
    } else if preflight && (origin.is_some() || preflight_methods(path).is_some()) {
        let methods = preflight_methods(path).unwrap_or("GET, POST, DELETE, OPTIONS");
        let asked = request.headers().get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
        let mut answer = HttpResponse::NoContent();
        answer.insert_header((header::ACCESS_CONTROL_ALLOW_METHODS, methods));
        answer.insert_header((header::ACCESS_CONTROL_MAX_AGE, "300"));
        if let Some(asked) = asked {
            answer.insert_header((header::ACCESS_CONTROL_ALLOW_HEADERS, asked));
        }
        request.into_response(answer.finish()).map_into_right_body()
    } else {
        next.call(request).await?.map_into_left_body()
    };
    let headers = response.headers_mut();
    add_security_headers(headers);
    if let (true, Some(origin)) = (allowed, origin) {
        allow(headers, origin);
    }
    Ok(response)
}

/// Adds what every answer carries.
pub fn add_security_headers(headers: &mut HeaderMap) {
    for (name, value) in FIXED {
        // A page has a policy of its own, which lets it load its own files.
        if !headers.contains_key(&name) {
            headers.insert(name, HeaderValue::from_static(value));
        }
    }
}

/// The methods that a preflight for one of the transports allows (protocol §3.3), whatever its origin.
fn preflight_methods(path: &str) -> Option<&'static str> {
    match path {
        "/connection/http_stream" | "/connection/uni_http_stream" | "/emulation" => Some("POST, OPTIONS"),
        "/connection/sse" | "/connection/uni_sse" => Some("GET, POST, OPTIONS"),
        _ => None,
    }
}

/// The answer to a page of a foreign origin.
pub fn forbidden() -> ApiError {
    let message = "this origin is not allowed: see client.allowed_origins";
    ApiError::new(StatusCode::FORBIDDEN, "origin_forbidden", message)
}

/// Sent with every answer.
const FIXED: [(HeaderName, &str); 3] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
];

fn allow(headers: &mut HeaderMap, origin: HeaderValue) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    let exposed = "ETag, Retry-After, RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset";
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(exposed));
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
}
