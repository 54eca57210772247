//! Random choices by seed: the same seed plans the same run. Who draws first must not matter, so every
//! part of a plan derives a generator of its own, named by its place. Nothing secret is made of it.

use std::ops::Range;
use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest as _, Sha256};

/// A generator.
#[derive(Debug, Clone)]
pub struct Random(ChaCha8Rng);

impl Random {
    /// The generator of a seed.
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// The generator of one part of the plan; does not advance this one.
    pub fn derive(&self, part: &str, number: usize) -> Self {
        let place = Sha256::new().chain_update(self.0.get_seed()).chain_update(part);
        let seed = place.chain_update(number.to_le_bytes()).finalize();
        Self(ChaCha8Rng::from_seed(seed.into()))
    }

    /// A seed for another plan.
    pub fn seed(&mut self) -> u64 {
        self.0.random()
    }

    /// A number of the range, which is not empty.
    pub fn within(&mut self, range: Range<u64>) -> u64 {
        self.0.random_range(range)
    }

    /// A time of so many milliseconds.
    pub fn millis(&mut self, range: Range<u64>) -> Duration {
        Duration::from_millis(self.within(range))
    }

    /// True once in so many times.
    pub fn once_in(&mut self, times: u32) -> bool {
        self.0.random_ratio(1, times)
    }

    /// One of these, of which there is at least one.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.0.random_range(0..choices.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_plans_the_same_again_and_another_one_something_else() {
        let draw = |seed: u64, part: &str, number: usize| {
            let mut random = Random::new(seed).derive(part, number);
            (0..4).map(|_| random.within(0..1000)).collect::<Vec<_>>()
        };
        assert_eq!(draw(7, "subscriber", 1), draw(7, "subscriber", 1));
        for other in [draw(8, "subscriber", 1), draw(7, "subscriber", 2), draw(7, "nemesis", 1)] {
            assert_ne!(draw(7, "subscriber", 1), other);
        }
    }
}
