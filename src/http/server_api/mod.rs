//! The server API (protocol §12): trusted callers with the API key. Always 200 with `result` or
//! `error`, unless the key is missing, the body cannot be read, or the caller wants errors as
//! statuses. A file for each family of methods; here is what they share: the key, the table of
//! methods, the shape of answers. A method sees a body and gives a result, so that `batch` can call
//! them as the routes do.

mod batch;
mod clients;
mod history;
mod node;
mod presence;
mod publish;

use std::collections::BTreeMap;
use std::future::{Future, Ready, ready};

use actix_web::dev::Payload;
use actix_web::http::{StatusCode, header};
use actix_web::web::{self, ServiceConfig};
use actix_web::{FromRequest, HttpRequest, HttpResponse};
use futures_util::FutureExt as _;
use futures_util::future::LocalBoxFuture;
use serde::Deserialize;
use serde_json::{Value, json};

use super::State;
use super::access::Access;
use super::client_streams::read_bytes;
use super::error::{ApiError, ApiResult};
use crate::auth::same_secret;
use crate::domain::options::NoChannel;
use crate::protocol::code::ErrorCode;
use crate::session::metrics::Code;
use crate::store::StoreError;

/// The largest body, in bytes.
const MAX_BODY: u64 = 4 << 20;
/// Asks for errors as statuses when it says `transport`.
const ERROR_MODE: &str = "x-centrifugo-error-mode";

/// Calls a method with a body.
type Call = for<'a> fn(&'a Api, &'a [u8]) -> LocalBoxFuture<'a, MethodResult>;

/// The method that calls others. Its replies stand at the top, and it cannot call itself.
const BATCH: &str = "batch";

/// The methods by their names, each with a route under `/api/`. What comes often stands first.
const METHODS: [(&str, Call); 18] = [
    ("publish", |api, body| reading(body, |asked| publish::publish(api, asked))),
    ("broadcast", |api, body| reading(body, |asked| publish::broadcast(api, asked))),
    ("subscribe", |api, body| reading(body, |asked| clients::subscribe(api, asked, body))),
    ("unsubscribe", |api, body| reading(body, |asked| clients::unsubscribe(api, asked))),
    ("disconnect", |api, body| reading(body, |asked| clients::disconnect(api, asked))),
    ("refresh", |api, body| reading(body, |asked| clients::refresh(api, asked, body))),
    ("presence", |api, body| reading(body, |asked| presence::presence(api, asked))),
    ("presence_stats", |api, body| reading(body, |asked| presence::presence_stats(api, asked))),
    ("history", |api, body| reading(body, |asked| history::history(api, asked))),
    ("history_remove", |api, body| reading(body, |asked| history::remove(api, asked))),
    ("channels", |api, body| reading(body, |asked| node::channels(api, asked))),
    ("info", |api, body| reading(body, |node::NoParams {}| node::info(api))),
    ("rpc", |_, body| reading(body, |node::NoParams {}| ready(Err(ErrorCode::MethodNotFound.into())))),
    (BATCH, |api, body| reading(body, |asked| batch::batch(api, asked))),
    ("connections", |api, body| reading(body, |asked| clients::connections(api, asked))),
    ("revoke_token", |api, body| reading(body, |asked| clients::revoke_token(api, asked))),
    ("block_user", |api, body| reading(body, |asked| clients::block_user(api, asked))),
    ("unblock_user", |api, body| reading(body, |asked| clients::unblock_user(api, asked))),
];

/// Reads the request of a method, and acts on it.
fn reading<'a, T: Deserialize<'a>, F: Future<Output = MethodResult> + 'a>(
    body: &'a [u8],
    act: impl FnOnce(T) -> F + 'a,
) -> LocalBoxFuture<'a, MethodResult> {
    async move { act(parse(body)?).await }.boxed_local()
}

