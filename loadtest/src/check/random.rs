//! Chance by seed: the same seed plans the same run. Who draws first must not matter, so every
//! part gets a source of its own, named by its place in the plan. Nothing secret is made of it.

use std::ops::Range;
use std::time::Duration;

/// SplitMix64: small, fast, and good enough to plan faults.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The source of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A source of its own for one part of the plan; does not move this one.
    pub fn of(&self, part: &str, number: usize) -> Self {
        let mut hash = self.0 ^ 0xcbf2_9ce4_8422_2325;
        for byte in part.bytes().chain((number as u64).to_le_bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        let mut source = Self(hash);
        Self(source.next())
    }

    /// Any number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number of the range, which is not empty.
    pub fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }

    /// A time of so many milliseconds.
    pub fn millis(&mut self, range: Range<u64>) -> Duration {
        Duration::from_millis(self.within(range))
    }

    /// True once in so many times.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.within(0..times) == 0
    }

    /// One of these, of which there is at least one.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.within(0..choices.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_plans_the_same_again_and_another_one_something_else() {
        let draw = |seed: u64, part: &str, number: usize| {
            let mut random = Random::new(seed).of(part, number);
            (0..4).map(|_| random.within(0..1000)).collect::<Vec<_>>()
        };
        assert_eq!(draw(7, "subscriber", 1), draw(7, "subscriber", 1));
        for other in [draw(8, "subscriber", 1), draw(7, "subscriber", 2), draw(7, "nemesis", 1)] {
            assert_ne!(draw(7, "subscriber", 1), other);
        }
    }
}
