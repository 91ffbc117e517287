//! The built-in functions: one line each, then how their arguments are read.

use weft_ir::attr::Attrs;
use weft_ir::op::Op;
use weft_ir::ty::DType;

use super::function::Key;
use super::value::{Tensor, Value};
use super::{Env, Lower, Lowering};
use crate::ast;
use crate::diag::Diag;
use crate::elaborate::Reported;
use crate::elaborate::consts::{self, Const};
use crate::source::Span;

/// Every built-in, for suggestions; `builtin` has a line for each (a test compares).
pub const BUILTINS: &[&str] = &[
    "matmul",
    "transpose",
    "gather",
    "rms_norm",
    "softmax",
    "silu",
    "sigmoid",
    "tanh",
    "gelu",
    "relu",
    "exp",
    "ln",
    "sqrt",
    "rsqrt",
    "abs",
    "sign",
    "sin",
    "cos",
    "min",
    "max",
    "clamp",
    "where",
    "sum",
    "mean",
    "max_of",
    "sequence_mean",
    "split",
    "concat",
    "iota",
    "topk",
    "grouped_topk",
    "take",
    "one_hot",
    "count",
    "dispatch",
    "combine",
    "rotary",
    "attention",
    "cross_entropy",
    "next",
    "stop_gradient",
    "given",
];

/// A call's arguments, taken one by one; what is left at the end is an error.
pub struct Args<'a> {
    pub span: Span,
    name: String,
    positional: Vec<&'a ast::CallArg>,
    named: Vec<&'a ast::CallArg>,
}

