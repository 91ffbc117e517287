//! A function with its composite ops in their parts: what `run` compares a function with.

use std::collections::BTreeMap;

use weft_ir::builder::Builder;
use weft_ir::decompose::decompose;
use weft_ir::module::{Func, ValueId};
use weft_ir::op::Trait;
use weft_ir::rules::TypeError;

/// `f` with every composite op in its parts.
pub fn decomposed(f: &Func) -> Result<Func, TypeError> {
    let mut b = Builder::new(&f.name);
    let mut new: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    for p in &f.params {
        new.insert(*p, b.param(f.value(*p).name.as_deref().unwrap_or("p"), f.ty(*p).clone()));
    }
    for (_, op) in f.body_ops() {
        b.at(&op.spans);
        let xs: Vec<ValueId> = op.operands.iter().map(|x| new[x]).collect();
        let results = if op.op.has(Trait::Composite) {
            decompose(&mut b, op.op, &xs, &op.attrs)?
        } else {
            let types = op.results.iter().map(|r| f.ty(*r).clone()).collect();
            let id = b.func.push_op(op.op, xs, op.attrs.clone(), types, op.spans.clone());
            b.func.op(id).results.clone()
        };
        new.extend(op.results.iter().copied().zip(results));
    }
    let mut done = b.finish(f.results.iter().map(|r| new[r]).collect());
    done.result_names = f.result_names.clone();
    done.donated = f.donated.clone();
    Ok(done)
}
