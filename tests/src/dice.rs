//! Random choices that can be had again.

use std::time::{SystemTime, UNIX_EPOCH};

/// A small generator, so that a failure can be had again from its seed: xorshift64*, Marsaglia 2003, Vigna 2016.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// Always the same rolls.
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// Other rolls each time; a failing test prints the seed.
    pub fn seeded_by_time() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
        let seed = u64::try_from(now.as_nanos() & u128::from(u64::MAX)).expect("64 bits");
        eprintln!("seed {seed:#x}");
        Self::new(seed)
    }

    /// A number below `sides`.
    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(number).expect("31 bits") % sides.max(1)
    }

    /// Any byte.
    pub fn byte(&mut self) -> u8 {
        u8::try_from(self.roll(256)).expect("a byte")
    }

    /// Fewer than `max` bytes.
    pub fn bytes(&mut self, max: usize) -> Vec<u8> {
        (0..self.roll(max)).map(|_| self.byte()).collect()
    }
}
