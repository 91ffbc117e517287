//! Dims: reshape, transpose, split, concat, reductions, next.

use weft_ir::attr::Attrs;
use weft_ir::dim::Dim;
use weft_ir::op::Op;
use weft_ir::ty::{DType, Type};

use super::args::Args;
use super::function::Key;
use super::value::{Tensor, Value};
use super::{Env, Lower, Lowering};
use crate::ast;
use crate::diag::Diag;
use crate::elaborate::{Const, Reported};
use crate::source::Span;

impl<'a> Lower<'a, '_> {
    /// `x as [dims]`.
    pub fn reshape(
        &mut self,
        x: Value,
        dims: &'a [ast::Dim],
        span: Span,
        env: &mut Env,
    ) -> Lowering<Value> {
        let t = self.as_tensor(x, span)?;
        if t.batched {
            return self.error(span, "an expert's weight keeps its dims inside `each`");
        }
        let from = self.dims(&t);
        let mut to = vec![];
        let mut labels = vec![];
        for dim in dims {
            match dim {
                ast::Dim::Rest(s) => return self.error(*s, "`as` names every dim"),
                ast::Dim::Expr(e) => {
                    to.push(self.dim_expr(e, env)?);
                    labels.push(Some(e.span));
                }
            }
        }
        let (n_from, n_to) = (weft_ir::dim::product(&from), weft_ir::dim::product(&to));
        if n_from != n_to || n_to.is_none() {
            let count = |lower: &Self, n: Option<Dim>| {
                n.map_or("too many to count".to_string(), |n| lower.show_dim(n))
            };
            let (from_text, to_text) = (self.show_dims(&from), self.show_dims(&to));
            let why = format!("cannot read {from_text} as {to_text}: other numbers of elements");
            let hint = format!("{} against {}", count(self, n_from), count(self, n_to));
            self.diags.push(Diag::error(span, why).hint(hint));
            return Err(Reported);
        }
        let id = self.at(span).reshape(t.id, &to);
        let id = self.typed(span, id)?;
        Ok(Value::Tensor(Tensor { id, labels, batched: false }))
    }

    /// `axis` counted from the front, in the value's own dims; negative ones count from the end.
    pub fn axis(&mut self, t: &Tensor, axis: f64, env: &Env, span: Span) -> Lowering<usize> {
        let rank = self.ty(t.id).rank();
        let hidden = usize::from(t.batched) + env.lead;
        let seen = rank.saturating_sub(hidden) as f64;
        let index = if axis < 0.0 { seen + axis } else { axis };
        if axis.fract() != 0.0 || index < 0.0 || index >= seen {
            let dims = if seen == 1.0 { "dim" } else { "dims" };
            return self.error(span, format!("axis {axis} of a value with {seen} {dims}"));
        }
        Ok(index as usize + hidden)
    }

    pub fn transpose(&mut self, args: &mut Args<'a>, env: &mut Env) -> Lowering<Value> {
        let t = self.tensor_or_weights(args, env)?;
        let rank = self.ty(t.id).rank();
        let i = self.number_arg_or(args, "i", -2.0, env)?;
        let j = self.number_arg_or(args, "j", -1.0, env)?;
        let (i, j) = (self.axis(&t, i, env, args.span)?, self.axis(&t, j, env, args.span)?);
        let mut perm: Vec<i64> = (0..rank as i64).collect();
        perm.swap(i, j);
        let id = self.emit(args.span, Op::Transpose, &[t.id], Attrs::new().ints("perm", perm))?;
        let mut labels = t.labels;
        let skip = usize::from(t.batched);
        labels.swap(i - skip, j - skip);
        Ok(Value::Tensor(Tensor { id, labels, batched: t.batched }))
    }

    /// `sum`, `mean`, `max_of`: the reduced dim stays with size 1; without an axis a scalar.
    pub fn reduce(
        &mut self,
        op: Op,
        mean: bool,
        args: &mut Args<'a>,
        env: &mut Env,
    ) -> Lowering<Value> {
        let span = args.span;
        let t = self.tensor_arg(args, env)?;
        let t = self.in_f32(t, span)?;
        let axis = self.optional_number(args, "axis", env)?;
        let ty = self.ty(t.id);
        let over: Vec<usize> = match axis {
            Some(a) => vec![self.axis(&t, a, env, span)?],
            None => (env.lead..ty.rank()).collect(),
        };
        let dims: Vec<i64> = over.iter().map(|d| *d as i64).collect();
        let id = self.emit(span, op, &[t.id], Attrs::new().ints("dims", dims))?;
        let mut value = self.value(id);
        if axis.is_some() {
            let mut kept = ty.dims.clone();
            kept[over[0]] = Dim::fixed(1);
            let id = self.at(span).reshape(id, &kept);
            let id = self.typed(span, id)?;
            value = Value::Tensor(Tensor { id, ..t });
        }
        if mean {
            let reduced: Vec<Dim> = over.iter().map(|d| ty.dims[*d]).collect();
            let n = self.extent(&reduced, span)?;
            value = self.pointwise(Op::Div, value, n, span)?;
        }
        Ok(value)
    }

    /// Mean over everything in `x`, counting the whole global batch.
    pub fn sequence_mean(&mut self, args: &mut Args<'a>, env: &mut Env) -> Lowering<Value> {
        let span = args.span;
        let t = self.tensor_arg(args, env)?;
        let t = self.in_f32(t, span)?;
        let dims = self.ty(t.id).dims;
        let all: Vec<i64> = (0..dims.len() as i64).collect();
        let sum = self.emit(span, Op::ReduceSum, &[t.id], Attrs::new().ints("dims", all))?;
        let n = self.extent(&dims, span)?;
        let n = self.scalar(n, span)?;
        let n = self.emit(span, Op::BatchSum, &[n.id], Attrs::new())?;
        let mean = self.emit(span, Op::Div, &[sum, n], Attrs::new())?;
        Ok(self.value(mean))
    }

    pub fn split(&mut self, args: &mut Args<'a>, env: &mut Env) -> Lowering<Value> {
        let span = args.span;
        let t = self.tensor_arg(args, env)?;
        let sizes = match self.required(args, "sizes", env)? {
            Value::Const(Const::List(items)) => items,
            other => {
                return self.error(span, format!("`split` takes a list, found {}", other.kind()));
            }
        };
        let axis = self.optional_number(args, "axis", env)?.unwrap_or(-1.0);
        let axis = self.axis(&t, axis, env, span)?;
        let whole = self.ty(t.id).dims[axis];
        let mut parts = vec![];
        let mut start = 0;
        for size in &sizes {
            let Some(len) = size.as_dim().and_then(|d| d.as_fixed()).filter(|n| *n > 0) else {
                return self.error(span, format!("`split` into {size}: not a whole positive size"));
            };
            parts.push((start, len));
            start = len.saturating_add(start);
        }
        if whole.as_fixed() != Some(start) {
            let label = t.labels.get(axis - usize::from(t.batched)).copied().flatten();
            let whole = self.named_dim(label, whole);
            let parts: Vec<String> = parts.iter().map(|(_, len)| len.to_string()).collect();
            let why = format!("the parts add up to {start}, not to {whole}");
            self.diags
                .push(Diag::error(span, why).hint(format!("{} = {start}", parts.join(" + "))));
            return Err(Reported);
        }
        let mut values = vec![];
        for (start, len) in parts {
            let attrs = Attrs::new()
                .int("dim", axis as i64)
                .int("start", start as i64)
                .int("len", len as i64);
            let id = self.emit(span, Op::Slice, &[t.id], attrs)?;
            let mut labels = t.labels.clone();
            labels[axis - usize::from(t.batched)] = None;
            values.push(Value::Tensor(Tensor { id, labels, batched: t.batched }));
        }
        Ok(Value::Tuple(values))
    }

    pub fn concat(&mut self, args: &mut Args<'a>, env: &mut Env) -> Lowering<Value> {
        let span = args.span;
        let axis = self.optional_number(args, "axis", env)?.unwrap_or(-1.0);
        let mut tensors = vec![];
        while let Some(v) = self.next_positional(args, env)? {
            tensors.push(self.as_tensor(v, span)?);
        }
        let Some(first) = tensors.first().cloned() else {
            return self.error(span, "`concat` of nothing");
        };
        let axis = self.axis(&first, axis, env, span)?;
        let types: Vec<DType> = tensors.iter().map(|t| self.ty(t.id).dtype).collect();
        if types.iter().any(|dtype| *dtype != types[0]) {
            let all: Lowering<Vec<_>> = tensors.into_iter().map(|t| self.in_f32(t, span)).collect();
            tensors = all?;
        }
        let ids: Vec<_> = tensors.iter().map(|t| t.id).collect();
        let id = self.emit(span, Op::Concat, &ids, Attrs::new().int("dim", axis as i64))?;
        let mut labels = first.labels;
        labels[axis] = None;
        Ok(Value::Tensor(Tensor { id, labels, batched: first.batched }))
    }

    /// Tokens `k` places ahead; -1 past the end and where another segment begins.
    pub fn next(&mut self, args: &mut Args<'a>, env: &mut Env) -> Lowering<Value> {
        let span = args.span;
        let t = self.tensor_arg(args, env)?;
        let k = match self.optional(args, "k", env)? {
            None => 1,
            Some(v) => self.size(v, "k", span)?,
        };
        let ty = self.ty(t.id);
        if ty.dims != [self.batch, self.seq] || ty.dtype != DType::I32 {
            let diag = Diag::error(span, "`next` takes tokens, i32[B, S]");
            self.diags.push(diag.hint(format!("found {}", self.show_dims(&ty.dims))));
            return Err(Reported);
        }
        let ahead = |x| {
            let attrs = Attrs::new().int("dim", 1).int("by", k as i64).float("fill", -1.0);
            (x, attrs)
        };
        let (x, attrs) = ahead(t.id);
        let mut id = self.emit(span, Op::Shift, &[x], attrs)?;
        if self.settings.segments {
            let here = self.implicit(Key::Segments, span)?;
            let (x, attrs) = ahead(here);
            let there = self.emit(span, Op::Shift, &[x], attrs)?;
            let same = self.emit(span, Op::Eq, &[here, there], Attrs::new())?;
            let none = self.at(span).constant_like(-1.0, id);
            let none = self.typed(span, none)?;
            id = self.emit(span, Op::Select, &[same, id, none], Attrs::new())?;
        }
        Ok(Value::Tensor(Tensor { id, ..t }))
    }

    pub fn iota(&mut self, args: &mut Args<'a>, env: &mut Env) -> Lowering<Value> {
        let span = args.span;
        let n = match self.required(args, "n", env)? {
            Value::Const(c) => c.as_dim(),
            _ => None,
        };
        let Some(n) = n.filter(|d| d.coeff() > 0) else {
            return self.error(span, "`iota` takes a whole positive size");
        };
        let ty = weft_ir::attr::Attr::Type(Type::f32([n]));
        let id = self.emit(span, Op::Iota, &[], Attrs::new().int("dim", 0).with("type", ty))?;
        Ok(self.value(id))
    }
}
