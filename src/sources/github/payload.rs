//! GitHub's payloads as far as we read them. Fields that GitHub may leave out are optional, fields that we
//! need are required, and unknown fields are skipped. An error names the field and what is expected of it;
//! values of a payload never appear in it.

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};
use serde_json::value::RawValue;

use crate::domain::event::Time;

/// What a payload as a whole is called.
const WHOLE: &str = "payload";

/// Valid JSON, but not what this kind of event must be. Kept with the delivery, which can be
/// interpreted again by a later version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct PayloadError {
    /// Where, such as `workflow_run.id`; `payload` for the whole.
    pub field: String,
    /// What is wrong, such as `is missing`.
    pub problem: String,
}

impl PayloadError {
    pub(super) fn new(field: &str, problem: &str) -> Self {
        Self { field: field.to_owned(), problem: problem.to_owned() }
    }

    pub(super) fn missing(field: &str) -> Self {
        Self::new(field, "is missing")
    }
}

/// The parts of a delivery that some event's meaning needs, each still as JSON: an event is
/// judged by its own parts only.
#[derive(Deserialize)]
pub struct Payload<'a> {
    pub action: Option<String>,
    #[serde(borrow)]
    pub repository: Option<&'a RawValue>,
    #[serde(borrow)]
    pub installation: Option<&'a RawValue>,
    #[serde(borrow)]
    pub hook: Option<&'a RawValue>,
    #[serde(borrow)]
    pub workflow: Option<&'a RawValue>,
    #[serde(borrow)]
    pub workflow_run: Option<&'a RawValue>,
    #[serde(borrow)]
    pub workflow_job: Option<&'a RawValue>,
    #[serde(borrow)]
    pub repositories: Option<&'a RawValue>,
    #[serde(borrow)]
    pub repositories_added: Option<&'a RawValue>,
    #[serde(borrow)]
    pub repositories_removed: Option<&'a RawValue>,
    #[serde(borrow)]
    pub changes: Option<&'a RawValue>,
    #[serde(borrow)]
    pub organization: Option<&'a RawValue>,
    #[serde(borrow)]
    pub account: Option<&'a RawValue>,
}

/// What a rename or transfer changed.
#[derive(Default, Deserialize)]
pub struct Changes {
    pub repository: Option<RepositoryChanges>,
    pub owner: Option<OwnerChange>,
    /// Of an account.
    pub login: Option<TextChange>,
}

#[derive(Deserialize)]
pub struct RepositoryChanges {
    pub name: Option<TextChange>,
}

#[derive(Deserialize)]
pub struct TextChange {
    pub from: String,
}

#[derive(Deserialize)]
pub struct OwnerChange {
    pub from: FormerOwner,
}

#[derive(Deserialize)]
pub struct FormerOwner {
    pub organization: Option<Account>,
    pub user: Option<Account>,
}

/// An organization or a user.
#[derive(Deserialize)]
pub struct Account {
    pub login: String,
}

/// A repository object; the entries of an installation's lists have no owner.
#[derive(Deserialize)]
pub struct Repository {
    pub id: Id,
    pub name: String,
    pub full_name: Option<String>,
    pub owner: Option<Owner>,
    pub default_branch: Option<String>,
    pub private: Option<bool>,
}

#[derive(Deserialize)]
pub struct Owner {
    pub login: Option<String>,
    pub name: Option<String>,
}

#[derive(Deserialize)]
pub struct Installation {
    pub id: Id,
}

#[derive(Deserialize)]
pub struct Hook {
    pub active: Option<bool>,
}

#[derive(Deserialize)]
pub struct Workflow {
    pub name: Option<String>,
}

#[derive(Deserialize)]
pub struct RunPayload {
    pub id: Id,
    pub workflow_id: Id,
    pub name: Option<String>,
    pub run_number: Option<Id>,
    pub run_attempt: Option<Id>,
    pub status: String,
    pub conclusion: Option<String>,
    pub event: Option<String>,
    pub head_branch: Option<String>,
    pub head_sha: Option<String>,
    pub html_url: Option<String>,
    pub run_started_at: Option<Timestamp>,
    pub created_at: Option<Timestamp>,
    pub updated_at: Option<Timestamp>,
}

#[derive(Deserialize)]
pub struct JobPayload {
    pub id: Id,
    pub run_id: Id,
    pub run_attempt: Option<Id>,
    pub name: String,
    pub workflow_name: Option<String>,
    pub status: String,
    pub conclusion: Option<String>,
    pub head_branch: Option<String>,
    pub head_sha: Option<String>,
    pub html_url: Option<String>,
    pub started_at: Option<Timestamp>,
    pub completed_at: Option<Timestamp>,
    pub steps: Option<Vec<Step>>,
}

