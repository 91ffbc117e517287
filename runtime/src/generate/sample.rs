//! Choosing the next token from logits.

use super::GenerateError;
use crate::train::philox::Stream;

/// How a token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampling {
    /// The largest logit; of equals the lowest id.
    Greedy,
    /// Drawn from `softmax(logits / temperature)`, among the likeliest tokens whose shares reach
    /// `top_p` together.
    Random { temperature: f64, top_p: f64, seed: u64 },
}

/// Choices that follow from the seed and the token's number alone.
pub struct Sampler {
    sampling: Sampling,
    stream: Stream,
}

impl Sampler {
    pub fn new(sampling: Sampling) -> Result<Sampler, GenerateError> {
        let mut seed = 0;
        if let Sampling::Random { temperature, top_p, seed: given } = sampling {
            let wrong = |name, expected, found: f64| {
                Err(GenerateError::Option { name, expected, found: found.to_string() })
            };
            if !(temperature >= 0.0 && temperature.is_finite()) {
                return wrong("--temperature", "at least 0", temperature);
            }
            if !(top_p > 0.0 && top_p <= 1.0) {
                return wrong("--top-p", "above 0 and at most 1", top_p);
            }
            seed = given;
        }
        Ok(Sampler { sampling, stream: Stream::new(seed, "generate") })
    }

    /// The token after `n_before` chosen ones.
    pub fn choose(&self, logits: &[f32], n_before: u64) -> u32 {
        match self.sampling {
            Sampling::Greedy => largest(logits),
            Sampling::Random { temperature: 0.0, .. } => largest(logits),
            Sampling::Random { temperature, top_p, .. } => {
                draw(logits, temperature, top_p, self.stream.uniform(0, n_before))
            }
        }
    }
}

fn largest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, x) in logits.iter().enumerate() {
        if *x > logits[best] {
            best = id;
        }
    }
    best as u32
}

/// The token at `u` of the way through the shares, likeliest first.
fn draw(logits: &[f32], temperature: f64, top_p: f64, u: f64) -> u32 {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    // A stable sort: of equals the lowest id comes first.
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    let top = f64::from(logits[order[0]]);
    let shares: Vec<f64> =
        order.iter().map(|id| ((f64::from(logits[*id]) - top) / temperature).exp()).collect();
    let total: f64 = shares.iter().sum();
    let mut kept = 0.0;
    let mut n_kept = 0;
    for share in &shares {
        kept += share;
        n_kept += 1;
        if kept >= top_p * total {
            break;
        }
    }
    let mut left = u * kept;
    for (id, share) in order.iter().zip(&shares[..n_kept]) {
        left -= share;
        if left < 0.0 {
            return *id as u32;
        }
    }
    order[n_kept - 1] as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_takes_the_lowest_of_equals() {
        let sampler = Sampler::new(Sampling::Greedy).unwrap();
        assert_eq!(sampler.choose(&[1.0, 3.0, 3.0], 0), 1);
    }

    #[test]
    fn draws_have_the_shares_of_softmax() {
        let logits = [0.0f32, 1.0, 2.0, -1.0];
        let total: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
        let n = 20_000;
        let random = Sampling::Random { temperature: 1.0, top_p: 1.0, seed: 3 };
        let sampler = Sampler::new(random).unwrap();
        let mut counts = [0.0; 4];
        for i in 0..n {
            counts[sampler.choose(&logits, i) as usize] += 1.0;
        }
        for (count, x) in counts.iter().zip(logits) {
            let p = f64::from(x).exp() / total;
            let five_sigma = 5.0 * (p * (1.0 - p) / n as f64).sqrt();
            assert!((count / n as f64 - p).abs() < five_sigma, "{count} of {n} for {p}");
        }
    }

    #[test]
    fn top_p_leaves_the_unlikely_out() {
        // Shares 0.67, 0.24, 0.09: the first two reach 0.9.
        let logits = [2.0f32, 1.0, 0.0];
        for i in 0..1000 {
            assert_ne!(draw(&logits, 1.0, 0.9, f64::from(i) / 1000.0), 2);
        }
        assert_eq!(draw(&logits, 1.0, 0.5, 0.999), 0);
        assert_eq!(draw(&logits, 1.0, 1.0, 0.999), 2);
    }

    #[test]
    fn wrong_options_are_named() {
        let random = |temperature, top_p| Sampling::Random { temperature, top_p, seed: 0 };
        let message = |s| Sampler::new(s).err().map(|e| e.to_string());
        let expect = "--top-p: expected above 0 and at most 1, found 0";
        assert_eq!(message(random(1.0, 0.0)).as_deref(), Some(expect));
        assert_eq!(message(random(1.0, 0.9)), None);
    }
}
