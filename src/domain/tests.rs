//! Properties of the texts that clients send us: channel names, positions, cursors, durations and
//! sizes. Whatever comes in, reading it never panics, and what was read prints as it was written.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;

use super::channel::{BadChannel, ChannelKind, ChannelName, MAX_LENGTH};
use super::cursor::{Cursor, MAX_CURSOR};
use super::position::{Epoch, Position, parse_offset};
use super::units::{Size, Span};

const MAX_OFFSET: u64 = i64::MAX as u64;

fn budget(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// Texts that are names or nearly.
fn nearly_names() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[ -~]{0,12}",
        "\\$?(repo|org|job|build|db|ns|n-1)?:?[$#]?[a-zA-Z0-9._,#:/ -]{0,12}",
        "(job|build):[0-9a-fA-F]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}",
        "repo:[a-zA-Z0-9_-]{1,4}/[a-zA-Z0-9._-]{1,4}",
        "x{250,260}",
    ]
}

fn epochs() -> impl Strategy<Value = Epoch> {
    "[a-zA-Z0-9_-]{1,40}".prop_map(|text| Epoch::parse(&text).expect("an epoch"))
}

fn positions() -> impl Strategy<Value = Position> {
    (epochs(), 0..=MAX_OFFSET).prop_map(|(epoch, offset)| Position::new(epoch, offset))
}

fn valid_names() -> impl Strategy<Value = ChannelName> {
    "(repo:[a-z]{1,5}/[a-z.]{3,5}|org:[a-z]{1,5}|ns:[ -~]{0,9}|#[a-z]{1,5})"
        .prop_map(|text| ChannelName::parse(&text).expect("a name"))
}

proptest! {
    #![proptest_config(budget(3_000))]

    #[test]
    fn a_name_prints_as_it_was_written_and_its_parts_make_it_again(text in nearly_names()) {
        let Ok(name) = ChannelName::parse(&text) else { return Ok(()) };
        prop_assert!(!text.is_empty() && text.len() <= MAX_LENGTH);
        prop_assert_eq!(&name.to_string(), &text);
        let again = match name.kind() {
            ChannelKind::Repo { owner, name } => format!("repo:{owner}/{name}"),
            ChannelKind::Org { owner } => format!("org:{owner}"),
            ChannelKind::Job(id) => format!("job:{id}"),
            ChannelKind::Build(id) => format!("build:{id}"),
            ChannelKind::Db { table } => format!("db:{table}"),
            ChannelKind::Personal { namespace: Some(namespace), user } => format!("{namespace}:#{user}"),
            ChannelKind::Personal { namespace: None, user } => format!("#{user}"),
            ChannelKind::Plain { namespace, private } => {
                prop_assert_eq!(private, text.starts_with('$'));
                prop_assert_eq!(namespace, name.namespace());
                text.clone()
            }
        };
        prop_assert_eq!(again, text);
        prop_assert_eq!(name.is_built_in(), name.namespace().is_some_and(|ns| ["repo", "org", "job", "build", "db"].contains(&ns)));
        let json = serde_json::to_string(&name).expect("JSON");
        prop_assert_eq!(serde_json::from_str::<ChannelName>(&json).expect("a name"), name);
    }

    #[test]
    fn a_cursor_of_one_channel_comes_back(position in positions()) {
        let cursor = Cursor::One(position);
        prop_assert_eq!(Cursor::parse(&cursor.to_string()), Ok(cursor));
    }

    #[test]
    fn a_position_has_one_spelling(text in "[a-z0-9_-]{0,3}[.]?[+-]?0{0,2}[0-9]{0,20}[.]?") {
        if let Some(position) = Position::parse(&text) {
            prop_assert_eq!(position.to_string(), text);
        }
    }

    #[test]
    fn positions_of_one_history_have_the_order_of_their_offsets(a in positions(), b in positions()) {
        let later = Position { epoch: a.epoch.clone(), offset: b.offset };
        prop_assert_eq!(a.partial_cmp(&later), Some(a.offset.cmp(&b.offset)));
        if a.epoch != b.epoch {
            prop_assert_eq!(a.partial_cmp(&b), None);
        }
    }

    #[test]
    fn any_text_is_read_without_panic(text in any::<String>(), bytes in any::<Vec<u8>>()) {
        let _ = (ChannelName::parse(&text), Cursor::parse(&text), Position::parse(&text));
        let _ = Cursor::parse(&URL_SAFE_NO_PAD.encode(&bytes));
        let _ = (Epoch::parse(&text), parse_offset(&text), text.parse::<Span>(), text.parse::<Size>());
    }

    #[test]
    fn durations_and_sizes_come_back(ms in 0..u64::MAX / 2, bytes in any::<u64>(), zeros in 0..20u32) {
        let span = Span(std::time::Duration::from_millis(ms >> zeros << zeros));
        prop_assert_eq!(span.to_string().parse::<Span>(), Ok(span));
        let size = Size(bytes >> zeros << zeros);
        prop_assert_eq!(size.to_string().parse::<Size>(), Ok(size));
    }
}

