//! How often an exchange needs further rounds: the odds that more rows come to some rank than it
//! has room for.
//!
//! A rank's share of all rows is what its places have of the load, copies of an expert sharing
//! evenly. Choices are taken for independent, so what comes to a rank is binomial, here as a normal
//! distribution with its mean and variance; and ranks for independent of each other. A token's
//! choices differ from each other, which spreads rows more evenly than that, and tokens of one text
//! resemble each other, which does the opposite: an estimate.

use crate::PlanError;

/// Rows that come to a rank in an exchange, and its room.
#[derive(Clone, Debug, PartialEq)]
pub struct Rounds {
    /// Of a micro-batch: what a rank sends, and gets on average.
    pub rows: u64,
    /// That it has room for.
    pub room: u64,
    /// For each layer: the share of exchanges with further rounds.
    pub odds: Vec<f64>,
}

/// Of `rows` that each of `n` ranks sends; `layers` has the expert at each place and what experts
/// were chosen for, for each layer.
pub fn rounds(
    rows: u64,
    n: u64,
    capacity: f64,
    layers: &[(Vec<u64>, Vec<f64>)],
) -> Result<Rounds, PlanError> {
    let room = (rows as f64 * capacity).ceil() as u64;
    let all = (rows * n) as f64;
    let mut odds = vec![];
    for (places, loads) in layers {
        if places.is_empty() || !places.len().is_multiple_of(n.max(1) as usize) {
            return Err(PlanError(format!("{n} ranks do not divide {} places", places.len())));
        }
        if let Some(e) = places.iter().find(|e| **e as usize >= loads.len()) {
            let why = format!("a place for expert {e}, and loads of {} experts", loads.len());
            return Err(PlanError(why));
        }
        let mut copies = vec![0.0; loads.len()];
        places.iter().for_each(|e| copies[*e as usize] += 1.0);
        let total: f64 = loads.iter().sum();
        let load = |e: &u64| loads[*e as usize] / copies[*e as usize] / total;
        let shares = places.chunks(places.len() / n.max(1) as usize);
        let fits = shares.map(|own| 1.0 - above(all, own.iter().map(load).sum(), room as f64));
        odds.push(if total > 0.0 { 1.0 - fits.product::<f64>() } else { 0.0 });
    }
    Ok(Rounds { rows, room, odds })
}

/// The odds that of `n` choices with probability `p` more than `room` come true.
fn above(n: f64, p: f64, room: f64) -> f64 {
    let deviation = (n * p * (1.0 - p)).max(0.0).sqrt();
    let over = room + 0.5 - n * p;
    match deviation == 0.0 {
        true => f64::from(u8::from(over < 0.0)),
        false => tail(over / deviation),
    }
}

/// The share of a normal distribution above `z` deviations, by Simpson's rule.
fn tail(z: f64) -> f64 {
    const STEPS: usize = 2000;
    if z < 0.0 {
        return 1.0 - tail(-z);
    }
    let density = |x: f64| (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let step = 12.0 / STEPS as f64;
    let weight = |i: usize| match i {
        0 | STEPS => 1.0,
        _ if i % 2 == 1 => 4.0,
        _ => 2.0,
    };
    let sum: f64 = (0..=STEPS).map(|i| weight(i) * density(z + i as f64 * step)).sum();
    sum * step / 3.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_are_those_of_tables() {
        for (z, expected) in
            [(0.0, 0.5), (1.0, 0.158_655_254), (3.0, 1.349_898_03e-3), (-1.0, 0.841_344_746)]
        {
            assert!((tail(z) - expected).abs() < 1e-8, "{z}: {}", tail(z));
        }
    }

    /// Against the binomial distribution itself.
    #[test]
    fn odds_are_near_those_of_a_binomial() {
        let (n, p, room) = (256.0f64, 0.25f64, 76u32);
        let mut probability = (1.0 - p).powf(n);
        let mut at_most = probability;
        for k in 1..=room {
            probability *= (n - f64::from(k) + 1.0) / f64::from(k) * p / (1.0 - p);
            at_most += probability;
        }
        let found = above(n, p, f64::from(room));
        assert!((found - (1.0 - at_most)).abs() < 5e-3, "{found}, {}", 1.0 - at_most);
    }

    #[test]
    fn copies_of_what_is_popular_make_rounds_rare() {
        let loads = vec![5.0, 1.0, 1.0, 1.0];
        let of = |places: Vec<u64>| {
            rounds(512, 4, 1.25, &[(places, loads.clone())]).expect("places and loads fit").odds[0]
        };
        let (one_each, copied) = (of(vec![0, 1, 2, 3]), of(vec![0, 1, 0, 2, 0, 3, 0, 0]));
        assert!(one_each > 0.999 && copied < 0.9 * one_each, "{one_each}, {copied}");
        let even = rounds(512, 4, 1.25, &[(vec![0, 1, 2, 3], vec![1.0; 4])]).expect("they fit");
        assert!(even.room == 640 && even.odds[0] < 1e-6, "{even:?}");
        assert!(rounds(8, 3, 1.0, &[(vec![0, 1], vec![1.0; 2])]).is_err());
    }
}
