//! An HTTP client of a running gateway. Turns network errors into readable messages, and parses both forms
//! of error responses. Never repeats a header, so no error shows a key or a token; redirects are not
//! followed, because they would send those to another server.

use std::time::Duration;

use anyhow::anyhow;
use awc::ClientRequest;
use awc::error::SendRequestError;
use awc::http::{StatusCode, Version, header};
use awc::ws::WebsocketsRequest;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use super::terminal::printable;
use super::url::BaseUrl;

/// How long a gateway may take to respond.
pub(super) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(20);
const LARGEST_ANSWER: usize = 1 << 20;
const USER_AGENT: &str = concat!("campanile/", env!("CARGO_PKG_VERSION"));

/// A client of one gateway. Lives on an actix runtime.
pub(super) struct Remote {
    base: BaseUrl,
    client: awc::Client,
}

/// Why there is no answer.
pub(super) enum RequestError {
    /// The request cannot have arrived.
    Unreachable(anyhow::Error),
    /// The request may have arrived.
    NoResponse(anyhow::Error),
}

/// An answer, read to its end.
pub(super) struct Answer {
    /// The status.
    pub(super) status: StatusCode,
    /// The body.
    pub(super) body: Bytes,
}

impl Remote {
    /// A client of the gateway at `base`.
    pub(super) fn new(base: BaseUrl) -> Self {
        // Fails if there is one already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let connector = awc::Connector::new().max_http_version(Version::HTTP_11);
        let client = awc::Client::builder()
            .connector(connector)
            .timeout(RESPONSE_TIMEOUT)
            .disable_redirects()
            .add_default_header((header::USER_AGENT, USER_AGENT))
            .finish();
        Self { base, client }
    }

    /// Begins a WebSocket to `path`.
    pub(super) fn websocket(&self, path: &str) -> WebsocketsRequest {
        self.client.ws(self.base.join(path))
    }

    /// Begins a GET of `path`.
    pub(super) fn get(&self, path: &str) -> ClientRequest {
        self.client.get(self.base.join(path))
    }

    /// Begins a POST to `path`.
    pub(super) fn post(&self, path: &str) -> ClientRequest {
        self.client.post(self.base.join(path))
    }

    /// Sends `request` with `body` and reads the answer.
    pub(super) async fn send(&self, request: ClientRequest, body: Bytes) -> Result<Answer, RequestError> {
        let response = request.send_body(body).await.map_err(|error| self.request_error(&error))?;
        let mut response = response.timeout(RESPONSE_TIMEOUT);
        let body = response.body().limit(LARGEST_ANSWER).await;
        let body =
            body.map_err(|error| RequestError::NoResponse(anyhow!("the response was cut off: {error}")))?;
        Ok(Answer { status: response.status(), body })
    }

    /// What it means that a request failed with `error`.
    pub(super) fn request_error(&self, error: &SendRequestError) -> RequestError {
        let base = &self.base;
        match error {
            SendRequestError::Connect(cause) => RequestError::Unreachable(anyhow!("{cause}").context(format!(
                "cannot reach {base}: is `campanile serve` running? Pass --url or set CAMPANILE_URL if it is \
                 elsewhere"
            ))),
            SendRequestError::Timeout => {
                RequestError::NoResponse(anyhow!("{base} did not respond within {} s", RESPONSE_TIMEOUT.as_secs()))
            }
            other => RequestError::NoResponse(anyhow!("{other}").context(format!("{base} did not respond"))),
        }
    }
}

impl From<RequestError> for anyhow::Error {
    fn from(reason: RequestError) -> Self {
        match reason {
            RequestError::Unreachable(error) | RequestError::NoResponse(error) => error,
        }
    }
}

/// Runs `work` on an actix runtime of its own.
pub(super) fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    actix_rt::System::new().block_on(work)
}

/// An error response: the server API has numeric codes, our own routes have names.
#[derive(Deserialize)]
struct Refusal {
    error: RefusalBody,
}

#[derive(Deserialize)]
struct RefusalBody {
    #[serde(default)]
    code: Value,
    message: String,
}

/// The error message in `body`, safe to print on a terminal.
pub(super) fn refusal(body: &[u8]) -> Option<String> {
    let Refusal { error } = serde_json::from_slice(body).ok()?;
    Some(printable(&match error.code {
        Value::Null => error.message,
        Value::String(code) => format!("{} ({code})", error.message),
        code => format!("{} (code {code})", error.message),
    }))
}

/// A readable description of a status other than 2xx.
pub(super) fn describe(status: StatusCode, body: &[u8]) -> String {
    const SHOWN: usize = 200;
    let text = refusal(body).unwrap_or_else(|| {
        printable(&String::from_utf8_lossy(body).trim().chars().take(SHOWN).collect::<String>())
    });
    let empty = text.is_empty();
    if empty { format!("the gateway says {status}") } else { format!("the gateway says {status}: {text}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_shapes_of_refusal_are_read() {
        let numbered = br#"{"error":{"code":102,"message":"unknown channel"}}"#;
        assert_eq!(refusal(numbered).as_deref(), Some("unknown channel (code 102)"));
        let named = br#"{"error":{"code":"bad_cursor","message":"the cursor is malformed","details":{}}}"#;
        assert_eq!(refusal(named).as_deref(), Some("the cursor is malformed (bad_cursor)"));
        assert_eq!(refusal(br#"{"result":{}}"#), None);
        assert_eq!(refusal(b"<html>"), None);
    }

    #[test]
    fn other_answers_are_quoted_and_made_harmless() {
        let html = describe(StatusCode::BAD_GATEWAY, b"  <h1>\x1b[31mno\n ");
        assert_eq!(html, "the gateway says 502 Bad Gateway: <h1>\u{fffd}[31mno");
        assert_eq!(describe(StatusCode::NOT_FOUND, b""), "the gateway says 404 Not Found");
    }
}
