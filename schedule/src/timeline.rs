//! A program on a clock: every step begins when its rank is free and what it waits for is there.
//!
//! The same walk finds deadlocks: if ranks are left with steps and none can move, there is one.

use std::collections::{HashMap, VecDeque};

use crate::ScheduleError;
use crate::program::{Message, Program, Step};
use crate::table::{Action, Cell, Op, Table};

/// What a cell takes, and a message on its way. Any unit of time.
pub trait Costs {
    fn cell(&self, rank: usize, cell: &Cell) -> f64;
    fn message(&self, from: usize, to: usize, message: &Message) -> f64;
}

/// The units in which schedules are compared: what a forward, an input gradient, a weight gradient
/// and a pair take; a full backward takes both gradients' time and a message none.
#[derive(Clone, Copy, Debug)]
pub struct UnitCosts {
    pub forward: f64,
    pub input: f64,
    pub weight: f64,
    pub pair: f64,
}

impl Default for UnitCosts {
    fn default() -> UnitCosts {
        UnitCosts { forward: 1.0, input: 1.0, weight: 1.0, pair: 3.0 }
    }
}

impl Costs for UnitCosts {
    fn cell(&self, _: usize, cell: &Cell) -> f64 {
        match cell {
            Cell::Idle => 0.0,
            Cell::Pair { .. } => self.pair,
            Cell::One(a) => match a.op {
                Op::Forward => self.forward,
                Op::Backward => self.input + self.weight,
                Op::BackwardInput => self.input,
                Op::BackwardWeight => self.weight,
            },
        }
    }

    fn message(&self, _: usize, _: usize, _: &Message) -> f64 {
        0.0
    }
}

/// When a cell ran.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    pub start: f64,
    pub end: f64,
    /// Its index in the rank's row.
    pub cell: usize,
}

/// When everything ran.
#[derive(Clone, Debug)]
pub struct Timeline {
    /// The cells of each rank in order, idle ones left out.
    pub spans: Vec<Vec<Span>>,
    /// Activations of chunks that each rank held at once, at most: from forward until the backward
    /// or the input gradient.
    pub live_max: Vec<usize>,
    /// Messages that lay in one channel at once, at most: sent and not yet read.
    pub channel_max: usize,
    /// A capacity at which no send would have waited, whatever cells take.
    pub capacity_enough: usize,
    pub n_messages: usize,
}

impl Timeline {
    /// Runs `program`, the messages of which may be any; `capacity` is how many messages a channel
    /// between two ranks holds before a send waits.
    pub fn run(
        table: &Table,
        program: &Program,
        costs: &dyn Costs,
        capacity: Option<usize>,
    ) -> Result<Timeline, ScheduleError> {
        let mut clock = Clock::new(table, program, capacity);
        let mut queue: VecDeque<usize> = (0..table.n_ranks()).collect();
        while let Some(rank) = queue.pop_front() {
            while let Some(woken) = clock.step(rank, costs) {
                queue.extend(woken);
            }
        }
        clock.finish()
    }

    /// When the last rank is done.
    pub fn makespan(&self) -> f64 {
        self.spans.iter().flatten().map(|s| s.end).fold(0.0, f64::max)
    }

    /// Time that a rank computes.
    pub fn busy(&self, rank: usize) -> f64 {
        self.spans[rank].iter().map(|s| s.end - s.start).sum()
    }

    /// The longest that a rank does not compute, of all ranks: the bubble.
    pub fn bubble(&self) -> f64 {
        let makespan = self.makespan();
        (0..self.spans.len()).map(|r| makespan - self.busy(r)).fold(0.0, f64::max)
    }
}

type Channel = (usize, usize);

struct Clock<'a> {
    table: &'a Table,
    program: &'a Program,
    capacity: usize,
    next: Vec<usize>,
    now: Vec<f64>,
    /// Messages under way, each with when it was sent and when it is there.
    sent: HashMap<(Channel, Message), (f64, f64)>,
    /// From when to when each message lay in its channel; channels by `number`.
    lay: Vec<Vec<(f64, f64)>>,
    in_channel: Vec<usize>,
    /// When a channel's place was last freed.
    freed: Vec<Option<f64>>,
    live: Vec<usize>,
    out: Timeline,
}

