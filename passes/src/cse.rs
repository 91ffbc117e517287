//! Compute the same expression once.
//!
//! ```text
//! %1 = exp %x : f32[8]                 %1 = exp %x : f32[8]
//! %2 = exp %x : f32[8]            =>   %3 = add %1, %1 : f32[8]
//! %3 = add %1, %2 : f32[8]
//! ```
//!
//! Why: the derivatives of several ops ask for the same values, and two halves of a backward
//! compute what they do not save. The op that stays takes the spans of the one that goes.
//! Cost: one walk, a map from op and operands to the ops seen.

use std::collections::BTreeMap;

use weft_ir::attr::{Attr, Attrs};
use weft_ir::module::{Func, Module, OpId, ValueId};
use weft_ir::op::{Op, Trait};

use crate::rewrite::{Copier, each_func};
use crate::{Pass, PassCx, PassError, Stats};

pub const PASS: Pass = Pass { name: "cse", requires: &[], establishes: &[], run };

pub fn run(module: &mut Module, _: &PassCx) -> Result<Stats, PassError> {
    let mut merged = 0;
    each_func(module, |_, func| Ok(merge(func, &mut merged)))?;
    Ok(Stats::one("merged", merged))
}

fn merge(func: &Func, merged: &mut usize) -> Func {
    let mut copy = Copier::new(func, &func.name);
    copy.params();
    let mut seen: BTreeMap<(Op, Vec<ValueId>), Vec<OpId>> = BTreeMap::new();
    for (id, op) in func.body_ops() {
        let mapped = copy.mapped(id);
        let mut key = (op.op, mapped.operands.clone());
        if op.op.has(Trait::Commutative) {
            key.1.sort();
        }
        let alike = seen.entry(key).or_default();
        let twin =
            alike.iter().copied().find(|t| same_attrs(&copy.to.func.op(*t).attrs, &op.attrs));
        match twin.filter(|_| op.op.is_pure()) {
            None => {
                copy.op(id);
                alike.extend(copy.to.func.body.last());
            }
            Some(twin) => {
                *merged += 1;
                let results = copy.to.func.op(twin).results.clone();
                op.results.iter().zip(results).for_each(|(from, to)| copy.bind(*from, to));
                let spans = &mut copy.to.func.op_mut(twin).spans;
                let new = op.spans.iter().filter(|s| !spans.contains(s)).copied();
                let new: Vec<_> = new.collect();
                spans.extend(new);
            }
        }
    }
    copy.finish()
}

/// Equal to the bit: 0 and -0 are two constants, and a NaN is itself.
fn same_attrs(a: &Attrs, b: &Attrs) -> bool {
    let same = |name: &str, x: &Attr| match (x, b.get(name)) {
        (Attr::Float(x), Some(Attr::Float(y))) => x.to_bits() == y.to_bits(),
        (Attr::Bool(false), None) => true,
        (x, y) => Some(x) == y,
    };
    let extra = |name: &str, y: &Attr| a.get(name).is_some() || *y == Attr::Bool(false);
    a.iter().all(|(n, x)| same(n, x)) && b.iter().all(|(n, y)| extra(n, y))
}