/// A route for each method.
pub fn routes(app: &mut ServiceConfig) {
    for (name, call) in METHODS {
        let handler = move |api: Api, body: web::Payload| async move {
            // The place is for the body until the method is done.
            let (body, _place) = read_bytes(&api.0, body, api.state(), MAX_BODY, true).await?;
            answer(&api, name, call(&api, &body).await)
        };
        app.route(&format!("/api/{name}"), web::post().to(handler));
    }
}

/// The result of a method as JSON, or why there is none.
type MethodResult = Result<String, Failure>;

/// Why a method has no result.
#[derive(derive_more::From)]
enum Failure {
    /// The protocol has a code for it.
    Code(ErrorCode),
    /// An error of our own routes, with an HTTP status.
    Refused(ApiError),
}

impl Failure {
    /// The protocol code of this failure, for places that have no HTTP status.
    fn code(&self) -> ErrorCode {
        match self {
            Self::Code(code) => *code,
            Self::Refused(error) if error.is_callers() => ErrorCode::BadRequest,
            Self::Refused(_) => ErrorCode::Internal,
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Failed(_) => {
                tracing::error!(%error, "a method of the server API failed");
                Self::Code(ErrorCode::Internal)
            }
            error => Self::Refused(error.into()),
        }
    }
}

/// The result of a method that returns nothing.
fn empty_result() -> MethodResult {
    Ok("{}".to_owned())
}

/// Proof that the caller has the API key. A handler extracts it before its body, so that nobody else makes
/// us allocate memory.
pub struct Api(HttpRequest);

impl FromRequest for Api {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(authorise(request, &State::of(request).access).map(|()| Self(request.clone())))
    }
}

impl Api {
    fn state(&self) -> &State {
        State::of(&self.0)
    }

    fn count(&self, code: ErrorCode) {
        self.state().streams.worker.session_context.metrics.errors.inc(Code(code.code().into()));
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
    let message = "send the API key in X-API-Key (or as Authorization: apikey KEY)";
    Err(ApiError::new(StatusCode::UNAUTHORIZED, "api_key", message))
}

/// Reads the request of a method.
fn parse<'b, T: Deserialize<'b>>(body: &'b [u8]) -> Result<T, ApiError> {
    // A derived deserializer would also accept an array, by position.
    let object = body.trim_ascii_start().starts_with(b"{");
    serde_json::from_slice(body).ok().filter(|_| object).ok_or_else(|| {
        ApiError::bad_request("bad_request", "the body is not the JSON object that this method expects")
    })
}

impl From<NoChannel> for ErrorCode {
    fn from(none: NoChannel) -> Self {
        match none {
            NoChannel::BadName => Self::BadRequest,
            NoChannel::UnknownNamespace => Self::UnknownChannel,
        }
    }
}

impl From<NoChannel> for Failure {
    fn from(none: NoChannel) -> Self {
        ErrorCode::from(none).into()
    }
}

/// The response to a single call.
fn answer(api: &Api, method: &str, called: MethodResult) -> ApiResult {
    let code = match called {
        Ok(result) if method == BATCH => {
            return Ok(HttpResponse::Ok().content_type("application/json").body(result));
        }
        Ok(result) => {
            let body = format!("{{\"result\":{result}}}");
            return Ok(HttpResponse::Ok().content_type("application/json").body(body));
        }
        Err(Failure::Refused(error)) => return Err(error),
        Err(Failure::Code(code)) => code,
    };
    api.count(code);
    let error = error_of(code);
    if api.0.headers().get(ERROR_MODE).is_some_and(|mode| mode == "transport") {
        return Ok(HttpResponse::build(status_of(code)).json(error));
    }
    Ok(HttpResponse::Ok().json(json!({ "error": error })))
}

/// An error as callers read it. The message of 104 is another one than clients get.
fn error_of(code: ErrorCode) -> Value {
    let message = if code == ErrorCode::MethodNotFound { "not found" } else { code.message() };
    json!({ "code": code.code(), "message": message })
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

#[cfg(test)]
pub fn paths() -> impl Iterator<Item = String> {
    METHODS.iter().map(|(name, _)| format!("/api/{name}"))
}
