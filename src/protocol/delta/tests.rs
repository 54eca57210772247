//! Deltas against a decoder that was written from the format alone.

use proptest::prelude::*;

use super::*;

/// Digits up to the mark that ends them.
fn number(delta: &[u8], at: &mut usize) -> u64 {
    const DIGITS: &[u8; 64] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~";
    let start = *at;
    let mut number = 0;
    while let Some(digit) = DIGITS.iter().position(|digit| *digit == delta[*at]) {
        number = number * 64 + digit as u64;
        *at += 1;
    }
    assert!(*at > start, "a number has digits");
    number
}

/// What comes of `base`.
fn apply(base: &[u8], delta: &[u8]) -> Vec<u8> {
    let (mut target, mut at) = (Vec::new(), 0);
    let length = number(delta, &mut at);
    assert_eq!(delta[at], b'\n');
    at += 1;
    loop {
        let count = number(delta, &mut at);
        let mark = delta[at];
        at += 1;
        match mark {
            b'@' => {
                let from = number(delta, &mut at) as usize;
                assert_eq!(delta[at], b',');
                at += 1;
                target.extend_from_slice(&base[from..from + count as usize]);
            }
            b':' => {
                target.extend_from_slice(&delta[at..at + count as usize]);
                at += count as usize;
            }
            b';' => {
                let words = target.chunks(4).map(|word| {
                    word.iter().enumerate().map(|(i, byte)| u64::from(*byte) << (24 - 8 * i)).sum::<u64>()
                });
                assert_eq!(words.sum::<u64>() % (1 << 32), count, "the checksum");
                assert_eq!((target.len() as u64, delta.len()), (length, at));
                return target;
            }
            other => panic!("no mark: {other}"),
        }
    }
}

fn is_right(base: &str, target: &str) -> Option<usize> {
    let delta = between(base, target)?;
    assert!(delta.len() < target.len());
    assert_eq!(apply(base.as_bytes(), delta.as_bytes()), target.as_bytes(), "{base:?} {target:?} {delta:?}");
    Some(delta.len())
}

#[test]
fn a_small_change_is_a_small_delta() {
    let state = |n: u32| {
        let rows: Vec<String> =
            (0..200).map(|i| format!("{{\"row\":{i},\"at\":{}}}", if i == 90 { n } else { i })).collect();
        format!("[{}]", rows.join(","))
    };
    assert!(is_right(&state(1), &state(77_777)).expect("a delta") < 60);
    assert!(is_right(&state(1), &state(1)).expect("a delta") < 20);
}

#[test]
fn what_has_nothing_in_common_has_no_delta() {
    for (base, target) in
        [("", ""), ("", "a"), ("a", ""), ("short", "short"), (&"a".repeat(99), &"b".repeat(99))]
    {
        assert_eq!(is_right(base, target), None, "{base:?} {target:?}");
    }
}

#[test]
fn a_delta_never_cuts_a_character() {
    let base = format!("{{\"text\":\"{}ä{}\"}}", "–".repeat(40), "y".repeat(40));
    let target = format!("{{\"text\":\"{}ö{}\"}}", "–".repeat(40), "y".repeat(40));
    assert!(is_right(&base, &target).is_some());
}

/// Two texts that have parts in common.
fn relatives() -> impl Strategy<Value = (String, String)> {
    let part = prop_oneof!["[a-c]{0,40}", "[\u{0}-\u{7ff}]{0,30}", "\\PC{0,20}"];
    (
        prop::collection::vec(part, 1..8),
        prop::collection::vec((any::<prop::sample::Index>(), "\\PC{0,6}"), 0..12),
    )
        .prop_map(|(parts, picks)| {
            let target = picks.iter().map(|(pick, new)| format!("{}{new}", pick.get(&parts))).collect();
            (parts.concat(), target)
        })
}

proptest! {
    #[test]
    fn a_delta_applied_gives_the_target((base, target) in relatives()) {
        is_right(&base, &target);
    }

    #[test]
    fn an_edit_in_the_middle_is_found(
        before in "[ -~]{40,200}", after in "[ -~]{40,200}", old in "\\PC{0,9}", new in "\\PC{0,9}",
    ) {
        let (base, target) = (format!("{before}{old}{after}"), format!("{before}{new}{after}"));
        prop_assert!(is_right(&base, &target).is_some());
    }
}
