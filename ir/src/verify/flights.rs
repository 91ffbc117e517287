//! What is in flight is done once, in the function that began it.

use std::collections::BTreeMap;

use super::{Cx, Place};
use crate::module::{FuncId, OpId, ValueId};
use crate::op::Op;
use crate::text;

pub fn check(cx: &mut Cx, id: FuncId) {
    let f = cx.m.func(id);
    let names = text::value_names(f);
    let name = |v: ValueId| &names[v.0 as usize];
    for p in f.params.iter().filter(|p| f.ty(**p).flight) {
        let why = || format!("{} is in flight, and no parameter is", name(*p));
        cx.check(false, Place::Head(id), why);
    }
    let mut open: BTreeMap<ValueId, OpId> = BTreeMap::new();
    for (op_id, op) in f.body_ops() {
        let at = Place::Op(id, op_id);
        for x in op.operands.iter().filter(|x| f.ty(**x).flight) {
            if op.op == Op::Done {
                let first = open.remove(x).is_some();
                cx.check(first, at, || format!("{} is done before", name(*x)));
            } else {
                let what = op.op.name();
                cx.fail(at, format!("{} is in flight, and {what} takes it", name(*x)));
            }
        }
        let begun = op.results.iter().filter(|r| f.ty(**r).flight);
        open.extend(begun.map(|r| (*r, op_id)));
    }
    for r in f.results.iter().filter(|r| f.ty(**r).flight) {
        open.remove(r);
        cx.fail(Place::Return(id), format!("{} is in flight, and no result is", name(*r)));
    }
    for (v, op_id) in open {
        cx.fail(Place::Op(id, op_id), format!("{} is in flight and never done", name(v)));
    }
}
