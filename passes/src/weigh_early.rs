//! Weigh experts' rows before their last product rather than after it.
//!
//! ```text
//! %y = grouped_matmul %h, %w, %offsets     # [R, K] -> [R, N], K < N
//! %z = combine %y, %order, %gates
//! =>
//! %1 = dispatch %gates, %order {active = 1} # a gate a row, [R, 1]
//! %2 = mul %h, %1
//! %y = grouped_matmul %2, %w, %offsets
//! %z = combine %y, %order
//! ```
//!
//! Why: `g (W h) = W (g h)`, and the gate's derivative is `<dz, W h> = <Wᵀ dz, h>`. After the
//! product it needs every expert's output, kept for the backward pass; before it needs `h`, which
//! is narrower and of SwiGLU given back from what is saved anyway. DeepSeek's training weighs here,
//! too. Rows are rounded after the product with the gate, so a run in few bits differs in its last
//! ones. Only where gradients are asked for: inference keeps nothing. Cost: one scan. Requires:
//! nothing.

use std::collections::{BTreeMap, BTreeSet};

use weft_ir::attr::Attrs;
use weft_ir::builder::Builder;
use weft_ir::dim::{self, Dim};
use weft_ir::module::{Func, Module, OpData, OpId, ValueId};
use weft_ir::op::Op;
use weft_ir::rules::TypeError;
use weft_ir::ty::DType;

use crate::rewrite::Copier;
use crate::{Pass, PassCx, PassError, Stats};

pub const PASS: Pass = Pass { name: "weigh_early", requires: &[], establishes: &[], run };

pub fn run(module: &mut Module, cx: &PassCx) -> Result<Stats, PassError> {
    let mut n_moved = 0;
    if cx.gradients || cx.train.is_some() {
        for func in &mut module.funcs {
            let weighed = find(func);
            if weighed.is_empty() {
                continue;
            }
            n_moved += weighed.len();
            *func = rewrite(func, &weighed).map_err(|e| e.within(func))?;
        }
    }
    Ok(Stats::one("gates moved", n_moved))
}

/// The rows' order and gates, by the product whose result alone they weigh.
type Weighed = BTreeMap<OpId, (ValueId, ValueId)>;

fn find(func: &Func) -> Weighed {
    let mut n_uses: BTreeMap<ValueId, usize> = BTreeMap::new();
    let read = func.body_ops().flat_map(|(_, op)| &op.operands).chain(&func.results);
    read.for_each(|v| *n_uses.entry(*v).or_default() += 1);
    let mut before = BTreeSet::new();
    let mut made_before: BTreeMap<OpId, BTreeSet<ValueId>> = BTreeMap::new();
    let mut weighed = Weighed::new();
    before.extend(func.params.iter().copied());
    for (id, op) in func.body_ops() {
        if op.op == Op::GroupedMatmul {
            made_before.insert(id, before.clone());
        }
        before.extend(op.results.iter().copied());
        let (Op::Combine, [rows, order, gates]) = (op.op, &op.operands[..]) else { continue };
        let Some(product) = func.def_op(*rows).filter(|p| func.op(*p).op == Op::GroupedMatmul)
        else {
            continue;
        };
        let known = &made_before[&product];
        let narrower = width(func, func.op(product).operands[0]) < width(func, *rows);
        if narrower && n_uses[rows] == 1 && known.contains(order) && known.contains(gates) {
            weighed.insert(product, (*order, *gates));
        }
    }
    weighed
}

fn width(func: &Func, v: ValueId) -> Option<u64> {
    func.ty(v).last()?.as_fixed()
}

fn rewrite(func: &Func, weighed: &Weighed) -> Result<Func, PassError> {
    let rows: BTreeSet<ValueId> = weighed.keys().map(|p| func.op(*p).results[0]).collect();
    let mut copy = Copier::new(func, &func.name);
    copy.params();
    for (id, op) in func.body_ops() {
        copy.to.at(&op.spans);
        let mut made = copy.mapped(id);
        if let Some((order, gates)) = weighed.get(&id) {
            let (order, gates) = (copy.get(*order), copy.get(*gates));
            made.operands[0] = times_gates(&mut copy.to, made.operands[0], order, gates)
                .map_err(|e| PassError::from(e).at(func, op))?;
        } else if op.op == Op::Combine && rows.contains(&op.operands[0]) {
            made.operands.truncate(2);
        }
        let OpData { operands, attrs, .. } = made;
        copy.put(op.op, operands, attrs, &op.results, &op.spans);
    }
    Ok(copy.finish())
}

/// Each row of `h` times its gate, in f32 and rounded once.
fn times_gates(
    b: &mut Builder,
    h: ValueId,
    order: ValueId,
    gates: ValueId,
) -> Result<ValueId, TypeError> {
    let to = b.ty(h).dtype;
    let rounded = b.func.def_op(h).map(|id| b.func.op(id)).filter(|op| op.op == Op::Convert);
    let wide = rounded.map(|op| op.operands[0]).filter(|x| b.ty(*x).dtype == DType::F32);
    let h = match wide {
        Some(x) => x,
        None => b.convert(h, DType::F32)?,
    };
    let n_gates = dim::product(&b.dims(gates));
    let n_gates = n_gates.ok_or_else(|| TypeError("the gates cannot be counted".into()))?;
    let flat = b.reshape(gates, &[n_gates, Dim::fixed(1)])?;
    let of_rows = b.emit(Op::Dispatch, &[flat, order], Attrs::new().int("active", 1))?;
    let of_rows = b.convert(of_rows, DType::F32)?;
    let dims = b.dims(h);
    let stretched = b.broadcast_to(of_rows, &dims)?;
    let weighed = b.binary(Op::Mul, h, stretched)?;
    b.convert(weighed, to)
}
