//! Statements: bindings, side outputs, caches.

use weft_ir::attr::Attrs;
use weft_ir::dim::Dim;
use weft_ir::module::{Init, Store, StoreKind};
use weft_ir::op::Op;
use weft_ir::ty::{DType, Type};

use super::function::{Emit, Key};
use super::value::{Tensor, Value};
use super::{Env, Lower, Lowering};
use crate::ast::{self, Stmt};
use crate::diag::Diag;
use crate::elaborate::tree::Prefix;
use crate::elaborate::{Const, Reported};
use crate::source::Span;

impl<'a> Lower<'a, '_> {
    /// Run statements; the value of the last one, if it is an expression, is the result.
    pub fn body(&mut self, stmts: &'a [Stmt], env: &mut Env) -> Lowering<Vec<Value>> {
        let mut failed = false;
        for (i, stmt) in stmts.iter().enumerate() {
            if let (Stmt::Values(v), true) = (stmt, i + 1 == stmts.len()) {
                let all: Vec<Lowering<Value>> = v.exprs.iter().map(|e| self.expr(e, env)).collect();
                let all: Lowering<Vec<Value>> = all.into_iter().collect();
                return match (all, failed) {
                    (Ok(values), false) => Ok(flatten(values)),
                    _ => Err(Reported),
                };
            }
            failed |= self.stmt(stmt, env).is_err();
        }
        if failed { Err(Reported) } else { Ok(vec![]) }
    }

    fn stmt(&mut self, stmt: &'a Stmt, env: &mut Env) -> Lowering<()> {
        match stmt {
            Stmt::Bind(bind) => {
                let value = self.expr(&bind.value, env);
                self.bind(bind, value, env)
            }
            Stmt::Cache(c) => {
                let value = self.cache(c, env);
                let failed = value.is_err();
                env.locals.insert(c.name.text.clone(), value.unwrap_or(Value::Poison));
                if failed { Err(Reported) } else { Ok(()) }
            }
            Stmt::Emit(e) => self.emission(e, env),
            Stmt::If(i) => {
                let Ok(condition) = self.condition(&i.condition, env) else {
                    poison_bound(i, env);
                    return Err(Reported);
                };
                let branch = if condition { &i.then } else { &i.otherwise };
                let mut failed = false;
                for stmt in branch {
                    failed |= self.stmt(stmt, env).is_err();
                }
                if failed { Err(Reported) } else { Ok(()) }
            }
            Stmt::Values(v) => v.exprs.iter().try_for_each(|e| self.expr(e, env).map(|_| ())),
        }
    }

    /// `emit name = EXPR`.
    fn emission(&mut self, e: &'a ast::NamedValue, env: &mut Env) -> Lowering<()> {
        let value = self.expr(&e.value, env)?;
        let t = self.as_tensor(value, e.value.span)?;
        let t = self.named(t, env.compute, e.value.span)?;
        let inst = self.tree.get(env.inst);
        let (path, starts) = (inst.path.clone(), inst.prefix.starts.clone());
        let name = e.name.text.clone();
        let first = self.f().emits.iter().find(|o| o.path == path && o.name == name);
        if let Some(first) = first.map(|first| first.span) {
            let diag = Diag::error(e.span, format!("`{name}` is emitted twice"));
            let diag = match first == e.span {
                true => diag.hint("the module is called twice"),
                false => diag.label(first, "first here"),
            };
            self.diags.push(diag);
            return Err(Reported);
        }
        self.name_value(t.id, &name);
        self.f().emits.push(Emit { path, name, span: e.span, value: t.id, starts });
        Ok(())
    }

    fn bind(&mut self, bind: &'a ast::Bind, value: Lowering<Value>, env: &mut Env) -> Lowering<()> {
        let poison = |env: &mut Env| {
            for name in &bind.targets {
                env.locals.insert(name.text.clone(), Value::Poison);
            }
            Err(Reported)
        };
        let Ok(value) = value else { return poison(env) };
        let values = match (value, bind.targets.len()) {
            (Value::Tuple(items), n) if items.len() == n => items,
            (single, 1) if !matches!(single, Value::Tuple(_)) => vec![single],
            (value, n) => {
                let names = if n == 1 { "1 name".to_string() } else { format!("{n} names") };
                let found = match value {
                    Value::Tuple(items) => format!("{} values", items.len()),
                    _ => "1 value".to_string(),
                };
                self.diags.push(Diag::error(bind.span, format!("{names} for {found}")));
                return poison(env);
            }
        };
        for (name, value) in bind.targets.iter().zip(values) {
            let value = self.named_value(value, env.compute, bind.value.span)?;
            if let Value::Tensor(t) = &value {
                self.name_value(t.id, &name.text);
            }
            env.locals.insert(name.text.clone(), value);
        }
        Ok(())
    }

    /// Without a cache the value itself (T is S); with one, the whole cache after appending to it.
    fn cache(&mut self, c: &'a ast::NamedValue, env: &mut Env) -> Lowering<Value> {
        let value = self.expr(&c.value, env)?;
        let t = self.as_tensor(value, c.value.span)?;
        let kept = self.tree.compute.cache.filter(|_| self.settings.cache.is_some());
        let t = self.named(t, kept.unwrap_or(env.compute), c.value.span)?;
        let dims = self.dims(&t);
        if dims.len() < 2 || dims[..2] != [self.batch, self.seq] {
            let why = format!("a cached value is [B, S, ..], found {}", self.show_dims(&dims));
            return self.error(c.value.span, why);
        }
        self.name_value(t.id, &c.name.text);
        if self.settings.cache.is_none() {
            return Ok(Value::Tensor(t));
        }
        let inst = self.tree.get(env.inst);
        let path = match inst.path.as_str() {
            "" => c.name.text.clone(),
            p => format!("{p}.{}", c.name.text),
        };
        let mut kept = dims;
        kept[1] = self.seen;
        if !self.module.stores.contains_key(&path) {
            let levels = inst.levels.iter().map(|n| Dim::fixed(*n));
            let all: Vec<Dim> = levels.chain(kept.iter().copied()).collect();
            let store = Store {
                ty: Type::new(self.ty(t.id).dtype, all),
                kind: StoreKind::State,
                templates: vec![cache_template(&path, inst.levels.len())],
                starts: inst.levels.iter().map(|_| 0).collect(),
                init: Init::Constant(0.0),
                part: None,
                placed: None,
            };
            self.module.stores.insert(path.clone(), store);
        }
        if self.f().caches.contains_key(&path) {
            let diag = Diag::error(c.span, format!("`{}` is cached twice", c.name.text));
            self.diags.push(diag.hint("a decode step keeps one value under a name"));
            return Err(Reported);
        }
        let state = self.store(&path, true);
        let start = self.implicit(Key::Start, c.span)?;
        let results =
            self.emit_all(c.span, Op::CacheAppend, &[state, t.id, start], Attrs::new())?;
        self.f().caches.insert(path, results[1]);
        let name = &c.name.text;
        self.b().name(results[0], &format!("{name}.all"));
        self.b().name(results[1], &format!("{name}.cache"));
        Ok(Value::Tensor(Tensor { id: results[0], ..t }))
    }

    pub fn as_tensor(&mut self, value: Value, span: Span) -> Lowering<Tensor> {
        match value {
            Value::Tensor(t) => Ok(t),
            Value::Tuple(mut items) if items.len() == 1 => self.as_tensor(items.remove(0), span),
            Value::Const(Const::Num(n)) => {
                let id = self.at(span).constant(n, Type::scalar(DType::F32));
                let id = self.typed(span, id)?;
                Ok(self.tensor(id))
            }
            Value::Poison => Err(Reported),
            other => self.error(span, format!("needs a tensor, found {}", other.kind())),
        }
    }
}

/// A cache is never published; its template only tells its slices apart.
fn cache_template(path: &str, n_levels: usize) -> String {
    let levels = (0..n_levels).map(|n| format!(".{{{}}}", Prefix::letter(n)));
    levels.fold(format!("cache.{path}"), |t, level| t + &level)
}

/// What either branch would bind is unknown; using it says nothing more.
fn poison_bound(branches: &ast::If<Stmt>, env: &mut Env) {
    for stmt in branches.then.iter().chain(&branches.otherwise) {
        let names: Vec<&ast::Name> = match stmt {
            Stmt::Bind(bind) => bind.targets.iter().collect(),
            Stmt::Cache(c) => vec![&c.name],
            Stmt::If(inner) => {
                poison_bound(inner, env);
                continue;
            }
            Stmt::Emit(_) | Stmt::Values(_) => continue,
        };
        env.locals.extend(names.into_iter().map(|n| (n.text.clone(), Value::Poison)));
    }
}

fn flatten(values: Vec<Value>) -> Vec<Value> {
    values
        .into_iter()
        .flat_map(|v| match v {
            Value::Tuple(items) => items,
            one => vec![one],
        })
        .collect()
}
