//! Modules from text, numbers from the interpreter, and gradients held against finite differences.
#![allow(dead_code, reason = "each test file uses its own part")]

pub mod random;
pub mod ranks;

use weft_ir::attr::Attrs;
use weft_ir::builder::Builder;
use weft_ir::interp::{Data, Interp, Precision, Range, Sizes, Tensor, random_args};
use weft_ir::module::{FuncId, Module, Span};
use weft_ir::op::Op;
use weft_ir::ty::{DType, Type};
use weft_passes::policy::{Format, Product, Recipe};
use weft_passes::{PassCx, Save, Sums, Train, autodiff, by_name, run_pass};

/// AdamW over the gradients of one micro-batch, clipped.
pub const TRAIN: Train = Train {
    micro_batches: 1,
    sums: Sums::Tree,
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    decay: 0.1,
    clip: Some(0.05),
    moments: DType::F32,
};

/// The module a text describes; ops without a place get one.
pub fn module(text: &str) -> Module {
    let text = format!("weft-ir 1\nmodule Test\n{text}");
    let mut m = match weft_ir::text::parse(&text) {
        Ok(m) => m,
        Err(errors) => panic!("{}\n{text}", errors[0]),
    };
    if m.files.is_empty() {
        m.files.push("test.model".into());
    }
    for func in &mut m.funcs {
        for id in func.body.clone() {
            let op = func.op_mut(id);
            if op.spans.is_empty() {
                op.spans.push(Span { file: 0, line: id.0 + 1, col: 1 });
            }
        }
    }
    m
}

pub fn sizes(m: &Module, given: &[(&str, u64)]) -> Sizes {
    given.iter().map(|(n, size)| (m.find_sym(n).expect("a symbol"), *size)).collect()
}

pub fn verify(m: &Module) {
    if let Err(errors) = weft_ir::verify::verify(m) {
        panic!("{}\n{}", errors[0], weft_ir::text::print(m));
    }
}

pub fn run(m: &Module, f: FuncId, args: &[Tensor], sizes: &Sizes) -> Vec<Tensor> {
    match Interp::new(m, Precision::F64).run_sized(f, args.to_vec(), sizes) {
        Ok(results) => results,
        Err(e) => panic!("{e}\n{}", weft_ir::text::print(m)),
    }
}

pub fn apply(m: &mut Module, names: &[&str], cx: &PassCx) {
    for name in names {
        let pass = by_name(name).expect("a pass of the pipeline");
        if let Err(e) = run_pass(0, pass, m, cx) {
            panic!("{e}\n{}", weft_ir::text::print(m));
        }
    }
}

/// FP8: scales along rows and, for gradients of weights, over rows; rows travel as codes.
pub fn recipe() -> Recipe {
    let format = |group| Format { dtype: DType::E4m3, group, scale: DType::F32, floor: 0.0 };
    let product = |a, b| Product {
        operands: Some([format(a), format(b)]),
        hopper14: false,
        promote: Some(128),
    };
    Recipe {
        forward: product([1, 128], [128, 128]),
        input_grad: product([1, 128], [128, 128]),
        weight_grad: product([128, 1], [128, 1]),
        saved_input: Some(format([1, 128])),
        saved_output: None,
        dispatched: Some(Format { scale: DType::Ue8m0, ..format([1, 128]) }),
        dispatched_plain: false,
    }
}

/// Floats from `low..high`, integers from `0..ints`.
#[derive(Clone, Copy)]
pub struct Draw {
    pub low: f64,
    pub high: f64,
    pub ints: f64,
}

pub const DRAW: Draw = Draw { low: 0.2, high: 1.4, ints: 4.0 };

pub fn arguments(m: &Module, f: FuncId, sizes: &Sizes, seed: u64, draw: Draw) -> Vec<Tensor> {
    let range = |_: usize, ty: &Type| match ty.dtype.is_float() {
        true => Range { low: draw.low, high: draw.high },
        false => Range { low: 0.0, high: draw.ints },
    };
    random_args(m, f, sizes, seed, &range).expect("all sizes are given")
}

/// `‖a - b‖ / ‖b‖`.
pub fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims, b.dims);
    let (a, b) = (a.numbers(), b.numbers());
    let square = |it: &mut dyn Iterator<Item = f64>| it.map(|x| x * x).sum::<f64>().sqrt();
    let norm = square(&mut b.iter().copied());
    let off = square(&mut a.iter().zip(&b).map(|(a, b)| a - b));
    if off == 0.0 { 0.0 } else { off / norm.max(1e-12) }
}

