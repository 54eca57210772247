//! Differences between two texts in the format of Fossil (protocol §9.1): copies from the text that
//! the client has, and what is new between them. Only makes them; clients apply them.
//! Must hold: applied to the base a delta gives the target byte for byte, and it is UTF-8.

#[cfg(test)]
mod tests;

use super::json::push_number_64;

/// Bytes that are compared by one hash, and the least that is worth a copy.
const BLOCK: usize = 16;
/// Positions in the base with the same hash that are tried.
const MAX_CANDIDATES: usize = 8;
/// A place in the base that is none.
const NONE: u32 = u32::MAX;

/// What turns `base` into `target`; `None` where that would not be shorter than `target` itself.
pub fn between(base: &str, target: &str) -> Option<String> {
    let mut delta = String::with_capacity(64);
    push_number_64(&mut delta, target.len() as u64);
    delta.push('\n');
    let blocks = Blocks::of(base.as_bytes())?;
    let (mut emitted, mut at) = (0, 0);
    let mut hash = Hash::default();
    while at + BLOCK <= target.len() && delta.len() < target.len() {
        hash.move_to(target.as_bytes(), at);
        match blocks.longest(target, emitted, at, hash.value()) {
            Some(copy) => {
                push_literal(&mut delta, &target[emitted..copy.start]);
                push_number_64(&mut delta, copy.length as u64);
                delta.push('@');
                push_number_64(&mut delta, copy.from as u64);
                delta.push(',');
                emitted = copy.start + copy.length;
                at = emitted;
            }
            None => at += 1,
        }
    }
    push_literal(&mut delta, &target[emitted..]);
    push_number_64(&mut delta, checksum(target.as_bytes()).into());
    delta.push(';');
    (delta.len() < target.len()).then_some(delta)
}

fn push_literal(delta: &mut String, text: &str) {
    if !text.is_empty() {
        push_number_64(delta, text.len() as u64);
        delta.push(':');
        delta.push_str(text);
    }
}

/// The target as big-endian words, the last one filled up with zeros, added together.
fn checksum(target: &[u8]) -> u32 {
    let word = |bytes: &[u8]| {
        let mut word = [0; 4];
        word[..bytes.len()].copy_from_slice(bytes);
        u32::from_be_bytes(word)
    };
    target.chunks(4).fold(0, |sum, bytes| sum.wrapping_add(word(bytes)))
}

/// Part of the target that stands in the base.
struct Copy {
    start: usize,
    length: usize,
    from: usize,
}

/// The blocks of the base by their hashes.
struct Blocks<'b> {
    base: &'b [u8],
    /// The first block of each hash.
    first: Vec<u32>,
    /// The next block of the same hash.
    next: Vec<u32>,
}

impl<'b> Blocks<'b> {
    /// `None` for a base that is too short or too long to be copied from.
    fn of(base: &'b [u8]) -> Option<Self> {
        let count = base.len() / BLOCK;
        if count == 0 || u32::try_from(base.len()).is_err() {
            return None;
        }
        let mut first = vec![NONE; count.next_power_of_two() * 2];
        let mut next = vec![NONE; count];
        // From the end, so that the chains begin with what stands first.
        for block in (0..count).rev() {
            let mut hash = Hash::default();
            hash.move_to(base, block * BLOCK);
            let slot = hash.value() as usize & (first.len() - 1);
            next[block] = std::mem::replace(&mut first[slot], block as u32);
        }
        Some(Self { base, first, next })
    }

    /// The longest copy that has the block of `target` at `at` in it and begins at `emitted` or later.
    fn longest(&self, target: &str, emitted: usize, at: usize, hash: u32) -> Option<Copy> {
        let bytes = target.as_bytes();
        let mut block = self.first[hash as usize & (self.first.len() - 1)];
        let mut best: Option<Copy> = None;
        for _ in 0..MAX_CANDIDATES {
            if block == NONE {
                break;
            }
            let from = block as usize * BLOCK;
            if self.base[from..from + BLOCK] == bytes[at..at + BLOCK] {
                let after = common(self.base[from + BLOCK..].iter(), bytes[at + BLOCK..].iter());
                let before = common(self.base[..from].iter().rev(), bytes[emitted..at].iter().rev());
                // What stands between two copies must be whole characters.
                let (mut start, mut end) = (at - before, at + BLOCK + after);
                while !target.is_char_boundary(start) {
                    start += 1;
                }
                while !target.is_char_boundary(end) {
                    end -= 1;
                }
                let copy = Copy { start, length: end - start, from: from + start - at };
                if best.as_ref().is_none_or(|best| best.length < copy.length) {
                    best = Some(copy);
                }
            }
            block = self.next[block as usize];
        }
        best
    }
}

/// How many bytes are the same from the start.
fn common<'a>(a: impl Iterator<Item = &'a u8>, b: impl Iterator<Item = &'a u8>) -> usize {
    a.zip(b).take_while(|(a, b)| a == b).count()
}

/// A hash of [`BLOCK`] bytes that moves on by one byte at the price of one.
#[derive(Default)]
struct Hash {
    sum: u16,
    weighted: u16,
    at: Option<usize>,
}

impl Hash {
    fn move_to(&mut self, bytes: &[u8], at: usize) {
        if at > 0 && self.at == Some(at - 1) {
            let (old, new) = (u16::from(bytes[at - 1]), u16::from(bytes[at + BLOCK - 1]));
            self.sum = self.sum.wrapping_sub(old).wrapping_add(new);
            self.weighted = self.weighted.wrapping_sub(old.wrapping_mul(BLOCK as u16)).wrapping_add(self.sum);
        } else {
            (self.sum, self.weighted) = (0, 0);
            for byte in &bytes[at..at + BLOCK] {
                self.sum = self.sum.wrapping_add(u16::from(*byte));
                self.weighted = self.weighted.wrapping_add(self.sum);
            }
        }
        self.at = Some(at);
    }

    /// Mixed, because neighbours differ in few bits.
    fn value(&self) -> u32 {
        let both = u32::from(self.sum) | u32::from(self.weighted) << 16;
        both.wrapping_mul(0x9e37_79b1).rotate_right(15)
    }
}
