//! Which stage has which part of a model: the slowest rank is as fast as can be, and every rank
//! stays within its memory.
//!
//! A model is a chain of units (embedding, layers, head, ...); a stage has some that follow one
//! another, at least one. What counts is what a rank does with one micro-batch of each stream, so
//! the stages of a rank are chosen together: with one stage a rank, in a V and mirrored the result
//! is the best there is; with stages around a loop the cut is the best by stage, then improved by
//! moving one or two of its borders. Among cuts that are equally fast the one with the
//! fastest slowest stage is taken; `slack` makes more of them equal, for schedules that wait where
//! stages differ.

use crate::ScheduleError;

/// A part of a model that is not cut.
#[derive(Clone, Debug, PartialEq)]
pub struct Unit {
    pub name: String,
    /// Forward and backward of a micro-batch.
    pub time: f64,
    /// What its weights take, gradients and optimizer states included; none of `shares`.
    pub weight_bytes: f64,
    /// What a micro-batch in flight takes.
    pub activation_bytes: f64,
    /// Weights that other units of the same number have, too; a rank holds them once. At most 64.
    pub shares: Vec<(u32, f64)>,
}

/// How stages lie on ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Stage s on rank s mod R.
    Looped { stages_per_rank: usize },
    /// Stages r and 2R - 1 - r on rank r.
    V,
    /// Stages r and R - 1 - r on ranks r and R - 1 - r, each for one direction.
    Mirrored,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Assignment {
    /// Stage s has units `cuts[s]..cuts[s + 1]`.
    pub cuts: Vec<usize>,
    /// Of one micro-batch of each stream.
    pub rank_time: Vec<f64>,
    pub rank_bytes: Vec<f64>,
}

impl Assignment {
    pub fn stage(&self, s: usize) -> std::ops::Range<usize> {
        self.cuts[s]..self.cuts[s + 1]
    }

    pub fn slowest(&self) -> f64 {
        self.rank_time.iter().copied().fold(0.0, f64::max)
    }
}

/// Cuts `units`. `live[s]` is how many micro-batches stage s has in flight, `bytes_max` what a rank
/// may hold, `slack` by what share the slowest rank may be slower than it must.
pub fn assign(
    units: &[Unit],
    shape: Shape,
    n_ranks: usize,
    live: &[usize],
    bytes_max: Option<f64>,
    slack: f64,
) -> Result<Assignment, ScheduleError> {
    let found = assign_each(units, shape, n_ranks, live, bytes_max, &[slack])?;
    if let Some(one) = found.and_then(|all| all.into_iter().next()) {
        return Ok(one);
    }
    Err(ScheduleError(format!(
        "no cut of {} units into {} stages fits {:.2} GB a rank: the fullest rank has {:.2} GB at \
         least",
        units.len(),
        live.len(),
        bytes_max.unwrap_or(f64::INFINITY) / 1e9,
        Problem::new(units, shape, n_ranks, live).least_bytes() / 1e9
    )))
}

/// A cut for each of `slacks`; around a loop slack changes nothing, and there is one cut. None if
/// none fits.
pub fn assign_each(
    units: &[Unit],
    shape: Shape,
    n_ranks: usize,
    live: &[usize],
    bytes_max: Option<f64>,
    slacks: &[f64],
) -> Result<Option<Vec<Assignment>>, ScheduleError> {
    let n_stages = match shape {
        Shape::Looped { stages_per_rank } => n_ranks * stages_per_rank,
        Shape::V => 2 * n_ranks,
        Shape::Mirrored => n_ranks,
    };
    let fail = |text: String| Err(ScheduleError(text));
    if n_stages == 0 || live.len() != n_stages {
        return fail(format!("{n_stages} stages, and {} numbers in flight", live.len()));
    }
    if units.len() < n_stages {
        return fail(format!(
            "{n_stages} stages need as many units, and there are {}; the nearest is {0} stages",
            units.len()
        ));
    }
    if shape == Shape::Mirrored && n_ranks % 2 == 1 {
        return fail(format!("mirrored ranks are an even number, not {n_ranks}"));
    }
    let problem = Problem::new(units, shape, n_ranks, live);
    let found = problem.best(bytes_max.unwrap_or(f64::INFINITY), slacks);
    Ok(found.map(|all| all.into_iter().map(|cuts| problem.assignment(cuts)).collect()))
}

