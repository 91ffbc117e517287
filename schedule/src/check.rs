//! Proves that a table is a training step, or says what keeps it from being one.
//!
//! What is proved is written at the top of `lib.rs`.

use std::collections::HashMap;

use crate::program::{Program, Step};
use crate::table::{Action, Op, Table};
use crate::timeline::{Timeline, UnitCosts};
use crate::{Message, ScheduleError};

/// What is known of a table that is one.
#[derive(Clone, Debug)]
pub struct Report {
    pub timeline: Timeline,
    /// Idle cells, and pairs, of all ranks.
    pub n_idle: usize,
    pub n_pairs: usize,
    /// The smallest capacity of the channels at which no send waits for ever.
    pub capacity_min: usize,
    /// Whether each receives from each in the order in which it was sent.
    pub in_order: bool,
}

/// The first thing wrong with the table, or what is known of it.
pub fn check(table: &Table, costs: &UnitCosts) -> Result<Report, ScheduleError> {
    order(table)?;
    complete(table)?;
    let program = Program::of(table);
    matched(&program)?;
    let timeline = Timeline::run(table, &program, costs, None)?;
    let cells = || table.rows.iter().flatten();
    Ok(Report {
        n_idle: cells().filter(|c| c.actions().next().is_none()).count(),
        n_pairs: cells().filter(|c| c.actions().count() == 2).count(),
        capacity_min: capacity_min(table, &program, costs, timeline.capacity_enough),
        in_order: in_order(&program),
        timeline,
    })
}

/// Every action on the rank of its stage, and after what it needs on that rank.
fn order(table: &Table) -> Result<(), ScheduleError> {
    let mut seen: HashMap<Action, usize> = HashMap::new();
    for (rank, row) in table.rows.iter().enumerate() {
        for (i, cell) in row.iter().enumerate() {
            let at = |a: Action| format!("rank {rank}, cell {i}: {a}");
            let fail = |text: String| Err(ScheduleError(text));
            for a in cell.actions() {
                let n = table.micro_batches.get(a.direction).copied().unwrap_or(0);
                let stages = table.placement.get(a.direction).map_or(0, Vec::len);
                if a.stage >= stages || a.micro_batch >= n {
                    let what = format!("there are {stages} stages and {n} micro-batches");
                    return fail(format!("{}: {what}", at(a)));
                }
                let home = table.rank_of(a.direction, a.stage);
                if home != rank {
                    return fail(format!("{}: the stage is on rank {home}", at(a)));
                }
                if let Some(before) = seen.insert(a, i) {
                    return fail(format!("{}: was in cell {before} already", at(a)));
                }
                let needs = match a.op {
                    Op::Forward => continue,
                    Op::Backward | Op::BackwardInput => Op::Forward,
                    Op::BackwardWeight => Op::BackwardInput,
                };
                // The forward of a pair does not come before its backward.
                match seen.get(&Action { op: needs, ..a }) {
                    Some(before) if *before < i => {}
                    _ => {
                        let needs = Action { op: needs, ..a };
                        return fail(format!("{}: comes before {needs}", at(a)));
                    }
                }
            }
        }
    }
    Ok(())
}

/// One forward and one backward, whole or in two parts, of every micro-batch on every stage.
fn complete(table: &Table) -> Result<(), ScheduleError> {
    let mut has: HashMap<(usize, usize, usize), [bool; 4]> = HashMap::new();
    for a in table.rows.iter().flatten().flat_map(|c| c.actions()) {
        let at = Op::ALL.iter().position(|op| *op == a.op).unwrap_or(0);
        has.entry((a.direction, a.stage, a.micro_batch)).or_default()[at] = true;
    }
    for (direction, stages) in table.placement.iter().enumerate() {
        for (stage, rank) in stages.iter().enumerate() {
            for micro_batch in 0..table.micro_batches[direction] {
                let found = has.get(&(direction, stage, micro_batch)).copied().unwrap_or_default();
                let missing = match found {
                    [true, true, false, false] | [true, false, true, true] => continue,
                    [false, ..] => "has no forward",
                    [_, true, ..] => "has a full backward and also a backward in parts",
                    [_, _, true, false] => "has an input gradient and no weight gradient",
                    _ => "has no backward",
                };
                let place = match table.placement.len() {
                    1 => format!("stage {stage}"),
                    _ => format!("stage {stage}, direction {direction}"),
                };
                return Err(ScheduleError(format!(
                    "rank {rank}: micro-batch {micro_batch} of {place} {missing}"
                )));
            }
        }
    }
    Ok(())
}

/// Every receive has one send, every send one receive, between the same two ranks.
pub fn matched(program: &Program) -> Result<(), ScheduleError> {
    let mut sent: HashMap<(usize, usize, Message), isize> = HashMap::new();
    for (rank, steps) in program.ranks.iter().enumerate() {
        for step in steps {
            match *step {
                Step::Send { to, message } => *sent.entry((rank, to, message)).or_default() += 1,
                Step::Receive { from, message } => {
                    *sent.entry((from, rank, message)).or_default() -= 1;
                }
                Step::Compute { .. } => {}
            }
        }
    }
    let wrong = sent.into_iter().filter(|(_, n)| *n != 0).min();
    let Some(((from, to, message), n)) = wrong else { return Ok(()) };
    Err(ScheduleError(if n > 0 {
        format!("rank {from} sends rank {to} {message}, which rank {to} never receives")
    } else {
        format!("rank {to} waits for {message} from rank {from}, which never sends it")
    }))
}

fn capacity_min(table: &Table, program: &Program, costs: &UnitCosts, most: usize) -> usize {
    // If one capacity is enough, so is every larger one.
    let (mut too_small, mut enough) = (0, most);
    while too_small + 1 < enough {
        let middle = too_small.midpoint(enough);
        match Timeline::run(table, program, costs, Some(middle)) {
            Ok(_) => enough = middle,
            Err(_) => too_small = middle,
        }
    }
    enough
}

fn in_order(program: &Program) -> bool {
    let mut sent: HashMap<(usize, usize), Vec<Message>> = HashMap::new();
    let mut received = sent.clone();
    for (rank, steps) in program.ranks.iter().enumerate() {
        for step in steps {
            match *step {
                Step::Send { to, message } => sent.entry((rank, to)).or_default().push(message),
                Step::Receive { from, message } => {
                    received.entry((from, rank)).or_default().push(message);
                }
                Step::Compute { .. } => {}
            }
        }
    }
    sent == received
}
