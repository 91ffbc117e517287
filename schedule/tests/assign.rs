//! Cuts of a model into stages, against all cuts there are.

use weft_schedule::assign::{Assignment, Shape, Unit, assign, given};

/// Numbers that look random and are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}

fn units(n: usize, numbers: &mut Numbers) -> Vec<Unit> {
    let unit = |i: usize| {
        let ends = i == 0 || i + 1 == n;
        Unit {
            name: format!("unit {i}"),
            time: 1.0 + numbers.below(9) as f64,
            weight_bytes: 1.0 + numbers.below(9) as f64,
            activation_bytes: numbers.below(5) as f64,
            shares: if ends { vec![(3, 7.0)] } else { vec![] },
        }
    };
    (0..n).map(unit).collect()
}

/// Every cut of `n` units into `n_stages`.
fn cuts(n: usize, n_stages: usize) -> Vec<Vec<usize>> {
    if n_stages == 1 {
        return vec![vec![0, n]];
    }
    let mut all = vec![];
    for last in n_stages - 1..n {
        for mut head in cuts(last, n_stages - 1) {
            head.push(n);
            all.push(head);
        }
    }
    all
}

/// Time and bytes of every rank, from the definition.
fn cost(
    units: &[Unit],
    cut: &[usize],
    shape: Shape,
    ranks: usize,
    live: &[usize],
) -> Vec<(f64, f64)> {
    let n_stages = cut.len() - 1;
    let on = |stage: usize, rank: usize| match shape {
        Shape::Looped { .. } => stage % ranks == rank,
        Shape::V => stage == rank || stage == 2 * ranks - 1 - rank,
        Shape::Mirrored => stage == rank || stage == ranks - 1 - rank,
    };
    let mut all = vec![];
    for rank in 0..ranks {
        let (mut time, mut bytes, mut has_shared) = (0.0, 0.0, false);
        for stage in (0..n_stages).filter(|s| on(*s, rank)) {
            for unit in &units[cut[stage]..cut[stage + 1]] {
                time += unit.time;
                bytes += unit.weight_bytes + unit.activation_bytes * live[stage] as f64;
                has_shared |= !unit.shares.is_empty();
            }
        }
        all.push((time, bytes + if has_shared { 7.0 } else { 0.0 }));
    }
    all
}

fn worst(costs: &[(f64, f64)]) -> (f64, f64) {
    costs.iter().fold((0.0, 0.0), |w, c| (w.0.max(c.0), w.1.max(c.1)))
}

#[test]
fn the_slowest_rank_is_as_fast_as_any_cut_allows() {
    let mut numbers = Numbers(7);
    let shapes = [
        (Shape::Looped { stages_per_rank: 1 }, 3, 3),
        (Shape::Looped { stages_per_rank: 1 }, 1, 1),
        (Shape::V, 2, 4),
        (Shape::V, 1, 2),
        (Shape::V, 3, 6),
        (Shape::Mirrored, 4, 4),
        (Shape::Mirrored, 2, 2),
    ];
    let (mut n_tight, mut n_none) = (0, 0);
    for (shape, ranks, n_stages) in shapes {
        for n in n_stages..n_stages + 6 {
            for _ in 0..4 {
                let units = units(n, &mut numbers);
                let live: Vec<usize> =
                    (0..n_stages).map(|_| 1 + numbers.below(4) as usize).collect();
                let all: Vec<(f64, f64)> = cuts(n, n_stages)
                    .iter()
                    .map(|c| worst(&cost(&units, c, shape, ranks, &live)))
                    .collect();
                let least = all.iter().map(|c| c.1).fold(f64::INFINITY, f64::min);
                for bound in [None, Some(least * 1.2), Some(least), Some(least - 0.5)] {
                    let fits = all.iter().filter(|c| bound.is_none_or(|b| c.1 <= b));
                    let want = fits.map(|c| c.0).fold(f64::INFINITY, f64::min);
                    let found = assign(&units, shape, ranks, &live, bound, 0.0);
                    let Ok(found) = found else {
                        assert_eq!(want, f64::INFINITY, "{shape:?} {n} {bound:?}");
                        n_none += 1;
                        continue;
                    };
                    n_tight += usize::from(bound.is_some());
                    assert_eq!(found.slowest(), want, "{shape:?} {n} {bound:?}");
                    let again = cost(&units, &found.cuts, shape, ranks, &live);
                    let (times, bytes): (Vec<f64>, Vec<f64>) = again.into_iter().unzip();
                    assert_eq!((found.rank_time, found.rank_bytes), (times, bytes));
                }
            }
        }
    }
    assert!(n_tight > 100 && n_none > 100, "{n_tight} {n_none}");
}