impl<'a> Clock<'a> {
    fn new(table: &'a Table, program: &'a Program, capacity: Option<usize>) -> Clock<'a> {
        let n = table.n_ranks();
        Clock {
            table,
            program,
            capacity: capacity.unwrap_or(usize::MAX),
            next: vec![0; n],
            now: vec![0.0; n],
            sent: HashMap::new(),
            lay: vec![vec![]; n * n],
            in_channel: vec![0; n * n],
            freed: vec![None; n * n],
            live: vec![0; n],
            out: Timeline {
                spans: vec![vec![]; n],
                live_max: vec![0; n],
                channel_max: 0,
                capacity_enough: 0,
                n_messages: 0,
            },
        }
    }

    fn number(&self, (from, to): Channel) -> usize {
        from * self.table.n_ranks() + to
    }

    /// Takes the rank's next step if it can be taken; the ranks that may now move.
    fn step(&mut self, rank: usize, costs: &dyn Costs) -> Option<Option<usize>> {
        let step = *self.program.ranks[rank].get(self.next[rank])?;
        let woken = match step {
            Step::Receive { from, message } => {
                let channel = (from, rank);
                let (sent, there) = self.sent.remove(&(channel, message))?;
                self.now[rank] = self.now[rank].max(there);
                let at = self.number(channel);
                self.lay[at].push((sent, self.now[rank]));
                self.in_channel[at] -= 1;
                self.freed[at] = Some(self.now[rank]);
                Some(from)
            }
            Step::Compute { cell } => {
                self.compute(rank, cell, costs);
                None
            }
            Step::Send { to, message } => {
                let channel = (rank, to);
                let at = self.number(channel);
                let held = &mut self.in_channel[at];
                if *held >= self.capacity {
                    return None;
                }
                *held += 1;
                self.out.capacity_enough = self.out.capacity_enough.max(*held);
                self.out.n_messages += 1;
                let full_before = *held == self.capacity;
                let freed = self.freed[at].filter(|_| full_before);
                self.now[rank] = self.now[rank].max(freed.unwrap_or(0.0));
                let sent = self.now[rank];
                let there = sent + costs.message(rank, to, &message);
                self.sent.insert((channel, message), (sent, there));
                Some(to)
            }
        };
        self.next[rank] += 1;
        Some(woken)
    }

    fn compute(&mut self, rank: usize, cell: usize, costs: &dyn Costs) {
        let content = &self.table.rows[rank][cell];
        let start = self.now[rank];
        let end = start + costs.cell(rank, content);
        self.now[rank] = end;
        self.out.spans[rank].push(Span { start, end, cell });
        for Action { op, .. } in content.actions() {
            if op == Op::Forward {
                self.live[rank] += 1;
                self.out.live_max[rank] = self.out.live_max[rank].max(self.live[rank]);
            } else if op.is_input_gradient() {
                self.live[rank] = self.live[rank].saturating_sub(1);
            }
        }
    }

    fn finish(mut self) -> Result<Timeline, ScheduleError> {
        self.out.channel_max = self.lay.iter().map(|c| overlap_max(c)).max().unwrap_or(0);
        let stuck = |rank: &usize| self.next[*rank] < self.program.ranks[*rank].len();
        let Some(first) = (0..self.table.n_ranks()).find(stuck) else {
            let left = self.sent.keys().min();
            return match left {
                None => Ok(self.out),
                Some(((from, to), message)) => Err(ScheduleError(format!(
                    "rank {from} sends rank {to} {message}, which rank {to} never receives"
                ))),
            };
        };
        // From rank to the rank it waits for, until one comes again or one that is done.
        let mut seen = vec![first];
        let mut lines = vec![];
        let mut rank = first;
        loop {
            let (on, line) = self.waits(rank);
            lines.push(line);
            if !stuck(&on) {
                lines.push(format!("rank {on} has ended and never sends it"));
                break;
            }
            if let Some(at) = seen.iter().position(|r| *r == on) {
                lines.drain(..at);
                break;
            }
            seen.push(on);
            rank = on;
        }
        const SHOWN: usize = 6;
        let more = lines.len().saturating_sub(SHOWN);
        lines.truncate(SHOWN);
        if more > 0 {
            lines.push(format!("and {more} more"));
        }
        Err(ScheduleError(format!("deadlock: {}", lines.join("; "))))
    }

    /// Whom a stuck rank waits for, and what for.
    fn waits(&self, rank: usize) -> (usize, String) {
        let steps = &self.program.ranks[rank];
        let before = |s: &Step| matches!(s, Step::Compute { .. });
        match steps[self.next[rank]] {
            Step::Receive { from, message } => {
                let cell = steps[self.next[rank]..].iter().find_map(|s| match s {
                    Step::Compute { cell } => Some(*cell),
                    _ => None,
                });
                let at = cell.map(|c| format!("at cell {c} ")).unwrap_or_default();
                (from, format!("rank {rank} waits {at}for {message} from rank {from}"))
            }
            Step::Send { to, message } => {
                let n = steps[..self.next[rank]].iter().filter(|s| before(s)).count();
                let held = self.capacity;
                (
                    to,
                    format!(
                        "rank {rank} waits after {n} cells to send rank {to} {message}: the \
                         channel holds {held} already"
                    ),
                )
            }
            // A cell never waits.
            Step::Compute { .. } => (rank, format!("rank {rank} does not move")),
        }
    }
}

/// How many of the intervals hold one point of time, at most; their ends are not of them.
fn overlap_max(intervals: &[(f64, f64)]) -> usize {
    // A message that is read when it is sent does not lie anywhere.
    let long = || intervals.iter().filter(|(start, end)| start < end);
    let ends = long().map(|(_, end)| (*end, false));
    let mut events: Vec<(f64, bool)> = long().map(|(s, _)| (*s, true)).chain(ends).collect();
    // At one time, ends come first.
    events.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let (mut now, mut most) = (0usize, 0);
    for (_, starts) in events {
        now = if starts { now + 1 } else { now - 1 };
        most = most.max(now);
    }
    most
}
