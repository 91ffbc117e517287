//! Every composite against its decomposition, on odd shapes: the interpreter's own code and the
//! primitives agree to 1e-12, indices exactly; and to the rounding of their types when they round.

use crate::one_op::{dims, module_of};
use weft_ir::attr::Attrs;
use weft_ir::builder::Builder;
use weft_ir::decompose::decompose;
use weft_ir::interp::{Data, Interp, Precision, Range, Sizes, Tensor, random_args};
use weft_ir::op::{OPS, Op, Trait};
use weft_ir::ty::{DType, Type};

/// An operand: its type, and the range of its elements.
fn x(sizes: &[u64]) -> (Type, Range) {
    (Type::f32(dims(sizes)), Range { low: -2.0, high: 2.0 })
}

fn positive(sizes: &[u64]) -> (Type, Range) {
    (Type::f32(dims(sizes)), Range { low: 0.1, high: 2.0 })
}

fn ids(sizes: &[u64], low: i64, high: i64) -> (Type, Range) {
    (Type::i32(dims(sizes)), Range { low: low as f64, high: high as f64 })
}

fn state((ty, range): (Type, Range)) -> (Type, Range) {
    (ty.as_state(), range)
}

/// Interprets `op` and its decomposition on the same random operands; `change` may edit them first.
fn check_with(op: Op, operands: &[(Type, Range)], attrs: Attrs, change: &dyn Fn(&mut Vec<Tensor>)) {
    let types: Vec<Type> = operands.iter().map(|(ty, _)| ty.clone()).collect();
    let (whole, f) = module_of(&types, &|b, xs| b.emit_all(op, xs, attrs.clone()));
    let (pieces, g) = module_of(&types, &|b, xs| decompose(b, op, xs, &attrs));
    for part in pieces.func(g).body_ops() {
        assert!(!part.1.op.has(Trait::Composite), "{} in {}", part.1.op.name(), op.name());
    }
    for (a, b) in whole.func(f).results.iter().zip(&pieces.func(g).results) {
        assert_eq!(whole.func(f).ty(*a), pieces.func(g).ty(*b));
    }
    for seed in 0..3 {
        let range = |i: usize, _: &Type| operands[i].1;
        let mut args = random_args(&whole, f, &Sizes::new(), seed, &range).unwrap();
        change(&mut args);
        let run = |m, f, precision| Interp::new(m, precision).run(f, args.clone()).unwrap();
        let exact = (run(&whole, f, Precision::F64), run(&pieces, g, Precision::F64));
        let stated = (run(&whole, f, Precision::Stated), run(&pieces, g, Precision::Stated));
        assert_eq!(exact.0.len(), exact.1.len());
        for i in 0..exact.0.len() {
            let what = format!("{} result {i}, seed {seed}, {attrs:?}", op.name());
            agree(&exact.0[i], &exact.1[i], 1e-12, &what);
            // Every primitive rounds, to 6e-8 or 4e-3.
            let bf16 = args.iter().any(|x| x.dtype == DType::Bf16);
            agree(&stated.0[i], &stated.1[i], if bf16 { 8e-3 } else { 2e-6 }, &what);
        }
    }
}

fn check(op: Op, operands: &[(Type, Range)], attrs: Attrs) {
    check_with(op, operands, attrs, &|_| ());
}

/// Equal integers; floats whose difference is within `tolerance` of the tensor's largest element.
fn agree(a: &Tensor, b: &Tensor, tolerance: f64, what: &str) {
    assert_eq!((a.dtype, &a.dims), (b.dtype, &b.dims), "{what}");
    let Data::Float(_) = a.data else { return assert_eq!(a, b, "{what}") };
    let (a, b) = (a.numbers(), b.numbers());
    let size = a.iter().filter(|x| x.is_finite()).fold(0f64, |m, x| m.max(x.abs()));
    assert!(a.iter().all(|x| !x.is_nan()), "{what}");
    for (a, b) in a.iter().zip(&b) {
        assert!(a == b || (a - b).abs() <= tolerance * size, "{what}: {a} {b}");
    }
}

#[test]
fn every_composite_decomposes_and_nothing_else() {
    for def in OPS.iter().filter(|d| !d.has(Trait::Composite)) {
        let refused = decompose(&mut Builder::new("none"), def.op, &[], &Attrs::new());
        assert_eq!(refused.unwrap_err().0, format!("{} is a primitive", def.name));
    }
    let tested = [
        Op::GroupedTopk,
        Op::RmsNorm,
        Op::RmsNormGrad,
        Op::Softmax,
        Op::Rotary,
        Op::Attention,
        Op::AttentionGrad,
        Op::CrossEntropy,
        Op::CrossEntropyGrad,
        Op::AdamW,
    ];
    let composite: Vec<Op> = OPS.iter().filter(|d| d.has(Trait::Composite)).map(|d| d.op).collect();
    assert_eq!(composite, tested);
}

#[test]
fn grouped_topk() {
    for (k, groups, kept) in [(3, 5, 2), (5, 3, 1), (4, 3, 3), (15, 5, 5), (1, 15, 4)] {
        for score in ["max", "top2"] {
            if score == "top2" && groups == 15 {
                continue;
            }
            let attrs = Attrs::new().int("k", k).int("groups", groups).int("kept", kept);
            let attrs = attrs.word("group_score", score);
            check(Op::GroupedTopk, &[x(&[2, 3, 15])], attrs.clone());
            // Few different values: ties everywhere.
            check_with(Op::GroupedTopk, &[x(&[2, 3, 15])], attrs, &|args| {
                let coarse = args[0].numbers().iter().map(|x| x.floor()).collect();
                args[0] = Tensor::f32(&[2, 3, 15], coarse);
            });
        }
    }
}

