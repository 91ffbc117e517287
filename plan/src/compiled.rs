//! The cells of a rank's program as it was compiled, on the two streams of a GPU.
//!
//! Where [`crate::weave`] lays a layer's parts out by hand, this walks the ops of the program that
//! `weft compile --dump` wrote behind `overlap`, in their order and with their halves of
//! collectives: an exchange is on its way from its start to whoever needs what it brings, and every
//! other op runs on the compute stream when that is free and its operands are there. What an op
//! takes is the same rule ([`crate::kernel`]). Rows of an exchange, for which the program has room
//! for more than it sends, are counted as evenly spread.

use std::collections::BTreeSet;

use weft_ir::cost;
use weft_ir::module::{Func, FuncId, Module, OpData, ValueId};
use weft_ir::op::{Op, Trait};

use crate::PlanError;
use crate::cluster::{Cluster, Overlap};
use crate::kernel::{self, Exchange, Kernel, Place, Work};
use crate::streams::{Streams, Transfer};

/// A function that the step calls, when its ops ran.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    pub name: String,
    /// How often the step calls it.
    pub n_calls: usize,
    pub streams: Streams,
}

/// The cells of a step, in the order in which it first calls them. `at` is where they run. Those
/// that exchange nothing have all multiprocessors; so do, as in a plan, those of one micro-batch
/// alone, whose exchanges have nothing much beside them.
pub fn cells(
    module: &Module,
    entry: &str,
    cluster: &Cluster,
    at: &Place,
) -> Result<Vec<Cell>, PlanError> {
    let even = cost::evenly(module);
    let step = even.find(entry).ok_or(PlanError(format!("the program has no @{entry}")))?;
    let calls = even.func(step).body_ops().filter(|(_, op)| op.op == Op::Call);
    let called: Vec<FuncId> = calls.filter_map(|(_, op)| op.attrs.get_func("func")).collect();
    let mut seen = BTreeSet::new();
    let mut found = vec![];
    for id in called.iter().copied().filter(|id| seen.insert(*id)) {
        let alone = Place { sms: cluster.sms, beside_exchange: false, ..*at };
        let at = match parts(&even.func(id).name) {
            Some(parts) if !is_pair(&parts) => &alone,
            _ if !exchanges(&even, id) => &alone,
            _ => at,
        };
        let walk = Walk { module: &even, cluster, at, active: active(&even) };
        let func = even.func(id);
        let mut streams = Streams::default();
        walk.run(func, vec![0.0; func.params.len()], &mut streams)?;
        if streams.seconds() > 0.0 {
            let n_calls = called.iter().filter(|f| **f == id).count();
            found.push(Cell { name: func.name.clone(), n_calls, streams });
        }
    }
    Ok(found)
}

/// Whether a cell weaves a forward with a backward.
fn is_pair(parts: &[(usize, &str)]) -> bool {
    let of = |half: &dyn Fn(&str) -> bool| parts.iter().any(|(_, h)| half(h));
    of(&|h| h == "fwd") && of(&|h| h.starts_with("bwd"))
}

/// Whether a function, or one that it calls, has an exchange on its way beside other ops.
fn exchanges(module: &Module, id: FuncId) -> bool {
    module.func(id).body_ops().any(|(_, op)| {
        let inner = op.attrs.get_func("func").filter(|_| op.op != Op::Fused);
        op.op == Op::ExchangeStart || inner.is_some_and(|f| exchanges(module, f))
    })
}

/// How many experts a token has.
fn active(module: &Module) -> f64 {
    let ops = module.funcs.iter().flat_map(|f| f.body_ops().map(|(_, op)| op));
    let all = ops.filter(|op| op.op == Op::Dispatch).filter_map(|op| op.attrs.get_int("active"));
    all.max().unwrap_or(1) as f64
}

fn is_exchange(op: Op) -> bool {
    matches!(op, Op::Exchange | Op::ExchangeStart)
}

struct Walk<'a> {
    module: &'a Module,
    cluster: &'a Cluster,
    at: &'a Place,
    active: f64,
}

