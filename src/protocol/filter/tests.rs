//! What filters want, and what is no filter.

use serde_json::{Value, json};

use super::*;

fn tags(pairs: &[(&str, &str)]) -> Tags {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn leaf(key: &str, cmp: &str, val: &str) -> Value {
    json!({ "key": key, "cmp": cmp, "val": val })
}

fn wants(filter: &Value, pairs: &[(&str, &str)]) -> bool {
    Filter::parse(&filter.to_string()).expect("a filter").matches(&tags(pairs))
}

#[test]
fn a_leaf_looks_at_one_tag() {
    for (cmp, val, wanted, unwanted) in [
        ("eq", "go", vec!["go"], vec!["", "goo"]),
        ("neq", "go", vec!["", "goo"], vec!["go"]),
        ("ex", "", vec!["", "go"], vec![]),
        ("nex", "", vec![], vec!["", "go"]),
        ("sw", "go", vec!["go", "goo"], vec!["ago"]),
        ("ew", "go", vec!["go", "ago"], vec!["goo"]),
        ("ct", "go", vec!["go", "agog"], vec!["og"]),
        ("lt", "10", vec!["9.99", "-1", "1e0"], vec!["10", "x", "", "inf", "NaN"]),
        ("lte", "10", vec!["10", "1"], vec!["10.01"]),
        ("gt", "10", vec!["10.01", "+11"], vec!["10", "infinity"]),
        ("gte", "10", vec!["10", "11"], vec!["9"]),
    ] {
        let filter = leaf("k", cmp, val);
        wanted.iter().for_each(|value| assert!(wants(&filter, &[("k", value)]), "{cmp} {value}"));
        unwanted.iter().for_each(|value| assert!(!wants(&filter, &[("k", value)]), "{cmp} {value}"));
        let absent = matches!(cmp, "neq" | "nex");
        assert_eq!(wants(&filter, &[("other", "go")]), absent, "{cmp} without the tag");
    }
    let among = |cmp: &str| json!({ "key": "k", "cmp": cmp, "vals": ["a", "b"] });
    assert!(wants(&among("in"), &[("k", "b")]) && !wants(&among("in"), &[("k", "c")]));
    assert!(wants(&among("nin"), &[("k", "c")]) && !wants(&among("nin"), &[("k", "b")]));
}

#[test]
fn filters_are_put_together() {
    let (red, big) = (leaf("color", "eq", "red"), leaf("size", "gt", "3"));
    let and = json!({ "op": "and", "nodes": [red, big] });
    let or = json!({ "op": "or", "nodes": [red, big] });
    let nor = json!({ "op": "not", "nodes": [or] });
    for (pairs, in_and, in_or) in [
        (vec![("color", "red"), ("size", "4")], true, true),
        (vec![("color", "red")], false, true),
        (vec![("size", "4")], false, true),
        (vec![], false, false),
    ] {
        assert_eq!((wants(&and, &pairs), wants(&or, &pairs), wants(&nor, &pairs)), (in_and, in_or, !in_or));
    }
}

#[test]
fn what_is_no_filter_is_refused() {
    let deep = |depth: usize| {
        (0..depth).fold(leaf("k", "ex", ""), |inner, _| json!({ "op": "not", "nodes": [inner] }))
    };
    let many = |count: usize| json!({ "op": "or", "nodes": vec![leaf("k", "ex", ""); count] });
    for bad in [
        json!(7),
        json!([]),
        json!({}),
        json!({ "key": "k" }),
        json!({ "cmp": "ex" }),
        json!({ "key": "k", "cmp": "like", "val": "x" }),
        json!({ "key": "k", "cmp": "lt", "val": "x" }),
        json!({ "key": "k", "cmp": "in" }),
        json!({ "key": "k", "cmp": "eq", "val": 7 }),
        json!({ "key": "k".repeat(256), "cmp": "ex" }),
        json!({ "op": "xor", "nodes": [leaf("k", "ex", "")] }),
        json!({ "op": "and", "nodes": [] }),
        json!({ "op": "not", "nodes": [leaf("k", "ex", ""), leaf("k", "ex", "")] }),
        deep(64),
        many(64),
    ] {
        assert_eq!(Filter::parse(&bad.to_string()), Err(BadFilter), "{bad}");
    }
    assert!(Filter::parse(&deep(60).to_string()).is_ok());
    assert!(Filter::parse(&many(63).to_string()).is_ok());
}
