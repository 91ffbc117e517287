//! The products of a model by name: what rules of a precision block select and recipes are for.
//!
//! A product's site is the path of the instance whose text computes it, as in the names of stores;
//! a second product of one text has `.2` behind it. Layers of a stack are one site, and so are
//! several calls of one module.

use weft_ir::dim::Dim;
use weft_ir::module::ValueId;
use weft_ir::op::Op;
use weft_ir::ty::DType;

use super::function::Key;
use super::value::Tensor;
use super::{Env, Lower};
use crate::source::Span;

/// A product of the model's text.
#[derive(Clone, PartialEq, Debug)]
pub struct Site {
    pub path: String,
    /// Where it is written.
    pub span: Span,
    /// All dims of the left operand but the last; rows of all segments, if it is `grouped`.
    pub rows: Vec<Dim>,
    pub k: Dim,
    pub n: Dim,
    /// The right operand, where it is a weight.
    pub weight: Option<Weight>,
    /// Each segment of rows has a matrix of its own: so many.
    pub segments: Option<u64>,
    /// What its operands are rounded to where no rule says otherwise.
    pub compute: DType,
    /// Layers that it stands for.
    pub layers: u64,
    /// Places that compute it in one run of a layer.
    pub calls: u64,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Weight {
    /// The store.
    pub name: String,
    /// It is stored as [n, k], as published matrices are; else as [k, n].
    pub transposed: bool,
}

impl Lower<'_, '_> {
    /// The site of the product `x y` of the body being lowered; `y` as it was before it was
    /// rounded.
    pub fn site(&mut self, x: &Tensor, y: &Tensor, env: &mut Env, span: Span) -> String {
        env.n_products += 1;
        let inst = self.tree.get(env.inst);
        let base = if inst.path.is_empty() { "model" } else { inst.path.as_str() };
        let path = match env.n_products {
            1 => base.to_string(),
            n => format!("{base}.{n}"),
        };
        let (mut layers, segments) = (inst.levels.clone(), y.batched);
        let segments = if segments { layers.pop() } else { None };
        let mut rows = self.dims(x);
        let k = rows.pop();
        let n = self.dims(y).last().copied();
        let (Some(k), Some(n)) = (k, n) else { return path };
        let known = self.gemms.iter_mut().find(|s| s.path == path && s.span == span);
        if let Some(known) = known {
            known.calls += 1;
            return path;
        }
        let weight = self.weight(y.id);
        self.gemms.push(Site {
            path: path.clone(),
            span,
            rows,
            k,
            n,
            weight,
            segments,
            compute: env.compute,
            layers: layers.iter().product(),
            calls: 1,
        });
        path
    }

    /// The store that `v` is, perhaps with its dims swapped.
    fn weight(&mut self, mut v: ValueId) -> Option<Weight> {
        let mut transposed = false;
        let function = self.f();
        let func = &function.builder.func;
        while let Some(id) = func.def_op(v) {
            let op = func.op(id);
            if op.op != Op::Transpose {
                return None;
            }
            transposed = !transposed;
            v = op.operands[0];
        }
        let mut params = function.params.iter();
        let name = params.find_map(|(key, (id, _))| match key {
            Key::Store(name) if *id == v => Some(name.clone()),
            _ => None,
        })?;
        Some(Weight { name, transposed })
    }
}