#[derive(Deserialize)]
pub struct Step {
    pub number: Option<Id>,
    pub name: Option<String>,
    pub status: Option<String>,
    pub conclusion: Option<String>,
    pub started_at: Option<Timestamp>,
    pub completed_at: Option<Timestamp>,
}

/// A number that GitHub gave to something.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "u64")]
pub struct Id(pub i64);

/// An instant as GitHub writes it.
#[derive(Debug, Clone, Copy)]
pub struct Timestamp(pub Time);

impl TryFrom<u64> for Id {
    type Error = &'static str;

    fn try_from(number: u64) -> Result<Self, Self::Error> {
        let id = i64::try_from(number).ok().filter(|id| *id > 0);
        id.map(Self).ok_or("out of range, expected u64")
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Instant;
        impl Visitor<'_> for Instant {
            type Value = Timestamp;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a time such as 2026-11-21T08:00:00Z")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Timestamp, E> {
                let at = DateTime::parse_from_rfc3339(text);
                at.map(|at| Timestamp(at.with_timezone(&Utc)))
                    .map_err(|_| E::invalid_value(serde::de::Unexpected::Str(text), &self))
            }
        }
        d.deserialize_str(Instant)
    }
}

/// Reads a payload as a whole.
pub fn parse(json: &str) -> Result<Payload<'_>, PayloadError> {
    object(json, "")
}

/// Reads a part that may be absent.
pub fn optional<'a, T: Deserialize<'a>>(
    raw: Option<&'a RawValue>,
    part: &str,
) -> Result<Option<T>, PayloadError> {
    raw.map(|raw| object(raw.get(), part)).transpose()
}

/// Reads a part that must be there.
pub fn required<'a, T: Deserialize<'a>>(raw: Option<&'a RawValue>, part: &str) -> Result<T, PayloadError> {
    object(raw.ok_or_else(|| PayloadError::missing(part))?.get(), part)
}

/// Reads a list; none is an empty one.
pub fn list<'a, T: Deserialize<'a>>(raw: Option<&'a RawValue>, part: &str) -> Result<Vec<T>, PayloadError> {
    raw.map_or(Ok(Vec::new()), |raw| read(raw.get(), part))
}

fn object<'a, T: Deserialize<'a>>(json: &'a str, part: &str) -> Result<T, PayloadError> {
    // The library would also take an array for an object, field by field in our order.
    if json.trim_ascii_start().starts_with('{') {
        return read(json, part);
    }
    Err(PayloadError::new(if part.is_empty() { WHOLE } else { part }, "is not an object"))
}

fn read<'a, T: Deserialize<'a>>(json: &'a str, part: &str) -> Result<T, PayloadError> {
    // Only what does not fit is read a second time, to find out where.
    serde_json::from_str(json).or_else(|_| {
        let mut reader = serde_json::Deserializer::from_str(json);
        serde_path_to_error::deserialize(&mut reader).map_err(|error| {
            let path = error.path().to_string();
            describe(part, &path, &error.inner().to_string())
        })
    })
}

/// Puts the library's message in our words. Of `invalid type: string "…", expected X at line 1`
/// only X is kept: it is ours, the rest may quote the payload.
fn describe(part: &str, path: &str, message: &str) -> PayloadError {
    let within = if known(path) { path } else { "" };
    let named = |prefix: &str| message.strip_prefix(prefix)?.split('`').next();
    let (last, problem) = if let Some(field) = named("missing field `") {
        (field, "is missing".to_owned())
    } else if let Some(field) = named("duplicate field `") {
        (field, "is there twice".to_owned())
    } else if let Some((_, expected)) = message.rsplit_once(", expected ") {
        let expected = expected.split(" at line ").next().unwrap_or_default();
        ("", format!("is not {}", in_words(expected)))
    } else {
        ("", "cannot be read".to_owned())
    };
    let parts: Vec<&str> = [part, within, last].into_iter().filter(|part| !part.is_empty()).collect();
    let field = if parts.is_empty() { WHOLE.to_owned() } else { parts.join(".") };
    PayloadError { field: field.replace(".[", "["), problem }
}

/// What the library calls the types of our fields.
fn in_words(expected: &str) -> &str {
    match expected {
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "u64" => "a whole number above 0",
        _ if expected.starts_with("struct ") => "an object",
        _ => expected,
    }
}

/// Whether a path is made of our own field names, and not of a payload's.
fn known(path: &str) -> bool {
    let ours = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '.' | '[' | ']');
    path != "." && path.len() <= 80 && path.chars().all(ours)
}
