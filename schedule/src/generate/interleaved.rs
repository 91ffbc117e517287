//! Several stages on a rank, in rounds: a round of micro-batches goes through the rank's first
//! stage, then through its second, and so on ("Efficient Large-Scale Language Model Training on GPU
//! Clusters", 2.2); with the backward in two parts also ZB1P of "Zero Bubble Pipeline Parallelism",
//! which with one stage on a rank is ZB-H1.

use std::collections::HashSet;

use crate::table::{Action, Cell, Op, Table, looped};

/// How the steady state goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Steady {
    /// A forward, then a full backward.
    Apart,
    /// Input gradients at once and weight gradients behind them, in their order.
    Split,
    /// A forward and a full backward woven into one unit: neither may need the other, so a rank
    /// starts one forward earlier.
    Woven,
}

pub fn table(n_ranks: usize, n: usize, stages_per_rank: usize, steady: Steady) -> Table {
    let split = steady == Steady::Split;
    let shape = Rounds { n_ranks, n, stages_per_rank, steady };
    let rows: Vec<Vec<Cell>> = (0..n_ranks).map(|rank| shape.row(rank)).collect();
    let n_stages = n_ranks * stages_per_rank;
    Table {
        placement: looped(n_ranks, n_stages),
        micro_batches: vec![n],
        rows: if split { wait_for_forwards(rows) } else { rows },
    }
}

struct Rounds {
    n_ranks: usize,
    n: usize,
    stages_per_rank: usize,
    steady: Steady,
}

/// Numbers micro-batches of one op as they come, apart for each of a rank's stages.
struct Numbers(Vec<usize>);

impl Numbers {
    fn next(&mut self, local: usize) -> usize {
        self.0[local] += 1;
        self.0[local] - 1
    }
}

impl Rounds {
    fn row(&self, rank: usize) -> Vec<Cell> {
        let Rounds { n_ranks, n, stages_per_rank, steady } = *self;
        let (split, woven) = (steady == Steady::Split, steady == Steady::Woven);
        let round = n / (n / n_ranks).max(1);
        let n_ops = stages_per_rank * n;
        let behind = n_ranks - 1 - rank;
        // A full backward takes as long as two forwards: twice the head start.
        let head_start = if split { behind } else { 2 * behind };
        let head_start = head_start + usize::from(woven);
        let warmup = ((stages_per_rank - 1) * round + head_start).min(n_ops);
        let wait = match split {
            true => behind as isize,
            // Until the first backward has come down from the last rank.
            false => (stages_per_rank * n_ranks + 2 * behind) as isize - (warmup + rank) as isize,
        };
        let wait = usize::try_from(wait).unwrap_or(0);
        let backward = if split { Op::BackwardInput } else { Op::Backward };
        let weights_from = if split { rank } else { usize::MAX };

        let zeros = || Numbers(vec![0; stages_per_rank]);
        let (mut f, mut b, mut w) = (zeros(), zeros(), zeros());
        let mut forward = |op: usize| {
            let local = (op / round) % stages_per_rank;
            (local, f.next(local))
        };
        // Of the i-th backward of this rank.
        let backward_local = |i: usize| stages_per_rank - 1 - (i / round) % stages_per_rank;
        let action = |op: Op, (local, micro_batch): (usize, usize)| {
            let stage = local * n_ranks + rank;
            Action { op, direction: 0, stage, micro_batch }
        };
        let cell = |op: Op, at: (usize, usize)| Cell::One(action(op, at));

        let mut row = vec![Cell::Idle; rank];
        row.extend((0..warmup).map(|op| cell(Op::Forward, forward(op))));
        if warmup > 0 {
            row.extend(vec![Cell::Idle; wait]);
        }
        let mut n_weights = 0;
        for i in 0..n_ops {
            let op = warmup + i;
            let local = backward_local(i);
            let own = action(backward, (local, b.next(local)));
            match (op < n_ops).then(|| action(Op::Forward, forward(op))) {
                Some(forward) if woven => row.push(Cell::Pair { forward, backward: own }),
                Some(forward) => row.extend([Cell::One(forward), Cell::One(own)]),
                None if split => row.push(Cell::One(own)),
                None => row.extend([Cell::Idle, Cell::One(own)]),
            }
            if i >= weights_from {
                let local = backward_local(n_weights);
                row.push(cell(Op::BackwardWeight, (local, w.next(local))));
                n_weights += 1;
            }
        }
        for i in n_weights..if split { n_ops } else { 0 } {
            let local = backward_local(i);
            row.push(cell(Op::BackwardWeight, (local, w.next(local))));
        }
        row
    }
}

/// Puts idle cells before forwards whose input is not there yet, all ranks going from cell to cell
/// together. Backwards do not wait: the published tables leave those waits out.
fn wait_for_forwards(rows: Vec<Vec<Cell>>) -> Vec<Vec<Cell>> {
    let mut next = vec![0; rows.len()];
    let mut out: Vec<Vec<Cell>> = rows.iter().map(|r| Vec::with_capacity(r.len())).collect();
    let mut done = HashSet::new();
    while next.iter().zip(&rows).any(|(i, row)| *i < row.len()) {
        let mut now = vec![];
        for (rank, row) in rows.iter().enumerate() {
            let Some(cell) = row.get(next[rank]) else { continue };
            let forward = cell.actions().next().filter(|a| a.op == Op::Forward);
            let early = forward
                .is_some_and(|a| a.stage > 0 && !done.contains(&(a.stage - 1, a.micro_batch)));
            if early {
                out[rank].push(Cell::Idle);
                continue;
            }
            out[rank].push(*cell);
            next[rank] += 1;
            now.extend(forward.map(|a| (a.stage, a.micro_batch)));
        }
        done.extend(now);
    }
    out
}
