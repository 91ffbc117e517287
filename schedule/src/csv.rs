//! Tables as text: a line for each rank, a cell between commas, empty where the rank is idle.
//!
//! Two grammars of a cell, never both in a file:
//! - by stage: `3F7`, `3B7`, `3I7`, `3W7` (stage, op, micro-batch) and `(0F3;3B1)OVERLAP_F_B`, an
//!   overlapped pair. A stage is on the rank that has it in its line;
//! - by direction: `F0.7` (op, direction, micro-batch of the direction) and `(F0.3;B1.1)`.
//!   Direction 0 enters at the first rank, 1 at the last; each rank has one stage of each.

use std::collections::HashMap;

use crate::ScheduleError;
use crate::table::{Action, Cell, Op, Table, bidirectional};

/// A table in the grammar that fits it: by direction if it has two. Lines end as RFC 4180 has it.
pub fn write(table: &Table) -> String {
    let by_direction = table.placement.len() > 1;
    let one = |a: Action| match by_direction {
        true => format!("{}{}.{}", a.op.letter(), a.direction, a.micro_batch),
        false => format!("{}{}{}", a.stage, a.op.letter(), a.micro_batch),
    };
    let cell = |c: &Cell| match *c {
        Cell::Idle => String::new(),
        Cell::One(a) => one(a),
        Cell::Pair { forward, backward } => {
            let mark = if by_direction { "" } else { "OVERLAP_F_B" };
            format!("({};{}){mark}", one(forward), one(backward))
        }
    };
    let line = |row: &Vec<Cell>| row.iter().map(cell).collect::<Vec<_>>().join(",") + "\r\n";
    table.rows.iter().map(line).collect()
}

/// A cell's action as written: without what its grammar does not say.
#[derive(Clone, Copy)]
struct Written {
    op: Op,
    /// Of a direction, or of a stage.
    by_direction: bool,
    place: usize,
    micro_batch: usize,
}

/// Reads either grammar. That the table is a training step is for [`crate::check()`] to say.
pub fn read(text: &str) -> Result<Table, ScheduleError> {
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    let used = lines.iter().rposition(|l| !l.is_empty()).map_or(0, |i| i + 1);
    let mut written: Vec<Vec<Vec<Written>>> = vec![];
    for (rank, line) in lines[..used].iter().enumerate() {
        let cell = |(i, text): (usize, &str)| {
            read_cell(text.trim()).map_err(|e| {
                let place = format!("line {} (rank {rank}), cell {i}", rank + 1);
                ScheduleError(format!("{place}: {}: {e}", text.trim()))
            })
        };
        written.push(line.split(',').enumerate().map(cell).collect::<Result<_, _>>()?);
    }
    let mut all = written.iter().flatten().flatten();
    let Some(first) = all.next() else {
        return Err(ScheduleError(
            "no actions: expected a line for each rank, such as 0F0,0F1,0B0,0B1".to_string(),
        ));
    };
    if all.any(|w| w.by_direction != first.by_direction) {
        return Err(ScheduleError(
            "some cells name a direction (F0.3) and some a stage (0F3); use one of the two"
                .to_string(),
        ));
    }
    let by_direction = first.by_direction;
    let placement = match by_direction {
        true => directions(written.len())?,
        false => stages(&written)?,
    };
    let mut micro_batches = vec![0; placement.len()];
    let n_ranks = written.len();
    let rows = written.iter().enumerate().map(|(rank, row)| {
        let mut action = |w: &Written| {
            let Written { op, place, micro_batch, .. } = *w;
            let (direction, stage) = match (by_direction, place) {
                (false, stage) => (0, stage),
                (true, 0) => (0, rank),
                (true, _) => (1, n_ranks - 1 - rank),
            };
            micro_batches[direction] = micro_batches[direction].max(micro_batch + 1);
            Action { op, direction, stage, micro_batch }
        };
        let mut cell = |c: &Vec<Written>| match c.as_slice() {
            [] => Cell::Idle,
            [one] => Cell::One(action(one)),
            [forward, backward, ..] => {
                Cell::Pair { forward: action(forward), backward: action(backward) }
            }
        };
        row.iter().map(&mut cell).collect()
    });
    let rows = rows.collect();
    Ok(Table { placement, micro_batches, rows })
}

