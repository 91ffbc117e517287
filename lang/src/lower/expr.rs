//! Expressions of forward, loss and update bodies: names, compile-time values, calls.

use std::collections::BTreeSet;

use crate::ast::{self, BinaryOp, ExprKind, UnaryOp};
use crate::diag::Diag;
use crate::elaborate::consts::{self, Const};
use crate::elaborate::eval::{Eval, Scope};
use crate::elaborate::tree::Member;
use crate::elaborate::{InstId, Reported};
use crate::source::Span;
use weft_ir::dim::Dim;
use weft_ir::module::StoreKind;
use weft_ir::op::Op;
use weft_ir::ty::Type;

use super::builtin::BUILTINS;
use super::function::Key;
use super::value::{Tensor, Value};
use super::{EXPR_DEPTH_MAX, Env, Lower, Lowering};

impl<'a> Lower<'a, '_> {
    pub fn expr(&mut self, e: &'a ast::Expr, env: &mut Env) -> Lowering<Value> {
        if self.depth >= EXPR_DEPTH_MAX {
            return self.error(e.span, "expressions are nested too deep, calls counted in");
        }
        self.depth += 1;
        let value = self.nested(e, env);
        self.depth -= 1;
        value
    }

    fn nested(&mut self, e: &'a ast::Expr, env: &mut Env) -> Lowering<Value> {
        match &e.kind {
            ExprKind::Number(n) => Ok(Value::Const(Const::Num(*n))),
            ExprKind::Str(s) => Ok(Value::Const(Const::Str(s.clone()))),
            ExprKind::Bool(b) => Ok(Value::Const(Const::Bool(*b))),
            ExprKind::None => Ok(Value::Const(Const::None)),
            ExprKind::Path(p) => self.path(p, env),
            ExprKind::Call(c) => self.call(c, env),
            ExprKind::Repeat(c) => self.repeat(c, env),
            ExprKind::Each(c) => self.each(c, env),
            ExprKind::Tuple(items) => {
                let all: Lowering<Vec<Value>> = items.iter().map(|i| self.expr(i, env)).collect();
                Ok(Value::Tuple(all?))
            }
            ExprKind::List(items) => {
                let mut all = vec![];
                for item in items {
                    match self.expr(item, env)? {
                        Value::Const(c) => all.push(c),
                        Value::Poison => return Err(Reported),
                        other => {
                            let why = format!("a list holds numbers, found {}", other.kind());
                            return self.error(item.span, why);
                        }
                    }
                }
                Ok(Value::Const(Const::List(all)))
            }
            ExprKind::Unary(op, x) => match (op, self.expr(x, env)?) {
                (_, Value::Const(c)) => match consts::unary(*op, &c) {
                    Ok(c) => Ok(Value::Const(c)),
                    Err(why) => self.error(e.span, why),
                },
                (UnaryOp::Neg, v) => self.unary(Op::Neg, v, e.span),
                (UnaryOp::Not, v) => self.unary(Op::Not, v, e.span),
            },
            // The right side may only make sense when the left does not decide.
            ExprKind::Binary(op @ (BinaryOp::And | BinaryOp::Or), x, y) => {
                match (op, self.expr(x, env)?) {
                    (BinaryOp::And, Value::Const(Const::Bool(false))) => {
                        Ok(Value::Const(Const::Bool(false)))
                    }
                    (BinaryOp::Or, Value::Const(Const::Bool(true))) => {
                        Ok(Value::Const(Const::Bool(true)))
                    }
                    (op, x) => {
                        let y = self.expr(y, env)?;
                        self.binary(*op, x, y, e.span)
                    }
                }
            }
            ExprKind::Binary(op, x, y) => {
                let (x, y) = (self.expr(x, env), self.expr(y, env));
                self.binary(*op, x?, y?, e.span)
            }
            ExprKind::If { condition, then, otherwise } => {
                if self.condition(condition, env)? {
                    self.expr(then, env)
                } else {
                    self.expr(otherwise, env)
                }
            }
            ExprKind::Reshape(x, dims) => {
                let x = self.expr(x, env)?;
                self.reshape(x, dims, e.span, env)
            }
        }
    }

    pub fn condition(&mut self, e: &'a ast::Expr, env: &mut Env) -> Lowering<bool> {
        match self.expr(e, env)? {
            Value::Const(Const::Bool(b)) => Ok(b),
            Value::Poison => Err(Reported),
            Value::Const(other) => {
                self.error(e.span, format!("a condition is a boolean, found {}", other.kind()))
            }
            other => {
                let why = format!("a condition is known at compile time, found {}", other.kind());
                self.error(e.span, why)
            }
        }
    }

    fn binary(&mut self, op: BinaryOp, x: Value, y: Value, span: Span) -> Lowering<Value> {
        if let (Value::Const(a), Value::Const(b)) = (&x, &y) {
            return match consts::binary(op, a, b) {
                Ok(c) => Ok(Value::Const(c)),
                Err(why) => self.error(span, why),
            };
        }
        match op {
            BinaryOp::Add => self.pointwise(Op::Add, x, y, span),
            BinaryOp::Sub => self.pointwise(Op::Sub, x, y, span),
            BinaryOp::Mul => self.pointwise(Op::Mul, x, y, span),
            BinaryOp::Div => self.pointwise(Op::Div, x, y, span),
            BinaryOp::Pow => self.power(x, y, span),
            BinaryOp::Eq => self.pointwise(Op::Eq, x, y, span),
            BinaryOp::Ne => {
                let eq = self.pointwise(Op::Eq, x, y, span)?;
                self.unary(Op::Not, eq, span)
            }
            BinaryOp::Lt => self.pointwise(Op::Lt, x, y, span),
            BinaryOp::Le => self.pointwise(Op::Le, x, y, span),
            BinaryOp::Gt => self.pointwise(Op::Lt, y, x, span),
            BinaryOp::Ge => self.pointwise(Op::Le, y, x, span),
            BinaryOp::And => self.pointwise(Op::And, x, y, span),
            BinaryOp::Or => self.pointwise(Op::Or, x, y, span),
        }
    }

    /// A compile-time name: constants, dims bound by the call, `B`, `S`, `T`, enumerants, `pi`.
    pub fn const_named(&self, name: &str, env: &Env) -> Option<Const> {
        if let Some(d) = env.dims.get(name) {
            return Some(Const::dim(*d));
        }
        let inst = self.tree.get(env.inst);
        if let Some(c) = inst.consts.get(name) {
            return Some(c.clone());
        }
        match name {
            "B" => return Some(Const::dim(self.batch)),
            "S" => return Some(Const::dim(self.seq)),
            "T" => return Some(Const::dim(self.seen)),
            "pi" => return Some(Const::Num(std::f64::consts::PI)),
            _ => {}
        }
        crate::elaborate::words_of(inst.body).into_iter().find(|w| w == name).map(Const::Word)
    }

    fn path(&mut self, path: &'a ast::Path, env: &mut Env) -> Lowering<Value> {
        let Some(name) = path.single() else { return self.member_constant(path, env) };
        if let Some(v) = env.locals.get(&name.text) {
            return match v {
                Value::Poison => Err(Reported),
                v => Ok(v.clone()),
            };
        }
        if let Some(Member::Store(path)) = self.tree.get(env.inst).members.get(&name.text) {
            let store = path.clone();
            return self.stored(&store, env);
        }
        if let Some(c) = self.const_named(&name.text, env) {
            return Ok(Value::Const(c));
        }
        match name.text.as_str() {
            "positions" => {
                let id = self.implicit(Key::Positions, name.span)?;
                return Ok(self.value(id));
            }
            "segments" if self.settings.segments => {
                let id = self.implicit(Key::Segments, name.span)?;
                return Ok(self.value(id));
            }
            // Without segments everything is one document.
            "segments" => {
                let ty = Type::i32([self.batch, self.seq]);
                let id = self.at(name.span).constant(0.0, ty);
                let id = self.typed(name.span, id)?;
                return Ok(self.value(id));
            }
            _ => {}
        }
        if self.tree.get(env.inst).failed.contains(&name.text) {
            return Err(Reported);
        }
        if env.emits_visible
            && let Some(sum) = self.emitted(&name.text, name.span)?
        {
            return Ok(sum);
        }
        self.unknown(name, env)
    }

    fn unknown<T>(&mut self, name: &ast::Name, env: &Env) -> Lowering<T> {
        let inst = self.tree.get(env.inst);
        let mut known: Vec<String> = env.locals.keys().cloned().collect();
        known.extend(inst.members.keys().chain(inst.consts.keys()).cloned());
        known.extend(["positions", "segments"].map(String::from));
        known.extend(crate::elaborate::words_of(inst.body));
        if env.emits_visible {
            known.extend(self.functions.iter().flat_map(|f| &f.emits).map(|e| e.name.clone()));
        }
        let mut diag = Diag::error(name.span, format!("unknown name `{}`", name.text))
            .did_you_mean(&name.text, known.iter().map(String::as_str));
        if let Some(Member::One(_) | Member::Stack(_)) = inst.members.get(&name.text) {
            diag = diag.hint(format!("`{0}` is a module: call it, `{0}(...)`", name.text));
        }
        self.diags.push(diag);
        Err(Reported)
    }

    /// `turn.temperature`: a constant of a member; `embed_tokens.weight`: its store.
    fn member_constant(&mut self, path: &'a ast::Path, env: &mut Env) -> Lowering<Value> {
        let names: Vec<&str> = path.names.iter().map(|n| n.text.as_str()).collect();
        let mut inst = env.inst;
        for (i, name) in names[..names.len() - 1].iter().enumerate() {
            match self.tree.get(inst).members.get(*name) {
                Some(Member::One(id)) => inst = *id,
                _ if self.tree.get(inst).failed.contains(*name) => return Err(Reported),
                found => {
                    let why = match found {
                        Some(Member::Stack(_)) => format!("`{name}` is a stack, not one module"),
                        Some(_) => format!("`{name}` is a tensor, not a module"),
                        None => format!("no member `{name}` here"),
                    };
                    let known = self.tree.get(inst).members.keys().map(String::as_str);
                    let diag = Diag::error(path.names[i].span, why).did_you_mean(name, known);
                    self.diags.push(diag);
                    return Err(Reported);
                }
            }
        }
        let last = &path.names[names.len() - 1];
        if let Some(c) = self.tree.get(inst).consts.get(&last.text) {
            return Ok(Value::Const(c.clone()));
        }
        if let Some(Member::Store(store)) = self.tree.get(inst).members.get(&last.text) {
            let store = store.clone();
            return self.stored(&store, env);
        }
        let inst = self.tree.get(inst);
        if inst.failed.contains(&last.text) {
            return Err(Reported);
        }
        let known = inst.consts.keys().chain(inst.members.keys()).map(String::as_str);
        let diag = Diag::error(last.span, format!("`{path}`: no constant `{}`", last.text))
            .did_you_mean(&last.text, known);
        self.diags.push(diag);
        Err(Reported)
    }

    /// The value of a store in the function being built.
    fn stored(&mut self, path: &str, env: &Env) -> Lowering<Value> {
        let id = self.store(path, false);
        let decl = &self.tree.stores[path];
        let mut labels: Vec<Option<Span>> = decl.labels.iter().map(|s| Some(*s)).collect();
        let rank = self.ty(id).rank();
        let batched = decl.kind != StoreKind::Schedule && env.each.is_some() && {
            // One level is left: that of the experts.
            rank > decl.dims.len()
        };
        if env.lead > 0 {
            let mut all = vec![None; rank - labels.len()];
            all.append(&mut labels);
            labels = all;
        }
        if let (true, Some(sym)) = (batched, env.each) {
            let share = self.f().ragged.get(&sym).map(|r| (r.active, r.experts));
            if let Some(share) = share {
                self.active.insert(path.to_string(), share);
            }
        }
        Ok(Value::Tensor(Tensor { id, batched, labels }))
    }

    /// A dim expression: numbers, symbols and their products.
    pub fn dim_expr(&mut self, e: &'a ast::Expr, env: &Env) -> Lowering<Dim> {
        let failed = self.tree.get(env.inst).failed.clone();
        let scope = BodyScope { names: self.scope_consts(env), failed };
        let modules = self.modules.clone();
        let value = Eval { modules: &modules, diags: self.diags }.expr(e, &scope)?;
        match value.as_dim() {
            Some(d) if d.coeff() > 0 => Ok(d),
            _ => self.error(e.span, format!("a dim is a whole positive number, found {value}")),
        }
    }

    fn scope_consts(&self, env: &Env) -> Vec<(String, Const)> {
        let inst = self.tree.get(env.inst);
        let mut all: Vec<(String, Const)> =
            env.dims.iter().map(|(n, d)| (n.clone(), Const::dim(*d))).collect();
        for (name, value) in &env.locals {
            if let Value::Const(c) = value {
                all.push((name.clone(), c.clone()));
            }
        }
        all.extend(inst.consts.iter().map(|(n, c)| (n.clone(), c.clone())));
        all.push(("B".into(), Const::dim(self.batch)));
        all.push(("S".into(), Const::dim(self.seq)));
        all.push(("T".into(), Const::dim(self.seen)));
        all
    }

    fn call(&mut self, call: &'a ast::Call, env: &mut Env) -> Lowering<Value> {
        let member = self.callee(&call.callee, env.inst);
        match member {
            Some(Member::One(id)) => {
                let args = self.positional(call, env)?;
                let results = self.call_instance(id, args, env.each, call.span)?;
                let member = &call.callee.names[call.callee.names.len() - 1].text;
                for r in &results {
                    if let Value::Tensor(t) = r {
                        self.name_passing(t.id, member);
                    }
                }
                Ok(one_or_tuple(results))
            }
            Some(Member::Stack(_)) => {
                let why = format!("`{}` is a stack", call.callee);
                let hint = format!(
                    "`repeat {0}(...)` runs it in turn, `each {0}(...)` on rows",
                    call.callee
                );
                self.diags.push(Diag::error(call.span, why).hint(hint));
                Err(Reported)
            }
            Some(Member::Store(_)) => {
                self.error(call.span, format!("`{}` is a tensor, not a module", call.callee))
            }
            None => self.builtin(call, env),
        }
    }

    /// The member a path names, through single members.
    pub fn callee(&self, path: &ast::Path, from: InstId) -> Option<Member> {
        let mut inst = from;
        let (last, before) = path.names.split_last()?;
        for name in before {
            match self.tree.get(inst).members.get(&name.text)? {
                Member::One(id) => inst = *id,
                _ => return None,
            }
        }
        self.tree.get(inst).members.get(&last.text).cloned()
    }

    /// Arguments of an instance: by position, tuples spread.
    pub fn positional(&mut self, call: &'a ast::Call, env: &mut Env) -> Lowering<Vec<Value>> {
        let mut all = vec![];
        for arg in &call.args {
            if let Some(name) = &arg.name {
                return self.error(name.span, "a module's forward takes its values in order");
            }
            match self.expr(&arg.value, env)? {
                Value::Tuple(items) => all.extend(items),
                one => all.push(one),
            }
        }
        Ok(all)
    }

    pub fn unknown_function<T>(&mut self, call: &ast::Call, env: &Env) -> Lowering<T> {
        let name = call.callee.to_string();
        let inst = self.tree.get(env.inst);
        if inst.failed.contains(&call.callee.names[0].text) {
            return Err(Reported);
        }
        if self.modules.iter().any(|m| m.name.text == name) {
            let diag = Diag::error(call.callee.span, format!("`{name}` is not placed here"));
            let hint = format!("declare a member, `NAME : {name}(...)`, and call it");
            self.diags.push(diag.hint(hint));
            return Err(Reported);
        }
        let known = inst.members.keys().map(String::as_str);
        let known = known.chain(BUILTINS.iter().copied()).chain(consts::FUNCTIONS.iter().copied());
        let diag = Diag::error(call.callee.span, format!("no module or function `{name}` here"))
            .did_you_mean(&name, known);
        self.diags.push(diag);
        Err(Reported)
    }
}

pub fn one_or_tuple(mut values: Vec<Value>) -> Value {
    if values.len() == 1 { values.remove(0) } else { Value::Tuple(values) }
}

struct BodyScope {
    names: Vec<(String, Const)>,
    failed: BTreeSet<String>,
}

impl Scope for BodyScope {
    fn lookup(&self, name: &str) -> Option<Const> {
        self.names.iter().find(|(n, _)| n == name).map(|(_, c)| c.clone())
    }

    fn lookup_path(&self, _: &[&str]) -> Option<Const> {
        None
    }

    fn has_failed(&self, name: &str) -> bool {
        self.failed.contains(name)
    }

    fn names(&self) -> Vec<String> {
        self.names.iter().map(|(n, _)| n.clone()).collect()
    }
}
