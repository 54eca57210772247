//! Messages in, frames out: nothing lost, nothing reordered, never more than allowed.

use super::*;
use crate::protocol::json::tests::check;

fn add(frames: &mut Frames, message: &str) {
    frames.add(|out| out.push_str(message));
}

#[test]
fn a_frame_holds_messages_with_line_feeds_between_them() {
    let mut frames = Frames::new();
    assert!(frames.is_empty());
    assert_eq!(frames.take(), Vec::<String>::new());
    add(&mut frames, "{}");
    assert_eq!(frames.take(), ["{}"]);
    add(&mut frames, "1");
    add(&mut frames, "2");
    assert!(!frames.is_empty());
    assert_eq!(frames.take(), ["1\n2"]);
    assert!(frames.is_empty());
}

#[test]
fn a_message_of_nothing_is_no_message() {
    let mut frames = Frames::new();
    for message in ["", "1", "", "2", ""] {
        add(&mut frames, message);
    }
    assert_eq!(frames.take(), ["1\n2"]);
    add(&mut frames, "");
    assert!(frames.is_empty());
    assert_eq!(frames.take(), Vec::<String>::new());
}

#[test]
fn the_seventeenth_message_begins_a_frame() {
    check(50, 0..100_usize, |count| {
        let mut frames = Frames::new();
        for number in 0..count {
            add(&mut frames, &number.to_string());
        }
        let frames = frames.take();
        let sizes: Vec<usize> = frames.iter().map(|frame| frame.split('\n').count()).collect();
        let (last, full) = sizes.split_last().map_or((0, &[][..]), |(last, full)| (*last, full));
        assert!(full.iter().all(|size| *size == MAX_MESSAGES) && last <= MAX_MESSAGES);
        let read: Vec<usize> =
            frames.iter().flat_map(|frame| frame.split('\n')).map(|n| n.parse().unwrap()).collect();
        assert_eq!(read, (0..count).collect::<Vec<_>>());
        Ok(())
    });
}
