//! The order of a function's ops on two streams.
//!
//! A list schedule: the clock of the compute stream stands at `now`, that of the other when its
//! last transfer ends. Of the ops whose operands are there, a transfer is begun first, then comes
//! what leads to one, on the shortest way first, then whatever else, in the order in which it
//! stood. So of two equal halves one goes ahead, and the other computes while it is on its way.
//! Where nothing is there, the stream waits for what comes first. A transfer is done when its
//! result is asked for.
//!
//! Seconds are of a GPU like the H800, from the counts of `weft_ir::cost`, with every dim at its
//! bound and experts evenly loaded; they only decide an order. Sends, receives, loops and calls
//! keep theirs, and so do messages beside collectives: who waits for whom stays as it was.

use weft_ir::cost;
use weft_ir::dim::{SymId, SymKind};
use weft_ir::module::{Func, Module, OpData, OpId, ValueId};
use weft_ir::op::{Op, Trait};

use super::splits;
use crate::rewrite::callee;

/// Transfers that have begun and are not done, at most.
const IN_FLIGHT_MAX: usize = 4;

/// Operations and bytes a second of all multiprocessors, of operands of 8 bits and of others, and
/// bytes a second of rows that ranks exchange: rather too few, since peers are waited for, and what
/// is believed to be on its way for long is not asked for while there is anything else to do.
const CODE_FLOPS: f64 = 1e15;
const FLOPS: f64 = 5e14;
const MEMORY_BYTES: f64 = 2.5e12;
const LINK_BYTES: f64 = 3e10;
const MULTIPROCESSORS: f64 = 132.0;
/// What a kernel or a transfer takes besides.
const LAUNCH: f64 = 2e-6;
const LATENCY: f64 = 1e-5;

/// An op of the function, or a half of one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slot {
    Op(OpId),
    Start(OpId),
    Done(OpId),
}

struct Node<'a> {
    id: OpId,
    op: &'a OpData,
    seconds: f64,
    needs: Vec<usize>,
    needed_by: Vec<usize>,
    /// The shortest way from here to the beginning of a transfer; infinite where there is none.
    way: f64,
}

/// The ops in order. What nothing came to stand within is whole.
pub fn slots(module: &Module, func: &Func, sms: u64) -> Vec<Slot> {
    let nodes = nodes(module, func, sms);
    if !nodes.iter().any(|n| splits(n.op.op)) {
        return vec![];
    }
    let order = Clock::new(&nodes).run();
    let mut slots: Vec<Slot> = vec![];
    for slot in order {
        match (slots.last(), slot) {
            (Some(Slot::Start(a)), Slot::Done(b)) if *a == b => {
                slots.pop();
                slots.push(Slot::Op(b));
            }
            _ => slots.push(slot),
        }
    }
    slots
}

fn nodes<'a>(module: &Module, func: &'a Func, sms: u64) -> Vec<Node<'a>> {
    let mut nodes: Vec<Node> = vec![];
    let mut before = needs(module, func);
    let ops: Vec<&OpData> = func.body_ops().map(|(_, op)| op).collect();
    let runs = |op: &OpData| op.op.has(Trait::Calls) && op.op != Op::Fused;
    let talks = |op: &OpData| runs(op) || op.op.has(Trait::Message);
    chain(&ops, &mut before, &talks);
    for ((id, op), mut needs) in func.body_ops().zip(before) {
        needs.sort_unstable();
        needs.dedup();
        let seconds = seconds(module, func, op, sms);
        nodes.push(Node { id, op, seconds, needs, needed_by: vec![], way: f64::INFINITY });
    }
    for at in (0..nodes.len()).rev() {
        let node = &mut nodes[at];
        node.way = if splits(node.op.op) { 0.0 } else { node.way + node.seconds };
        let way = node.way;
        for need in node.needs.clone() {
            nodes[need].way = nodes[need].way.min(way);
            nodes[need].needed_by.push(at);
        }
    }
    nodes
}

/// For each op of the body, those that stand before it: who makes what it reads, who looks at a
/// state that it changes, and messages, which stay in order with each other and with collectives.
pub fn needs(module: &Module, func: &Func) -> Vec<Vec<usize>> {
    let ops: Vec<&OpData> = func.body_ops().map(|(_, op)| op).collect();
    let mut before: Vec<Vec<usize>> = vec![vec![]; ops.len()];
    let mut made: Vec<Option<usize>> = vec![None; func.n_values()];
    let mut looks: Vec<Vec<ValueId>> = vec![vec![]; func.n_values()];
    for (at, op) in ops.iter().enumerate() {
        before[at].extend(op.operands.iter().filter_map(|x| made[x.0 as usize]));
        op.results.iter().for_each(|r| made[r.0 as usize] = Some(at));
        for state in changed(module, func, op) {
            let sees = |x: &ValueId| *x == state || looks[x.0 as usize].contains(&state);
            let earlier = ops[..at].iter().enumerate();
            let looking = earlier.filter(|(_, other)| other.operands.iter().any(sees));
            before[at].extend(looking.map(|(i, _)| i));
        }
        if !shows(op.op) {
            continue;
        }
        let mut seen: Vec<ValueId> = vec![];
        for x in &op.operands {
            seen.extend(func.ty(*x).state.then_some(*x));
            seen.extend(&looks[x.0 as usize]);
        }
        seen.sort_unstable();
        seen.dedup();
        for r in op.results.iter().filter(|r| !func.ty(**r).state) {
            looks[r.0 as usize].clone_from(&seen);
        }
    }
    if ops.iter().any(|op| op.op.has(Trait::Message)) {
        let meets = |op: &OpData| op.op.has(Trait::Message) || op.op.has(Trait::Collective);
        chain(&ops, &mut before, &meets);
    }
    before
}

