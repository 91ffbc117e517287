//! Dims of the IR as expressions over the dims of an entry.
//!
//! A bounded symbol becomes a dim of the entry when something first speaks of it; a ragged one is
//! its total.

use std::cell::RefCell;

use weft_graph::{DType, DimDecl, DimExpr, DimId};
use weft_ir::dim::{Dim, SymId, SymKind};
use weft_ir::module::Module;
use weft_ir::ty;

/// The dims of an entry so far.
pub struct Dims<'a> {
    module: &'a Module,
    known: RefCell<Known>,
}

struct Known {
    decls: Vec<DimDecl>,
    of: Vec<Option<DimId>>,
}

impl<'a> Dims<'a> {
    pub fn new(module: &'a Module) -> Dims<'a> {
        let known = Known { decls: vec![], of: vec![None; module.syms.len()] };
        Dims { module, known: RefCell::new(known) }
    }

    pub fn decls(&self) -> Vec<DimDecl> {
        self.known.borrow().decls.clone()
    }

    pub fn expr(&self, dim: Dim) -> DimExpr {
        let coeff = DimExpr::constant(i64::try_from(dim.coeff()).unwrap_or(i64::MAX));
        dim.symbols().fold(coeff, |product, sym| product * self.symbol(sym))
    }

    pub fn exprs(&self, dims: &[Dim]) -> Vec<DimExpr> {
        dims.iter().map(|d| self.expr(*d)).collect()
    }

    fn symbol(&self, sym: SymId) -> DimExpr {
        let sym_data = self.module.sym(sym);
        match &sym_data.kind {
            SymKind::Ragged { total, .. } => self.expr(*total),
            SymKind::Bounded { max } => {
                let mut known = self.known.borrow_mut();
                if let Some(id) = known.of[sym.0 as usize] {
                    return DimExpr::dim(id);
                }
                let id = DimId(known.decls.len() as u32);
                let max = i64::try_from(*max).unwrap_or(i64::MAX);
                known.decls.push(DimDecl { name: sym_data.name.clone(), max });
                known.of[sym.0 as usize] = Some(id);
                DimExpr::dim(id)
            }
        }
    }
}

/// The element type of a buffer.
pub fn dtype(dtype: ty::DType) -> DType {
    match dtype {
        ty::DType::F32 => DType::F32,
        ty::DType::Bf16 => DType::Bf16,
        ty::DType::E4m3 => DType::E4m3,
        ty::DType::E5m2 => DType::E5m2,
        ty::DType::E5m6 => DType::E5m6,
        ty::DType::Ue8m0 => DType::Ue8m0,
        ty::DType::I32 => DType::I32,
        ty::DType::I64 => DType::I64,
        ty::DType::Bool => DType::Bool,
    }
}
