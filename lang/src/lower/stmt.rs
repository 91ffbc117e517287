//! Statements, and calling an instance: bind the arguments, run the body in place.

use indexmap::IndexMap;
use weft_ir::attr::Attrs;
use weft_ir::dim::Dim;
use weft_ir::module::{Init, Store, StoreKind};
use weft_ir::op::Op;
use weft_ir::ty::{DType, Type};

use super::function::{Emit, Key};
use super::value::{Tensor, Value};
use super::{DEPTH_MAX, Env, Lower, Lowering};
use crate::ast::{self, Stmt};
use crate::diag::Diag;
use crate::elaborate::tree::Body;
use crate::elaborate::{Const, InstId, Reported};
use crate::source::Span;

impl<'a> Lower<'a, '_> {
    /// Run the forward of `inst` on `args`, in the function being built.
    pub fn call_instance(
        &mut self,
        inst: InstId,
        args: Vec<Value>,
        each: Option<weft_ir::dim::SymId>,
        span: Span,
    ) -> Lowering<Vec<Value>> {
        let Some(forward) = self.tree.get(inst).forward else {
            let why = format!("`{}` has no forward", self.body_name(inst));
            return self.error(span, why);
        };
        if self.sites.len() >= DEPTH_MAX {
            return self.error(span, "calls are nested too deep; does a module call itself?");
        }
        let mut env = self.env(inst);
        env.each = each;
        self.bind_args(forward, inst, args, &mut env, span)?;
        self.sites.push(span);
        let results = self.body(&forward.body, &mut env);
        self.sites.pop();
        let results = results?;
        self.check_results(forward, inst, results, &mut env)
    }

    pub fn env(&self, inst: InstId) -> Env {
        Env {
            inst,
            locals: IndexMap::new(),
            dims: IndexMap::new(),
            each: None,
            lead: 0,
            emits_visible: false,
        }
    }

    pub fn body_name(&self, inst: InstId) -> String {
        match self.tree.get(inst).body {
            Body::Module(m) => m.name.text.clone(),
            Body::Model(m) => m.name.text.clone(),
        }
    }

    fn bind_args(
        &mut self,
        forward: &'a ast::Forward,
        inst: InstId,
        args: Vec<Value>,
        env: &mut Env,
        span: Span,
    ) -> Lowering<()> {
        if args.len() != forward.args.len() {
            let why = format!(
                "the forward of `{}` takes {} values, found {}",
                self.body_name(inst),
                forward.args.len(),
                args.len()
            );
            self.diags.push(Diag::error(span, why).label(forward.span, "declared here"));
            return Err(Reported);
        }
        for (arg, value) in forward.args.iter().zip(args) {
            let value = match value {
                Value::Tensor(t) => Value::Tensor(self.fits(&t, &arg.ty, env, span, &arg.name)?),
                Value::Poison => return Err(Reported),
                other => {
                    let why = format!("`{}` needs a tensor, found {}", arg.name.text, other.kind());
                    return self.error(span, why);
                }
            };
            env.locals.insert(arg.name.text.clone(), value);
        }
        Ok(())
    }

    /// `t` labelled with the dims of the type it is declared to have, or a diagnostic that names both sides.
    fn fits(
        &mut self,
        t: &Tensor,
        ty: &'a ast::Type,
        env: &mut Env,
        span: Span,
        what: &ast::Name,
    ) -> Lowering<Tensor> {
        let found = self.ty(t.id);
        let dtype = match &ty.dtype {
            None => DType::F32,
            Some(n) => match DType::from_name(&n.text) {
                Some(d) => d,
                None => {
                    return self.error(n.span, format!("unknown element type `{}`", n.text));
                }
            },
        };
        let dims = self.dims(t);
        let mismatch = |lower: &Self, why: String| {
            let declared = lower.map.slice(ty.span);
            Diag::error(span, why)
                .label(ty.span, format!("`{}` is declared {declared}", what.text))
                .hint(format!("found {}{}", found.dtype.name(), lower.show_dims(&dims)))
        };
        if found.dtype != dtype {
            let why = format!(
                "`{}` has elements of {}, found {}",
                what.text,
                dtype.name(),
                found.dtype.name()
            );
            let diag = mismatch(self, why);
            self.diags.push(diag);
            return Err(Reported);
        }
        let (rest, tail) = match ty.dims.split_first() {
            Some((ast::Dim::Rest(_), tail)) => (true, tail),
            _ => (false, &ty.dims[..]),
        };
        let enough = if rest { dims.len() >= tail.len() } else { dims.len() == tail.len() };
        if !enough {
            let why = format!("`{}` has {} dims, found {}", what.text, tail.len(), dims.len());
            let diag = mismatch(self, why);
            self.diags.push(diag);
            return Err(Reported);
        }
        let skip = dims.len() - tail.len();
        let mut out = t.clone();
        for (i, (want, have)) in tail.iter().zip(&dims[skip..]).enumerate() {
            let ast::Dim::Expr(e) = want else {
                return self.error(ty.span, "`..` stands first in a type");
            };
            let label = t.labels[skip + i];
            out.labels[skip + i] = Some(e.span);
            // A name that nothing defines is defined by the call.
            if let ast::ExprKind::Path(p) = &e.kind
                && let Some(name) = p.single()
                && !env.dims.contains_key(&name.text)
                && self.const_named(&name.text, env).is_none()
            {
                env.dims.insert(name.text.clone(), *have);
                continue;
            }
            let want_dim = self.dim_expr(e, env)?;
            if want_dim != *have {
                let name = self.map.slice(e.span);
                let side = match label {
                    Some(l) => format!("{} = {}", self.map.slice(l), self.show_dim(*have)),
                    None => self.show_dim(*have),
                };
                let why = format!(
                    "`{}` needs {name} = {} here, found {side}",
                    what.text,
                    self.show_dim(want_dim)
                );
                let diag = mismatch(self, why);
                self.diags.push(diag);
                return Err(Reported);
            }
        }
        Ok(out)
    }

    fn check_results(
        &mut self,
        forward: &'a ast::Forward,
        inst: InstId,
        results: Vec<Value>,
        env: &mut Env,
    ) -> Lowering<Vec<Value>> {
        if results.len() != forward.results.len() {
            let why = format!(
                "the forward of `{}` returns {} values, declared {}",
                self.body_name(inst),
                results.len(),
                forward.results.len()
            );
            return self.error(forward.span, why);
        }
        let end = match forward.body.last() {
            Some(s) => s.span(),
            None => forward.span,
        };
        let name = ast::Name { text: "the result".into(), span: end };
        let mut out = vec![];
        for (value, ty) in results.into_iter().zip(&forward.results) {
            let t = self.as_tensor(value, end)?;
            out.push(Value::Tensor(self.fits(&t, ty, env, end, &name)?));
        }
        Ok(out)
    }

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
            Stmt::Emit(e) => {
                let value = self.expr(&e.value, env)?;
                let t = self.as_tensor(value, e.span)?;
                let inst = self.tree.get(env.inst);
                let (path, starts) = (inst.path.clone(), inst.prefix.starts.clone());
                let name = e.name.text.clone();
                if self.f().emits.iter().any(|o| o.path == path && o.name == name) {
                    return self.error(e.span, format!("`{name}` is emitted twice"));
                }
                self.f().emits.push(Emit { path, name, value: t.id, starts });
                Ok(())
            }
            Stmt::If(i) => {
                let branch =
                    if self.condition(&i.condition, env)? { &i.then } else { &i.otherwise };
                let mut failed = false;
                for stmt in branch {
                    failed |= self.stmt(stmt, env).is_err();
                }
                if failed { Err(Reported) } else { Ok(()) }
            }
            Stmt::Values(v) => v.exprs.iter().try_for_each(|e| self.expr(e, env).map(|_| ())),
        }
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
            (Value::Tuple(items), n) => {
                self.diags
                    .push(Diag::error(bind.span, format!("{n} names for {} values", items.len())));
                return poison(env);
            }
            (single, 1) => vec![single],
            (_, n) => {
                self.diags.push(Diag::error(bind.span, format!("{n} names for one value")));
                return poison(env);
            }
        };
        for (name, value) in bind.targets.iter().zip(values) {
            if let Value::Tensor(t) = &value
                && self.b().func.value(t.id).name.is_none()
            {
                let id = t.id;
                self.b().name(id, &name.text);
            }
            env.locals.insert(name.text.clone(), value);
        }
        Ok(())
    }

    /// Without a cache the value itself (T is S); with one, the whole cache after appending to it.
    fn cache(&mut self, c: &'a ast::NamedValue, env: &mut Env) -> Lowering<Value> {
        let value = self.expr(&c.value, env)?;
        let t = self.as_tensor(value, c.value.span)?;
        let dims = self.dims(&t);
        if dims.len() < 2 || dims[..2] != [self.batch, self.seq] {
            let why = format!("a cached value is [B, S, ..], found {}", self.show_dims(&dims));
            return self.error(c.value.span, why);
        }
        if self.b().func.value(t.id).name.is_none() {
            let id = t.id;
            self.b().name(id, &c.name.text);
        }
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
                templates: vec![format!("cache.{path}")],
                starts: inst.levels.iter().map(|_| 0).collect(),
                init: Init::Constant(0.0),
            };
            self.module.stores.insert(path.clone(), store);
        }
        let state = self.store(&path, true);
        let start = self.implicit(Key::Start, c.span)?;
        let results =
            self.at(c.span).emit_all(Op::CacheAppend, &[state, t.id, start], Attrs::new());
        let results = self.typed(c.span, results)?;
        self.f().caches.insert(path, results[1]);
        let name = format!("{}.all", c.name.text);
        self.b().name(results[0], &name);
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

fn flatten(values: Vec<Value>) -> Vec<Value> {
    values
        .into_iter()
        .flat_map(|v| match v {
            Value::Tuple(items) => items,
            one => vec![one],
        })
        .collect()
}
