//! The table of actions: a row of cells for each rank.

use std::fmt;

/// What is done to a micro-batch on a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Op {
    Forward,
    /// Both gradients at once.
    Backward,
    /// The gradient of the stage's input alone: what the stage before waits for.
    BackwardInput,
    /// The gradient of the stage's weights alone: nobody waits for it.
    BackwardWeight,
}

impl Op {
    pub const ALL: [Op; 4] = [Op::Forward, Op::Backward, Op::BackwardInput, Op::BackwardWeight];

    pub fn letter(self) -> char {
        match self {
            Op::Forward => 'F',
            Op::Backward => 'B',
            Op::BackwardInput => 'I',
            Op::BackwardWeight => 'W',
        }
    }

    pub fn from_letter(c: char) -> Option<Op> {
        Op::ALL.into_iter().find(|op| op.letter() == c)
    }

    /// Whether it makes the gradient that the stage before waits for, and frees the activations.
    pub fn is_input_gradient(self) -> bool {
        matches!(self, Op::Backward | Op::BackwardInput)
    }
}

/// One op of one micro-batch on one stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Action {
    pub op: Op,
    /// Which stream of micro-batches: 0, or 1 for those that enter at the last rank.
    pub direction: usize,
    /// 0 is where the direction's micro-batches enter.
    pub stage: usize,
    /// Counted in its direction.
    pub micro_batch: usize,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{} of stage {}", self.op.letter(), self.micro_batch, self.stage)?;
        if self.direction > 0 { write!(f, ", direction {}", self.direction) } else { Ok(()) }
    }
}

/// What a rank does in one turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    Idle,
    One(Action),
    /// A forward and a full backward woven into one unit.
    Pair {
        forward: Action,
        backward: Action,
    },
}

impl Cell {
    /// Its actions, the forward first.
    pub fn actions(&self) -> impl Iterator<Item = Action> + use<> {
        let (a, b) = match *self {
            Cell::Idle => (None, None),
            Cell::One(a) => (Some(a), None),
            Cell::Pair { forward, backward } => (Some(forward), Some(backward)),
        };
        a.into_iter().chain(b)
    }
}

/// Which rank does what, in which order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// `placement[direction][stage]` is the rank that has the stage for that direction.
    pub placement: Vec<Vec<usize>>,
    /// Micro-batches of each direction.
    pub micro_batches: Vec<usize>,
    /// The cells of each rank.
    pub rows: Vec<Vec<Cell>>,
}

impl Table {
    pub fn n_ranks(&self) -> usize {
        self.rows.len()
    }

    /// Stages of a direction; all directions have as many.
    pub fn n_stages(&self) -> usize {
        self.placement.first().map_or(0, Vec::len)
    }

    /// Micro-batches of all directions.
    pub fn n_micro_batches(&self) -> usize {
        self.micro_batches.iter().sum()
    }

    pub fn rank_of(&self, direction: usize, stage: usize) -> usize {
        self.placement[direction][stage]
    }

    /// The (direction, stage) pairs that a rank holds, in order.
    pub fn stages_of(&self, rank: usize) -> Vec<(usize, usize)> {
        let each = |(d, stages): (usize, &Vec<usize>)| {
            let here = stages.iter().enumerate().filter(|(_, r)| **r == rank);
            here.map(|(s, _)| (d, s)).collect::<Vec<_>>()
        };
        self.placement.iter().enumerate().flat_map(each).collect()
    }

    /// A row in the short form of the papers: `F0 F1 I0 W0 F1.3&B0.2 -`. The number before a dot is
    /// the direction, or which of the rank's stages it is if it has several, and is left out if
    /// there is nothing to tell apart.
    pub fn row_text(&self, rank: usize) -> String {
        let here = self.stages_of(rank);
        let one = |a: Action| {
            let i = here.iter().position(|h| *h == (a.direction, a.stage)).unwrap_or(0);
            let i = if self.placement.len() > 1 { a.direction } else { i };
            match here.len() {
                0 | 1 => format!("{}{}", a.op.letter(), a.micro_batch),
                _ => format!("{}{i}.{}", a.op.letter(), a.micro_batch),
            }
        };
        let cell = |c: &Cell| match *c {
            Cell::Idle => "-".to_string(),
            Cell::One(a) => one(a),
            Cell::Pair { forward, backward } => format!("{}&{}", one(forward), one(backward)),
        };
        self.rows[rank].iter().map(cell).collect::<Vec<_>>().join(" ")
    }
}

/// Stage s on rank s mod R: a loop around the ranks for each stage of a rank.
pub fn looped(n_ranks: usize, n_stages: usize) -> Vec<Vec<usize>> {
    vec![(0..n_stages).map(|s| s % n_ranks).collect()]
}

/// Down the ranks and back up: rank r has stages r and 2R - 1 - r.
pub fn v_shaped(n_ranks: usize) -> Vec<Vec<usize>> {
    vec![(0..n_ranks).chain((0..n_ranks).rev()).collect()]
}

/// Two directions, each with all stages: rank r has stage r of one and R - 1 - r of the other.
pub fn bidirectional(n_ranks: usize) -> Vec<Vec<usize>> {
    vec![(0..n_ranks).collect(), (0..n_ranks).rev().collect()]
}
