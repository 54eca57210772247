//! Whatever is delivered: no panic, no value in an error, and nothing dirty in an event.

use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Map, Value, json};

use super::super::{Interpretation, PayloadError, RepoMap, body_text, interpret};
use super::FIXTURES;
use crate::domain::channel::ChannelName;

/// Stands in payloads where a value may be wrong; no error may repeat it.
const MARK: &str = "qz-mark-zq";

fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) }
}

fn kinds() -> impl Strategy<Value = String> {
    let known: Vec<String> = FIXTURES.iter().map(|(event, ..)| (*event).to_owned()).collect();
    prop_oneof![9 => proptest::sample::select(known), 1 => "[ -~]{0,20}"]
}

/// Any JSON, of few levels.
fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        Just(json!(MARK)),
        Just(json!("a\u{0}\u{1b}[2J\r\n\u{85}b")),
        Just(json!("javascript:alert(1)")),
        Just(json!("9999-12-31T23:59:60+23:59")),
        Just(json!("x".repeat(5000))),
    ];
    leaf.prop_recursive(4, 24, 5, |inner| {
        let names = prop_oneof![
            Just("action".to_owned()),
            Just("repository".to_owned()),
            Just("workflow_run".to_owned()),
            Just("workflow_job".to_owned()),
            Just("installation".to_owned()),
            Just("repositories".to_owned()),
            Just("id".to_owned()),
            Just("name".to_owned()),
            any::<String>(),
        ];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            proptest::collection::vec((names, inner), 0..5)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// Every value inside, in no particular order.
fn places(value: &Value, at: String, all: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, inner) in fields {
                places(inner, format!("{at}/{}", name.replace('~', "~0").replace('/', "~1")), all);
            }
        }
        Value::Array(items) => {
            for (n, inner) in items.iter().enumerate() {
                places(inner, format!("{at}/{n}"), all);
            }
        }
        _ => {}
    }
    all.push(at);
}

/// The parts that are read are few among many links, so they are preferred.
fn telling(place: &str) -> bool {
    let read = [
        "/action",
        "/workflow_",
        "/workflow/",
        "/repositor",
        "/installation/id",
        "/hook/active",
        "/changes",
        "/account/",
    ];
    place.is_empty() || (read.iter().any(|part| place.starts_with(part)) && !place.ends_with("_url"))
}

fn check(result: Result<Interpretation, PayloadError>) -> Result<(), TestCaseError> {
    let interpretation = match result {
        Ok(interpretation) => interpretation,
        Err(error) => {
            let text = error.to_string();
            prop_assert!(
                !text.contains(MARK) && text.len() < 250 && !text.contains(char::is_control),
                "{}",
                text
            );
            return Ok(());
        }
    };
    prop_assert!(interpretation.action.is_none_or(|action| action.chars().count() <= 64));
    for event in interpretation.events {
        let former = event.former.map(|former| (former.owner, former.repo));
        for (owner, repo) in [Some((event.owner, event.repo)), former].into_iter().flatten() {
            prop_assert!(ChannelName::org(&owner).is_ok());
            prop_assert!(repo.is_none_or(|repo| ChannelName::repo(&owner, &repo).is_ok()));
        }
        let data: Value =
            serde_json::from_str(event.data.get()).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert!(data.is_object());
        check_value(&data)?;
    }
    Ok(())
}

fn check_value(value: &Value) -> Result<(), TestCaseError> {
    match value {
        Value::String(text) => {
            prop_assert!(!text.contains(char::is_control) && text.chars().count() <= 2048, "{:?}", text);
        }
        Value::Array(items) => items.iter().try_for_each(check_value)?,
        Value::Object(fields) => fields.values().try_for_each(check_value)?,
        Value::Null => return Err(TestCaseError::fail("null is left out")),
        _ => {}
    }
    Ok(())
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_bytes_are_survived(event in kinds(), body: Vec<u8>, form: bool) {
        let content_type = if form { "application/x-www-form-urlencoded" } else { "application/json" };
        let _ = body_text(Some(content_type), &body);
        check(interpret(&event, &body, &RepoMap::default()))?;
    }

    #[test]
    fn any_json_is_survived(event in kinds(), body in json_value()) {
        check(interpret(&event, body.to_string().as_bytes(), &RepoMap::default()))?;
    }

    #[test]
    fn any_change_to_a_real_payload_is_survived(
        at in any::<Index>(),
        changes in proptest::collection::vec((any::<Index>(), any::<bool>(), json_value()), 1..4),
    ) {
        let (event, _, text) = at.get(FIXTURES);
        let mut body: Value = serde_json::from_str(text).unwrap();
        for (at, remove, with) in changes {
            let mut all = Vec::new();
            places(&body, String::new(), &mut all);
            all.retain(|place| telling(place));
            let place = at.get(&all);
            if remove && let Some((parent, field)) = place.rsplit_once('/') {
                match body.pointer_mut(parent) {
                    Some(Value::Object(fields)) => drop(fields.remove(field)),
                    Some(Value::Array(items)) => drop(items.pop()),
                    _ => {}
                }
            } else if let Some(value) = body.pointer_mut(place) {
                *value = with;
            }
        }
        check(interpret(event, body.to_string().as_bytes(), &RepoMap::default()))?;
    }

    #[test]
    fn any_cut_or_splice_of_a_real_payload_is_survived(at in any::<Index>(), cut in any::<Index>(), bytes: Vec<u8>) {
        let (event, _, text) = at.get(FIXTURES);
        let cut = cut.index(text.len());
        let cut_off = &text.as_bytes()[..cut];
        check(interpret(event, cut_off, &RepoMap::default()))?;
        let spliced = [cut_off, &bytes, &text.as_bytes()[cut..]].concat();
        check(interpret(event, &spliced, &RepoMap::default()))?;
    }
}
