//! DualPipe (DeepSeek-V3 report, 3.2.1) and DualPipeV, its half.
//!
//! Every rank has two *phases*, each a first-in first-out stream of forwards and of backwards. In
//! DualPipe these are the two directions, and the ranks of the second half have them swapped, so
//! that rank r and its mirror R - 1 - r do the same. In DualPipeV they are the two arms of the V.
//! The two differ only in what a phase is, and in `distance`: how far a rank is from the middle,
//! where the two streams meet.
//!
//! Input gradients queue their weight gradients; a weight gradient takes the oldest, of either
//! phase.

use std::collections::VecDeque;

use crate::table::{Action, Cell, Op, Table, bidirectional as both_ways, v_shaped as in_a_v};

pub fn bidirectional(n_ranks: usize, n: usize) -> Table {
    let half = n_ranks / 2;
    let row = |rank: usize| {
        let mirrored = rank >= half;
        let end = if mirrored { n_ranks - 1 - rank } else { rank };
        let chunk = move |phase: usize| match phase ^ usize::from(mirrored) {
            0 => (0, rank),
            _ => (1, n_ranks - 1 - rank),
        };
        row(chunk, half - 1 - end, end, n / 2 - half)
    };
    Table {
        placement: both_ways(n_ranks),
        micro_batches: vec![n / 2; 2],
        rows: (0..n_ranks).map(row).collect(),
    }
}

pub fn v_shaped(n_ranks: usize, n: usize) -> Table {
    let row = |rank: usize| {
        let chunk = move |phase: usize| (0, [rank, 2 * n_ranks - 1 - rank][phase]);
        row(chunk, n_ranks - 1 - rank, rank, n - n_ranks)
    };
    Table {
        placement: in_a_v(n_ranks),
        micro_batches: vec![n],
        rows: (0..n_ranks).map(row).collect(),
    }
}

/// A row under construction.
struct Row<F> {
    /// The direction and stage of a phase.
    chunk: F,
    cells: Vec<Cell>,
    forwards: [usize; 2],
    backwards: [usize; 2],
    weights: VecDeque<Action>,
}

impl<F: Fn(usize) -> (usize, usize)> Row<F> {
    fn action(&self, op: Op, phase: usize, micro_batch: usize) -> Action {
        let (direction, stage) = (self.chunk)(phase);
        Action { op, direction, stage, micro_batch }
    }

    fn next_forward(&mut self, phase: usize) -> Action {
        self.forwards[phase] += 1;
        self.action(Op::Forward, phase, self.forwards[phase] - 1)
    }

    fn next_backward(&mut self, op: Op, phase: usize) -> Action {
        self.backwards[phase] += 1;
        self.action(op, phase, self.backwards[phase] - 1)
    }

    fn forward(&mut self, phase: usize) {
        let action = self.next_forward(phase);
        self.cells.push(Cell::One(action));
    }

    fn backward(&mut self, phase: usize) {
        let action = self.next_backward(Op::Backward, phase);
        self.cells.push(Cell::One(action));
    }

    fn input(&mut self, phase: usize) {
        let action = self.next_backward(Op::BackwardInput, phase);
        self.weights.push_back(Action { op: Op::BackwardWeight, ..action });
        self.cells.push(Cell::One(action));
    }

    fn weight(&mut self) {
        self.cells.extend(self.weights.pop_front().map(Cell::One));
    }

    /// The forward of one phase with the backward of the other.
    fn pair(&mut self, forward_phase: usize) {
        let forward = self.next_forward(forward_phase);
        let backward = self.next_backward(Op::Backward, 1 - forward_phase);
        self.cells.push(Cell::Pair { forward, backward });
    }
}

/// `to_middle`: ranks between this one and the middle; `to_end`: between this one and the end where
/// its phase 0 enters; `spare`: micro-batches of a phase beyond those in flight in the middle.
fn row<F>(chunk: F, to_middle: usize, to_end: usize, spare: usize) -> Vec<Cell>
where
    F: Fn(usize) -> (usize, usize),
{
    let mut row =
        Row { chunk, cells: vec![], forwards: [0; 2], backwards: [0; 2], weights: VecDeque::new() };
    for _ in 0..2 * to_middle {
        row.forward(0);
    }
    for _ in 0..=to_end {
        row.forward(0);
        row.forward(1);
    }
    for _ in 0..to_middle {
        row.input(1);
        row.weight();
        row.forward(1);
    }
    for i in 0..spare - to_middle {
        if i == 0 && to_middle == 0 {
            // Apart, the forward reaches the neighbour a backward earlier.
            row.forward(0);
            row.backward(1);
        } else {
            row.pair(0);
        }
        row.pair(1);
    }
    for _ in 0..to_middle {
        row.backward(1);
        row.pair(1);
    }
    // The second half of these backwards leave their weight gradients for the waits that follow.
    let n_last = 2 * (to_end + 1);
    for i in 0..n_last {
        let phase = 1 - i % 2;
        if i < n_last / 2 { row.backward(phase) } else { row.input(phase) }
    }
    for _ in 0..to_middle {
        row.weight();
        row.input(0);
    }
    for _ in 0..=to_end {
        row.weight();
    }
    row.cells
}
