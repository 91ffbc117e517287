//! A module of one function of one op, run.

use weft_ir::attr::Attrs;
use weft_ir::builder::Builder;
use weft_ir::dim::Dim;
use weft_ir::interp::{Interp, Precision, RunError, Tensor};
use weft_ir::module::{FuncId, Module, Span, ValueId};
use weft_ir::op::Op;
use weft_ir::rules::TypeError;
use weft_ir::ty::Type;

/// The type of `x`, every dim fixed.
pub fn type_of(x: &Tensor) -> Type {
    Type::new(x.dtype, x.dims.iter().map(|n| Dim::fixed(*n as u64)).collect::<Vec<_>>())
}

pub fn dims(sizes: &[u64]) -> Vec<Dim> {
    sizes.iter().map(|n| Dim::fixed(*n)).collect()
}

/// Appends ops on the parameters; gives the results.
type Body<'a> = &'a dyn Fn(&mut Builder, &[ValueId]) -> Result<Vec<ValueId>, TypeError>;

/// A module whose function has parameters of `types` and the ops that `body` appends.
pub fn module_of(types: &[Type], body: Body) -> (Module, FuncId) {
    let mut module = Module { files: vec!["case.model".into()], ..Module::default() };
    let mut b = Builder::new("case");
    b.at(&[Span { file: 0, line: 1, col: 1 }]);
    let params: Vec<ValueId> = types.iter().map(|ty| b.param("x", ty.clone())).collect();
    let results = body(&mut b, &params).expect("the case obeys the op's rule");
    let func = module.add_func(b.finish(results));
    (module, func)
}

/// The op on `xs`, the first `states` of them states.
pub fn try_run(
    op: Op,
    states: usize,
    xs: &[Tensor],
    attrs: &Attrs,
    precision: Precision,
) -> Result<Vec<Tensor>, RunError> {
    let ty = |(i, x)| if i < states { type_of(x).as_state() } else { type_of(x) };
    let types: Vec<Type> = xs.iter().enumerate().map(ty).collect();
    let (module, func) = module_of(&types, &|b, params| b.emit_all(op, params, attrs.clone()));
    Interp::new(&module, precision).run(func, xs.to_vec())
}

/// The results of an op on values, not rounded.
pub fn run(op: Op, xs: &[Tensor], attrs: Attrs) -> Vec<Tensor> {
    try_run(op, 0, xs, &attrs, Precision::F64).expect("has a value")
}

/// The only result.
pub fn run1(op: Op, xs: &[Tensor], attrs: Attrs) -> Tensor {
    let mut ys = run(op, xs, attrs);
    assert_eq!(ys.len(), 1);
    ys.remove(0)
}

pub fn f(dims: &[usize], data: &[f64]) -> Tensor {
    Tensor::f32(dims, data.to_vec())
}

pub fn i(dims: &[usize], data: &[i64]) -> Tensor {
    Tensor::i32(dims, data.to_vec())
}

/// `0, 1, 2, ..` in `dims`.
pub fn counting(dims: &[usize]) -> Tensor {
    let n: usize = dims.iter().product();
    Tensor::f32(dims, (0..n).map(|i| i as f64).collect())
}

pub fn close(found: &Tensor, want: &[f64]) {
    let found = found.numbers();
    assert_eq!(found.len(), want.len(), "{found:?}");
    for (a, b) in found.iter().zip(want) {
        let near = a == b || (a - b).abs() <= 1e-12 * (1.0 + b.abs());
        assert!(near, "found {found:?}, expected {want:?}");
    }
}
