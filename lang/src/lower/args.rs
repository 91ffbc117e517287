//! How the built-in functions read their arguments.

use super::value::{Tensor, Value};
use super::{Env, Lower, Lowering};
use crate::ast;
use crate::diag::Diag;
use crate::elaborate::Reported;
use crate::elaborate::consts::Const;
use crate::source::Span;

/// A call's arguments, taken one by one; what is left at the end is an error.
pub struct Args<'a> {
    pub span: Span,
    pub name: String,
    /// In reverse, so that the next is the last.
    positional: Vec<&'a ast::CallArg>,
    named: Vec<&'a ast::CallArg>,
    /// Names asked for so far, for suggestions.
    asked: Vec<&'static str>,
}

impl<'a> Args<'a> {
    pub fn of(call: &'a ast::Call) -> Args<'a> {
        Args {
            span: call.span,
            name: call.callee.to_string(),
            positional: call.args.iter().filter(|a| a.name.is_none()).rev().collect(),
            named: call.args.iter().filter(|a| a.name.is_some()).collect(),
            asked: vec![],
        }
    }

    /// What `optional` would take.
    fn peek(&self, name: &str) -> Option<&'a ast::CallArg> {
        let is = |a: &&&ast::CallArg| a.name.as_ref().is_some_and(|n| n.text == name);
        self.named.iter().find(is).or(self.positional.last()).copied()
    }

    fn take(&mut self, name: &'static str) {
        if self.take_named(name).is_none() {
            self.positional.pop();
        }
    }

    fn take_named(&mut self, name: &'static str) -> Option<&'a ast::CallArg> {
        self.asked.push(name);
        let is = |a: &&ast::CallArg| a.name.as_ref().is_some_and(|n| n.text == name);
        let at = self.named.iter().position(is)?;
        Some(self.named.remove(at))
    }
}

impl<'a> Lower<'a, '_> {
    /// The end of a call: nothing may be left of its arguments.
    pub fn nothing_left(&mut self, args: Args<'a>) -> Lowering<()> {
        if let Some(arg) = args.named.first().copied() {
            return self.no_such_argument(&args, arg);
        }
        let Some(arg) = args.positional.last() else { return Ok(()) };
        let mut diag = Diag::error(arg.span, format!("`{}` takes fewer arguments", args.name));
        if args.asked.contains(&"axis") {
            diag = diag.hint("an axis is given by name: `axis = ...`");
        }
        self.diags.push(diag);
        Err(Reported)
    }