/// Numbers in a file, at most: what comes of them must fit in memory.
const NUMBER_MAX: usize = 1 << 20;

fn directions(n_ranks: usize) -> Result<Vec<Vec<usize>>, ScheduleError> {
    if n_ranks % 2 == 1 {
        return Err(ScheduleError(format!(
            "cells name a direction, so ranks are mirrored and their number is even; there are \
             {n_ranks} lines"
        )));
    }
    Ok(bidirectional(n_ranks))
}

fn stages(written: &[Vec<Vec<Written>>]) -> Result<Vec<Vec<usize>>, ScheduleError> {
    let mut home: HashMap<usize, usize> = HashMap::new();
    for (rank, row) in written.iter().enumerate() {
        for w in row.iter().flatten() {
            let there = *home.entry(w.place).or_insert(rank);
            if there != rank {
                return Err(ScheduleError(format!(
                    "stage {} is in the lines of rank {there} and of rank {rank}; a stage is on \
                     one rank (two directions are written F0.3 and F1.3)",
                    w.place
                )));
            }
        }
    }
    let n_stages = home.keys().max().map_or(0, |s| s + 1);
    let missing = |s: usize| {
        let text = format!("stage {s} is on no rank, and there is a stage {}", n_stages - 1);
        ScheduleError(text)
    };
    let stages = (0..n_stages).map(|s| home.get(&s).copied().ok_or_else(|| missing(s)));
    Ok(vec![stages.collect::<Result<_, _>>()?])
}

fn read_cell(text: &str) -> Result<Vec<Written>, String> {
    if text.is_empty() {
        return Ok(vec![]);
    }
    let Some(inner) = text.strip_prefix('(') else {
        return Ok(vec![read_action(text)?]);
    };
    let pair = "expected a pair such as (0F3;3B1)OVERLAP_F_B or (F0.3;B1.1)";
    let (inner, mark) = inner.split_once(')').ok_or(pair)?;
    let (forward, backward) = inner.split_once(';').ok_or(pair)?;
    let (forward, backward) = (read_action(forward)?, read_action(backward)?);
    let expected = if forward.by_direction { "" } else { "OVERLAP_F_B" };
    if mark != expected {
        return Err(format!("after the pair expected {expected:?}, found {mark:?}"));
    }
    if (forward.op, backward.op) != (Op::Forward, Op::Backward) {
        return Err("a pair is a forward (F) and a full backward (B), in this order".to_string());
    }
    Ok(vec![forward, backward])
}

fn read_action(text: &str) -> Result<Written, String> {
    let expected = "expected an action such as 3F7 or F0.7, with F, B, I or W";
    let at = text.find(|c: char| !c.is_ascii_digit()).ok_or(expected)?;
    let (before, rest) = text.split_at(at);
    let op = rest.chars().next().and_then(Op::from_letter).ok_or(expected)?;
    let rest = &rest[1..];
    let number = |t: &str| match t.parse::<usize>() {
        Ok(n) if n < NUMBER_MAX => Ok(n),
        Ok(n) => Err(format!("{n} is more than {}, the most that is read", NUMBER_MAX - 1)),
        Err(_) => Err(expected.to_string()),
    };
    match (before, rest.split_once('.')) {
        ("", Some((direction, micro_batch))) => match number(direction)? {
            place @ (0 | 1) => {
                let micro_batch = number(micro_batch)?;
                Ok(Written { op, by_direction: true, place, micro_batch })
            }
            n => Err(format!("there are directions 0 and 1, not {n}")),
        },
        (stage, None) if !stage.is_empty() => Ok(Written {
            op,
            by_direction: false,
            place: number(stage)?,
            micro_batch: number(rest)?,
        }),
        _ => Err(expected.to_string()),
    }
}
