//! The published schedules, made for any size that they exist for.

mod dualpipe;
mod interleaved;
mod single;
mod v_shaped;

use std::fmt;

use crate::{ScheduleError, Table};
use interleaved::Steady;

/// A published schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// All forwards, then all backwards.
    GPipe,
    /// One forward, one backward.
    OneFOneB,
    /// 1F1B with several stages on a rank.
    Interleaved,
    /// The same, forward and backward woven into pairs.
    InterleavedPairs,
    /// 1F1B whose weight gradients fill the waits, at the same memory.
    ZbH1,
    /// The same with several stages on a rank.
    ZbInterleaved,
    /// Two stages on a rank, placed in a V.
    ZbV,
    /// Micro-batches from both ends, forward and backward woven into pairs.
    DualPipe,
    /// DualPipe cut in half: one entrance, two stages on a rank, placed in a V.
    DualPipeV,
}

impl Name {
    pub const ALL: [Name; 9] = [
        Name::GPipe,
        Name::OneFOneB,
        Name::Interleaved,
        Name::InterleavedPairs,
        Name::ZbH1,
        Name::ZbInterleaved,
        Name::ZbV,
        Name::DualPipe,
        Name::DualPipeV,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Name::GPipe => "gpipe",
            Name::OneFOneB => "1f1b",
            Name::Interleaved => "interleaved",
            Name::InterleavedPairs => "interleaved-pairs",
            Name::ZbH1 => "zb-h1",
            Name::ZbInterleaved => "zb-interleaved",
            Name::ZbV => "zb-v",
            Name::DualPipe => "dualpipe",
            Name::DualPipeV => "dualpipe-v",
        }
    }

    pub fn parse(text: &str) -> Result<Name, ScheduleError> {
        Name::ALL.into_iter().find(|n| n.as_str() == text).ok_or_else(|| {
            let names = Name::ALL.map(Name::as_str).join(", ");
            ScheduleError(format!("there is no schedule {text}; there are: {names}"))
        })
    }

    /// Stages on a rank: the only number the schedule is made for, or none if it takes any from 2.
    pub fn stages_per_rank(self) -> Option<usize> {
        match self {
            Name::GPipe | Name::OneFOneB | Name::ZbH1 => Some(1),
            Name::ZbV | Name::DualPipe | Name::DualPipeV => Some(2),
            Name::Interleaved | Name::InterleavedPairs | Name::ZbInterleaved => None,
        }
    }

    /// Stages that the layers of a model are cut into; DualPipe's two stages of a rank are the same
    /// layers' as those of its mirror.
    pub fn n_stages(self, size: Size) -> usize {
        match self {
            Name::DualPipe => size.n_ranks,
            _ => size.n_ranks * size.stages_per_rank,
        }
    }

    /// Whether it has backwards in two parts.
    pub fn splits_backward(self) -> bool {
        !matches!(self, Name::GPipe | Name::OneFOneB | Name::Interleaved | Name::InterleavedPairs)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a schedule is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub n_ranks: usize,
    /// Of both directions, where there are two.
    pub n_micro_batches: usize,
    pub stages_per_rank: usize,
}

/// Cells in a table, at most: beyond it somebody mistyped a number.
const CELLS_MAX: usize = 1 << 22;

