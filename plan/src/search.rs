//! The best layout of so many GPUs that fits their memory.
//!
//! Every way to share the GPUs among stages, tensor ranks and micro-batches is a candidate, with
//! every schedule that exists for it, every share of the experts, and every way of saving that was
//! compiled. None can be faster than either stream of its ranks alone, evenly cut: in the order of
//! that bound, the search ends at the first candidate whose bound is behind the best step found.
//! What is cut into stages runs on the clock only if it fits and what its ranks do is near the
//! best, too.

use std::collections::BTreeSet;

use weft_schedule::generate::{self, Name};
use weft_schedule::{Size, generate as table};

use crate::PlanError;
use crate::cluster::{Cluster, WhatIf};
use crate::step::{Layout, Plan, alone_seconds, plan_below, weights_fit};
use crate::unit::Unit;

/// What a layout may be.
#[derive(Clone, Debug)]
pub struct Space {
    pub n_gpus: u64,
    /// Micro-batches of a step, of all pipelines together.
    pub micro_batches: u64,
    pub heads: BTreeSet<u64>,
    pub experts: BTreeSet<u64>,
}

/// A layout that fits.
#[derive(Clone, Debug)]
pub struct Found {
    pub schedule: Name,
    pub size: Size,
    /// Which of the ways of saving.
    pub variant: usize,
    pub layout: Layout,
    pub plan: Plan,
}

struct Candidate {
    bound_seconds: f64,
    schedule: Name,
    size: Size,
    variant: usize,
    data: u64,
    tensor: u64,
    experts: u64,
}

/// The layouts that fit, the fastest first, and how many were simulated of how many. `variants` are
/// the model's units as compiled for each way of saving; `like` gives what is not searched.
pub fn search(
    variants: &[Vec<Unit>],
    cluster: &Cluster,
    like: &Layout,
    space: &Space,
    what_if: &[WhatIf],
) -> Result<(Vec<Found>, usize, usize), PlanError> {
    let mut all = candidates(variants, cluster, like, space, what_if);
    all.sort_by(|a, b| a.bound_seconds.total_cmp(&b.bound_seconds));
    let (n_all, mut n_run) = (all.len(), 0);
    let mut found: Vec<Found> = vec![];
    let mut best = f64::INFINITY;
    // Pieces of one size, so that what is simulated does not depend on the number of threads.
    for piece in all.chunks(PIECE) {
        let piece: Vec<&Candidate> = piece.iter().filter(|c| c.bound_seconds < best).collect();
        if piece.is_empty() {
            break;
        }
        n_run += piece.len();
        let below = best * SHOWN;
        let simulate =
            |c: &&Candidate| simulate(&variants[c.variant], cluster, like, what_if, below, c);
        for of_candidate in on_threads(&piece, &simulate) {
            if let Some(f) = of_candidate? {
                best = best.min(f.plan.step_seconds);
                found.push(f);
            }
        }
    }
    found.sort_by(|a, b| a.plan.step_seconds.total_cmp(&b.plan.step_seconds));
    Ok((found, n_run, n_all))
}

/// Layouts that take so many times as long as the best are of interest, too.
const SHOWN: f64 = 1.05;

/// Candidates between two looks at the best step found.
const PIECE: usize = 32;

/// What `f` makes of each, in order, on as many threads as there are cores.
fn on_threads<T: Sync, R: Send>(all: &[T], f: &(impl Fn(&T) -> R + Sync)) -> Vec<R> {
    let n_threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let share = all.len().div_ceil(n_threads).max(1);
    std::thread::scope(|scope| {
        let each = all.chunks(share).map(|part| scope.spawn(|| part.iter().map(f).collect()));
        let threads: Vec<std::thread::ScopedJoinHandle<'_, Vec<R>>> = each.collect();
        // A panic of a plan is one of the search.
        threads.into_iter().flat_map(|t| t.join().expect("a plan does not panic")).collect()
    })
}

/// The candidate's plan, if it fits.
fn simulate(
    units: &[Unit],
    cluster: &Cluster,
    like: &Layout,
    what_if: &[WhatIf],
    below: f64,
    c: &Candidate,
) -> Result<Option<Found>, PlanError> {
    let table = table(c.schedule, c.size).map_err(|e| PlanError(e.to_string()))?;
    let (data, tensor, experts) = (c.data, c.tensor, c.experts);
    let layout = Layout { table, data, tensor, experts, within_memory: true, ..like.clone() };
    let plan = plan_below(units, cluster, &layout, what_if, below)?;
    let Candidate { schedule, size, variant, .. } = *c;
    Ok(plan.map(|plan| Found { schedule, size, variant, layout, plan }))
}

/// Stages on a rank that are tried where a schedule takes several.
const STAGES_PER_RANK: [usize; 2] = [2, 4];

fn candidates(
    variants: &[Vec<Unit>],
    cluster: &Cluster,
    like: &Layout,
    space: &Space,
    what_if: &[WhatIf],
) -> Vec<Candidate> {
    let divisors = |n: u64| (1..=n).filter(move |d| n.is_multiple_of(*d));
    let n_units = variants.iter().map(Vec::len).min().unwrap_or(0);
    let mut all = vec![];
    for tensor in divisors(like.node).filter(|t| space.heads.iter().all(|h| h.is_multiple_of(*t))) {
        for pipeline in divisors(space.n_gpus / tensor).take_while(|p| *p <= n_units as u64) {
            let data = space.n_gpus / tensor / pipeline;
            if !space.micro_batches.is_multiple_of(data) || !space.n_gpus.is_multiple_of(tensor) {
                continue;
            }
            let shares = divisors(data * tensor)
                .filter(|e| space.experts.iter().all(|n| n.is_multiple_of(*e)))
                .filter(|e| !space.experts.is_empty() || *e == 1);
            for experts in shares {
                let layout = Layout { data, tensor, experts, ..like.clone() };
                for (variant, units) in variants.iter().enumerate() {
                    if !weights_fit(units, cluster, &layout, pipeline) {
                        continue;
                    }
                    let n = space.micro_batches / data;
                    let alone = alone_seconds(units, cluster, &layout, what_if);
                    let bound_seconds = n as f64 * alone / pipeline as f64;
                    for (schedule, size) in sizes(pipeline, n, n_units) {
                        all.push(Candidate {
                            bound_seconds,
                            schedule,
                            size,
                            variant,
                            data,
                            tensor,
                            experts,
                        });
                    }
                }
            }
        }
    }
    all
}

/// The schedules that exist for so many ranks and micro-batches and have no more stages than units.
fn sizes(pipeline: u64, micro_batches: u64, n_units: usize) -> Vec<(Name, Size)> {
    let (n_ranks, n_micro_batches) = (pipeline as usize, micro_batches as usize);
    let of = |name: Name| {
        let several = name.stages_per_rank().is_none();
        let stages = name.stages_per_rank().into_iter();
        stages
            .chain(STAGES_PER_RANK.into_iter().filter(move |_| several))
            .map(move |s| (name, Size { n_ranks, n_micro_batches, stages_per_rank: s }))
    };
    // GPipe is 1F1B with more memory; one rank needs no schedule.
    let names = Name::ALL.into_iter().filter(|n| *n != Name::GPipe);
    names
        .filter(|n| n_ranks > 1 || *n == Name::OneFOneB)
        .flat_map(of)
        .filter(|(name, size)| {
            generate::check_size(*name, *size).is_ok() && name.n_stages(*size) <= n_units
        })
        .collect()
}
