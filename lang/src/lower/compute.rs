//! Compute types: what has a name is stored in its module's type, what is inside an expression is
//! f32.
//!
//! Pointwise and row ops convert their operands to f32 (`in_f32`); products and attention round
//! them to the module's type (`operand`), which is their result's too; and whatever counts tokens
//! is rounded where it gets a name, is passed on or returned (`named`). Where every type is f32
//! nothing is emitted.

use weft_ir::module::ValueId;
use weft_ir::ty::DType;

use super::tokens::Counts;
use super::value::{Tensor, Value};
use super::{Env, Lower, Lowering};
use crate::ast;
use crate::elaborate::InstId;
use crate::source::Span;

impl Lower<'_, '_> {
    fn converted(&mut self, t: Tensor, dtype: DType, span: Span) -> Lowering<Tensor> {
        let ty = self.ty(t.id);
        if ty.dtype == dtype || !ty.dtype.is_float() {
            return Ok(t);
        }
        let id = self.at(span).convert(t.id, dtype);
        let id = self.typed(span, id)?;
        Ok(Tensor { id, ..t })
    }

    /// `t` as pointwise and row ops take it.
    pub fn in_f32(&mut self, t: Tensor, span: Span) -> Lowering<Tensor> {
        self.converted(t, DType::F32, span)
    }

    pub fn id_in_f32(&mut self, id: ValueId, span: Span) -> Lowering<ValueId> {
        let t = self.tensor(id);
        Ok(self.in_f32(t, span)?.id)
    }

    /// `t` as products, attention and the way to experts take it.
    pub fn operand(&mut self, t: Tensor, env: &Env, span: Span) -> Lowering<Tensor> {
        self.converted(t, env.compute, span)
    }

    /// `t` with a name in a module that computes in `compute`.
    pub fn named(&mut self, t: Tensor, compute: DType, span: Span) -> Lowering<Tensor> {
        if self.ty(t.id).dtype == compute || !self.counts_tokens(t.id) {
            return Ok(t);
        }
        self.converted(t, compute, span)
    }

    pub fn named_value(&mut self, value: Value, compute: DType, span: Span) -> Lowering<Value> {
        match value {
            Value::Tensor(t) => Ok(Value::Tensor(self.named(t, compute, span)?)),
            other => Ok(other),
        }
    }

    /// `t` as an argument or result of type `ty` of a module that computes in `compute`: an element
    /// type that is written is meant.
    pub fn declared(
        &mut self,
        t: Tensor,
        ty: &ast::Type,
        compute: DType,
        span: Span,
    ) -> Lowering<Tensor> {
        match &ty.dtype {
            None => self.named(t, compute, span),
            Some(name) if name.text == DType::F32.name() => self.in_f32(t, span),
            Some(_) => Ok(t),
        }
    }

    /// A value that the next run of `inst` is handed as its argument `i`.
    pub fn handed(&mut self, t: Tensor, inst: InstId, i: usize, span: Span) -> Lowering<Tensor> {
        let args = self.tree.get(inst).forward.map_or(&[][..], |f| &f.args);
        let compute = self.tree.compute.of(inst);
        match args.get(i) {
            Some(arg) => self.declared(t, &arg.ty, compute, span),
            None => Ok(t),
        }
    }

    fn counts_tokens(&mut self, id: ValueId) -> bool {
        self.token_dims(id).contains(&true)
    }

    pub fn token_dims(&mut self, id: ValueId) -> Counts {
        let function = self.f();
        function.token_dims.of(&function.builder.func, id)
    }
}