#[test]
fn norms_and_softmax() {
    check(Op::RmsNorm, &[x(&[3, 1, 7]), x(&[7])], Attrs::new().float("eps", 1e-5));
    check(Op::RmsNorm, &[x(&[5]), x(&[5])], Attrs::new().float("eps", 1e-5));
    let operands = [x(&[3, 2, 7]), x(&[7]), positive(&[3, 2]), x(&[3, 2, 7])];
    check(Op::RmsNormGrad, &operands, Attrs::new());
    check(Op::Softmax, &[x(&[3, 5, 11])], Attrs::new());
    check(Op::Softmax, &[x(&[1])], Attrs::new());
}

#[test]
fn rotary() {
    for interleaved in [false, true] {
        for inverse in [false, true] {
            let attrs = Attrs::new().flag("interleaved", interleaved).flag("inverse", inverse);
            let operands = [x(&[2, 5, 3, 6]), ids(&[2, 5], 0, 40), positive(&[3])];
            check(Op::Rotary, &operands, attrs);
        }
    }
}

/// Widths, heads of q, k₁, k₂ and v, and lengths that have nothing in common.
fn attention_operands(gradient: bool, offset: bool, segments: bool) -> Vec<(Type, Range)> {
    let (b, s, t, h, dv) = (2, 3, 5, 6, 5);
    let mut all = vec![
        x(&[b, s, h, 7]),
        x(&[b, s, h, 2]),
        x(&[b, t, 6, 7]),
        x(&[b, t, 1, 2]),
        x(&[b, t, 3, dv]),
    ];
    if gradient {
        all.extend([x(&[b, s, h, dv]), positive(&[b, h, s]), x(&[b, s, h, dv])]);
    }
    if offset {
        all.push(ids(&[b], 0, 3));
    }
    if segments {
        all.extend([ids(&[b, s], 0, 3), ids(&[b, t], 0, 2)]);
    }
    all
}

#[test]
fn attention_and_its_gradient() {
    for bits in 0..8 {
        let (causal, offset, segments) = (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0);
        let attrs = Attrs::new().int("parts", 2).float("scale", 0.3);
        let attrs = attrs.flag("causal", causal).flag("offset", offset).flag("segments", segments);
        check(Op::Attention, &attention_operands(false, offset, segments), attrs.clone());
        check(Op::AttentionGrad, &attention_operands(true, offset, segments), attrs);
    }
}

#[test]
fn attention_over_pages() {
    for bits in 0..8 {
        let (causal, offset, segments) = (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0);
        let attrs = Attrs::new().int("parts", 2).float("scale", 0.3).flag("pages", true);
        let attrs = attrs.flag("causal", causal).flag("offset", offset).flag("segments", segments);
        // Four pages of five positions for two requests of two.
        let mut all = attention_operands(false, offset, segments);
        for pool in &mut all[2..5] {
            pool.0.dims[0] = 4.into();
        }
        if segments {
            *all.last_mut().unwrap() = ids(&[2, 10], 0, 2);
        }
        all.push(ids(&[2, 2], 0, 3));
        check(Op::Attention, &all, attrs);
    }
}

#[test]
fn cross_entropy() {
    let operands = [x(&[2, 3, 7]), ids(&[2, 3], -2, 7)];
    check(Op::CrossEntropy, &operands, Attrs::new());
    let operands = [x(&[5, 7]), ids(&[5], -2, 7), positive(&[5]), x(&[5])];
    check(Op::CrossEntropyGrad, &operands, Attrs::new());
}

#[test]
fn adamw() {
    let attrs = Attrs::new().float("beta1", 0.9).float("beta2", 0.95).float("eps", 1e-8);
    let scalar = |low, high| (Type::scalar(DType::F32), Range { low, high });
    for (low, high) in [(1.0, 1.0), (2.0, 2.0), (1000.0, 1000.0)] {
        let operands = [
            state(x(&[3, 5])),
            state(x(&[3, 5])),
            state(positive(&[3, 5])),
            x(&[3, 5]),
            scalar(1e-3, 1e-2),
            scalar(low, high),
        ];
        check(Op::AdamW, &operands, attrs.clone().float("decay", 0.1));
    }
}

#[test]
fn states_of_low_precision_stay_so() {
    let bf16 = |(ty, range): (Type, Range)| (ty.with_dtype(DType::Bf16).as_state(), range);
    let scalar = |at| (Type::scalar(DType::F32), Range { low: at, high: at });
    let attrs = Attrs::new().float("beta1", 0.9).float("beta2", 0.95).float("eps", 1e-8);
    let operands =
        [state(x(&[3])), bf16(x(&[3])), bf16(positive(&[3])), x(&[3]), scalar(0.01), scalar(3.0)];
    check(Op::AdamW, &operands, attrs.float("decay", 0.0));
    // Values of low precision too: converted once at the end.
    let low = |(ty, range): (Type, Range)| (ty.with_dtype(DType::Bf16), range);
    check(Op::RmsNorm, &[low(x(&[2, 7])), low(x(&[7]))], Attrs::new().float("eps", 1e-5));
    let operands: Vec<_> = attention_operands(false, false, false).into_iter().map(low).collect();
    check(Op::Attention, &operands, Attrs::new().int("parts", 2).float("scale", 0.3));
}
