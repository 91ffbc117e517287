//! How often an exchange needs further rounds, and how many rows come in them: the odds that more
//! rows come to some rank than it has room for.
//!
//! A rank's share of all rows is what its places have of the load, copies of an expert sharing
//! evenly. Choices are taken for independent, so what comes to a rank is binomial, here as a normal
//! distribution with its mean and variance; and ranks for independent of each other. A token's
//! choices differ from each other, which spreads rows more evenly than that, and tokens of one text
//! resemble each other, which does the opposite: an estimate. All ranks take part in as many rounds
//! as the fullest needs; the rows of one are those that the rank with most has left.

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
    /// And each of those rounds, while there are exchanges that have it.
    pub further: Vec<Vec<Round>>,
}

/// A round behind the first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Round {
    /// The share of exchanges that have it.
    pub odds: f64,
    /// Rows of the fullest rank in it.
    pub rows: f64,
}

/// Rarer rounds take no time.
const RARE: f64 = 1e-6;

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
    let mut further = vec![];
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
        let own = places.chunks(places.len() / n.max(1) as usize);
        let shares: Vec<f64> = own.map(|own| own.iter().map(load).sum()).collect();
        let of_layer = (1..).map_while(|k| round(all, &shares, (room * k) as f64, room as f64));
        further.push(if total > 0.0 { of_layer.collect() } else { vec![] });
    }
    let odds = further.iter().map(|r: &Vec<Round>| r.first().map_or(0.0, |r| r.odds)).collect();
    Ok(Rounds { rows, room, odds, further })
}

/// The round for what `done` rows of a rank leave, if it is not rare.
fn round(all: f64, shares: &[f64], done: f64, room: f64) -> Option<Round> {
    let fits = shares.iter().map(|p| 1.0 - above(all, *p, done));
    let odds = 1.0 - fits.product::<f64>();
    let left = shares.iter().map(|p| left(all, *p, done)).fold(0.0, f64::max);
    (odds > RARE && done < all).then_some(Round { odds, rows: left.clamp(1.0, room) })
}

/// Of `n` choices with probability `p`, how many above `done` come true on average where any do.
fn left(n: f64, p: f64, done: f64) -> f64 {
    let deviation = (n * p * (1.0 - p)).max(0.0).sqrt();
    let odds = above(n, p, done);
    let over = done + 0.5 - n * p;
    if deviation == 0.0 || odds < RARE * RARE {
        return (n * p - done).max(0.0);
    }
    let z = over / deviation;
    let density = (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    // The mean of what is cut off a normal distribution; half a row was added for whole numbers.
    deviation * density / odds - over + 0.5
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

    /// Against the binomial distribution itself: how many rounds, and rows left for the second.
    #[test]
    fn what_is_left_is_near_that_of_a_binomial() {
        let (n, p, room) = (256u32, 0.25f64, 72u32);
        let mut probability = (1.0 - p).powi(n as i32);
        let (mut odds, mut rows) = (0.0, 0.0);
        for k in 1..=n {
            probability *= f64::from(n - k + 1) / f64::from(k) * p / (1.0 - p);
            if k > room {
                odds += probability;
                rows += probability * f64::from(k - room);
            }
        }
        let found = round(f64::from(n), &[p], f64::from(room), f64::from(room)).expect("a round");
        assert!((found.odds - odds).abs() < 5e-3, "{found:?}, {odds}");
        assert!((found.rows - rows / odds).abs() < 0.3, "{found:?}, {}", rows / odds);
        // All rows come to one rank of four: four rounds, the last for what is left.
        let one = rounds(64, 4, 1.2, &[(vec![0, 1, 2, 3], vec![1.0, 0.0, 0.0, 0.0])]);
        let further = &one.expect("they fit").further[0];
        let certain = |rows| Round { odds: 1.0, rows };
        assert_eq!(further[..], [certain(77.0), certain(77.0), certain(25.0)]);
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
