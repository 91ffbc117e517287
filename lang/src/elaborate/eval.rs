//! Evaluating compile-time expressions.

use std::rc::Rc;

use super::Reported;
use super::consts::{self, Closure, Const};
use crate::ast::{self, BinaryOp, ExprKind};
use crate::diag::Diag;
use crate::source::Span;

/// Names visible to a compile-time expression.
pub trait Scope {
    fn lookup(&self, name: &str) -> Option<Const>;
    /// A constant of an instance: `turn.temperature`.
    fn lookup_path(&self, names: &[&str]) -> Option<Const>;
    /// Whether the name's own definition was wrong and has been reported.
    fn has_failed(&self, _: &str) -> bool {
        false
    }
    /// Every visible name, for suggestions.
    fn names(&self) -> Vec<String>;
}

/// Evaluates against a scope; what is wrong goes to `diags`.
pub struct Eval<'a, 'd> {
    pub modules: &'a [&'a ast::Module],
    pub diags: &'d mut Vec<Diag>,
}

impl Eval<'_, '_> {
    fn error<T>(&mut self, span: Span, message: impl Into<String>) -> Result<T, Reported> {
        self.diags.push(Diag::error(span, message));
        Err(Reported)
    }

    pub fn expr(&mut self, e: &ast::Expr, scope: &dyn Scope) -> Result<Const, Reported> {
        match &e.kind {
            ExprKind::Number(n) => Ok(Const::Num(*n)),
            ExprKind::Str(s) => Ok(Const::Str(s.clone())),
            ExprKind::Bool(b) => Ok(Const::Bool(*b)),
            ExprKind::None => Ok(Const::None),
            ExprKind::Path(path) => self.path(path, scope),
            ExprKind::Call(call) => self.call(call, scope),
            ExprKind::List(items) => {
                let all: Result<Vec<Const>, Reported> =
                    items.iter().map(|i| self.expr(i, scope)).collect();
                Ok(Const::List(all?))
            }
            ExprKind::Unary(op, x) => {
                let x = self.expr(x, scope)?;
                consts::unary(*op, &x).or_else(|why| self.error(e.span, why))
            }
            ExprKind::Binary(op @ (BinaryOp::And | BinaryOp::Or), x, y) => {
                // The right side may only make sense when the left does not decide.
                match (op, self.expr(x, scope)?) {
                    (BinaryOp::And, Const::Bool(false)) => Ok(Const::Bool(false)),
                    (BinaryOp::Or, Const::Bool(true)) => Ok(Const::Bool(true)),
                    (op, x) => {
                        let y = self.expr(y, scope)?;
                        consts::binary(*op, &x, &y).or_else(|why| self.error(e.span, why))
                    }
                }
            }
            ExprKind::Binary(op, x, y) => {
                let (x, y) = (self.expr(x, scope), self.expr(y, scope));
                let (x, y) = (x?, y?);
                consts::binary(*op, &x, &y).or_else(|why| self.error(e.span, why))
            }
            ExprKind::If { condition, then, otherwise } => {
                if self.condition(condition, scope)? {
                    self.expr(then, scope)
                } else {
                    self.expr(otherwise, scope)
                }
            }
            ExprKind::Tuple(_)
            | ExprKind::Reshape(..)
            | ExprKind::Repeat(_)
            | ExprKind::Each(_) => self.error(e.span, "this is not a compile-time value"),
        }
    }

    pub fn condition(&mut self, e: &ast::Expr, scope: &dyn Scope) -> Result<bool, Reported> {
        match self.expr(e, scope)? {
            Const::Bool(b) => Ok(b),
            other => {
                self.error(e.span, format!("a condition is a boolean, found {}", other.kind()))
            }
        }
    }

    fn path(&mut self, path: &ast::Path, scope: &dyn Scope) -> Result<Const, Reported> {
        let names: Vec<&str> = path.names.iter().map(|n| n.text.as_str()).collect();
        let found = match names[..] {
            [one] => scope.lookup(one).or_else(|| self.bare_module(one, path.span)),
            _ => scope.lookup_path(&names),
        };
        match found {
            Some(value) => Ok(value),
            None if scope.has_failed(names[0]) => Err(Reported),
            None => {
                let all = scope.names();
                let mut diag = Diag::error(path.span, format!("unknown name `{path}`"));
                if self.modules.iter().any(|m| m.name.text == names[0]) {
                    diag = diag.hint(format!("`{0}` takes arguments: `{0}(...)`", names[0]));
                }
                let known = all.iter().chain(self.modules.iter().map(|m| &m.name.text));
                self.diags.push(diag.did_you_mean(names[0], known.map(String::as_str)));
                Err(Reported)
            }
        }
    }

