//! What is written by hand reads back as what was meant. Also the values that the tests of replies
//! and pushes embed.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Map, Value, json};

use super::*;

/// Runs `test` on `cases` values, the same ones each time.
pub(in crate::protocol) fn check<S: Strategy>(
    cases: u32,
    strategy: S,
    test: impl Fn(S::Value) -> Result<(), TestCaseError>,
) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    TestRunner::new_with_rng(config, rng).run(&strategy, test).unwrap();
}

/// Any JSON value without fractions, of few levels.
pub(in crate::protocol) fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        Just(json!("a\r\n\u{0}\"\\\u{2028}b")),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((any::<String>(), inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// A value as somebody may have printed it: with line breaks between the tokens.
pub(in crate::protocol) fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap().replace('\n', "\r\n")
}

#[test]
fn zero_values_are_left_out_unless_the_method_says_always() {
    let mut out = String::new();
    push_object(&mut out, |o| {
        o.text("a", "");
        o.number("b", 0);
        o.flag("c", false);
        o.raw("d", None);
        o.expiry(None);
    });
    assert_eq!(out, "{}");
    out.clear();
    push_object(&mut out, |o| {
        o.always_text("a", "");
        o.always_number("b", 0);
        o.flag("c", true);
        o.raw("d", Some("null"));
    });
    assert_eq!(out, r#"{"a":"","b":0,"c":true,"d":null}"#);
}

#[test]
fn what_expires_has_a_ttl_of_a_second_to_a_year() {
    for (ttl, written) in [(0, 1), (1, 1), (3600, 3600), (31_536_000, 31_536_000), (u32::MAX, 31_536_000)] {
        let mut out = String::new();
        push_object(&mut out, |o| o.expiry(Some(ttl)));
        assert_eq!(out, format!(r#"{{"expires":true,"ttl":{written}}}"#));
    }
}

#[test]
fn numbers_are_exact_at_their_edges() {
    for number in [0, 1, 9, 10, 99, 100, u64::from(u32::MAX), 1 << 53, u64::MAX - 1, u64::MAX] {
        let mut out = String::new();
        push_number(&mut out, number);
        assert_eq!(out, number.to_string());
    }
}

#[test]
fn payloads_lose_their_line_breaks_and_nothing_else() {
    let mut out = String::new();
    push_raw(&mut out, "{\r\n  \"a\": \"x\\ny\",\n\"b\" : 1\n}\n");
    assert_eq!(out, r#"{  "a": "x\ny","b" : 1}"#);
}

#[test]
fn any_text_and_any_payload_read_back() {
    check(500, (any::<String>(), any::<String>(), any_value()), |(key, text, value)| {
        let mut out = String::new();
        push_object(&mut out, |o| {
            push_text(o.named(&key), &text);
            push_raw(o.named("\u{1}payload\n"), &pretty(&value));
        });
        prop_assert!(!out.contains(['\n', '\r']));
        let read: Value = serde_json::from_str(&out).unwrap();
        prop_assert_eq!(&read[&key], &Value::from(text));
        prop_assert_eq!(&read["\u{1}payload\n"], &value);
        Ok(())
    });
}
