//! Which values of a function are rows for experts, and by which offsets they are cut.

use std::collections::BTreeMap;

use weft_ir::dim::{Dim, SymKind};
use weft_ir::module::{Func, Module, OpData, ValueId};
use weft_ir::op::{Op, Trait};
use weft_ir::ty::{DType, Type};

use crate::PassError;

/// Rows that ops take and make together are cut alike: sets of values, each with its offsets.
pub struct Groups {
    rows: Vec<bool>,
    /// Towards the set's first value.
    parent: Vec<usize>,
    offsets: BTreeMap<usize, ValueId>,
}

impl Groups {
    pub fn of(module: &Module, func: &Func) -> Result<Groups, PassError> {
        let values = || (0..func.n_values() as u32).map(ValueId);
        let rows = values().map(|v| is_rows(module, func.ty(v))).collect();
        let mut groups =
            Groups { rows, parent: (0..func.n_values()).collect(), offsets: BTreeMap::new() };
        let ops = || func.body_ops().map(|(_, op)| op).filter(|o| !o.op.has(Trait::Calls));
        for op in ops() {
            if groups.makes(op) {
                continue;
            }
            let all = op.operands.iter().chain(&op.results).copied();
            let of_rows = |v: &ValueId| groups.is_rows(*v) || is_order(module, func.ty(*v));
            let all: Vec<ValueId> = all.filter(of_rows).collect();
            all.windows(2).for_each(|pair| groups.join(pair[0], pair[1]));
        }
        for op in ops() {
            let said = match op.op {
                Op::Route => Some((op.results[1], op.results[0])),
                Op::GroupedMatmul | Op::GroupedOuter => Some((op.operands[0], op.operands[2])),
                _ => None,
            };
            let Some((rows, offsets)) = said else { continue };
            let root = groups.root(rows.0 as usize);
            if *groups.offsets.entry(root).or_insert(offsets) != offsets {
                return Err(PassError::new("rows meet that are cut otherwise").at(func, op));
            }
        }
        Ok(groups)
    }

    pub fn is_rows(&self, v: ValueId) -> bool {
        self.rows[v.0 as usize]
    }

    /// The offsets by which rows are cut.
    pub fn offsets(&self, v: ValueId) -> Option<ValueId> {
        self.offsets.get(&self.root(v.0 as usize)).copied()
    }

    /// Does an op make rows of what is none? They may be of several sets.
    pub fn makes(&self, op: &OpData) -> bool {
        let rows = |v: &ValueId| self.is_rows(*v);
        let made = !op.results.is_empty() && op.results.iter().all(rows);
        made && !op.operands.iter().any(rows) && op.op != Op::Dispatch && op.op.is_pure()
    }

    fn join(&mut self, a: ValueId, b: ValueId) {
        let (a, b) = (self.root(a.0 as usize), self.root(b.0 as usize));
        self.parent[a.max(b)] = a.min(b);
    }

    fn root(&self, mut v: usize) -> usize {
        while self.parent[v] != v {
            v = self.parent[v];
        }
        v
    }
}

fn is_ragged(module: &Module, dim: &Dim) -> bool {
    dim.symbols().any(|s| matches!(module.sym(s).kind, SymKind::Ragged { .. }))
}

/// The places of rows, not rows.
fn is_order(module: &Module, ty: &Type) -> bool {
    ty.dtype == DType::I32 && ty.dims.last().is_some_and(|d| is_ragged(module, d))
}

fn is_rows(module: &Module, ty: &Type) -> bool {
    !is_order(module, ty) && ty.dims.iter().any(|d| is_ragged(module, d))
}

/// Is row r of the result made of row r of each operand that has rows, and of nothing that depends
/// on the number of rows?
pub fn one_by_one(func: &Func, op: &OpData) -> bool {
    let rows = |v: &ValueId| func.ty(*v).dims.first().copied();
    let first = rows(&op.results[0]);
    let kept = op.results.iter().all(|r| rows(r) == first && first.is_some());
    let ints = |name: &str| op.attrs.get_ints(name).unwrap_or(&[]);
    let aside = op.attrs.get_int("dim").is_none_or(|d| d > 0);
    kept && match op.op {
        Op::Quantize => ints("group").first() == Some(&1),
        Op::Dequantize => func.ty(op.operands[0]).quant.as_ref().is_some_and(|q| q.group[0] == 1),
        Op::Reshape => rows(&op.operands[0]) == first,
        Op::Broadcast => ints("dims").first() == Some(&0) && rows(&op.operands[0]) == first,
        Op::Transpose => ints("perm").first() == Some(&0),
        Op::Softmax | Op::RmsNorm => func.ty(op.operands[0]).rank() > 1,
        _ if op.op.has(Trait::Reduction) => !ints("dims").contains(&0),
        _ if op.op.has(Trait::Movement) => aside,
        _ => op.op.has(Trait::Pointwise),
    }
}
