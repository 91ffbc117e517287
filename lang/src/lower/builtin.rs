//! The built-in functions: one line each, then those that are pointwise.

use weft_ir::attr::Attrs;
use weft_ir::op::Op;

use super::args::Args;
use super::value::{Tensor, Value};
use super::{Env, Lower, Lowering};
use crate::ast;
use crate::elaborate::consts::{self, Const};

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

impl<'a> Lower<'a, '_> {
    pub fn builtin(&mut self, call: &'a ast::Call, env: &mut Env) -> Lowering<Value> {
        let name = call.callee.to_string();
        let mut args = Args::of(call);
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

    /// One operand; numbers are folded where the function is a compile-time one.
    fn map(&mut self, op: Op, args: &mut Args<'a>, env: &mut Env) -> Lowering<Value> {
        match self.next_positional(args, env)? {
            Some(Value::Const(Const::Num(n))) => match consts::function(&args.name, &[n]) {
                Some(v) => Ok(Value::Const(Const::Num(v))),
                None => self.error(args.span, format!("`{}` takes a tensor", args.name)),
            },
            Some(v) => self.unary(op, v, args.span),
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
        let (a, b) = (self.in_f32(a, span)?, self.in_f32(b, span)?);
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
}
