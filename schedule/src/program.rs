//! A table with its messages: what each rank receives, computes and sends, in order.

use std::fmt;

use crate::table::{Action, Cell, Op, Table};

/// What a stage waits for from its neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The output of the stage before.
    Activation,
    /// The gradient of this stage's output, from the stage after.
    Gradient,
}

/// One message, named by what it carries and the stage that reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Message {
    pub kind: Kind,
    pub direction: usize,
    /// That reads it.
    pub stage: usize,
    pub micro_batch: usize,
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            Kind::Activation => "input",
            Kind::Gradient => "gradient",
        };
        write!(f, "the {what} of stage {}, micro-batch {}", self.stage, self.micro_batch)?;
        if self.direction > 0 { write!(f, ", direction {}", self.direction) } else { Ok(()) }
    }
}

/// One step of a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Receive {
        from: usize,
        message: Message,
    },
    /// The cell of that index in the rank's row.
    Compute {
        cell: usize,
    },
    Send {
        to: usize,
        message: Message,
    },
}

/// The steps of every rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    pub ranks: Vec<Vec<Step>>,
}

impl Program {
    /// Receives right before the cell that reads them, sends right after the one that made them;
    /// none between two stages of one rank.
    pub fn of(table: &Table) -> Program {
        let row = |(rank, cells): (usize, &Vec<Cell>)| {
            let mut steps = vec![];
            for (cell, content) in cells.iter().enumerate().filter(|(_, c)| **c != Cell::Idle) {
                let reads = content.actions().filter_map(|a| reads(table, a));
                steps.extend(reads.filter(|(from, _)| *from != rank).map(receive));
                steps.push(Step::Compute { cell });
                let makes = content.actions().filter_map(|a| makes(table, a));
                steps.extend(makes.filter(|(to, _)| *to != rank).map(send));
            }
            steps
        };
        Program { ranks: table.rows.iter().enumerate().map(row).collect() }
    }
}

fn receive((from, message): (usize, Message)) -> Step {
    Step::Receive { from, message }
}

fn send((to, message): (usize, Message)) -> Step {
    Step::Send { to, message }
}

/// What an action needs of a neighbouring stage, and the rank that has that stage.
pub fn reads(table: &Table, a: Action) -> Option<(usize, Message)> {
    let Action { op, direction, stage, micro_batch } = a;
    let (kind, neighbour) = match op {
        Op::Forward => (Kind::Activation, stage.checked_sub(1)?),
        Op::Backward | Op::BackwardInput => (Kind::Gradient, stage + 1),
        Op::BackwardWeight => return None,
    };
    let rank = *table.placement[direction].get(neighbour)?;
    Some((rank, Message { kind, direction, stage, micro_batch }))
}

/// What an action makes for a neighbouring stage, and the rank that has that stage.
pub fn makes(table: &Table, a: Action) -> Option<(usize, Message)> {
    let Action { op, direction, stage, micro_batch } = a;
    let (kind, neighbour) = match op {
        Op::Forward => (Kind::Activation, stage + 1),
        Op::Backward | Op::BackwardInput => (Kind::Gradient, stage.checked_sub(1)?),
        Op::BackwardWeight => return None,
    };
    let rank = *table.placement[direction].get(neighbour)?;
    Some((rank, Message { kind, direction, stage: neighbour, micro_batch }))
}
