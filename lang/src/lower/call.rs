//! Calling an instance: its arguments are bound and its body is run in place.

use indexmap::IndexMap;
use weft_ir::ty::DType;

use super::value::{Tensor, Value};
use super::{CALLS_MAX, DEPTH_MAX, Env, Lower, Lowering};
use crate::ast;
use crate::diag::Diag;
use crate::elaborate::tree::Body;
use crate::elaborate::{InstId, Reported};
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
        self.room_for_call(span)?;
        let mut env = self.env(inst);
        env.each = each;
        self.bind_args(forward, inst, args, &mut env, span)?;
        self.sites.push(span);
        let n_before = self.diags.len();
        let results = self.body(&forward.body, &mut env);
        let results = results.and_then(|r| self.check_results(forward, inst, r, &mut env));
        self.sites.pop();
        let name = self.body_name(inst);
        for diag in &mut self.diags[n_before..] {
            diag.say_where(span, format!("in this call of `{name}`"));
        }
        results
    }

    fn room_for_call(&mut self, span: Span) -> Lowering<()> {
        self.n_calls += 1;
        if self.sites.len() >= DEPTH_MAX {
            return self.error(span, format!("calls are nested more than {DEPTH_MAX} deep"));
        }
        match self.n_calls.cmp(&(CALLS_MAX + 1)) {
            std::cmp::Ordering::Less => Ok(()),
            std::cmp::Ordering::Equal => {
                self.error(span, format!("the model calls modules more than {CALLS_MAX} times"))
            }
            std::cmp::Ordering::Greater => Err(Reported),
        }
    }

    pub fn env(&self, inst: InstId) -> Env {
        Env {
            inst,
            locals: IndexMap::new(),
            dims: IndexMap::new(),
            each: None,
            lead: 0,
            emits_visible: false,
            compute: self.tree.compute.of(inst),
            n_products: 0,
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
                Value::Tensor(t) => {
                    let t = self.declared(t, &arg.ty, env.compute, span)?;
                    let what = format!("`{}`", arg.name.text);
                    Value::Tensor(self.fits(&t, &arg.ty, env, span, &what)?)
                }
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

    /// `t` labelled with the dims of the type it is declared to have, or a diagnostic that names
    /// both sides.
    fn fits(
        &mut self,
        t: &Tensor,
        ty: &'a ast::Type,
        env: &mut Env,
        span: Span,
        what: &str,
    ) -> Lowering<Tensor> {
        let found = self.ty(t.id);
        let dtype = match &ty.dtype {
            None if found.dtype.is_float() => found.dtype,
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
                .label(ty.span, format!("{what} is declared {declared}"))
                .hint(format!("found {}{}", found.dtype.name(), lower.show_dims(&dims)))
        };
        if found.dtype != dtype {
            let why =
                format!("{} has elements of {}, found {}", what, dtype.name(), found.dtype.name());
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
            let why = format!("{} has {} dims, found {}", what, tail.len(), dims.len());
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
                    "{} needs {name} = {} here, found {side}",
                    what,
                    self.show_dim(want_dim)
                );
                let diag = mismatch(self, why);
                self.diags.push(diag);
                return Err(Reported);
            }
        }
        Ok(out)
    }

    /// The results with the dims they are declared to have.
    pub fn check_results(
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
        let mut out = vec![];
        for (value, ty) in results.into_iter().zip(&forward.results) {
            let t = self.as_tensor(value, end)?;
            let t = self.declared(t, ty, env.compute, end)?;
            out.push(Value::Tensor(self.fits(&t, ty, env, end, "the result")?));
        }
        Ok(out)
    }
}
