//! The built-in functions that are one op with a meaning of its own: matmul, norms, attention,
//! losses.

use weft_ir::attr::Attrs;
use weft_ir::op::Op;
use weft_ir::ty::DType;

use super::args::Args;
use super::function::Key;
use super::value::{Tensor, Value};
use super::{Env, Lower, Lowering};
use crate::diag::Diag;
use crate::elaborate::Reported;
use crate::source::Span;

impl<'a> Lower<'a, '_> {
    pub fn matmul(&mut self, args: &mut Args<'a>, env: &mut Env) -> Lowering<Value> {
        let span = args.span;
        let x = self.tensor_arg(args, env)?;
        let y = self.tensor_or_weights(args, env)?;
        self.contracts(&x, &y, span)?;
        let site = Attrs::new().word("site", &self.site(&x, &y, env, span));
        let (x, y) = (self.operand(x, env, span)?, self.operand(y, env, span)?);
        let id = if y.batched {
            let Some((_, ragged)) = self.ragged_of(&x) else {
                return self.error(span, "inside `each`, `matmul` takes rows and a weight");
            };
            let operands = [x.id, y.id, ragged.offsets];
            self.emit(span, Op::GroupedMatmul, &operands, site)?
        } else {
            self.emit(span, Op::Matmul, &[x.id, y.id], site)?
        };
        let mut labels = x.labels;
        labels.pop();
        labels.push(y.labels.last().copied().flatten());
        Ok(Value::Tensor(Tensor { id, labels, batched: false }))
    }

    /// `x` is `[.., m, k]` and `y` is `[.., k, n]`, or a diagnostic that names both k.
    fn contracts(&mut self, x: &Tensor, y: &Tensor, span: Span) -> Lowering<()> {
        let (xd, yd) = (self.dims(x), self.dims(y));
        let shapes = format!("{} times {}", self.show_dims(&xd), self.show_dims(&yd));
        let ([.., _, a], [.., b, _]) = (&xd[..], &yd[..]) else {
            let diag = Diag::error(span, "`matmul` takes [.., m, k] and [.., k, n]");
            self.diags.push(diag.hint(format!("found {shapes}")));
            return Err(Reported);
        };
        if a == b {
            return Ok(());
        }
        let why = format!(
            "`matmul` contracts {} with {}",
            self.named_dim(x.labels.last().copied().flatten(), *a),
            self.named_dim(y.labels.iter().rev().nth(1).copied().flatten(), *b)
        );
        self.diags.push(Diag::error(span, why).hint(shapes));
        Err(Reported)
    }

    pub fn rms_norm(&mut self, args: &mut Args<'a>, env: &mut Env) -> Lowering<Value> {
        let span = args.span;
        let x = self.tensor_arg(args, env)?;
        let g = self.tensor_arg(args, env)?;
        let (x, g) = (self.in_f32(x, span)?, self.in_f32(g, span)?);
        let eps = self.number_arg_or(args, "eps", 1e-6, env)?;
        let attrs = Attrs::new().float("eps", eps);
        let id = self.emit_all(span, Op::RmsNorm, &[x.id, g.id], attrs)?[0];
        Ok(Value::Tensor(Tensor { id, ..x }))
    }

    pub fn rotary(&mut self, args: &mut Args<'a>, env: &mut Env) -> Lowering<Value> {
        let span = args.span;
        let x = self.tensor_arg(args, env)?;
        let positions = self.tensor_arg(args, env)?;
        let freq = self.tensor_arg(args, env)?;
        let (x, freq) = (self.in_f32(x, span)?, self.in_f32(freq, span)?);
        let interleaved = self.flag_arg(args, "interleaved", true, env)?;
        let attrs = Attrs::new().flag("interleaved", interleaved);
        let id = self.emit(span, Op::Rotary, &[x.id, positions.id, freq.id], attrs)?;
        Ok(Value::Tensor(Tensor { id, ..x }))
    }

    fn parts(
        &mut self,
        args: &mut Args<'a>,
        name: &'static str,
        env: &mut Env,
    ) -> Lowering<Vec<Tensor>> {
        let values = match self.required(args, name, env)? {
            Value::Tuple(items) => items,
            one => vec![one],
        };
        let part = |lower: &mut Self, value| {
            let t = lower.as_tensor(value, args.span)?;
            lower.operand(t, env, args.span)
        };
        values.into_iter().map(|value| part(self, value)).collect()
    }

    pub fn attention(&mut self, args: &mut Args<'a>, env: &mut Env) -> Lowering<Value> {
        let span = args.span;
        let q = self.parts(args, "q", env)?;
        let k = self.parts(args, "k", env)?;
        let v = self.required(args, "v", env)?;
        let v = self.as_tensor(v, span)?;
        let v = self.operand(v, env, span)?;
        let scale = self.required(args, "scale", env)?;
        let scale = self.finite(scale, "scale", span)?;
        let causal = self.flag_arg(args, "causal", true, env)?;
        if q.len() != k.len() {
            let why = format!("q has {} score parts, k has {}", q.len(), k.len());
            return self.error(span, why);
        }
        let cached = self.settings.cache.is_some();
        if cached && !causal {
            return self.error(span, "a cache needs causal attention");
        }
        let segments = self.settings.segments && !cached;
        let mut operands: Vec<_> = q.iter().chain(&k).map(|t| t.id).collect();
        operands.push(v.id);
        if cached {
            operands.push(self.implicit(Key::Start, span)?);
        }
        if segments {
            let s = self.implicit(Key::Segments, span)?;
            operands.extend([s, s]);
        }
        let mut attrs = Attrs::new().int("parts", q.len() as i64).float("scale", scale);
        for (name, on) in [("causal", causal), ("offset", cached), ("segments", segments)] {
            if on {
                attrs = attrs.flag(name, true);
            }
        }
        let id = self.emit_all(span, Op::Attention, &operands, attrs)?[0];
        let mut labels = q[0].labels.clone();
        labels.pop();
        labels.push(v.labels.last().copied().flatten());
        Ok(Value::Tensor(Tensor { id, labels, batched: false }))
    }

    /// Mean over targets >= 0 of the whole global batch.
    pub fn cross_entropy(&mut self, args: &mut Args<'a>, env: &mut Env) -> Lowering<Value> {
        let span = args.span;
        let logits = self.tensor_arg(args, env)?;
        let logits = self.in_f32(logits, span)?;
        let targets = self.tensor_arg(args, env)?;
        let each =
            self.emit_all(span, Op::CrossEntropy, &[logits.id, targets.id], Attrs::new())?[0];
        let all: Vec<i64> = (0..self.ty(each).rank() as i64).collect();
        let over = Attrs::new().ints("dims", all);
        let sum = self.emit(span, Op::ReduceSum, &[each], over.clone())?;
        let zero = self.at(span).constant_like(0.0, targets.id);
        let zero = self.typed(span, zero)?;
        let valid = self.emit(span, Op::Le, &[zero, targets.id], Attrs::new())?;
        let valid = self.at(span).convert(valid, DType::F32);
        let valid = self.typed(span, valid)?;
        let count = self.emit(span, Op::ReduceSum, &[valid], over)?;
        let count = self.emit(span, Op::BatchSum, &[count], Attrs::new())?;
        let one = self.at(span).constant_like(1.0, count);
        let one = self.typed(span, one)?;
        let count = self.emit(span, Op::Max, &[count, one], Attrs::new())?;
        let mean = self.emit(span, Op::Div, &[sum, count], Attrs::new())?;
        Ok(self.value(mean))
    }
}
