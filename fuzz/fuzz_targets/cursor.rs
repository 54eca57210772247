//! Reading a cursor never panics, and a cursor that was read prints to one that means the same.
#![no_main]

use campanile::domain::cursor::Cursor;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(cursor) = Cursor::parse(text) {
        assert_eq!(Cursor::parse(&cursor.to_string()), Ok(cursor));
    }
});
