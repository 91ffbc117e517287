//! Attention whose rows are wanted as codes: a region that `fuse` made of it and of those.
//!
//! A kernel that can writes codes and scales in place of o; else o is written, and one region reads
//! it for all its codes.

use weft_codegen::row_codes::RowCodes;
use weft_graph::Arg;
use weft_ir::module::{Func, OpData};
use weft_ir::op::Op;

use crate::describe::attention::Attention;
use crate::{Fault, Frame, Lower, regions};

/// The encodings of a function that holds an attention, codes of its rows and movement alone.
fn encodings(func: &Func) -> Option<Vec<&OpData>> {
    let ops = || func.body_ops().map(|(_, op)| op);
    let known = |op: &OpData| matches!(op.op, Op::Attention | Op::Encode);
    let all = ops().all(|op| known(op) || regions::is_deferred(op.op));
    let attends = ops().filter(|op| op.op == Op::Attention).count() == 1;
    let encodings: Vec<&OpData> = ops().filter(|op| op.op == Op::Encode).collect();
    (all && attends && !encodings.is_empty()).then_some(encodings)
}

fn row_codes(op: &OpData) -> Option<RowCodes> {
    let Some([1, group]) = op.attrs.get_ints("group") else { return None };
    Some(RowCodes {
        code: op.attrs.get_dtype("dtype")?,
        scale: op.attrs.get_dtype("scale")?,
        group: u32::try_from(*group).ok()?,
        floor: op.attrs.get_float("floor").unwrap_or(0.0),
    })
}

impl<'a> Lower<'a> {
    /// Room for codes and scales that the kernel of `op` makes too, which `described` then says.
    pub(super) fn ends(
        &mut self,
        f: &mut Frame<'a>,
        op: &OpData,
        described: &mut Attention,
    ) -> Result<Vec<(Arg, Arg)>, Fault> {
        let func = f.func;
        let Some(encodings) = encodings(func).filter(|_| op.op == Op::Attention) else {
            return Ok(vec![]);
        };
        let codes: Option<Vec<_>> = encodings.iter().map(|e| row_codes(e)).collect();
        let Some(codes) = codes else { return Ok(vec![]) };
        let keeps_o = func.results.iter().any(|r| func.past_reshapes(*r) == op.results[0]);
        let into_codes = Attention { codes, keeps_o, ..described.clone() };
        if !self.machine().attends_into_codes(&into_codes, &self.dims.decls()) {
            return Ok(vec![]);
        }
        *described = into_codes;
        let mut ends = vec![];
        for encoding in encodings {
            let codes = self.result_room(f, encoding.results[0])?;
            ends.push((codes, self.result_room(f, encoding.results[1])?));
        }
        Ok(ends)
    }

    /// Codes and scales, unless a kernel made them already.
    pub(crate) fn encode(&mut self, f: &mut Frame<'a>, op: &OpData) -> Result<(), Fault> {
        if f.views[op.results[0].0 as usize].is_some() {
            return Ok(());
        }
        match encodings(f.func) {
            Some(all) => self.one_region(f, &all),
            None => self.region(f, op),
        }
    }
}
