//! Pointwise arithmetic: numbers meet tensors, dims broadcast by NumPy's rule.

use weft_ir::attr::Attrs;
use weft_ir::dim::Dim;
use weft_ir::op::Op;
use weft_ir::ty::{DType, Type};

use super::value::{Tensor, Value};
use super::{Lower, Lowering};
use crate::diag::Diag;
use crate::elaborate::{Const, Reported};
use crate::source::Span;

impl Lower<'_, '_> {
    pub fn unary(&mut self, op: Op, x: Value, span: Span) -> Lowering<Value> {
        let t = self.as_tensor(x, span)?;
        let t = self.in_f32(t, span)?;
        let id = self.emit(span, op, &[t.id], Attrs::new())?;
        Ok(Value::Tensor(Tensor { id, ..t }))
    }

    /// `op` of two values, at least one a tensor.
    pub fn pointwise(&mut self, op: Op, x: Value, y: Value, span: Span) -> Lowering<Value> {
        let (x, y) = match (x, y) {
            (Value::Poison, _) | (_, Value::Poison) => return Err(Reported),
            (Value::Const(c), Value::Tensor(t)) => {
                let t = self.in_f32(t, span)?;
                (self.number_like(&c, &t, span)?, t)
            }
            (Value::Tensor(t), Value::Const(c)) => {
                let t = self.in_f32(t, span)?;
                let c = self.number_like(&c, &t, span)?;
                (t, c)
            }
            (x, y) => {
                let (x, y) = (self.as_tensor(x, span)?, self.as_tensor(y, span)?);
                (self.in_f32(x, span)?, self.in_f32(y, span)?)
            }
        };
        let (x, y) = self.broadcast_pair(x, y, span)?;
        let id = self.emit(span, op, &[x.id, y.id], Attrs::new())?;
        let labels = x.labels.iter().zip(&y.labels).map(|(a, b)| a.or(*b)).collect();
        Ok(Value::Tensor(Tensor { id, labels, batched: x.batched }))
    }

    /// A number as a tensor of the type of `t`.
    fn number_like(&mut self, c: &Const, t: &Tensor, span: Span) -> Lowering<Tensor> {
        let ty = self.ty(t.id);
        let n = match c {
            Const::Num(n) if n.is_finite() && (ty.dtype.is_float() || n.fract() == 0.0) => *n,
            Const::Num(n) => {
                let why = format!("{n} is not a number of {}", ty.dtype.name());
                return self.error(span, why);
            }
            other => {
                let why = format!("needs a number or a tensor, found {}", other.kind());
                return self.error(span, why);
            }
        };
        let id = self.at(span).constant(n, ty);
        let id = self.typed(span, id)?;
        Ok(Tensor { id, ..t.clone() })
    }

    /// Both stretched to the dims they have together.
    pub fn broadcast_pair(
        &mut self,
        x: Tensor,
        y: Tensor,
        span: Span,
    ) -> Lowering<(Tensor, Tensor)> {
        if x.batched != y.batched {
            let why = "inside `each`, this would mix an expert's weight with rows of all experts";
            return self.error(span, why);
        }
        let (a, b) = (self.ty(x.id).dims, self.ty(y.id).dims);
        if a == b {
            return Ok((x, y));
        }
        let rank = a.len().max(b.len());
        let at = |dims: &[Dim], i: usize| (i + dims.len()).checked_sub(rank).map(|j| dims[j]);
        let mut dims = vec![];
        for i in 0..rank {
            dims.push(match (at(&a, i), at(&b, i)) {
                (Some(p), Some(q)) if p == q => p,
                (Some(p), None) => p,
                (None, Some(q)) => q,
                (Some(p), Some(q)) if q.is_one() => p,
                (Some(p), Some(q)) if p.is_one() => q,
                _ => {
                    let name = |lower: &Self, t: &Tensor, dims: &[Dim]| {
                        let j = (i + dims.len()).saturating_sub(rank);
                        let seen = j.checked_sub(usize::from(t.batched));
                        let label = seen.and_then(|j| *t.labels.get(j)?);
                        lower.named_dim(label, dims[j])
                    };
                    let why = format!(
                        "dims do not agree: {} and {}",
                        name(self, &x, &a),
                        name(self, &y, &b)
                    );
                    let hint = format!("{} against {}", self.show_dims(&a), self.show_dims(&b));
                    self.diags.push(Diag::error(span, why).hint(hint));
                    return Err(Reported);
                }
            });
        }
        Ok((self.stretch(x, &dims, span)?, self.stretch(y, &dims, span)?))
    }

    /// `t` broadcast to `dims`.
    pub fn stretch(&mut self, t: Tensor, dims: &[Dim], span: Span) -> Lowering<Tensor> {
        let id = self.at(span).broadcast_to(t.id, dims);
        let id = self.typed(span, id)?;
        let seen = dims.len() - usize::from(t.batched);
        let mut labels = vec![None; seen - t.labels.len().min(seen)];
        labels.extend(t.labels);
        Ok(Tensor { id, labels, batched: t.batched })
    }

    /// `x ^ y`: squares as products, other powers through exp and log.
    pub fn power(&mut self, x: Value, y: Value, span: Span) -> Lowering<Value> {
        match (x, y) {
            (x, Value::Const(Const::Num(2.0))) => self.pointwise(Op::Mul, x.clone(), x, span),
            (x, Value::Const(Const::Num(0.5))) => self.unary(Op::Sqrt, x, span),
            (Value::Const(Const::Num(base)), y) if base > 0.0 => {
                let scaled =
                    self.pointwise(Op::Mul, y, Value::Const(Const::Num(base.ln())), span)?;
                self.unary(Op::Exp, scaled, span)
            }
            (x, y) => {
                let log = self.unary(Op::Log, x, span)?;
                let scaled = self.pointwise(Op::Mul, log, y, span)?;
                self.unary(Op::Exp, scaled, span)
            }
        }
    }

    /// The product of `dims` as an f32 scalar.
    pub fn extent(&mut self, dims: &[Dim], span: Span) -> Lowering<Value> {
        let Some(of) = weft_ir::dim::product(dims) else {
            return self.error(span, "the number of elements overflows");
        };
        if let Some(n) = of.as_fixed() {
            return Ok(Value::Const(Const::Num(n as f64)));
        }
        let attrs = Attrs::new().with("of", weft_ir::attr::Attr::Dim(of));
        let id = self.emit(span, Op::Extent, &[], attrs)?;
        Ok(self.value(id))
    }

    /// An f32 scalar for a number or a scalar.
    pub fn scalar(&mut self, v: Value, span: Span) -> Lowering<Tensor> {
        match v {
            Value::Const(Const::Num(n)) => {
                let id = self.at(span).constant(n, Type::scalar(DType::F32));
                let id = self.typed(span, id)?;
                Ok(self.tensor(id))
            }
            v => self.as_tensor(v, span),
        }
    }
}