    /// A module without parameters may be named without parentheses.
    fn bare_module(&self, name: &str, span: Span) -> Option<Const> {
        let module = self.modules.iter().position(|m| m.name.text == name)?;
        self.modules[module]
            .params
            .is_empty()
            .then(|| Const::Module(Rc::new(Closure { module, args: vec![], span })))
    }

    fn call(&mut self, call: &ast::Call, scope: &dyn Scope) -> Result<Const, Reported> {
        let name = call.callee.to_string();
        if name == "given" {
            return match &call.args[..] {
                [ast::CallArg { name: None, value, .. }] => {
                    Ok(Const::Bool(self.expr(value, scope)? != Const::None))
                }
                _ => self.error(call.span, "`given` asks about one name"),
            };
        }
        if let Some(module) = self.modules.iter().position(|m| m.name.text == name) {
            return self.closure(module, call, scope);
        }
        let mut numbers = vec![];
        for arg in &call.args {
            match self.expr(&arg.value, scope)? {
                Const::Num(n) => numbers.push(n),
                other => {
                    let why = format!("`{name}` takes numbers, found {}", other.kind());
                    return self.error(arg.span, why);
                }
            }
        }
        match consts::function(&name, &numbers) {
            Some(n) => Ok(Const::Num(n)),
            None if consts::FUNCTIONS.contains(&name.as_str()) => {
                self.error(call.span, format!("`{name}` takes another number of arguments"))
            }
            None => {
                let known = self.modules.iter().map(|m| m.name.text.as_str());
                let known = known.chain(consts::FUNCTIONS.iter().copied());
                let diag = Diag::error(
                    call.callee.span,
                    format!("no module or compile-time function `{name}`"),
                )
                .did_you_mean(&name, known);
                self.diags.push(diag);
                Err(Reported)
            }
        }
    }

    /// Bind a module's arguments to its parameters.
    fn closure(
        &mut self,
        module: usize,
        call: &ast::Call,
        scope: &dyn Scope,
    ) -> Result<Const, Reported> {
        let def = self.modules[module];
        let given = self.given(def, call, scope)?;
        let mut args: Vec<(String, Const)> = vec![];
        let mut failed = false;
        for (param, value) in def.params.iter().zip(given) {
            let name = param.name.text.clone();
            let value = match (value, &param.kind) {
                (Some(v), _) => v,
                (None, ast::ParamKind::Optional) => Const::None,
                (None, ast::ParamKind::Enumeration(words)) => Const::Word(words[0].text.clone()),
                (None, ast::ParamKind::Default(e)) if !failed => {
                    self.expr(e, &Bound { args: &args })?
                }
                (None, ast::ParamKind::Default(_)) => continue,
                (None, ast::ParamKind::Required) => {
                    let why = format!("`{}` needs the argument `{name}`", def.name.text);
                    let diag = Diag::error(call.span, why);
                    self.diags.push(diag.label(param.span, "declared here"));
                    failed = true;
                    continue;
                }
            };
            args.push((name, value));
        }
        if failed {
            return Err(Reported);
        }
        Ok(Const::Module(Rc::new(Closure { module, args, span: call.span })))
    }

    /// The values a call gives, by parameter.
    fn given(
        &mut self,
        def: &ast::Module,
        call: &ast::Call,
        scope: &dyn Scope,
    ) -> Result<Vec<Option<Const>>, Reported> {
        let mut bound: Vec<Option<Const>> = vec![None; def.params.len()];
        let mut seen: Vec<Option<Span>> = vec![None; def.params.len()];
        let mut failed = false;
        for (i, arg) in call.args.iter().enumerate() {
            let slot = match &arg.name {
                None => (i < def.params.len()).then_some(i),
                Some(n) => def.params.iter().position(|p| p.name.text == n.text),
            };
            let Some(slot) = slot else {
                self.unknown_argument(def, arg);
                failed = true;
                continue;
            };
            if let Some(first) = seen[slot].replace(arg.span) {
                let twice = format!("argument `{}` is given twice", def.params[slot].name.text);
                self.diags.push(Diag::error(arg.span, twice).label(first, "first here"));
                failed = true;
                continue;
            }
            bound[slot] = self.argument(def, slot, arg, scope).ok();
            failed |= bound[slot].is_none();
        }
        if failed { Err(Reported) } else { Ok(bound) }
    }

