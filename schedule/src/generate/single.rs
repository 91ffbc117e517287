//! One stage on a rank: GPipe and 1F1B.
//!
//! Idle cells stand where a rank waits if a backward takes two cells' time of the ranks after it.

use crate::table::{Action, Cell, Op, Table, looped};

fn action(op: Op, rank: usize, micro_batch: usize) -> Cell {
    Cell::One(Action { op, direction: 0, stage: rank, micro_batch })
}

fn table(n_ranks: usize, n: usize, row: impl Fn(usize) -> Vec<Cell>) -> Table {
    Table {
        placement: looped(n_ranks, n_ranks),
        micro_batches: vec![n],
        rows: (0..n_ranks).map(row).collect(),
    }
}

/// All forwards, then all backwards: as many live activations as micro-batches.
pub fn gpipe(n_ranks: usize, n: usize) -> Table {
    table(n_ranks, n, |rank| {
        let mut row = vec![Cell::Idle; rank];
        row.extend((0..n).map(|m| action(Op::Forward, rank, m)));
        row.extend(vec![Cell::Idle; 3 * (n_ranks - 1 - rank)]);
        row.extend((0..n).map(|m| action(Op::Backward, rank, m)));
        row
    })
}

/// A forward for each rank that follows, then a forward and a backward in turn.
pub fn one_f_one_b(n_ranks: usize, n: usize) -> Table {
    table(n_ranks, n, |rank| {
        let ahead = (n_ranks - 1 - rank).min(n);
        let mut row = vec![Cell::Idle; rank];
        row.extend((0..ahead).map(|m| action(Op::Forward, rank, m)));
        row.extend(vec![Cell::Idle; 2 * (n_ranks - 1 - rank)]);
        for m in ahead..n {
            row.extend([action(Op::Forward, rank, m), action(Op::Backward, rank, m - ahead)]);
        }
        for m in n - ahead..n {
            row.extend([Cell::Idle, action(Op::Backward, rank, m)]);
        }
        row
    })
}
