//! ZB-V ("Zero Bubble Pipeline Parallelism", section 6): two stages on a rank, down and back up, so
//! that the loss is on the rank where micro-batches enter.
//!
//! It is free of bubbles if forward, input gradient and weight gradient take equally long.

use crate::table::{Action, Cell, Op, Table, v_shaped};

pub fn table(n_ranks: usize, n: usize) -> Table {
    Table {
        placement: v_shaped(n_ranks),
        micro_batches: vec![n],
        rows: (0..n_ranks).map(|rank| row(n_ranks, n, rank)).collect(),
    }
}

/// A row under construction: how many of each op each of the rank's two stages has.
struct Row {
    stages: [usize; 2],
    cells: Vec<Cell>,
    forward: [usize; 2],
    input: [usize; 2],
    weight: [usize; 2],
}

impl Row {
    fn push(&mut self, op: Op, chunk: usize) {
        let count = match op {
            Op::Forward => &mut self.forward,
            Op::BackwardWeight => &mut self.weight,
            Op::Backward | Op::BackwardInput => &mut self.input,
        };
        let micro_batch = count[chunk];
        count[chunk] += 1;
        let stage = self.stages[chunk];
        self.cells.push(Cell::One(Action { op, direction: 0, stage, micro_batch }));
    }

    fn backward(&mut self, chunk: usize) {
        self.push(Op::BackwardInput, chunk);
        self.push(Op::BackwardWeight, chunk);
    }
}

fn row(n_ranks: usize, n: usize, rank: usize) -> Vec<Cell> {
    // The shape is that of a full pipeline; cells of micro-batches that are not there fall idle.
    let full = n.max(2 * n_ranks - 1);
    let mut row = Row {
        stages: [rank, 2 * n_ranks - 1 - rank],
        cells: vec![Cell::Idle; rank],
        forward: [0; 2],
        input: [0; 2],
        weight: [0; 2],
    };
    for _ in 0..2 * (n_ranks - rank) - 1 {
        row.push(Op::Forward, 0);
    }
    for _ in 0..rank {
        row.push(Op::Forward, 1);
        row.push(Op::Forward, 0);
    }
    for _ in 0..n_ranks - rank {
        row.push(Op::Forward, 1);
        row.backward(1);
    }
    while row.forward[1] < row.forward[0] || row.forward[0] < full {
        if row.forward[0] < full {
            row.push(Op::Forward, 0);
        }
        row.backward(0);
        row.push(Op::Forward, 1);
        row.backward(1);
    }
    // The last weight gradients fill the waits of the last input gradients.
    for _ in 0..rank {
        row.push(Op::BackwardInput, 0);
        row.push(Op::BackwardInput, 1);
    }
    for _ in 0..n_ranks - rank {
        row.push(Op::BackwardInput, 0);
        row.push(Op::BackwardWeight, 0);
    }
    for chunk in [1, 0] {
        while row.weight[chunk] < row.input[chunk] {
            row.push(Op::BackwardWeight, chunk);
        }
    }
    let there = |c: &Cell| c.actions().all(|a| a.micro_batch < n);
    row.cells.into_iter().map(|c| if there(&c) { c } else { Cell::Idle }).collect()
}