    fn argument(
        &mut self,
        def: &ast::Module,
        slot: usize,
        arg: &ast::CallArg,
        scope: &dyn Scope,
    ) -> Result<Const, Reported> {
        // A name that nothing else has is a word of the parameter, or a misspelt one.
        let word = match (&def.params[slot].kind, &arg.value.kind) {
            (ast::ParamKind::Enumeration(_), ExprKind::Path(p)) => p
                .single()
                .filter(|n| scope.lookup(&n.text).is_none() && !scope.has_failed(&n.text))
                .map(|n| Const::Word(n.text.clone())),
            _ => None,
        };
        let value = match word {
            Some(word) => word,
            None => self.expr(&arg.value, scope)?,
        };
        self.checked(def, slot, value, arg.value.span)
    }

    fn unknown_argument(&mut self, def: &ast::Module, arg: &ast::CallArg) {
        let diag = match &arg.name {
            Some(n) => {
                Diag::error(n.span, format!("`{}` has no parameter `{}`", def.name.text, n.text))
                    .did_you_mean(&n.text, def.params.iter().map(|p| p.name.text.as_str()))
            }
            None => {
                let n = def.params.len();
                let many = if n == 1 { "argument" } else { "arguments" };
                Diag::error(arg.span, format!("`{}` takes {n} {many}", def.name.text))
            }
        };
        self.diags.push(diag.label(def.name.span, "declared here"));
    }

    /// A value that fits parameter `slot`, or a diagnostic.
    fn checked(
        &mut self,
        def: &ast::Module,
        slot: usize,
        value: Const,
        span: Span,
    ) -> Result<Const, Reported> {
        let param = &def.params[slot];
        let name = &param.name.text;
        let diag = match (&param.kind, &value) {
            (ast::ParamKind::Enumeration(words), v) => {
                let all: Vec<&str> = words.iter().map(|w| w.text.as_str()).collect();
                let one_of = format!("`{name}` is one of {}", all.join(", "));
                match v {
                    Const::Word(w) if all.contains(&w.as_str()) => return Ok(value),
                    Const::Word(w) => {
                        Diag::error(span, format!("{one_of}, found `{w}`")).did_you_mean(w, all)
                    }
                    v => Diag::error(span, format!("{one_of}, found {}", v.kind())),
                }
            }
            (ast::ParamKind::Required, Const::None) => {
                let why = format!("`{name}` of `{}` may not be none", def.name.text);
                let hint = format!("declared `{name}?` it may be");
                Diag::error(span, why).hint(hint)
            }
            (ast::ParamKind::Default(e), v) => match literal_kind(e) {
                Some(kind) if kind != v.kind() && v.kind() != "a size" => {
                    Diag::error(span, format!("`{name}` is {kind}, found {}", v.kind()))
                }
                _ => return Ok(value),
            },
            _ => return Ok(value),
        };
        self.diags.push(diag.label(param.span, "declared here"));
        Err(Reported)
    }
}

/// What a default that is written out says of its parameter's kind.
fn literal_kind(default: &ast::Expr) -> Option<&'static str> {
    match &default.kind {
        ExprKind::Number(_) => Some(Const::Num(0.0).kind()),
        ExprKind::Bool(_) => Some(Const::Bool(false).kind()),
        ExprKind::Str(_) => Some(Const::Str(String::new()).kind()),
        _ => None,
    }
}

/// The parameters bound so far: what a default may refer to.
struct Bound<'a> {
    args: &'a [(String, Const)],
}

impl Scope for Bound<'_> {
    fn lookup(&self, name: &str) -> Option<Const> {
        self.args.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone())
    }

    fn lookup_path(&self, _: &[&str]) -> Option<Const> {
        None
    }

    fn names(&self) -> Vec<String> {
        self.args.iter().map(|(n, _)| n.clone()).collect()
    }
}
