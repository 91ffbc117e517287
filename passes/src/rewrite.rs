//! Copying functions: whole with some ops replaced (`rebuild`), or the part between chosen values
//! (`extract`). Ops are never edited in place: a pass makes a new function, so ids stay dense and
//! order is kept.

use std::collections::BTreeSet;

use weft_ir::attr::{Attr, Attrs};
use weft_ir::builder::Builder;
use weft_ir::module::{Def, Func, FuncId, Module, OpData, OpId, ValueId};
use weft_ir::op::{Op, Trait};
use weft_ir::ty::DType;

use crate::PassError;

/// A function being copied op by op into another.
pub struct Copier<'a> {
    pub from: &'a Func,
    pub to: Builder,
    map: Vec<Option<ValueId>>,
}

impl<'a> Copier<'a> {
    pub fn new(from: &'a Func, name: &str) -> Copier<'a> {
        Copier { from, to: Builder::new(name), map: vec![None; from.n_values()] }
    }

    /// Go on copying into `to`.
    pub fn into(from: &'a Func, to: Builder) -> Copier<'a> {
        Copier { from, to, map: vec![None; from.n_values()] }
    }

    pub fn get(&self, v: ValueId) -> ValueId {
        self.map[v.0 as usize].expect("values are copied in order")
    }

    pub fn try_get(&self, v: ValueId) -> Option<ValueId> {
        self.map[v.0 as usize]
    }

    pub fn set(&mut self, from: ValueId, to: ValueId) {
        self.map[from.0 as usize] = Some(to);
    }

    /// `v` becomes a parameter of the copy, under its own name or `fallback`.
    pub fn param(&mut self, v: ValueId, fallback: &str) -> ValueId {
        let data = self.from.value(v);
        let to = self.to.param(data.name.as_deref().unwrap_or(fallback), data.ty.clone());
        self.set(v, to);
        to
    }

    pub fn params(&mut self) {
        for p in &self.from.params {
            self.param(*p, "p");
        }
    }

    /// The op with its operands in the copy.
    pub fn mapped(&self, id: OpId) -> OpData {
        let mut data = self.from.op(id).clone();
        data.operands.iter_mut().for_each(|v| *v = self.get(*v));
        data
    }

    /// The op as it is.
    pub fn op(&mut self, id: OpId) {
        let data = self.mapped(id);
        let results: Vec<ValueId> = data.results.clone();
        self.put(data.op, data.operands, data.attrs, &results, &data.spans);
    }

    /// An op whose results are those of the source's `results`.
    pub fn put(
        &mut self,
        op: Op,
        operands: Vec<ValueId>,
        attrs: Attrs,
        results: &[ValueId],
        spans: &[weft_ir::module::Span],
    ) {
        let types = results.iter().map(|r| self.from.ty(*r).clone()).collect();
        let id = self.to.func.push_op(op, operands, attrs, types, spans.to_vec());
        let made = self.to.func.op(id).results.clone();
        for (from, to) in results.iter().zip(made) {
            self.bind(*from, to);
        }
    }

    /// `from` is `to` in the copy, which takes its name if it has none.
    pub fn bind(&mut self, from: ValueId, to: ValueId) {
        self.set(from, to);
        let nameless = self.to.func.value(to).name.is_none();
        if let (Some(name), true) = (&self.from.value(from).name, nameless) {
            self.to.name(to, name);
        }
    }

    /// Results, their names and donations as they were.
    pub fn finish(self) -> Func {
        let results = self.from.results.iter().map(|r| self.get(*r)).collect();
        let (names, donated) = (self.from.result_names.clone(), self.from.donated.clone());
        let mut func = self.to.finish(results);
        func.result_names = names;
        func.donated = donated;
        func
    }
}

/// Copy `func`; where `rule`, which sees each op with its operands in the copy, answers values,
/// they take the place of the op's results.
pub fn rebuild(
    func: &Func,
    mut rule: impl FnMut(&mut Builder, &OpData) -> Result<Option<Vec<ValueId>>, PassError>,
) -> Result<Func, PassError> {
    let mut copy = Copier::new(func, &func.name);
    copy.params();
    for (id, op) in func.body_ops() {
        copy.to.at(&op.spans);
        let seen = copy.mapped(id);
        let answer = rule(&mut copy.to, &seen).map_err(|e| e.at(func, op))?;
        match answer {
            None => copy.op(id),
            Some(values) => {
                for (from, to) in op.results.iter().zip(values) {
                    copy.bind(*from, to);
                }
            }
        }
    }
    Ok(copy.finish())
}

/// The part of `src` between `params` and `results` as a function. Every path from a result
/// backwards ends at one of `params` or at an op without operands.
pub fn extract(
    src: &Func,
    name: &str,
    params: &[ValueId],
    results: &[ValueId],
) -> Result<Func, PassError> {
    let known: BTreeSet<ValueId> = params.iter().copied().collect();
    let mut needed: BTreeSet<OpId> = BTreeSet::new();
    let mut stack: Vec<ValueId> = results.to_vec();
    while let Some(v) = stack.pop() {
        if known.contains(&v) {
            continue;
        }
        match src.value(v).def {
            Def::Param(_) => {
                let why = format!("{name} would need a value it is not given");
                return Err(PassError::new(why));
            }
            Def::Result { op, .. } => {
                if needed.insert(op) {
                    stack.extend(&src.op(op).operands);
                }
            }
        }
    }
    let mut copy = Copier::new(src, name);
    for p in params {
        copy.param(*p, "s");
    }
    for id in src.body.iter().filter(|id| needed.contains(id)) {
        let given: Vec<(ValueId, Option<ValueId>)> =
            src.op(*id).results.iter().map(|r| (*r, copy.try_get(*r))).collect();
        copy.op(*id);
        // A result that is also given stays the parameter.
        given.into_iter().filter_map(|(r, p)| Some((r, p?))).for_each(|(r, p)| copy.set(r, p));
    }
    let mapped = results.iter().map(|r| copy.get(*r)).collect();
    Ok(copy.to.finish(mapped))
}

/// The function an op runs.
pub fn callee(op: &OpData) -> Option<FuncId> {
    op.op.has(Trait::Calls).then(|| op.attrs.get_func("func")).flatten()
}

/// The number of carried operands of a repeat; 0 for a plain call.
pub fn carry(op: &OpData) -> usize {
    op.attrs.get_int("carry").unwrap_or(0) as usize
}

/// The number of stacked operands of a repeat; 0 for a plain call.
pub fn stacked(op: &OpData) -> usize {
    op.attrs.get_int("xs").unwrap_or(0) as usize
}

/// Rename every callee by `to`.
pub fn retarget(func: &mut Func, to: &dyn Fn(FuncId) -> FuncId) {
    for id in func.body.clone() {
        for (_, attr) in func.op_mut(id).attrs.iter_mut() {
            if let Attr::Func(f) = attr {
                *f = to(*f);
            }
        }
    }
}

/// Ops in all functions.
pub fn n_ops(module: &Module) -> usize {
    module.funcs.iter().map(|f| f.body.len()).sum()
}

/// Replace every function by what `f` makes of it.
pub fn each_func(
    module: &mut Module,
    mut f: impl FnMut(&Module, &Func) -> Result<Func, PassError>,
) -> Result<(), PassError> {
    for i in 0..module.funcs.len() {
        module.funcs[i] = f(module, &module.funcs[i])?;
    }
    Ok(())
}

/// The value that `v` is a part of, or has the elements of in another shape.
pub fn whole(func: &Func, mut v: ValueId) -> ValueId {
    while let Some(op) = func.def_op(v).map(|id| func.op(id))
        && matches!(op.op, Op::Reshape | Op::Slice)
    {
        v = op.operands[0];
    }
    v
}

/// Is a value made of nothing, so that it can be made again where it is read?
pub fn made_of_nothing(func: &Func, v: ValueId) -> bool {
    let op = func.def_op(v).map(|id| func.op(id));
    op.is_some_and(|op| op.op.is_pure() && op.operands.iter().all(|x| made_of_nothing(func, *x)))
}

/// The number a `constant` holds: what its type makes of the attribute.
pub fn constant_value(func: &Func, op: &OpData) -> Option<f64> {
    if op.op != Op::Constant {
        return None;
    }
    let value = op.attrs.get_float("value")?;
    let dtype = func.ty(op.results[0]).dtype;
    Some(match dtype {
        DType::Bool => f64::from(value != 0.0),
        _ if dtype.is_int() => value.trunc(),
        _ => value,
    })
}