impl<'a> Lower<'a, '_> {
    pub fn builtin(&mut self, call: &'a ast::Call, env: &mut Env) -> Lowering<Value> {
        let name = call.callee.to_string();
        let mut args = Args {
            span: call.span,
            name: name.clone(),
            positional: call.args.iter().filter(|a| a.name.is_none()).rev().collect(),
            named: call.args.iter().filter(|a| a.name.is_some()).collect(),
        };
        let a = &mut args;
        let value = match name.as_str() {
            "matmul" => self.matmul(a, env),
            "transpose" => self.transpose(a, env),
            "gather" => self.gather(a, env),
            "rms_norm" => self.rms_norm(a, env),
            "softmax" => self.map(Op::Softmax, a, env),
            "silu" => self.silu(a, env),
            "sigmoid" => self.map(Op::Sigmoid, a, env),
            "tanh" => self.map(Op::Tanh, a, env),
            "gelu" => self.gelu(a, env),
            "relu" => self.relu(a, env),
            "exp" => self.map(Op::Exp, a, env),
            "ln" => self.map(Op::Log, a, env),
            "sqrt" => self.map(Op::Sqrt, a, env),
            "rsqrt" => self.map(Op::Rsqrt, a, env),
            "abs" => self.map(Op::Abs, a, env),
            "sign" => self.map(Op::Sign, a, env),
            "sin" => self.map(Op::Sin, a, env),
            "cos" => self.map(Op::Cos, a, env),
            "floor" => self.map(Op::Floor, a, env),
            "ceil" | "round" => self.constant_function(a, env),
            "min" => self.pair(Op::Min, a, env),
            "max" => self.pair(Op::Max, a, env),
            "clamp" => self.clamp(a, env),
            "where" => self.choose(a, env),
            "sum" => self.reduce(Op::ReduceSum, false, a, env),
            "mean" => self.reduce(Op::ReduceSum, true, a, env),
            "max_of" => self.reduce(Op::ReduceMax, false, a, env),
            "sequence_mean" => self.sequence_mean(a, env),
            "split" => self.split(a, env),
            "concat" => self.concat(a, env),
            "iota" => self.iota(a, env),
            "topk" => self.topk(a, env),
            "grouped_topk" => self.grouped_topk(a, env),
            "take" => self.take(a, env),
            "one_hot" => self.one_hot(false, a, env),
            "count" => self.one_hot(true, a, env),
            "dispatch" => self.dispatch(a, env),
            "combine" => self.combine(a, env),
            "rotary" => self.rotary(a, env),
            "attention" => self.attention(a, env),
            "cross_entropy" => self.cross_entropy(a, env),
            "next" => self.next(a, env),
            "stop_gradient" => self.map(Op::StopGradient, a, env),
            "given" => self.given(a, env),
            _ => return self.unknown_function(call, env),
        }?;
        self.nothing_left(args)?;
        Ok(value)
    }

    fn nothing_left(&mut self, args: Args<'a>) -> Lowering<()> {
        match args.named.first().or(args.positional.last()) {
            None => Ok(()),
            Some(arg) => {
                let what = match &arg.name {
                    Some(n) => format!("`{}` has no argument `{}`", args.name, n.text),
                    None => format!("`{}` takes fewer arguments", args.name),
                };
                self.error(arg.span, what)
            }
        }
    }

    // --- reading arguments ---------------------------------------------------------------------

    pub fn next_positional(
        &mut self,
        args: &mut Args<'a>,
        env: &mut Env,
    ) -> Lowering<Option<Value>> {
        match args.positional.pop() {
            None => Ok(None),
            Some(arg) => self.expr(&arg.value, env).map(Some),
        }
    }

    /// The argument `name`: by name, else the next in order.
    pub fn optional(
        &mut self,
        args: &mut Args<'a>,
        name: &str,
        env: &mut Env,
    ) -> Lowering<Option<Value>> {
        let at = args.named.iter().position(|a| a.name.as_ref().is_some_and(|n| n.text == name));
        match at {
            Some(i) => {
                let arg = args.named.remove(i);
                self.expr(&arg.value, env).map(Some)
            }
            None => self.next_positional(args, env),
        }
    }

    pub fn required(&mut self, args: &mut Args<'a>, name: &str, env: &mut Env) -> Lowering<Value> {
        match self.optional(args, name, env)? {
            Some(v) => Ok(v),
            None => self.error(args.span, format!("`{}` needs `{name}`", args.name)),
        }
    }

    pub fn tensor_arg(&mut self, args: &mut Args<'a>, env: &mut Env) -> Lowering<Tensor> {
        match self.next_positional(args, env)? {
            Some(v) => self.as_tensor(v, args.span),
            None => self.error(args.span, format!("`{}` takes more arguments", args.name)),
        }
    }

    pub fn number_arg_or(
        &mut self,
        args: &mut Args<'a>,
        name: &str,
        default: f64,
        env: &mut Env,
    ) -> Lowering<f64> {
        match self.optional(args, name, env)? {
            None => Ok(default),
            Some(Value::Const(Const::Num(n))) => Ok(n),
            Some(other) => {
                self.error(args.span, format!("`{name}` is a number, found {}", other.kind()))
            }
        }
    }

    /// `name = number` only: not taken from the positional arguments.
    pub fn optional_number(
        &mut self,
        args: &mut Args<'a>,
        name: &str,
        env: &mut Env,
    ) -> Lowering<Option<f64>> {
        let named = args.named.iter().any(|a| a.name.as_ref().is_some_and(|n| n.text == name));
        if !named {
            return Ok(None);
        }
        self.number_arg_or(args, name, 0.0, env).map(Some)
    }

    pub fn size_arg(&mut self, args: &mut Args<'a>, name: &str, env: &mut Env) -> Lowering<u64> {
        let value = self.required(args, name, env)?;
        let size = match &value {
            Value::Const(c) => c.as_dim().and_then(|d| d.as_fixed()).filter(|n| *n > 0),
            _ => None,
        };
        match size {
            Some(n) => Ok(n),
            None => {
                let why = format!("`{name}` is a whole positive number, found {}", value.kind());
                self.error(args.span, why)
            }
        }
    }

    fn flag_arg(
        &mut self,
        args: &mut Args<'a>,
        name: &str,
        default: bool,
        env: &mut Env,
    ) -> Lowering<bool> {
        match self.optional(args, name, env)? {
            None => Ok(default),
            Some(Value::Const(Const::Bool(b))) => Ok(b),
            Some(other) => {
                self.error(args.span, format!("`{name}` is a boolean, found {}", other.kind()))
            }
        }
    }

    pub fn word_arg(
        &mut self,
        args: &mut Args<'a>,
        name: &str,
        words: &[&str],
        env: &mut Env,
    ) -> Lowering<String> {
        match self.required(args, name, env)? {
            Value::Const(Const::Word(w)) if words.contains(&w.as_str()) => Ok(w),
            other => {
                let found = match &other {
                    Value::Const(c) => c.to_string(),
                    v => v.kind().to_string(),
                };
                let why = format!("`{name}` is one of {}, found {found}", words.join(", "));
                self.error(args.span, why)
            }
        }
    }

    // --- pointwise -----------------------------------------------------------------------------

    /// One operand; numbers are folded where the function is a compile-time one.
    fn map(&mut self, op: Op, args: &mut Args<'a>, env: &mut Env) -> Lowering<Value> {
        match self.next_positional(args, env)? {
            Some(Value::Const(Const::Num(n))) => match consts::function(&args.name, &[n]) {
                Some(v) => Ok(Value::Const(Const::Num(v))),
                None => self.error(args.span, format!("`{}` takes a tensor", args.name)),
            },
            Some(v) => {
                let t = self.as_tensor(v, args.span)?;
                if t.batched {
                    let why = "an expert's weight is only multiplied with rows inside `each`";
                    return self.error(args.span, why);
                }
                self.unary(op, Value::Tensor(t), args.span)
            }
            None => self.error(args.span, format!("`{}` takes an argument", args.name)),
        }
    }

    fn constant_function(&mut self, args: &mut Args<'a>, env: &mut Env) -> Lowering<Value> {
        match self.next_positional(args, env)? {
            Some(Value::Const(Const::Num(n))) => {
                let value = consts::function(&args.name, &[n]).unwrap_or(f64::NAN);
                Ok(Value::Const(Const::Num(value)))
            }
            _ => self.error(args.span, format!("`{}` takes a compile-time number", args.name)),
        }
    }

    fn pair(&mut self, op: Op, args: &mut Args<'a>, env: &mut Env) -> Lowering<Value> {
        let x = self.required(args, "x", env)?;
        let y = self.required(args, "y", env)?;
        if let (Value::Const(Const::Num(a)), Value::Const(Const::Num(b))) = (&x, &y) {
            let value = consts::function(&args.name, &[*a, *b]).unwrap_or(f64::NAN);
            return Ok(Value::Const(Const::Num(value)));
        }
        self.pointwise(op, x, y, args.span)
    }

    fn clamp(&mut self, args: &mut Args<'a>, env: &mut Env) -> Lowering<Value> {
        let x = self.required(args, "x", env)?;
        let lo = self.required(args, "lo", env)?;
        let hi = self.required(args, "hi", env)?;
        let above = self.pointwise(Op::Max, x, lo, args.span)?;
        self.pointwise(Op::Min, above, hi, args.span)
    }

    fn choose(&mut self, args: &mut Args<'a>, env: &mut Env) -> Lowering<Value> {
        let span = args.span;
        let c = self.tensor_arg(args, env)?;
        let a = self.required(args, "a", env)?;
        let b = self.required(args, "b", env)?;
        let (a, b) = (self.scalar(a, span)?, self.scalar(b, span)?);
        let (a, b) = self.broadcast_pair(a, b, span)?;
        let (c, a) = self.broadcast_pair(c, a, span)?;
        let (b, _) = self.broadcast_pair(b, a.clone(), span)?;
        let id = self.emit(span, Op::Select, &[c.id, a.id, b.id], Attrs::new())?;
        Ok(Value::Tensor(Tensor { id, ..a }))
    }

    fn silu(&mut self, args: &mut Args<'a>, env: &mut Env) -> Lowering<Value> {
        let x = Value::Tensor(self.tensor_arg(args, env)?);
        let s = self.unary(Op::Sigmoid, x.clone(), args.span)?;
        self.pointwise(Op::Mul, x, s, args.span)
    }

    /// `x (1 + erf(x / √2)) / 2`.
    fn gelu(&mut self, args: &mut Args<'a>, env: &mut Env) -> Lowering<Value> {
        let span = args.span;
        let number = |n: f64| Value::Const(Const::Num(n));
        let x = Value::Tensor(self.tensor_arg(args, env)?);
        let scaled = self.pointwise(Op::Mul, x.clone(), number(0.5f64.sqrt()), span)?;
        let erf = self.unary(Op::Erf, scaled, span)?;
        let one = self.pointwise(Op::Add, erf, number(1.0), span)?;
        let half = self.pointwise(Op::Mul, x, number(0.5), span)?;
        self.pointwise(Op::Mul, half, one, span)
    }

    fn relu(&mut self, args: &mut Args<'a>, env: &mut Env) -> Lowering<Value> {
        let x = Value::Tensor(self.tensor_arg(args, env)?);
        // The number first: at 0 the derivative goes to it.
        self.pointwise(Op::Max, Value::Const(Const::Num(0.0)), x, args.span)
    }

    fn given(&mut self, args: &mut Args<'a>, env: &mut Env) -> Lowering<Value> {
        let v = self.required(args, "x", env)?;
        Ok(Value::Const(Const::Bool(!matches!(v, Value::Const(Const::None)))))
    }

    // --- composites ----------------------------------------------------------------------------

    fn matmul(&mut self, args: &mut Args<'a>, env: &mut Env) -> Lowering<Value> {
        let span = args.span;
        let x = self.tensor_arg(args, env)?;
        let y = self.tensor_arg(args, env)?;
        let (xd, yd) = (self.dims(&x), self.dims(&y));
        let agree = match (xd.last(), yd.len().checked_sub(2).map(|i| yd[i])) {
            (Some(a), Some(b)) => *a == b,
            _ => return self.error(span, "`matmul` takes [.., m, k] and [.., k, n]"),
        };
        if !agree {
            let (a, b) = (xd[xd.len() - 1], yd[yd.len() - 2]);
            let name = |lower: &Self, label: Option<Span>, d| match label {
                Some(s) => format!("{} = {}", lower.map.slice(s), lower.show_dim(d)),
                None => lower.show_dim(d),
            };
            let why = format!(
                "`matmul` contracts {} with {}",
                name(self, x.labels[xd.len() - 1], a),
                name(self, y.labels[yd.len() - 2], b)
            );
            let hint = format!("{} times {}", self.show_dims(&xd), self.show_dims(&yd));
            self.diags.push(Diag::error(span, why).hint(hint));
            return Err(Reported);
        }
        let id = if y.batched {
            let Some((_, ragged)) = self.ragged_of(&x) else {
                return self.error(span, "inside `each`, `matmul` takes rows and a weight");
            };
            let operands = [x.id, y.id, ragged.offsets];
            self.emit(span, Op::GroupedMatmul, &operands, Attrs::new())?
        } else if xd.len() == 1 {
            return self.error(span, "`matmul` takes [.., m, k] and [.., k, n]");
        } else {
            self.emit(span, Op::Matmul, &[x.id, y.id], Attrs::new())?
        };
        let mut labels = x.labels;
        labels.pop();
        labels.push(y.labels.last().copied().flatten());
        Ok(Value::Tensor(Tensor { id, labels, batched: false }))
    }

    fn rms_norm(&mut self, args: &mut Args<'a>, env: &mut Env) -> Lowering<Value> {
        let span = args.span;
        let x = self.tensor_arg(args, env)?;
        let g = self.tensor_arg(args, env)?;
        let eps = self.number_arg_or(args, "eps", 1e-6, env)?;
        if g.batched {
            return self.error(span, "an expert's weight is only multiplied with rows in `each`");
        }
        let attrs = Attrs::new().float("eps", eps);
        let results = self.at(span).emit_all(Op::RmsNorm, &[x.id, g.id], attrs);
        let id = self.typed(span, results)?[0];
        Ok(Value::Tensor(Tensor { id, ..x }))
    }

    fn rotary(&mut self, args: &mut Args<'a>, env: &mut Env) -> Lowering<Value> {
        let span = args.span;
        let x = self.tensor_arg(args, env)?;
        let positions = self.tensor_arg(args, env)?;
        let freq = self.tensor_arg(args, env)?;
        let interleaved = self.flag_arg(args, "interleaved", true, env)?;
        let attrs = Attrs::new().flag("interleaved", interleaved);
        let id = self.emit(span, Op::Rotary, &[x.id, positions.id, freq.id], attrs)?;
        Ok(Value::Tensor(Tensor { id, ..x }))
    }

    fn parts(&mut self, args: &mut Args<'a>, name: &str, env: &mut Env) -> Lowering<Vec<Tensor>> {
        match self.required(args, name, env)? {
            Value::Tuple(items) => {
                items.into_iter().map(|i| self.as_tensor(i, args.span)).collect()
            }
            one => Ok(vec![self.as_tensor(one, args.span)?]),
        }
    }

    fn attention(&mut self, args: &mut Args<'a>, env: &mut Env) -> Lowering<Value> {
        let span = args.span;
        let q = self.parts(args, "q", env)?;
        let k = self.parts(args, "k", env)?;
        let v = self.required(args, "v", env)?;
        let v = self.as_tensor(v, span)?;
        let scale = match self.required(args, "scale", env)? {
            Value::Const(Const::Num(n)) => n,
            other => {
                return self.error(span, format!("`scale` is a number, found {}", other.kind()));
            }
        };
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
        let results = self.at(span).emit_all(Op::Attention, &operands, attrs);
        let id = self.typed(span, results)?[0];
        let mut labels = q[0].labels.clone();
        labels[3] = v.labels.get(3).copied().flatten();
        Ok(Value::Tensor(Tensor { id, labels, batched: false }))
    }

    /// Mean over targets >= 0 of the whole global batch.
    fn cross_entropy(&mut self, args: &mut Args<'a>, env: &mut Env) -> Lowering<Value> {
        let span = args.span;
        let logits = self.tensor_arg(args, env)?;
        let targets = self.tensor_arg(args, env)?;
        let results =
            self.at(span).emit_all(Op::CrossEntropy, &[logits.id, targets.id], Attrs::new());
        let each = self.typed(span, results)?[0];
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
