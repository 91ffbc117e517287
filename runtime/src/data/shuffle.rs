//! A random order of `0..n` that is computed, not stored: memory does not grow with the corpus and
//! any position can be asked for at once.
//!
//! A Feistel network permutes the smallest power of four that holds n; an output outside `0..n` is
//! permuted again until it falls inside (cycle walking), which takes fewer than four rounds on
//! average and keeps the map one to one.

use crate::train::philox::philox4x32_10;

/// Four rounds make the order of a Feistel network with random rounds a random permutation to any
/// test that does not know the key (Luby and Rackoff); two more cost nothing beside reading a file.
const N_ROUNDS: u32 = 6;

/// The order of one epoch.
#[derive(Clone, Copy, Debug)]
pub struct Permutation {
    n: u64,
    half_bits: u32,
    seed: u64,
    epoch: u64,
}

impl Permutation {
    pub fn new(n: u64, seed: u64, epoch: u64) -> Self {
        let bits = u64::BITS - n.saturating_sub(1).leading_zeros();
        Self { n, half_bits: bits.div_ceil(2).max(1), seed, epoch }
    }

    /// The item at `position`, which is below n.
    pub fn at(&self, position: u64) -> u64 {
        debug_assert!(position < self.n);
        let mut x = position;
        loop {
            x = self.feistel(x);
            if x < self.n {
                return x;
            }
        }
    }

    fn feistel(&self, x: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (x >> self.half_bits, x & mask);
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        for round in 0..N_ROUNDS {
            let counter = [right as u32, round, self.epoch as u32, (self.epoch >> 32) as u32];
            let mixed = left ^ (u64::from(philox4x32_10(counter, key)[0]) & mask);
            (left, right) = (right, mixed);
        }
        left << self.half_bits | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(n: u64, seed: u64, epoch: u64) -> Vec<u64> {
        let permutation = Permutation::new(n, seed, epoch);
        (0..n).map(|i| permutation.at(i)).collect()
    }

    #[test]
    fn every_item_appears_once() {
        for n in [1, 2, 3, 4, 5, 16, 17, 100, 1000, 4097] {
            let mut items = order(n, 3, 1);
            items.sort_unstable();
            assert!(items.into_iter().eq(0..n), "n = {n}");
        }
    }

    #[test]
    fn seeds_and_epochs_give_other_orders() {
        let one = order(100, 1, 0);
        assert_eq!(one, order(100, 1, 0));
        assert_ne!(one, order(100, 2, 0));
        assert_ne!(one, order(100, 1, 1));
    }

    #[test]
    fn items_move_far_from_their_place() {
        let n = 10_000;
        let moved: u64 = order(n, 1, 0).iter().zip(0..).map(|(&x, i)| x.abs_diff(i)).sum();
        // The mean distance of two uniform draws is n / 3.
        let mean = moved as f64 / n as f64;
        assert!((mean / n as f64 - 1.0 / 3.0).abs() < 0.02, "mean distance {mean}");
    }
}