    fn no_such_argument<T>(&mut self, args: &Args<'a>, arg: &'a ast::CallArg) -> Lowering<T> {
        let Some(name) = &arg.name else { return Err(Reported) };
        let twice = args.asked.contains(&name.text.as_str());
        let diag = if twice {
            let why = format!("argument `{}` of `{}` is given twice", name.text, args.name);
            Diag::error(arg.span, why)
        } else {
            let why = format!("`{}` has no argument `{}`", args.name, name.text);
            Diag::error(name.span, why).did_you_mean(&name.text, args.asked.iter().copied())
        };
        self.diags.push(diag);
        Err(Reported)
    }

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
        name: &'static str,
        env: &mut Env,
    ) -> Lowering<Option<Value>> {
        match args.take_named(name) {
            Some(arg) => self.expr(&arg.value, env).map(Some),
            None => self.next_positional(args, env),
        }
    }

    pub fn required(
        &mut self,
        args: &mut Args<'a>,
        name: &'static str,
        env: &mut Env,
    ) -> Lowering<Value> {
        if let Some(v) = self.optional(args, name, env)? {
            return Ok(v);
        }
        // A misspelt name says more than the one that is missing for it.
        let known = |a: &&&ast::CallArg| {
            let name = a.name.as_ref().map_or("", |n| n.text.as_str());
            crate::diag::suggest(name, args.asked.iter().copied()).is_some()
        };
        if let Some(arg) = args.named.iter().find(known).copied() {
            return self.no_such_argument(args, arg);
        }
        self.error(args.span, format!("`{}` needs `{name}`", args.name))
    }

    /// A tensor of the call's own; a number counts as a scalar.
    pub fn tensor_arg(&mut self, args: &mut Args<'a>, env: &mut Env) -> Lowering<Tensor> {
        let span = args.span;
        let t = self.tensor_or_weights(args, env)?;
        if t.batched {
            let diag = Diag::error(span, format!("`{}` of an expert's weight", args.name));
            let hint = "inside `each` a weight stands on the right of a `matmul` with the rows";
            self.diags.push(diag.hint(hint));
            return Err(Reported);
        }
        Ok(t)
    }

    /// A tensor, inside `each` also a weight of all experts.
    pub fn tensor_or_weights(&mut self, args: &mut Args<'a>, env: &mut Env) -> Lowering<Tensor> {
        match self.next_positional(args, env)? {
            Some(v) => self.as_tensor(v, args.span),
            None => self.error(args.span, format!("`{}` takes more arguments", args.name)),
        }
    }

    /// A number a kernel computes with: finite.
    pub fn number_arg_or(
        &mut self,
        args: &mut Args<'a>,
        name: &'static str,
        default: f64,
        env: &mut Env,
    ) -> Lowering<f64> {
        match self.optional(args, name, env)? {
            None => Ok(default),
            Some(v) => self.finite(v, name, args.span),
        }
    }

    pub fn finite(&mut self, value: Value, name: &str, span: Span) -> Lowering<f64> {
        match value {
            Value::Const(Const::Num(n)) if n.is_finite() => Ok(n),
            Value::Const(Const::Num(n)) => {
                self.error(span, format!("`{name}` is a finite number, found {n}"))
            }
            Value::Poison => Err(Reported),
            other => self.error(span, format!("`{name}` is a number, found {}", other.kind())),
        }
    }

    /// `name = number` only: not taken from the positional arguments.
    pub fn optional_number(
        &mut self,
        args: &mut Args<'a>,
        name: &'static str,
        env: &mut Env,
    ) -> Lowering<Option<f64>> {
        match args.take_named(name) {
            None => Ok(None),
            Some(arg) => {
                let value = self.expr(&arg.value, env)?;
                self.finite(value, name, arg.span).map(Some)
            }
        }
    }

    /// A whole positive number.
    pub fn size_arg(
        &mut self,
        args: &mut Args<'a>,
        name: &'static str,
        env: &mut Env,
    ) -> Lowering<u64> {
        let value = self.required(args, name, env)?;
        self.size(value, name, args.span)
    }

    pub fn size(&mut self, value: Value, name: &str, span: Span) -> Lowering<u64> {
        let size = match &value {
            Value::Const(c) => c.as_dim().and_then(|d| d.as_fixed()).filter(|n| *n > 0),
            _ => None,
        };
        match size {
            Some(n) => Ok(n),
            None => {
                let found = shown(&value);
                self.error(span, format!("`{name}` is a whole positive number, found {found}"))
            }
        }
    }

    pub fn flag_arg(
        &mut self,
        args: &mut Args<'a>,
        name: &'static str,
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

    /// One of `words`.
    pub fn word_arg(
        &mut self,
        args: &mut Args<'a>,
        name: &'static str,
        words: &[&str],
        env: &mut Env,
    ) -> Lowering<String> {
        let bare = args.peek(name).and_then(|arg| match &arg.value.kind {
            ast::ExprKind::Path(p) => p.single().cloned(),
            _ => None,
        });
        let value = match bare {
            // A name that nothing else has is a word, or a misspelt one.
            Some(n) if !self.is_known(&n.text, env) => {
                args.take(name);
                Value::Const(Const::Word(n.text))
            }
            _ => self.required(args, name, env)?,
        };
        match value {
            Value::Const(Const::Word(w)) if words.contains(&w.as_str()) => Ok(w),
            other => {
                let found = shown(&other);
                let why = format!("`{name}` is one of {}, found {found}", words.join(", "));
                let diag = Diag::error(args.span, why);
                self.diags.push(diag.did_you_mean(found.as_str(), words.iter().copied()));
                Err(Reported)
            }
        }
    }

    /// Whether a name means something here by itself.
    fn is_known(&self, name: &str, env: &Env) -> bool {
        let inst = self.tree.get(env.inst);
        env.locals.contains_key(name)
            || inst.members.contains_key(name)
            || inst.failed.contains(name)
            || self.const_named(name, env).is_some()
    }
}

/// A compile-time value as it is, anything else by its kind.
fn shown(value: &Value) -> String {
    match value {
        Value::Const(c) => c.to_string(),
        v => v.kind().to_string(),
    }
}
