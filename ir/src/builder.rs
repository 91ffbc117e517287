//! Building a function op by op; result types come from the op table's rules.

use crate::attr::Attrs;
use crate::dim::Dim;
use crate::module::{Func, FuncId, Module, OpId, Span, ValueId};
use crate::op::{Arity, Op, Trait};
use crate::rules::{RuleCx, TypeError};
use crate::ty::{DType, Type};

/// A function under construction. Ops get the spans set last.
pub struct Builder {
    pub func: Func,
    pub spans: Vec<Span>,
}

impl Builder {
    pub fn new(name: &str) -> Builder {
        Builder { func: Func::new(name), spans: vec![] }
    }

    /// Go on with an existing function.
    pub fn resume(func: Func) -> Builder {
        Builder { func, spans: vec![] }
    }

    pub fn at(&mut self, spans: &[Span]) -> &mut Builder {
        self.spans = spans.to_vec();
        self
    }

    pub fn param(&mut self, name: &str, ty: Type) -> ValueId {
        self.func.add_param(name, ty)
    }

    pub fn ty(&self, v: ValueId) -> &Type {
        self.func.ty(v)
    }

    pub fn dims(&self, v: ValueId) -> Vec<Dim> {
        self.func.ty(v).dims.clone()
    }

    /// Append `op`; `Err` says in words which rule the operands break.
    pub fn op(&mut self, op: Op, xs: &[ValueId], attrs: Attrs) -> Result<OpId, TypeError> {
        let types = infer(None, &self.func, op, xs, &attrs)?;
        Ok(self.func.push_op(op, xs.to_vec(), attrs, types, self.spans.clone()))
    }

    /// Append an op with one result.
    pub fn emit(&mut self, op: Op, xs: &[ValueId], attrs: Attrs) -> Result<ValueId, TypeError> {
        let id = self.op(op, xs, attrs)?;
        match self.func.op(id).results[..] {
            [one] => Ok(one),
            _ => Err(TypeError(format!("{} does not have one result", op.name()))),
        }
    }

    /// Append an op with several results.
    pub fn emit_all(
        &mut self,
        op: Op,
        xs: &[ValueId],
        attrs: Attrs,
    ) -> Result<Vec<ValueId>, TypeError> {
        let id = self.op(op, xs, attrs)?;
        Ok(self.func.op(id).results.clone())
    }

    /// Append a `call`, `repeat` or `fused`, whose types come from a function of `module`.
    pub fn emit_calling(
        &mut self,
        module: &Module,
        op: Op,
        xs: &[ValueId],
        attrs: Attrs,
    ) -> Result<Vec<ValueId>, TypeError> {
        let types = infer(Some(module), &self.func, op, xs, &attrs)?;
        let id = self.func.push_op(op, xs.to_vec(), attrs, types, self.spans.clone());
        Ok(self.func.op(id).results.clone())
    }

    pub fn unary(&mut self, op: Op, x: ValueId) -> Result<ValueId, TypeError> {
        self.emit(op, &[x], Attrs::new())
    }

    pub fn binary(&mut self, op: Op, x: ValueId, y: ValueId) -> Result<ValueId, TypeError> {
        self.emit(op, &[x, y], Attrs::new())
    }

    /// `value` everywhere in `ty`.
    pub fn constant(&mut self, value: f64, ty: Type) -> Result<ValueId, TypeError> {
        let attrs = Attrs::new().float("value", value).with("type", crate::attr::Attr::Type(ty));
        self.emit(Op::Constant, &[], attrs)
    }

    /// A constant of the type of `like`.
    pub fn constant_like(&mut self, value: f64, like: ValueId) -> Result<ValueId, TypeError> {
        let ty = self.ty(like).as_value();
        self.constant(value, ty)
    }

    pub fn reshape(&mut self, x: ValueId, dims: &[Dim]) -> Result<ValueId, TypeError> {
        if self.ty(x).dims == dims {
            return Ok(x);
        }
        self.emit(Op::Reshape, &[x], Attrs::new().dims("shape", dims))
    }

    /// Stretch `x` to `dims` by NumPy's rule: dims align at the end, 1 stretches.
    pub fn broadcast_to(&mut self, x: ValueId, dims: &[Dim]) -> Result<ValueId, TypeError> {
        if self.ty(x).dims == dims {
            return Ok(x);
        }
        let rank = self.ty(x).rank();
        if rank > dims.len() {
            return Err(TypeError("cannot broadcast to fewer dims".into()));
        }
        let map: Vec<i64> = (dims.len() - rank..dims.len()).map(|d| d as i64).collect();
        self.emit(Op::Broadcast, &[x], Attrs::new().dims("shape", dims).ints("dims", map))
    }

    pub fn reduce_sum(&mut self, x: ValueId, dims: &[i64]) -> Result<ValueId, TypeError> {
        self.emit(Op::ReduceSum, &[x], Attrs::new().ints("dims", dims))
    }

    pub fn convert(&mut self, x: ValueId, dtype: DType) -> Result<ValueId, TypeError> {
        if self.ty(x).dtype == dtype {
            return Ok(x);
        }
        self.emit(Op::Convert, &[x], Attrs::new().with("dtype", crate::attr::Attr::DType(dtype)))
    }

    pub fn name(&mut self, v: ValueId, name: &str) {
        self.func.set_name(v, name);
    }

    pub fn finish(mut self, results: Vec<ValueId>) -> Func {
        self.func.results = results;
        self.func
    }
}

/// The result types of `op` on `xs`; checks operand and attribute counts and kinds first.
pub fn infer(
    module: Option<&Module>,
    func: &Func,
    op: Op,
    xs: &[ValueId],
    attrs: &Attrs,
) -> Result<Vec<Type>, TypeError> {
    let def = op.def();
    let enough = match def.arity() {
        Arity::Exactly(n) => xs.len() == n,
        Arity::AtLeast(n) => xs.len() >= n,
    };
    if !enough {
        return Err(TypeError(format!(
            "{} takes {}, found {}",
            op.name(),
            def.operands.join(", "),
            xs.len()
        )));
    }
    for spec in def.attrs.iter().filter(|a| !a.optional) {
        if attrs.get(spec.name).is_none() {
            return Err(TypeError(format!("{} needs the attribute {}", op.name(), spec.name)));
        }
    }
    for (name, value) in attrs.iter() {
        match def.attr(name) {
            None => return Err(TypeError(format!("{} has no attribute {name}", op.name()))),
            Some(spec) if !value.fits(spec.kind) => {
                return Err(TypeError(format!("{}: attribute {name} has another kind", op.name())));
            }
            Some(_) => {}
        }
    }
    let callee = match attrs.get_func("func") {
        Some(id) if def.has(Trait::Calls) => {
            let m = module.ok_or_else(|| TypeError("a callee needs its module".into()))?;
            let f = m.funcs.get(id.0 as usize);
            Some(f.ok_or_else(|| TypeError("no such function".into()))?)
        }
        _ => None,
    };
    let operands: Vec<&Type> = xs.iter().map(|x| func.ty(*x)).collect();
    (def.rule)(&RuleCx { op, operands: &operands, attrs, callee, module })
}

/// The id of a function by name, as an error a caller can print.
pub fn func_named(module: &Module, name: &str) -> Result<FuncId, TypeError> {
    module.find(name).ok_or_else(|| TypeError(format!("no function @{name}")))
}