#[test]
fn stages_around_a_loop_are_within_their_memory_and_near_the_best() {
    let mut numbers = Numbers(3);
    let (mut found_sum, mut best_sum) = (0.0, 0.0);
    for _ in 0..40 {
        let units = units(11, &mut numbers);
        let live = [4, 3, 2, 1];
        let shape = Shape::Looped { stages_per_rank: 2 };
        let all = cuts(11, 4);
        let best = all.iter().map(|c| worst(&cost(&units, c, shape, 2, &live)).0);
        let found = assign(&units, shape, 2, &live, None, 0.0).expect("a cut");
        assert!(all.contains(&found.cuts));
        found_sum += found.slowest();
        best_sum += best.fold(f64::INFINITY, f64::min);
    }
    // It is no proof of the best; measured: 0.5 % above it in sum.
    assert!(found_sum <= best_sum * 1.01, "{found_sum} {best_sum}");
}

fn plain(n: usize, time: impl Fn(usize) -> f64) -> Vec<Unit> {
    let unit = |i: usize| Unit {
        name: format!("unit {i}"),
        time: time(i),
        weight_bytes: 1e9,
        activation_bytes: 0.0,
        shares: vec![],
    };
    (0..n).map(unit).collect()
}

fn lengths(a: &Assignment) -> Vec<usize> {
    a.cuts.windows(2).map(|w| w[1] - w[0]).collect()
}

#[test]
fn a_heavy_end_gets_fewer_layers() {
    // 14 layers, and a head as heavy as two.
    let units = plain(15, |i| if i == 14 { 2.0 } else { 1.0 });
    let a =
        assign(&units, Shape::Looped { stages_per_rank: 1 }, 4, &[1; 4], None, 0.0).expect("a cut");
    assert_eq!((lengths(&a), a.slowest()), (vec![4, 4, 4, 3], 4.0));
    // Mirrored, the pair of the first and last stage may share it unevenly.
    let a = assign(&units, Shape::Mirrored, 4, &[1; 4], None, 0.0).expect("a cut");
    assert_eq!((a.slowest(), a.rank_time), (8.0, vec![8.0; 4]));
}

#[test]
fn slack_gives_up_ranks_for_stages() {
    // Mirrored ranks are even with stages of 1, 4, 4 and 1, or all but even with stages alike.
    let times = [1.0, 2.0, 2.1, 2.0, 2.0, 1.0];
    let units = plain(6, |i| times[i]);
    let cut = |slack| assign(&units, Shape::Mirrored, 4, &[1; 4], None, slack).expect("a cut");
    let worst = |a: &Assignment| {
        let stage = |s: usize| times[a.stage(s)].iter().sum::<f64>();
        (0..4).map(stage).fold(0.0, f64::max)
    };
    let (tight, loose) = (cut(0.0), cut(0.5));
    assert!(loose.slowest() >= tight.slowest() && loose.slowest() <= 1.5 * tight.slowest());
    assert!(worst(&loose) <= worst(&tight));
    let all = cuts(6, 4).into_iter().map(|c| {
        let time = |s: usize| times[c[s]..c[s + 1]].iter().sum::<f64>();
        (0..4).map(time).fold(0.0, f64::max)
    });
    assert_eq!(worst(&cut(9.0)), all.fold(f64::INFINITY, f64::min));
}

#[test]
fn what_cannot_be_cut_says_by_how_much() {
    let shape = Shape::Looped { stages_per_rank: 1 };
    let refuse = |n: usize, ranks: usize, bound: Option<f64>, want: &str| {
        let e = assign(&plain(n, |_| 1.0), shape, ranks, &vec![1; ranks], bound, 0.0)
            .expect_err("no cut");
        assert!(e.to_string().contains(want), "{e}");
    };
    refuse(3, 4, None, "4 stages need as many units, and there are 3; the nearest is 3 stages");
    refuse(8, 4, Some(1.5e9), "fits 1.50 GB a rank: the fullest rank has 2.00 GB at least");
    let e = assign(&plain(9, |_| 1.0), Shape::Mirrored, 3, &[1; 3], None, 0.0).expect_err("no cut");
    assert!(e.to_string().contains("an even number, not 3"), "{e}");
}

#[test]
fn a_cut_that_is_given_is_taken_and_one_that_cannot_be_is_refused() {
    let units = units(6, &mut Numbers(5));
    let times: Vec<f64> = units.iter().map(|u| u.time).collect();
    let cut = |counts: &[usize]| given(&units, Shape::V, 2, &[1; 4], counts);
    let found = cut(&[1, 2, 1, 2]).expect("a cut");
    assert_eq!(found.cuts, [0, 1, 3, 4, 6]);
    let outer = times[0] + times[4] + times[5];
    assert_eq!(found.rank_time, [outer, times.iter().sum::<f64>() - outer]);
    for wrong in [&[1, 2, 3][..], &[1, 2, 1, 3], &[3, 3, 0, 0]] {
        let why = cut(wrong).expect_err("no cut").to_string();
        assert!(why.starts_with("4 stages share 6 units, at least one each"), "{why}");
    }
}
