//! Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy
//! as 1, 2, 3", SC 2011).
//!
//! A draw is a pure function of (seed, name, step, index). Nothing is carried from draw to draw, so
//! a value does not depend on layout, on threads, or on what else was drawn, and resuming a run
//! needs no generator state beyond the seed.

/// Odd multipliers of the two halves, and the Weyl increments of the key (paper, table 2).
const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const N_ROUNDS: usize = 10;

/// 2^-32: scales a word to [0, 1).
const WORD_SCALE: f64 = 1.0 / 4_294_967_296.0;

/// One block: 128 bits of counter under a 64-bit key give 128 random bits.
pub fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..N_ROUNDS {
        let p0 = u64::from(MULTIPLIER[0]) * u64::from(c0);
        let p1 = u64::from(MULTIPLIER[1]) * u64::from(c2);
        (c0, c1, c2, c3) =
            ((p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [c0, c1, c2, c3]
}

/// The random numbers of one name: a weight's path, or what the numbers are for.
///
/// The key is a hash of seed and name; the counter is (index / 4, step), and `index % 4` picks the
/// word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    key: [u32; 2],
}

impl Stream {
    pub fn new(seed: u64, name: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes()).update(name.as_bytes());
        let hash = hasher.finalize();
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| hash.as_bytes()[at + i]));
        Self { key: [word(0), word(4)] }
    }

    fn block(&self, step: u64, block: u64) -> [u32; 4] {
        let counter = [block as u32, (block >> 32) as u32, step as u32, (step >> 32) as u32];
        philox4x32_10(counter, self.key)
    }

    /// 32 random bits.
    pub fn bits(&self, step: u64, index: u64) -> u32 {
        self.block(step, index / 4)[(index % 4) as usize]
    }

    /// Uniform in [0, 1), a multiple of 2^-32.
    pub fn uniform(&self, step: u64, index: u64) -> f64 {
        f64::from(self.bits(step, index)) * WORD_SCALE
    }

    /// Uniform over `0..n`, from 64 bits: two neighbouring words, so that indices of `below` are
    /// counted apart from those of `bits` by the caller's choice of name or step.
    ///
    /// The bias of the multiplication is below n / 2^64.
    pub fn below(&self, step: u64, index: u64, n: u64) -> u64 {
        let block = self.block(step, index / 2);
        let at = 2 * (index % 2) as usize;
        let word = u64::from(block[at]) << 32 | u64::from(block[at + 1]);
        ((u128::from(word) * u128::from(n)) >> 64) as u64
    }

    /// Standard normal (Box and Muller), at most 6.66 away from zero.
    pub fn normal(&self, step: u64, index: u64) -> f64 {
        let pairs = normals(self.block(step, index / 4));
        pairs[(index % 4) as usize]
    }

    /// `out[i] = mean + deviation * normal(step, first + i)`, rounded once to f32.
    pub fn fill_normal(&self, step: u64, first: u64, mean: f64, deviation: f64, out: &mut [f32]) {
        let mut block = (u64::MAX, [0.0; 4]);
        for (index, x) in (first..).zip(out) {
            if block.0 != index / 4 {
                block = (index / 4, normals(self.block(step, index / 4)));
            }
            *x = (mean + deviation * block.1[(index % 4) as usize]) as f32;
        }
    }

    /// `out[i] = low + (high - low) * uniform(step, first + i)`, rounded once to f32.
    pub fn fill_uniform(&self, step: u64, first: u64, low: f64, high: f64, out: &mut [f32]) {
        for (index, x) in (first..).zip(out) {
            *x = (low + (high - low) * self.uniform(step, index)) as f32;
        }
    }
}

/// Four words as two pairs of normals. The radius takes `word + 1`, so its logarithm is finite.
fn normals(words: [u32; 4]) -> [f64; 4] {
    let pair = |a: u32, b: u32| {
        let radius = (-2.0 * ((f64::from(a) + 1.0) * WORD_SCALE).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * f64::from(b) * WORD_SCALE).sin_cos();
        [radius * cos, radius * sin]
    };
    let ([w, x], [y, z]) = (pair(words[0], words[1]), pair(words[2], words[3]));
    [w, x, y, z]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of Random123's `kat_vectors`.
    #[test]
    fn known_answers() {
        let check = |counter, key, expect: [u32; 4]| {
            assert_eq!(philox4x32_10(counter, key), expect);
        };
        check([0; 4], [0; 2], [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        check([!0; 4], [!0; 2], [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        check(
            [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
            [0xa4093822, 0x299f31d0],
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
        );
    }

    #[test]
    fn a_draw_depends_on_seed_name_step_and_index() {
        let draw = |seed, name, step, index| Stream::new(seed, name).bits(step, index);
        let one = draw(1, "a", 2, 3);
        assert_eq!(one, draw(1, "a", 2, 3));
        for other in
            [draw(0, "a", 2, 3), draw(1, "b", 2, 3), draw(1, "a", 1, 3), draw(1, "a", 2, 2)]
        {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn filling_in_parts_equals_filling_at_once() {
        let stream = Stream::new(5, "model.norm.weight");
        let mut whole = [0.0; 23];
        stream.fill_normal(0, 0, 1.0, 0.5, &mut whole);
        let mut parts = [0.0; 23];
        stream.fill_normal(0, 0, 1.0, 0.5, &mut parts[..7]);
        stream.fill_normal(0, 7, 1.0, 0.5, &mut parts[7..]);
        assert_eq!(whole, parts);
        assert_eq!(whole[9], (1.0 + 0.5 * stream.normal(0, 9)) as f32);
    }

    #[test]
    fn normals_have_mean_zero_and_variance_one() {
        let stream = Stream::new(7, "moments");
        let n = 100_000;
        let xs: Vec<f64> = (0..n).map(|i| stream.normal(0, i)).collect();
        let mean = xs.iter().sum::<f64>() / n as f64;
        let variance = xs.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n as f64;
        // Five standard errors of each.
        assert!(mean.abs() < 5.0 / (n as f64).sqrt(), "mean {mean}");
        assert!((variance - 1.0).abs() < 5.0 * (2.0 / n as f64).sqrt(), "variance {variance}");
    }

    #[test]
    fn below_reaches_every_number_and_no_other() {
        let stream = Stream::new(9, "die");
        let mut counts = [0; 6];
        for i in 0..6000 {
            counts[stream.below(0, i, 6) as usize] += 1;
        }
        assert!(counts.iter().all(|&c| (850..1150).contains(&c)), "{counts:?}");
    }
}
