//! The server API (protocol §12): trusted callers with the API key. Always 200 with `result` or
//! `error`, unless the key is missing, the body cannot be read, or the caller wants errors as
//! statuses. A file for each family of methods; here is what they share.

mod clients;
mod history;
mod presence;
mod publish;

use std::collections::BTreeMap;
use std::future::{Ready, ready};

use actix_web::dev::Payload;
use actix_web::http::{StatusCode, header};
use actix_web::{FromRequest, HttpRequest, HttpResponse, web};
use serde::Deserialize;
use serde_json::json;

pub use clients::{block_user, connections, disconnect, revoke_token, unblock_user};
pub use history::history;
pub use presence::{presence, presence_stats};
pub use publish::publish;

use super::access::{self, Access};
use super::error::ApiError;
use crate::auth::same_secret;
use crate::domain::channel::ChannelName;
use crate::domain::options::ChannelOptions;
use crate::protocol::code::ErrorCode;
use crate::telemetry::{Code, Metrics};

/// The largest body, in bytes.
const MAX_BODY: usize = 4 << 20;
/// Asks for errors as statuses when it says `transport`.
const ERROR_MODE: &str = "x-centrifugo-error-mode";

/// What the door knows.
pub struct ServerApiDoor {
    /// The largest event, in bytes of its data.
    pub max_publication: usize,
}

/// The caller has the key. A handler takes it before its body, so that strangers get no memory.
pub struct KeyHolder;

impl FromRequest for KeyHolder {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(authorise(request, access::of(request)).map(|()| Self))
    }
}

/// The key in any of the places where the protocol allows it. In a query it would end up in other
/// people's logs and pages, so it is refused there when a browser asks.
fn authorise(request: &HttpRequest, access: &Access) -> Result<(), ApiError> {
    let headers = request.headers();
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let in_header = text("x-api-key").or_else(|| {
        let (scheme, key) = text(header::AUTHORIZATION.as_str())?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("apikey").then(|| key.trim())
    });
    let in_query = || {
        let query = web::Query::<BTreeMap<String, String>>::from_query(request.query_string()).ok()?;
        (!headers.contains_key(header::ORIGIN)).then(|| query.into_inner().remove("api_key"))?
    };
    let given = in_header.map(str::to_owned).or_else(in_query).unwrap_or_default();
    if same_secret(&given, access.api_key.expose()) {
        return Ok(());
    }
    let message = "send the API key: X-API-Key: … (or Authorization: apikey …)";
    Err(ApiError::new(StatusCode::UNAUTHORIZED, "api_key", message))
}

async fn whole(body: web::Payload) -> Result<web::Bytes, ApiError> {
    let too_large = |_| {
        let message = format!("the body is larger than {MAX_BODY} bytes");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    };
    let broken = |_| ApiError::bad_request("body_broken", "the body ended early");
    body.to_bytes_limited(MAX_BODY).await.map_err(too_large)?.map_err(broken)
}

/// Reads the request of `method`.
fn parse<'b, T: Deserialize<'b>>(method: &str, body: &'b [u8]) -> Result<T, ApiError> {
    // A derived reader would also take a list, by place.
    let object = body.trim_ascii_start().starts_with(b"{");
    serde_json::from_slice(body).ok().filter(|_| object).ok_or_else(|| {
        let message = format!("the body is not the JSON object that `{method}` takes");
        ApiError::bad_request("bad_request", message)
    })
}

/// A channel that exists, and what the operator decided about it; `None` for the built-in ones.
fn channel_of(access: &Access, name: &str) -> Result<(ChannelName, Option<ChannelOptions>), ErrorCode> {
    let channel = ChannelName::parse(name).map_err(|_| ErrorCode::BadRequest)?;
    let options = access.namespaces.load().options_of(&channel).cloned();
    if !channel.is_built_in() && options.is_none() {
        return Err(ErrorCode::UnknownChannel);
    }
    Ok((channel, options))
}

/// The answer of a method: its result, which is JSON already, or its error.
fn answer(request: &HttpRequest, result: Result<String, ErrorCode>) -> HttpResponse {
    let code = match result {
        Ok(result) => {
            let body = format!("{{\"result\":{result}}}");
            return HttpResponse::Ok().content_type("application/json").body(body);
        }
        Err(code) => code,
    };
    if let Some(metrics) = request.app_data::<web::Data<Metrics>>() {
        metrics.errors.get_or_create(&Code { code: code.code().into() }).inc();
    }
    let error = json!({ "code": code.code(), "message": code.message() });
    if request.headers().get(ERROR_MODE).is_some_and(|mode| mode == "transport") {
        return HttpResponse::build(status_of(code)).json(error);
    }
    HttpResponse::Ok().json(json!({ "error": error }))
}

/// How an error looks to a caller that wants statuses (protocol §12.1).
fn status_of(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        ErrorCode::UnknownChannel | ErrorCode::MethodNotFound => StatusCode::NOT_FOUND,
        ErrorCode::UnrecoverablePosition => StatusCode::RANGE_NOT_SATISFIABLE,
        ErrorCode::ConcurrentPagination => StatusCode::CONFLICT,
        // The server API gives no others.
        _ => StatusCode::BAD_REQUEST,
    }
}
