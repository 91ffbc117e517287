//! `weight`, `state` and `schedule`: tensors that outlive a run.

use weft_ir::dim::Dim;
use weft_ir::module::{Init, StoreKind};
use weft_ir::ty::DType;

use super::Reported;
use super::consts::Const;
use super::place::{Placer, Work};
use super::tree::{Member, Prefix, StoreDecl};
use crate::ast;
use crate::diag::Diag;
use crate::source::Span;

impl<'a> Placer<'a, '_> {
    pub(super) fn weight(
        &mut self,
        w: &'a ast::Weight,
        work: &mut Work<'a>,
    ) -> Result<(), Reported> {
        let init = match &w.init {
            Some(e) => Init::Constant(self.number(e, work)?),
            None => Init::Drawn,
        };
        self.store(&w.name, &w.ty, StoreKind::Weight, init, w.span, work)
    }

    pub(super) fn state(&mut self, s: &'a ast::State, work: &mut Work<'a>) -> Result<(), Reported> {
        let init = Init::Constant(self.number(&s.init, work)?);
        self.store(&s.name, &s.ty, StoreKind::State, init, s.span, work)
    }

    pub(super) fn schedule(
        &mut self,
        s: &'a ast::Schedule,
        work: &mut Work<'a>,
    ) -> Result<(), Reported> {
        let init = Init::Constant(self.number(&s.value, work)?);
        let name = s.name.text.clone();
        self.claim(&s.name, work)?;
        if let Some(other) = self.stores.get(&name) {
            if other.kind != StoreKind::Schedule || other.init != init {
                let diag = Diag::error(s.span, format!("`{name}` is something else elsewhere"));
                let diag = diag.label(other.span, "here");
                self.diags.push(diag.hint("schedules of one name are one, with one value"));
                return Err(Reported);
            }
            work.members.insert(name.clone(), Member::Store(name));
            return Ok(());
        }
        work.members.insert(name.clone(), Member::Store(name.clone()));
        self.stores.insert(
            name.clone(),
            StoreDecl {
                kind: StoreKind::Schedule,
                dtype: DType::F32,
                dims: vec![],
                levels: vec![],
                prefix: Prefix::default(),
                templates: vec![name],
                init,
                labels: vec![],
                span: s.span,
            },
        );
        Ok(())
    }

    fn number(&mut self, e: &ast::Expr, work: &Work<'a>) -> Result<f64, Reported> {
        match self.eval(work, None, |ev, sc| ev.expr(e, sc))? {
            Const::Num(n) if n.is_finite() => Ok(n),
            Const::Num(n) => self.error(e.span, format!("needs a finite number, found {n}")),
            other => self.error(e.span, format!("needs a number, found {}", other.kind())),
        }
    }

    fn store(
        &mut self,
        name: &'a ast::Name,
        ty: &'a ast::Type,
        kind: StoreKind,
        init: Init,
        span: Span,
        work: &mut Work<'a>,
    ) -> Result<(), Reported> {
        self.claim(name, work)?;
        let dtype = self.element_type(ty)?;
        if kind == StoreKind::Weight && dtype != DType::F32 {
            let diag = Diag::error(ty.span, format!("a weight is f32, found {}", dtype.name()));
            self.diags.push(diag.hint("the precision block says how it is kept and computed with"));
            return Err(Reported);
        }
        let mut dims = vec![];
        for dim in &ty.dims {
            dims.push(self.stored_dim(dim, ty, work)?);
        }
        let sizes = work.levels.iter().chain(&dims);
        if sizes.copied().try_fold(1u64, u64::checked_mul).is_none() {
            let why = format!("`{}` has more elements than can be counted", name.text);
            return self.error(span, why);
        }
        let path = work.path_of(&name.text);
        if let Some(other) = self.stores.get(&path) {
            let diag = Diag::error(name.span, format!("`{path}` is already defined"));
            self.diags.push(diag.label(other.span, "here"));
            return Err(Reported);
        }
        work.members.insert(name.text.clone(), Member::Store(path.clone()));
        let labels = ty.dims.iter().filter_map(|d| match d {
            ast::Dim::Expr(e) => Some(e.span),
            ast::Dim::Rest(_) => None,
        });
        let decl = StoreDecl {
            kind,
            dtype,
            dims: dims.into_iter().map(Dim::fixed).collect(),
            levels: work.levels.clone(),
            prefix: work.prefix.clone(),
            templates: vec![work.prefix.join(&name.text)],
            init,
            labels: labels.collect(),
            span,
        };
        self.stores.insert(path, decl);
        Ok(())
    }

    fn element_type(&mut self, ty: &ast::Type) -> Result<DType, Reported> {
        let Some(name) = &ty.dtype else { return Ok(DType::F32) };
        match DType::from_name(&name.text) {
            Some(d) => Ok(d),
            None => self.error(name.span, format!("unknown element type `{}`", name.text)),
        }
    }

    fn stored_dim(
        &mut self,
        dim: &'a ast::Dim,
        ty: &'a ast::Type,
        work: &Work<'a>,
    ) -> Result<u64, Reported> {
        let ast::Dim::Expr(e) = dim else {
            return self.error(ty.span, "a stored tensor has all its dims named");
        };
        let value = self.eval(work, None, |ev, sc| ev.expr(e, sc))?;
        match value.as_dim().and_then(|d| d.as_fixed()) {
            Some(n) if n > 0 => Ok(n),
            _ => self.error(e.span, format!("a dim is a whole positive number, found {value}")),
        }
    }
}