/// Whether the schedule exists at that size; if not, why, with the nearest size that does.
pub fn check_size(name: Name, size: Size) -> Result<(), ScheduleError> {
    let Size { n_ranks, n_micro_batches, stages_per_rank } = size;
    let fail = |text: String| Err(ScheduleError(format!("{name}: {text}")));
    match name.stages_per_rank() {
        Some(n) if n != stages_per_rank => {
            return fail(format!(
                "has {n} {} a rank, not {stages_per_rank}; leave --stages-per-rank out",
                if n == 1 { "stage" } else { "stages" }
            ));
        }
        None if stages_per_rank < 2 => {
            return fail(format!(
                "has at least 2 stages per rank, not {stages_per_rank}; with one it is {}",
                if name.splits_backward() { "zb-h1" } else { "1f1b" }
            ));
        }
        _ => {}
    }
    if n_ranks == 0 {
        return fail("needs at least 1 rank, found 0".to_string());
    }
    if name == Name::DualPipe && n_ranks % 2 == 1 {
        let above = n_ranks + 1;
        return fail(match n_ranks {
            1 => "its ranks are mirrored, so their number is even, not 1; the nearest is 2".into(),
            _ => format!(
                "its ranks are mirrored, so their number is even, not {n_ranks}; the nearest are \
                 {} and {above}",
                n_ranks - 1
            ),
        });
    }
    check_micro_batches(name, n_ranks, n_micro_batches)?;
    let cells = n_ranks
        .checked_mul(stages_per_rank)
        .and_then(|n| n.checked_mul(n_micro_batches.checked_mul(3)?));
    match cells {
        Some(n) if n <= CELLS_MAX => Ok(()),
        _ => fail(format!(
            "{n_ranks} ranks x {stages_per_rank} stages x {n_micro_batches} micro-batches are over \
             {CELLS_MAX} cells"
        )),
    }
}

fn check_micro_batches(name: Name, n_ranks: usize, n: usize) -> Result<(), ScheduleError> {
    let fail = |text: String| Err(ScheduleError(format!("{name}: {text}")));
    if n == 0 {
        return fail("needs at least 1 micro-batch, found 0".to_string());
    }
    let least = n_ranks.saturating_mul(2);
    match name {
        Name::DualPipe | Name::DualPipeV if n < least => fail(format!(
            "needs at least twice as many micro-batches as ranks ({n_ranks}), found {n}; the \
             nearest is {least}"
        )),
        Name::DualPipe if n % 2 == 1 => fail(format!(
            "half of the micro-batches enter at each end, so their number is even, not {n}; the \
             nearest {} {}",
            if n > least { format!("are {} and", n - 1) } else { "is".to_string() },
            n + 1
        )),
        Name::Interleaved | Name::InterleavedPairs | Name::ZbInterleaved
            if !divides_into_rounds(n_ranks, n) =>
        {
            let below = (1..n).rev().find(|n| divides_into_rounds(n_ranks, *n));
            let above = (n + 1..).find(|n| divides_into_rounds(n_ranks, *n)).unwrap_or(n);
            let near = match below {
                Some(b) if n - b < above - n => b.to_string(),
                Some(b) if n - b == above - n => format!("{b} or {above}"),
                _ => above.to_string(),
            };
            fail(format!(
                "the {n} micro-batches of {n_ranks} ranks go in {} equal rounds, which {n} does \
                 not divide into; the nearest is {near}",
                n / n_ranks
            ))
        }
        _ => Ok(()),
    }
}

/// Interleaved schedules go in as many rounds of at least as many micro-batches as there are ranks
/// as they can, all of one length.
fn divides_into_rounds(n_ranks: usize, n_micro_batches: usize) -> bool {
    n_micro_batches.is_multiple_of((n_micro_batches / n_ranks).max(1))
}

/// The table of a published schedule.
pub fn generate(name: Name, size: Size) -> Result<Table, ScheduleError> {
    check_size(name, size)?;
    let Size { n_ranks, n_micro_batches, stages_per_rank } = size;
    let looped = |steady| interleaved::table(n_ranks, n_micro_batches, stages_per_rank, steady);
    Ok(match name {
        Name::GPipe => single::gpipe(n_ranks, n_micro_batches),
        Name::OneFOneB => single::one_f_one_b(n_ranks, n_micro_batches),
        Name::Interleaved => looped(Steady::Apart),
        Name::InterleavedPairs => looped(Steady::Woven),
        Name::ZbInterleaved | Name::ZbH1 => looped(Steady::Split),
        Name::ZbV => v_shaped::table(n_ranks, n_micro_batches),
        Name::DualPipe => dualpipe::bidirectional(n_ranks, n_micro_batches),
        Name::DualPipeV => dualpipe::v_shaped(n_ranks, n_micro_batches),
    })
}
