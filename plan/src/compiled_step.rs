//! The step of programs as they were compiled: the schedule's clock with what their cells take.
//!
//! A program has the stages of its rank, and its cells say in their names which they are of:
//! `stage.3.fwd`, `stage.3.bwd_input.stage.3.bwd_weight`, or a forward and a backward with its two
//! halves. A stage that no given program has takes what another takes, of those that the plan gives
//! a time most like its own the nearest: the programs of a rank at an end and of one in the middle
//! are enough for most. What adds gradients up over micro-batches goes with the backwards, each
//! with its share.

use std::collections::BTreeMap;

use weft_schedule::{Action, Cell, Costs, Message, Op, Program, Timeline};

use crate::PlanError;
use crate::cluster::Cluster;
use crate::compiled;
use crate::step::{Layout, Plan};
use crate::streams::Streams;

/// A step of compiled programs, to be read beside the plan's.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub step_seconds: f64,
    pub pipeline_seconds: f64,
    pub bubble_seconds: f64,
    pub tokens_per_s_per_gpu: f64,
    /// Of the rank that exchanges longest.
    pub exchange_seconds: f64,
    pub covered_seconds: f64,
}

/// The step of programs of some ranks of `layout`, with the messages and the optimizer of `plan`;
/// with or without what adds gradients up. None if they have no cells of stages: their block has no
/// pipeline.
pub fn step(
    programs: &[Vec<compiled::Cell>],
    layout: &Layout,
    plan: &Plan,
    cluster: &Cluster,
    sums: bool,
) -> Result<Option<Step>, PlanError> {
    let table = &layout.table;
    let mut cells = Cells {
        planned: plan.stages.iter().map(|s| s.forward + s.backward).collect(),
        one: Default::default(),
        pairs: BTreeMap::new(),
        sums: BTreeMap::new(),
        n_micro_batches: table.micro_batches.first().copied().unwrap_or(1) as f64,
        message_seconds: layout.message_seconds(cluster),
    };
    programs.iter().for_each(|program| cells.put(program));
    if cells.one.iter().all(BTreeMap::is_empty) {
        return Ok(None);
    }
    if !sums {
        cells.sums.clear();
    }
    for a in table.rows.iter().flatten().flat_map(|c| c.actions()) {
        if cells.one(a).is_none() {
            let what = KINDS[which(a.op)];
            return Err(PlanError(format!("no program given has {what} of any stage")));
        }
    }
    let timeline = Timeline::run(table, &Program::of(table), &cells, None)
        .map_err(|e| PlanError(e.to_string()))?;
    let pipeline_seconds = timeline.makespan();
    let step_seconds = pipeline_seconds + plan.optimizer_seconds;
    let of_rank = |row: &Vec<Cell>| {
        let all = row.iter().filter_map(|c| cells.streams(c)).map(Streams::covered);
        all.fold((0.0, 0.0), |sum, w| (sum.0 + w.0, sum.1 + w.1))
    };
    let most = |a: (f64, f64), b: (f64, f64)| if b.0 > a.0 { b } else { a };
    let (exchange_seconds, covered_seconds) = table.rows.iter().map(of_rank).fold((0.0, 0.0), most);
    Ok(Some(Step {
        step_seconds,
        pipeline_seconds,
        bubble_seconds: timeline.bubble(),
        tokens_per_s_per_gpu: plan.tokens_per_step / step_seconds / layout.n_gpus() as f64,
        exchange_seconds,
        covered_seconds,
    }))
}

const KINDS: [&str; 4] = ["a forward", "a backward", "input gradients", "weight gradients"];

fn which(op: Op) -> usize {
    match op {
        Op::Forward => 0,
        Op::Backward => 1,
        Op::BackwardInput => 2,
        Op::BackwardWeight => 3,
    }
}

/// What the programs' cells take.
struct Cells<'a> {
    /// By stage.
    planned: Vec<f64>,
    /// By stage: those of one action, in the order of `KINDS`.
    one: [BTreeMap<usize, &'a Streams>; 4],
    /// By the stages of forward and backward.
    pairs: BTreeMap<(usize, usize), &'a Streams>,
    /// By stage: seconds of a step that add its gradients up.
    sums: BTreeMap<usize, f64>,
    /// Of a direction: as many backwards share the sums.
    n_micro_batches: f64,
    message_seconds: f64,
}

impl<'a> Cells<'a> {
    /// The cells of a program where their names put them. What an earlier one has of the same
    /// stages stays; what is no stage's does not count.
    fn put(&mut self, program: &'a [compiled::Cell]) {
        let mut sums: BTreeMap<usize, f64> = BTreeMap::new();
        for cell in program {
            let Some(parts) = compiled::parts(&cell.name) else { continue };
            let of = |half: &str| parts.iter().find(|(_, h)| *h == half).map(|(stage, _)| *stage);
            match of("sum_grads").or(of("sum")) {
                Some(stage) => {
                    let seconds = cell.n_calls as f64 * cell.streams.seconds();
                    *sums.entry(stage).or_default() += seconds;
                }
                None => self.put_cell(of, &cell.streams),
            }
        }
        for (stage, seconds) in sums {
            self.sums.entry(stage).or_insert(seconds);
        }
    }