/// `@loss` over the last function of `m`: the sum of all its float results, weighted by parameters.
/// With `as_inputs` its parameters are functions of the weights, so that they are differentiated as
/// inputs.
pub fn add_loss(m: &mut Module, as_inputs: bool) -> FuncId {
    let id = FuncId(m.funcs.len() as u32 - 1);
    let f = m.func(id).clone();
    let mut b = Builder::new("loss");
    b.at(&[Span { file: 0, line: 99, col: 1 }]);
    let mut xs = vec![];
    for p in &f.params {
        let x = b.param(f.value(*p).name.as_deref().unwrap_or("p"), f.ty(*p).clone());
        let turned = as_inputs && f.ty(*p).dtype.is_float();
        xs.push(if turned { b.binary(Op::Mul, x, x).unwrap() } else { x });
    }
    let ys = b.emit_calling(m, Op::Call, &xs, Attrs::new().func("func", id)).unwrap();
    let mut total = b.constant(0.0, Type::f32([])).unwrap();
    for (i, y) in
        ys.into_iter().filter(|y| f32_like(b.ty(*y))).collect::<Vec<_>>().into_iter().enumerate()
    {
        let ty = b.ty(y).clone();
        let c = b.param(&format!("fixed{i}"), ty);
        let p = b.binary(Op::Mul, y, c).unwrap();
        let all: Vec<i64> = (0..b.ty(p).rank() as i64).collect();
        let s = if all.is_empty() { p } else { b.reduce_sum(p, &all).unwrap() };
        total = b.binary(Op::Add, total, s).unwrap();
    }
    let mut func = b.finish(vec![total]);
    func.result_names = vec!["objective".into()];
    m.add_func(func)
}

fn f32_like(ty: &Type) -> bool {
    ty.dtype.is_float()
}

/// Every gradient of the last function of `text` agrees with central differences, however it is cut
/// and cleaned. Parameters whose names start with `fixed` are not differentiated.
pub fn check_sized(text: &str, given: &[(&str, u64)], draw: Draw) {
    for as_inputs in [false, true] {
        let mut plain = module(text);
        let loss = add_loss(&mut plain, as_inputs);
        verify(&plain);
        let sizes = sizes(&plain, given);
        let args = arguments(&plain, loss, &sizes, 7, draw);
        let func = plain.func(loss);
        let name = |i: usize| func.value(func.params[i]).name.clone().unwrap_or_default();
        let wrt: Vec<usize> = (0..func.params.len())
            .filter(|i| func.ty(func.params[*i]).dtype.is_float() && !name(*i).starts_with("fixed"))
            .collect();
        let expected: Vec<Tensor> =
            wrt.iter().map(|p| difference(&plain, loss, &args, &sizes, *p)).collect();
        for (apart, save) in [
            (false, Save::NoCheap),
            (false, Save::Everything),
            (true, Save::NoCheap),
            (true, Save::Everything),
            (false, Save::Handed),
            (true, Save::Handed),
        ] {
            let cx = PassCx { apart, save, ..PassCx::default() };
            let mut m = plain.clone();
            let halves = autodiff::differentiate(&mut m, loss, &wrt, 0, &cx)
                .unwrap_or_else(|e| panic!("{e}\n{}", weft_ir::text::print(&m)));
            let grad = autodiff::grad_entry(&mut m, loss, &halves, 0).unwrap();
            verify(&m);
            compare(&m, grad, &args, &sizes, &wrt, &expected, &name);
            apply(&mut m, &["dce", "inline", "canonicalize", "fold", "cse", "dce"], &cx);
            let grad = m.find("grad").expect("an entry stays");
            compare(&m, grad, &args, &sizes, &wrt, &expected, &name);
        }
    }
}

pub fn check(text: &str) {
    check_sized(text, &[], DRAW);
}

fn compare(
    m: &Module,
    grad: FuncId,
    args: &[Tensor],
    sizes: &Sizes,
    wrt: &[usize],
    expected: &[Tensor],
    name: &dyn Fn(usize) -> String,
) {
    let results = run(m, grad, args, sizes);
    assert_eq!(results.len(), 1 + wrt.len());
    for ((got, want), p) in results[1..].iter().zip(expected).zip(wrt) {
        let off = distance(got, want);
        assert!(
            off < 1e-6,
            "derivative by {}: {off:e} off\n{:?}\n{:?}\n{}",
            name(*p),
            got.numbers(),
            want.numbers(),
            weft_ir::text::print(m)
        );
    }
}

/// The derivative of result 0 by argument `p`, element by element.
pub fn difference(m: &Module, f: FuncId, args: &[Tensor], sizes: &Sizes, p: usize) -> Tensor {
    const H: f64 = 1e-5;
    let n = args[p].numbers().len();
    let at = |i: usize, by: f64| {
        let mut args = args.to_vec();
        if let Data::Float(v) = &mut args[p].data {
            v[i] += by;
        }
        run(m, f, &args, sizes)[0].numbers()[0]
    };
    let slopes = (0..n).map(|i| (at(i, H) - at(i, -H)) / (2.0 * H)).collect();
    Tensor { data: Data::Float(slopes), ..args[p].clone() }
}
