//! Rows behind the last that came: where they are zeros, and where nobody said what they are.

use std::collections::BTreeSet;

use weft_ir::module::{FuncId, Module, OpData, ValueId};
use weft_ir::op::Op;

use crate::rewrite::{callee, carry};

/// By function: rows that are as `dispatch` makes them, of values or of codes, or what is read from
/// such codes. Sent, they have zeros behind them (`exchange`).
pub struct Filled(Vec<BTreeSet<ValueId>>);

impl Filled {
    pub fn of(module: &Module) -> Filled {
        let mut filled = Filled(vec![BTreeSet::new(); module.funcs.len()]);
        while filled.more(module) {}
        filled
    }

    pub fn has(&self, func: FuncId, v: ValueId) -> bool {
        self.0[func.0 as usize].contains(&v)
    }

    /// One round; whether it found any.
    fn more(&mut self, module: &Module) -> bool {
        let mut found: Vec<(FuncId, ValueId)> = vec![];
        // For each function, how often it is called, and for each parameter how often with such.
        let mut handed: Vec<(usize, Vec<usize>)> =
            module.funcs.iter().map(|f| (0, vec![0; f.params.len()])).collect();
        for id in module.func_ids() {
            for (_, op) in module.func(id).body_ops() {
                if let Some(inner) = callee(op) {
                    let (n_calls, params) = &mut handed[inner.0 as usize];
                    *n_calls += 1;
                    for (i, x) in op.operands.iter().enumerate() {
                        // What is carried is another value in every turn.
                        params[i] += usize::from(i >= carry(op) && self.has(id, *x));
                    }
                    let results = op.results.iter().zip(&module.func(inner).results);
                    let of_all = results.skip(carry(op)).filter(|(_, r)| self.has(inner, **r));
                    found.extend(of_all.map(|(r, _)| (id, *r)));
                } else if self.makes(id, op) {
                    found.extend(op.results.iter().map(|r| (id, *r)));
                }
            }
        }
        for (id, (n_calls, params)) in module.func_ids().zip(handed) {
            let always = params.iter().enumerate().filter(|(_, n)| n_calls > 0 && **n == n_calls);
            found.extend(always.map(|(i, _)| (id, module.func(id).params[i])));
        }
        let mut any = false;
        for (id, v) in found {
            any |= self.0[id.0 as usize].insert(v);
        }
        any
    }

    fn makes(&self, id: FuncId, op: &OpData) -> bool {
        let moves = matches!(op.op, Op::Dequantize | Op::Convert | Op::Reshape | Op::Slice);
        op.op == Op::Dispatch || moves && op.operands.iter().all(|x| self.has(id, *x))
    }
}