/// The cut that is asked for: how many units each stage has, in order.
pub fn given(
    units: &[Unit],
    shape: Shape,
    n_ranks: usize,
    live: &[usize],
    counts: &[usize],
) -> Result<Assignment, ScheduleError> {
    let sum: usize = counts.iter().sum();
    if counts.len() != live.len() || sum != units.len() || counts.contains(&0) {
        return Err(ScheduleError(format!(
            "{} stages share {} units, at least one each, and those given are {counts:?}: {} \
             stages with {sum}",
            live.len(),
            units.len(),
            counts.len()
        )));
    }
    let ends = counts.iter().scan(0, |end, n| {
        *end += n;
        Some(*end)
    });
    let cuts = std::iter::once(0).chain(ends).collect();
    Ok(Problem::new(units, shape, n_ranks, live).assignment(cuts))
}

/// The units of one stage.
#[derive(Clone, Copy)]
struct Part {
    stage: usize,
    from: usize,
    to: usize,
}

struct Problem<'a> {
    units: &'a [Unit],
    shape: Shape,
    n_ranks: usize,
    live: &'a [usize],
    /// Sums of the units before each.
    time: Vec<f64>,
    weight: Vec<f64>,
    activation: Vec<f64>,
    /// How many units before each share weights.
    n_sharing: Vec<usize>,
}

/// What a rank's parts cost: what is to be small, and what to prefer among equals.
type Objective<'f> = &'f dyn Fn(&[Part]) -> Option<f64>;