/// Each of these ops stands before the next.
fn chain(ops: &[&OpData], before: &mut [Vec<usize>], these: &dyn Fn(&OpData) -> bool) {
    let mut last = None;
    for (at, _) in ops.iter().enumerate().filter(|(_, op)| these(op)) {
        before[at].extend(last.replace(at));
    }
}

/// The states that an op takes over.
fn changed(module: &Module, func: &Func, op: &OpData) -> Vec<ValueId> {
    let state = |x: &&ValueId| func.ty(**x).state;
    if op.op.has(Trait::State) {
        return op.operands.iter().filter(state).copied().collect();
    }
    let Some(f) = callee(op) else { return vec![] };
    let taken = module.func(f).donated.iter();
    taken.filter_map(|(p, _)| op.operands.get(*p as usize).copied()).collect()
}

/// May the result lie where an operand does?
fn shows(op: Op) -> bool {
    op.has(Trait::Movement)
        || op.has(Trait::State)
        || op.has(Trait::Calls)
        || matches!(op, Op::Read | Op::StopGradient | Op::BatchSum)
}

fn seconds(module: &Module, func: &Func, op: &OpData, sms: u64) -> f64 {
    let free = matches!(op.op, Op::Constant | Op::Iota | Op::Extent | Op::Read | Op::StopGradient);
    let strided = matches!(op.op, Op::Reshape | Op::Transpose | Op::Slice | Op::Broadcast);
    if free || strided {
        return 0.0;
    }
    let bound = |s: SymId| match module.sym(s).kind {
        SymKind::Bounded { max } => Some(max),
        SymKind::Ragged { .. } => None,
    };
    // What cannot be counted is as any other launch.
    let cost = cost::of_op(module, func, op, &bound).unwrap_or_default();
    let links = cost.link_bytes as f64 / LINK_BYTES;
    if op.op.has(Trait::Collective) || op.op.has(Trait::Message) {
        return LATENCY + links;
    }
    let share = (MULTIPROCESSORS - sms as f64).max(1.0) / MULTIPROCESSORS;
    let codes = op.operands.first().is_some_and(|x| func.ty(*x).dtype.bits() <= 8);
    let flops = if codes { CODE_FLOPS } else { FLOPS };
    let work = (cost.flops as f64 / (flops * share)).max(cost.bytes() as f64 / MEMORY_BYTES);
    LAUNCH + work + links
}

/// The two streams.
struct Clock<'a> {
    nodes: &'a [Node<'a>],
    now: f64,
    links_free: f64,
    /// For transfers that have begun: when they end.
    ends: Vec<f64>,
    /// Begun and not done, in order.
    flying: Vec<usize>,
    slots: Vec<Slot>,
}

impl<'a> Clock<'a> {
    fn new(nodes: &'a [Node<'a>]) -> Clock<'a> {
        let ends = vec![0.0; nodes.len()];
        Clock { nodes, now: 0.0, links_free: 0.0, ends, flying: vec![], slots: vec![] }
    }

    fn run(mut self) -> Vec<Slot> {
        let mut missing: Vec<usize> = self.nodes.iter().map(|n| n.needs.len()).collect();
        let mut ready: Vec<usize> = (0..self.nodes.len()).filter(|i| missing[*i] == 0).collect();
        while !ready.is_empty() {
            let place = self.next(&ready);
            let at = ready.swap_remove(place);
            self.put(at);
            for next in &self.nodes[at].needed_by {
                missing[*next] -= 1;
                if missing[*next] == 0 {
                    ready.push(*next);
                }
            }
        }
        for at in std::mem::take(&mut self.flying) {
            self.slots.push(Slot::Done(self.nodes[at].id));
        }
        self.slots
    }

    /// When all that a node needs is there.
    fn there(&self, at: usize) -> f64 {
        let ends = self.nodes[at].needs.iter().map(|need| self.ends[*need]);
        let there = ends.fold(0.0, f64::max);
        match self.flying.first() {
            // The oldest has to be done first.
            Some(oldest) if splits(self.nodes[at].op.op) && self.is_full() => {
                there.max(self.ends[*oldest])
            }
            _ => there,
        }
    }

    fn is_full(&self) -> bool {
        self.flying.len() >= IN_FLIGHT_MAX
    }

    /// Which of the ready nodes comes next.
    fn next(&self, ready: &[usize]) -> usize {
        // Smaller is better; the last decides between equals.
        let key = |at: usize| {
            let wait = (self.there(at) - self.now).max(0.0);
            (wait, self.nodes[at].way, at)
        };
        let better = |a: usize, b: usize| {
            let (a, b) = (key(a), key(b));
            a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2))
        };
        let places = 0..ready.len();
        places.min_by(|a, b| better(ready[*a], ready[*b])).expect("something is ready")
    }

    fn put(&mut self, at: usize) {
        let node = &self.nodes[at];
        self.now = self.now.max(self.there(at));
        let asked: Vec<usize> =
            self.flying.iter().copied().filter(|f| node.needs.contains(f)).collect();
        asked.into_iter().for_each(|f| self.done(f));
        if !splits(node.op.op) {
            self.now += node.seconds;
            self.slots.push(Slot::Op(node.id));
            return;
        }
        if self.is_full() {
            self.done(self.flying[0]);
        }
        self.links_free = self.links_free.max(self.now) + node.seconds;
        self.ends[at] = self.links_free;
        self.flying.push(at);
        self.slots.push(Slot::Start(node.id));
    }

    fn done(&mut self, at: usize) {
        self.flying.retain(|f| *f != at);
        self.slots.push(Slot::Done(self.nodes[at].id));
    }
}
