//! Calls and repetition.

use crate::one_op::{f, type_of};
use weft_ir::attr::Attrs;
use weft_ir::builder::Builder;
use weft_ir::interp::{Interp, Precision, Tensor};
use weft_ir::module::{FuncId, Module};
use weft_ir::op::Op;
use weft_ir::ty::{DType, Type};

/// `step(c, x, s) = (c s + x, c)`.
fn step() -> Module {
    let mut module = Module::default();
    let mut b = Builder::new("step");
    let scalar = || Type::scalar(DType::F32);
    let (c, x, s) = (b.param("c", scalar()), b.param("x", scalar()), b.param("s", scalar()));
    let scaled = b.binary(Op::Mul, c, s).unwrap();
    let next = b.binary(Op::Add, scaled, x).unwrap();
    module.add_func(b.finish(vec![next, c]));
    module
}

fn repeat(reverse: bool) -> Vec<Tensor> {
    let mut module = step();
    let xs = [Tensor::scalar(1.0), f(&[3], &[1.0, 2.0, 3.0]), Tensor::scalar(10.0)];
    let mut b = Builder::new("entry");
    let params: Vec<_> = xs.iter().map(|x| b.param("x", type_of(x))).collect();
    let attrs = Attrs::new().func("func", FuncId(0)).int("count", 3).int("carry", 1).int("xs", 1);
    let attrs = attrs.flag("reverse", reverse);
    let results = b.emit_calling(&module, Op::Repeat, &params, attrs).unwrap();
    let entry = module.add_func(b.finish(results));
    Interp::new(&module, Precision::F64).run(entry, xs.to_vec()).unwrap()
}

#[test]
fn repeat_hands_on_slices_and_stacks() {
    assert_eq!(repeat(false), [Tensor::scalar(1123.0), f(&[3], &[1.0, 11.0, 112.0])]);
}

#[test]
fn a_reversed_repeat_runs_the_last_slice_first() {
    // The stack of results stays in the order of the slices.
    assert_eq!(repeat(true), [Tensor::scalar(1321.0), f(&[3], &[132.0, 13.0, 1.0])]);
}

#[test]
fn call_and_fused_give_the_functions_results() {
    for op in [Op::Call, Op::Fused] {
        let mut module = step();
        let mut b = Builder::new("entry");
        let x = b.param("x", Type::scalar(DType::F32));
        let attrs = Attrs::new().func("func", FuncId(0));
        let results = b.emit_calling(&module, op, &[x, x, x], attrs).unwrap();
        let entry = module.add_func(b.finish(results));
        let ys = Interp::new(&module, Precision::F64).run(entry, vec![Tensor::scalar(3.0)]);
        assert_eq!(ys.unwrap(), [Tensor::scalar(12.0), Tensor::scalar(3.0)]);
    }
}