impl<'a> Problem<'a> {
    fn new(units: &'a [Unit], shape: Shape, n_ranks: usize, live: &'a [usize]) -> Problem<'a> {
        let sums = |of: fn(&Unit) -> f64| {
            let mut all = vec![0.0];
            for unit in units {
                all.push(all[all.len() - 1] + of(unit));
            }
            all
        };
        Problem {
            units,
            shape,
            n_ranks,
            live,
            time: sums(|u| u.time),
            weight: sums(|u| u.weight_bytes),
            activation: sums(|u| u.activation_bytes),
            n_sharing: sums(|u| f64::from(u8::from(!u.shares.is_empty())))
                .into_iter()
                .map(|n| n as usize)
                .collect(),
        }
    }

    fn part_time(&self, p: &Part) -> f64 {
        self.time[p.to] - self.time[p.from]
    }

    fn rank_time(&self, parts: &[Part]) -> f64 {
        parts.iter().map(|p| self.part_time(p)).sum()
    }

    fn rank_bytes(&self, parts: &[Part]) -> f64 {
        let mut held = 0u64;
        let mut bytes = 0.0;
        for p in parts {
            let activation = self.activation[p.to] - self.activation[p.from];
            bytes += self.weight[p.to] - self.weight[p.from];
            bytes += activation * self.live[p.stage] as f64;
            if self.n_sharing[p.from] == self.n_sharing[p.to] {
                continue;
            }
            for (group, shared) in self.units[p.from..p.to].iter().flat_map(|u| &u.shares) {
                let bit = 1u64 << (group % 64);
                if held & bit == 0 {
                    held |= bit;
                    bytes += shared;
                }
            }
        }
        bytes
    }

    /// The fastest cut within the memory, and of those the one with the fastest slowest stage.
    fn best(&self, bytes_max: f64, slacks: &[f64]) -> Option<Vec<Vec<usize>>> {
        let fits = |parts: &[Part]| self.rank_bytes(parts) <= bytes_max;
        let time = |parts: &[Part]| fits(parts).then(|| self.rank_time(parts));
        let slowest_part =
            |parts: &[Part]| parts.iter().map(|p| self.part_time(p)).fold(0.0, f64::max);
        if let Shape::Looped { stages_per_rank: 2.. } = self.shape {
            return self.looped(bytes_max).map(|cuts| vec![cuts]);
        }
        let (slowest, _) = self.cut(&time)?;
        let with = |slack: &f64| {
            // Sums in another order differ in their last bits.
            let cap = slowest * (1.0 + slack + 1e-12);
            let among =
                |parts: &[Part]| time(parts).filter(|t| *t <= cap).map(|_| slowest_part(parts));
            self.cut(&among).map(|(_, cuts)| cuts)
        };
        slacks.iter().map(with).collect()
    }

    /// What the fullest rank holds at least.
    fn least_bytes(&self) -> f64 {
        let bytes = |parts: &[Part]| Some(self.rank_bytes(parts));
        self.cut(&bytes).map_or(f64::INFINITY, |(bytes, _)| bytes)
    }

    fn cut(&self, objective: Objective) -> Option<(f64, Vec<usize>)> {
        let n_pairs = match self.shape {
            Shape::Looped { .. } => return self.chain(objective),
            Shape::V => self.n_ranks,
            Shape::Mirrored => self.n_ranks / 2,
        };
        // A good cut by stage bounds what is worth a look.
        let stages = 2 * n_pairs;
        let whole = |cuts: &[usize]| {
            let part = |stage: usize| Part { stage, from: cuts[stage], to: cuts[stage + 1] };
            let pair = |r: usize| objective(&[part(r), part(stages - 1 - r)]);
            (0..n_pairs).map(pair).try_fold(0.0, |most: f64, c| Some(most.max(c?)))
        };
        let most = self.chain(objective).and_then(|(_, cuts)| whole(&cuts));
        self.nested(n_pairs, objective, most.unwrap_or(f64::INFINITY))
    }

    /// The cut whose worst stage is best, each stage by itself.
    fn chain(&self, objective: Objective) -> Option<(f64, Vec<usize>)> {
        let (n, n_stages) = (self.units.len(), self.live.len());
        // best[s][i]: stages before s have the first i units; and where the last of them begins.
        let mut best = vec![vec![(f64::INFINITY, 0); n + 1]; n_stages + 1];
        best[0][0].0 = f64::NEG_INFINITY;
        for stage in 0..n_stages {
            for to in stage + 1..=n {
                for from in stage..to {
                    let before = best[stage][from].0;
                    if before >= best[stage + 1][to].0 {
                        continue;
                    }
                    let Some(cost) = objective(&[Part { stage, from, to }]) else { continue };
                    let worst = before.max(cost);
                    if worst < best[stage + 1][to].0 {
                        best[stage + 1][to] = (worst, from);
                    }
                }
            }
        }
        let worst = best[n_stages][n].0;
        let mut cuts = vec![n];
        for stage in (0..n_stages).rev() {
            cuts.push(best[stage + 1][cuts[cuts.len() - 1]].1);
        }
        cuts.reverse();
        worst.is_finite().then_some((worst, cuts))
    }

    /// Stages r and S - 1 - r together, from the outside in; the best costs no more than `most`.
    /// More units never cost less, so a part that costs more ends its loop.
    fn nested(&self, n_pairs: usize, objective: Objective, most: f64) -> Option<(f64, Vec<usize>)> {
        let n = self.units.len();
        let n_stages = 2 * n_pairs;
        let at = |i: usize, j: usize| i * (n + 1) + j;
        // States: i units taken in front, and those from j on behind; where they were a pair ago.
        let mut layers = vec![vec![(f64::INFINITY, 0, 0); (n + 1) * (n + 1)]; n_pairs + 1];
        layers[0][at(0, n)].0 = f64::NEG_INFINITY;
        for pair in 0..n_pairs {
            let last = pair + 1 == n_pairs;
            let (done, open) = layers.split_at_mut(pair + 1);
            for from in pair..n {
                for to in from + 2..=n {
                    let (before, ..) = done[pair][at(from, to)];
                    if before == f64::INFINITY {
                        continue;
                    }
                    for front in from + 1..to {
                        let first = Part { stage: pair, from, to: front };
                        if objective(&[first]).is_none_or(|c| c > most) {
                            break;
                        }
                        // The innermost pair leaves nothing between its stages.
                        let backs = if last { front..front + 1 } else { front + 2..to };
                        for back in backs.rev() {
                            let second = Part { stage: n_stages - 1 - pair, from: back, to };
                            let slot = &mut open[0][at(front, back)];
                            if before >= slot.0 {
                                continue;
                            }
                            let cost = objective(&[first, second]).filter(|c| *c <= most);
                            let Some(cost) = cost else { break };
                            if before.max(cost) < slot.0 {
                                *slot = (before.max(cost), from, to);
                            }
                        }
                    }
                }
            }
        }
        let middle = (1..n).min_by(|a, b| {
            layers[n_pairs][at(*a, *a)].0.total_cmp(&layers[n_pairs][at(*b, *b)].0)
        })?;
        let worst = layers[n_pairs][at(middle, middle)].0;
        let (mut i, mut j) = (middle, middle);
        let mut cuts = vec![middle];
        for pair in (0..n_pairs).rev() {
            let (_, from, to) = layers[pair + 1][at(i, j)];
            cuts.insert(0, from);
            cuts.push(to);
            (i, j) = (from, to);
        }
        worst.is_finite().then_some((worst, cuts))
    }

    /// Stages around a loop: the best cut by stage, then moves of borders that help.
    fn looped(&self, bytes_max: f64) -> Option<Vec<usize>> {
        let time = |parts: &[Part]| Some(self.rank_time(parts));
        let (_, mut cuts) = self.chain(&time)?;
        let value = |cuts: &[usize]| {
            let a = self.assignment(cuts.to_vec());
            let over = a.rank_bytes.iter().map(|b| (b - bytes_max).max(0.0)).sum::<f64>();
            let stages = (0..self.live.len()).map(|s| self.time[cuts[s + 1]] - self.time[cuts[s]]);
            // Squares reward moves that help before the slowest is reached.
            let even: f64 = a.rank_time.iter().map(|t| t * t).sum();
            [over, a.slowest(), even, stages.fold(0.0, f64::max)]
        };
        const MOVES: [(isize, isize); 12] = [
            (-1, -1),
            (-1, 0),
            (-1, 1),
            (0, -1),
            (0, 1),
            (1, -1),
            (1, 0),
            (1, 1),
            (-2, 1),
            (2, -1),
            (-1, 2),
            (1, -2),
        ];
        let mut now = value(&cuts);
        loop {
            let mut better: Option<([f64; 4], Vec<usize>)> = None;
            let n_borders = cuts.len() - 2;
            for (a, b) in (1..=n_borders).flat_map(|a| (a..=n_borders).map(move |b| (a, b))) {
                for (by_a, by_b) in MOVES {
                    let mut moved = cuts.clone();
                    moved[a] = moved[a].saturating_add_signed(by_a);
                    moved[b] = moved[b].saturating_add_signed(by_b);
                    if moved.windows(2).any(|w| w[0] >= w[1]) {
                        continue;
                    }
                    let v = value(&moved);
                    let best = better.as_ref().map_or(&now, |(v, _)| v);
                    if v.partial_cmp(best) == Some(std::cmp::Ordering::Less) {
                        better = Some((v, moved));
                    }
                }
            }
            let Some((v, moved)) = better else { break };
            (now, cuts) = (v, moved);
        }
        (now[0] == 0.0).then_some(cuts)
    }

    fn assignment(&self, cuts: Vec<usize>) -> Assignment {
        let n_stages = self.live.len();
        let part = |stage: usize| Part { stage, from: cuts[stage], to: cuts[stage + 1] };
        let parts = |rank: usize| -> Vec<Part> {
            match self.shape {
                Shape::Looped { .. } => (rank..n_stages).step_by(self.n_ranks).map(part).collect(),
                Shape::V | Shape::Mirrored => vec![part(rank), part(n_stages - 1 - rank)],
            }
        };
        let all: Vec<Vec<Part>> = (0..self.n_ranks).map(parts).collect();
        Assignment {
            rank_time: all.iter().map(|p| self.rank_time(p)).collect(),
            rank_bytes: all.iter().map(|p| self.rank_bytes(p)).collect(),
            cuts,
        }
    }
}