    fn put_cell(&mut self, of: impl Fn(&str) -> Option<usize>, streams: &'a Streams) {
        let (kind, stage) = match (of("fwd"), of("bwd_input"), of("bwd_weight")) {
            (Some(f), Some(b), Some(_)) => {
                self.pairs.entry((f, b)).or_insert(streams);
                return;
            }
            (Some(s), None, None) => (0, s),
            (None, Some(s), Some(_)) => (1, s),
            (None, Some(s), None) => (2, s),
            (None, None, Some(s)) => (3, s),
            _ => return,
        };
        self.one[kind].entry(stage).or_insert(streams);
    }

    /// How unlike stages are: by what is planned for them, then by their numbers.
    fn unlike(&self, a: usize, b: usize) -> (f64, usize) {
        let planned = |s: usize| self.planned.get(s).copied().unwrap_or(0.0);
        ((planned(a) - planned(b)).abs(), a.abs_diff(b))
    }

    fn nearest(&self, kind: usize, stage: usize) -> Option<&'a Streams> {
        nearest(&self.one[kind], |s| self.unlike(*s, stage)).copied()
    }

    fn nearest_pair(&self, f: usize, b: usize) -> Option<&'a Streams> {
        let unlike = |(f2, b2): &(usize, usize)| {
            let (f, b) = (self.unlike(*f2, f), self.unlike(*b2, b));
            (f.0 + b.0, f.1 + b.1)
        };
        nearest(&self.pairs, unlike).copied()
    }

    /// An action by itself, without sums; a backward of which only the parts or one of them were
    /// compiled is what they say it is.
    fn one(&self, a: Action) -> Option<f64> {
        let of = |op: Op| self.nearest(which(op), a.stage).map(Streams::seconds);
        let whole = || Some(of(Op::BackwardInput)? + of(Op::BackwardWeight)?);
        let rest = |part: Op| Some((of(Op::Backward)? - of(part)?).max(0.0));
        of(a.op).or_else(|| match a.op {
            Op::Forward => None,
            Op::Backward => whole(),
            Op::BackwardInput => rest(Op::BackwardWeight),
            Op::BackwardWeight => rest(Op::BackwardInput),
        })
    }

    fn sums(&self, a: Action) -> f64 {
        if !matches!(a.op, Op::Backward | Op::BackwardWeight) {
            return 0.0;
        }
        let near = nearest(&self.sums, |s| self.unlike(*s, a.stage));
        near.map_or(0.0, |seconds| seconds / self.n_micro_batches)
    }

    fn streams(&self, cell: &Cell) -> Option<&'a Streams> {
        match cell {
            Cell::Idle => None,
            Cell::One(a) => self.nearest(which(a.op), a.stage),
            Cell::Pair { forward, backward } => self.nearest_pair(forward.stage, backward.stage),
        }
    }
}

impl Costs for Cells<'_> {
    fn cell(&self, _: usize, cell: &Cell) -> f64 {
        let alone = || cell.actions().filter_map(|a| self.one(a)).sum();
        let own = match cell {
            Cell::Pair { .. } => self.streams(cell).map_or_else(alone, Streams::seconds),
            _ => alone(),
        };
        own + cell.actions().map(|a| self.sums(a)).sum::<f64>()
    }

    fn message(&self, _: usize, _: usize, _: &Message) -> f64 {
        self.message_seconds
    }
}

/// What is least unlike; of equals the first.
fn nearest<K, V>(all: &BTreeMap<K, V>, unlike: impl Fn(&K) -> (f64, usize)) -> Option<&V> {
    let by = |a: (f64, usize), b: (f64, usize)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
    all.iter().min_by(|(a, _), (b, _)| by(unlike(a), unlike(b))).map(|(_, v)| v)
}

#[cfg(test)]
mod tests {
    use crate::compiled::parts;

    #[test]
    fn names_say_what_cells_are_of() {
        assert_eq!(parts("stage.12.fwd"), Some(vec![(12, "fwd")]));
        let pair = "stage.2.fwd.stage.0.bwd_input.stage.0.bwd_weight.2";
        let of_pair = vec![(2, "fwd"), (0, "bwd_input"), (0, "bwd_weight")];
        assert_eq!(parts(pair), Some(of_pair));
        assert_eq!(parts("stage.7.sum_grads.2"), Some(vec![(7, "sum_grads")]));
        for other in ["loss.stage.8", "train_step.micro", "cell", "stage.x.fwd", "stage.1"] {
            assert_eq!(parts(other), None, "{other}");
        }
    }
}
