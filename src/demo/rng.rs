//! A pseudo-random generator with a seed: SplitMix64, a dozen lines that never change under us, so that a
//! seed means the same deliveries in every version. Not for secrets.

use uuid::{Builder, Uuid};

pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0, below `end` (which is above 0).
    pub fn below(&mut self, end: u64) -> u64 {
        self.next_u64() % end.max(1)
    }

    /// True with this chance in percent.
    pub fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// 40 hex digits, as of a commit.
    pub fn sha(&mut self) -> String {
        format!("{:016x}{:016x}{:08x}", self.next_u64(), self.next_u64(), self.next_u64() as u32)
    }

    pub fn uuid(&mut self) -> Uuid {
        let random = Uuid::from_u64_pair(self.next_u64(), self.next_u64());
        Builder::from_random_bytes(random.into_bytes()).into_uuid()
    }
}
