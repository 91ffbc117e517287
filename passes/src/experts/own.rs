//! Gradients of a rank's own experts: rows are contracted where they come to.

use weft_ir::attr::{Attr, Attrs};
use weft_ir::dim::Dim;
use weft_ir::module::{OpData, ValueId};
use weft_ir::op::Op;
use weft_ir::ty::{DType, Type};

use super::Send;
use super::gradients::is_remade;
use crate::PassError;
use crate::rewrite::Copier;

impl Send<'_> {
    /// Is it done with the experts, though it sees several rows at once? Only products of rows
    /// with rows, and what gives their operands scales along rows.
    pub(super) fn contracts(&self, op: &OpData) -> bool {
        let rows = |v: &ValueId| self.groups.is_rows(*v);
        match op.op {
            Op::GroupedOuter => self.weights.contains_key(&op.results[0]),
            Op::Quantize | Op::Dequantize => self.gradients.stay && rows(&op.results[0]),
            _ => false,
        }
    }

    pub(super) fn contract(&mut self, copy: &mut Copier, op: &OpData) -> Result<(), PassError> {
        if op.op == Op::GroupedOuter {
            let mut xs = vec![self.there(copy, op.operands[0])?];
            xs.push(self.there(copy, op.operands[1])?);
            xs.push(self.offsets(copy, op.operands[2])?.1);
            let own = copy.to.emit(op.op, &xs, op.attrs.clone())?;
            copy.bind(op.results[0], own);
            return Ok(());
        }
        let mut x = self.there(copy, op.operands[0])?;
        if op.op == Op::Quantize && !self.filled.has(self.id, op.operands[0]) {
            x = self.filled_up(copy, op.operands[0], x)?;
        }
        let made = copy.to.emit(op.op, &[x], op.attrs.clone())?;
        self.there.insert(op.results[0], made);
        self.name(copy, op.results[0], made);
        Ok(())
    }

    /// Rows with zeros behind the last that came: a scale that several have is of those.
    fn filled_up(
        &mut self,
        copy: &mut Copier,
        v: ValueId,
        x: ValueId,
    ) -> Result<ValueId, PassError> {
        let why = "no op here says how many rows come";
        let sent = self.groups.offsets(v).ok_or_else(|| PassError::new(why))?;
        let own = self.offsets(copy, sent)?.1;
        let b = &mut copy.to;
        let dims = b.dims(x);
        let n_own = b.dims(own)[0].as_fixed().unwrap_or(1) - 1;
        let last = b.constant(n_own as f64, Type::i32([Dim::fixed(1)]))?;
        let n_rows = b.binary(Op::Take, own, last)?;
        let n_rows = b.reshape(n_rows, &[])?;
        let n_rows = b.broadcast_to(n_rows, &dims)?;
        let ty = Type::new(DType::I32, dims);
        let attrs = Attrs::new().int("dim", 0).with("type", Attr::Type(ty));
        let row = b.emit(Op::Iota, &[], attrs)?;
        let came = b.binary(Op::Lt, row, n_rows)?;
        let zeros = b.constant_like(0.0, x)?;
        Ok(b.emit(Op::Select, &[came, x, zeros], Attrs::new())?)
    }

    /// An op of weights or gradients, on a rank's own.
    pub(super) fn emit_own(
        &self,
        copy: &mut Copier,
        op: &OpData,
    ) -> Result<Vec<ValueId>, PassError> {
        let of = |v: &ValueId| self.weights.get(v).copied();
        let held = op.operands.iter().chain(&op.results).find(|v| of(v).is_some());
        let rank = held.map(|v| self.func.ty(*v).rank());
        let mut xs = vec![];
        for x in &op.operands {
            let alike = rank == Some(self.func.ty(*x).rank());
            let dim = held.and_then(of).filter(|_| alike);
            xs.push(self.own_operand(copy, *x, dim)?);
        }
        let mut attrs = op.attrs.clone();
        if let Some((r, dim)) = op.results.first().and_then(|r| Some((*r, of(r)?))) {
            let own = self.own(self.func.ty(r), dim)?;
            match op.op {
                Op::Reshape => attrs = attrs.with("shape", Attr::Dims(own.dims)),
                Op::Recv => attrs = attrs.with("type", Attr::Type(own)),
                _ => {}
            }
        }
        Ok(copy.to.emit_calling(self.module, op.op, &xs, attrs)?)
    }

    /// An operand that is a rank's own along `dim`; a constant is made in that size.
    pub(super) fn own_operand(
        &self,
        copy: &mut Copier,
        x: ValueId,
        dim: Option<usize>,
    ) -> Result<ValueId, PassError> {
        match dim {
            Some(dim) if is_remade(self.func, x) => self.remake(copy, x, dim),
            _ => Ok(copy.get(x)),
        }
    }

    fn remake(&self, copy: &mut Copier, x: ValueId, dim: usize) -> Result<ValueId, PassError> {
        let op = self.func.op(self.func.def_op(x).expect("an op makes it"));
        let own = self.own(self.func.ty(x), dim)?;
        let (mut xs, mut attrs) = (vec![], op.attrs.clone());
        match op.op {
            Op::Constant => attrs = attrs.with("type", Attr::Type(own)),
            Op::Broadcast => {
                xs.push(copy.get(op.operands[0]));
                attrs = attrs.with("shape", Attr::Dims(own.dims));
            }
            _ => xs.push(self.remake(copy, op.operands[0], dim)?),
        }
        Ok(copy.to.emit(op.op, &xs, attrs)?)
    }
}