proptest! {
    #![proptest_config(budget(300))]

    #[test]
    fn a_cursor_of_several_channels_comes_back(
        places in prop::collection::btree_map(valid_names(), positions(), 1..=32),
    ) {
        let cursor = Cursor::Many(places);
        prop_assert_eq!(Cursor::parse(&cursor.to_string()), Ok(cursor));
    }
}

#[test]
fn the_largest_cursor_that_we_give_is_taken_back() {
    let epoch = Epoch::parse(&"e".repeat(40)).expect("an epoch");
    let name = |n: u32| format!("{n:02}{}", "\"".repeat(MAX_LENGTH - 2));
    let places: BTreeMap<_, _> = (0..32)
        .map(|n| (ChannelName::parse(&name(n)).expect("a name"), Position::new(epoch.clone(), MAX_OFFSET)))
        .collect();
    let text = Cursor::Many(places.clone()).to_string();
    assert!(text.len() <= MAX_CURSOR, "{} bytes", text.len());
    assert_eq!(Cursor::parse(&text), Ok(Cursor::Many(places)));
}

#[test]
fn a_malformed_cursor_is_refused() {
    let encoded = |json: &str| URL_SAFE_NO_PAD.encode(json);
    let mut texts = vec![String::new(), "x".repeat(MAX_CURSOR + 1)];
    for text in
        [".", "e.", ".1", "e.01", "e.+1", "e.-1", "e.1.", "e.1 ", " e.1", "e.9223372036854775808", "é.1"]
    {
        texts.push(text.to_owned());
    }
    for json in [
        "{}",
        "[]",
        "null",
        r#"{"a":["e"]}"#,
        r#"{"a":["e",1,2]}"#,
        r#"{"a":["e",-1]}"#,
        r#"{"a":["e",1.5]}"#,
        r#"{"a":["e","1"]}"#,
        r#"{"a":["",1]}"#,
        r#"{"a":["e.f",1]}"#,
        r#"{"":["e",1]}"#,
        r#"{"repo:acme":["e",1]}"#,
        r#"{"a":["e",9223372036854775808]}"#,
        r#"{"a":["e",1]}{}"#,
    ] {
        texts.push(encoded(json));
    }
    texts.push(format!("{}=", encoded(r#"{"a":["e",1]}"#)));
    for text in texts {
        assert!(Cursor::parse(&text).is_err(), "{text}");
    }
    assert!(Cursor::parse(&encoded(r#"{"a":["e",1]}"#)).is_ok());
}

#[test]
fn built_in_names_have_one_shape_and_the_others_have_room() {
    let parse = |text: &str| ChannelName::parse(text).map(|_| ());
    for text in [
        "repo:acme",
        "repo:a/b/c",
        "repo:/b",
        "repo:a/",
        "repo:a/..",
        "repo:a b/c",
        "$repo:a/b",
        "$org:a",
        "org:",
        "org:a/b",
        "org:a.b",
        "job:",
        "job:42",
        "job:5E0B4A52-7C1C-4A8E-9A35-2F0D1B1F7A11",
        "job:5e0b4a527c1c4a8e9a352f0d1b1f7a11",
        "build:{5e0b4a52-7c1c-4a8e-9a35-2f0d1b1f7a11}",
        "db:",
        "db:a b",
        "repo:#42",
    ] {
        assert_eq!(parse(text), Err(BadChannel::Malformed), "{text}");
    }
    assert_eq!(parse(""), Err(BadChannel::Empty));
    assert_eq!(parse(&"x".repeat(256)), Err(BadChannel::TooLong));
    for text in ["tab\there", "zoë", "line\n", "\u{7f}", "nul\0"] {
        assert_eq!(parse(text), Err(BadChannel::NotPrintable), "{text:?}");
    }
    for text in ["repo", "Repo:acme", "a:b:c", ":", "$", "#", "$:", "repository:acme", "x repo:a"] {
        assert_eq!(parse(text), Ok(()), "{text}");
    }
}

#[test]
fn a_colon_in_a_user_id_does_not_make_a_namespace() {
    let name = ChannelName::parse("#github:42").expect("a name");
    assert_eq!(name.namespace(), None);
    assert_eq!(name.kind(), ChannelKind::Personal { namespace: None, user: "github:42" });
}