impl Walk<'_> {
    /// When each result of a function is there whose parameters are at those times.
    fn run(&self, f: &Func, params: Vec<f64>, s: &mut Streams) -> Result<Vec<f64>, PlanError> {
        let mut ready = vec![0.0; f.n_values()];
        for (p, t) in f.params.iter().zip(params) {
            ready[p.0 as usize] = t;
        }
        for (_, op) in f.body_ops() {
            let given: Vec<f64> = op.operands.iter().map(|v| ready[v.0 as usize]).collect();
            let after = given.iter().copied().fold(0.0, f64::max);
            let results = match op.op {
                Op::Call | Op::Repeat => self.called(op, given, s)?,
                Op::Done => vec![after],
                _ if is_exchange(op.op) => {
                    let transfer = self.transfer(f, op)?;
                    vec![s.exchange(name_of(op), 0, transfer, after)]
                }
                _ => vec![self.compute(f, op, after, s)?; op.results.len()],
            };
            for (r, t) in op.results.iter().zip(results) {
                ready[r.0 as usize] = t;
            }
        }
        Ok(f.results.iter().map(|r| ready[r.0 as usize]).collect())
    }

    /// A call, or the turns of a loop one after the other.
    fn called(
        &self,
        op: &OpData,
        mut given: Vec<f64>,
        s: &mut Streams,
    ) -> Result<Vec<f64>, PlanError> {
        let id = op.attrs.get_func("func").ok_or(PlanError("a call of nothing".into()))?;
        let body = self.module.func(id);
        let carry = op.attrs.get_int("carry").unwrap_or(0) as usize;
        let turns = if op.op == Op::Repeat { op.attrs.get_int("count").unwrap_or(0) } else { 1 };
        let mut results = vec![0.0; op.results.len()];
        for _ in 0..turns {
            let made = self.run(body, given.clone(), s)?;
            given[..carry].copy_from_slice(&made[..carry]);
            // What is stacked is whole when its last part is.
            for (all, t) in results.iter_mut().zip(&made) {
                *all = f64::max(*all, *t);
            }
        }
        Ok(results)
    }

    fn compute(
        &self,
        f: &Func,
        op: &OpData,
        after: f64,
        s: &mut Streams,
    ) -> Result<f64, PlanError> {
        if op.op.has(Trait::Message) || op.op == Op::ExchangeOffsets {
            return Ok(after);
        }
        // Experts and products are already those of this rank.
        let here = Place { experts: 1, tensor: 1, redundant_experts: 0, ..*self.at };
        let mut end = after;
        for k in kernel::of_op(self.module, f, op)? {
            let seconds = match k.work {
                Work::Dispatch(_) | Work::Combine(_) => k.local_seconds(self.cluster, &here),
                _ => k.seconds(self.cluster, &here),
            };
            end = s.compute(name_of(op), 0, seconds, end);
        }
        Ok(end)
    }

    /// Tokens on their way to experts, or back: each goes once to a node.
    fn transfer(&self, f: &Func, op: &OpData) -> Result<Transfer, PlanError> {
        let back = op.attrs.get_flag("back");
        let moved = f.ty(if back { op.results[0] } else { op.operands[0] });
        let row_bytes = kernel::bytes(self.module, moved)?;
        let rows = self.module.eval_dim(moved.dims[0], &|_| None);
        let rows = rows.ok_or(PlanError("rows that are exchanged have no number".into()))? as f64;
        let tokens = rows / self.active;
        let exchange = Exchange { tokens, token_bytes: row_bytes / rows, row_bytes };
        let work = if back { Work::Combine(exchange) } else { Work::Dispatch(exchange) };
        let seconds = Kernel { name: name_of(op).into(), work }.seconds(self.cluster, self.at);
        let o: Overlap = self.cluster.overlap;
        let factor = match (back, self.is_fresh(f, op.operands[1])) {
            (true, _) => o.combine,
            (false, true) => o.dispatch,
            (false, false) => o.dispatch_again,
        };
        Ok(match self.at.beside_exchange {
            true => Transfer { seconds: seconds * factor, wait: o.wait_us * 1e-6 },
            false => Transfer { seconds, wait: 0.0 },
        })
    }

    /// Whether where rows go is found out here, and not known from before.
    fn is_fresh(&self, f: &Func, offsets: ValueId) -> bool {
        f.def_op(offsets).is_some_and(|d| f.op(d).op == Op::Route)
    }
}

fn name_of(op: &OpData) -> &'static str {
    op.op.def().name
}

/// The functions of stages that a cell's name has: `stage.2.fwd.stage.0.bwd_input`; a number behind
/// them only tells it from others.
pub(crate) fn parts(name: &str) -> Option<Vec<(usize, &str)>> {
    let mut words = name.split('.').peekable();
    let mut found = vec![];
    while let Some(word) = words.next() {
        if word == "stage" {
            found.push((words.next()?.parse().ok()?, words.next()?));
        } else if word.parse::<usize>().is_err() || found.is_empty() || words.peek().is_some() {
            return None;
        }
    }
    (!found.is_empty()).then_some(found)
}
