//! An HTTP client of a running gateway. Turns network errors into readable messages, and parses both forms
//! of error responses. Redirects are not followed, because they could send keys and tokens to another server.

use std::time::Duration;

use anyhow::anyhow;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use super::terminal::printable;
use super::url::BaseUrl;
use crate::net::http_client::{Destination, HttpClient, HttpError, Request, Response, StatusCode};

/// How long a gateway may take to respond.
pub(super) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(20);
const LARGEST_ANSWER: usize = 1 << 20;
/// Advice for a key that the gateway refuses.
pub(super) const WRONG_KEY: &str = "The key comes from CAMPANILE_API_KEY, http_api.key or the data folder: does it \
                                    belong to this gateway?";

pub(super) struct Remote {
    base: BaseUrl,
    client: HttpClient,
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
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

impl Remote {
    /// A client of the gateway at `base`.
    pub(super) fn new(base: BaseUrl) -> Self {
        Self { base, client: HttpClient::new(Destination::Any) }
    }

    pub(super) fn get(&self, path: &str) -> Request {
        self.client.get(&self.base.join(path))
    }

    pub(super) fn post(&self, path: &str) -> Request {
        self.client.post(&self.base.join(path))
    }

    /// Sends `request` and reads the answer to its end.
    pub(super) async fn send(&self, request: Request) -> Result<Answer, RequestError> {
        let response = self.open(request).await?;
        let status = response.status();
        let cut_off = |error| RequestError::NoResponse(anyhow!("the response was cut off: {error}"));
        Ok(Answer { status, body: response.read(LARGEST_ANSWER).await.map_err(cut_off)? })
    }

    /// Sends `request` and waits for the beginning of the answer.
    pub(super) async fn open(&self, request: Request) -> Result<Response, RequestError> {
        let base = &self.base;
        request.send(RESPONSE_TIMEOUT).await.map_err(|error| match error {
            HttpError::Connect(_) | HttpError::Tls(_) => {
                RequestError::Unreachable(anyhow::Error::from(error).context(format!(
                    "cannot reach {base}: is `campanile serve` running? Pass --url or set CAMPANILE_URL if it \
                     is elsewhere"
                )))
            }
            HttpError::Timeout => {
                RequestError::NoResponse(anyhow!("{base} did not respond within {} s", RESPONSE_TIMEOUT.as_secs()))
            }
            error => RequestError::NoResponse(
                anyhow::Error::from(error).context(format!("{base} did not respond")),
            ),
        })
    }
}

impl From<RequestError> for anyhow::Error {
    fn from(reason: RequestError) -> Self {
        match reason {
            RequestError::Unreachable(error) | RequestError::NoResponse(error) => error,
        }
    }
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
